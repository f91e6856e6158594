"""When the host reads the losses of a training, and when a step is compiled."""

import threading

import jax
import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments
from transformers import TrainerCallback

from qa_flax import Trainer, prepare_train_features
from qa_flax.device import parallel, programs
from qa_flax.device.step import Measurements
from qa_flax.train import steps


@pytest.fixture(scope="module")
def windows():
    examples = tiny.repeated_examples(48)
    return prepare_train_features(examples, tiny.tokenizer(), disable_tqdm=True, **WINDOW)


class Reads(TrainerCallback):
    """Counts at which steps losses are read."""

    def __init__(self, monkeypatch):
        self.steps, self.step = [], 0
        gather = parallel.gather

        def counted(tree):
            if isinstance(tree, Measurements):
                self.steps.append(self.step)
            return gather(tree)

        monkeypatch.setattr(parallel, "gather", counted)

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step


def train(folder, windows, callbacks=None, **changes):
    settings = {"max_steps": 6, "logging_steps": 3} | changes
    trainer = Trainer(
        tiny.model(),
        arguments(folder, **settings),
        train_dataset=windows,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def test_losses_are_read_where_they_are_logged(tmp_path, windows, monkeypatch):
    reads = Reads(monkeypatch)
    every = train(tmp_path / "1", windows, [reads], logging_steps=1)
    assert reads.steps == [1, 2, 3, 4, 5, 6]
    reads.steps.clear()
    trainer = train(tmp_path / "3", windows, [reads])
    assert reads.steps == [3, 3, 3, 6, 6, 6]
    losses = [logs["loss"] for logs in every.state.log_history if "loss" in logs]
    means = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    np.testing.assert_allclose(means, np.reshape(losses, (2, 3)).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "found_at"),
    [
        ({"logging_steps": 3}, 3),
        ({"logging_strategy": "no", "save_strategy": "steps", "save_steps": 4}, 4),
        ({"logging_strategy": "no"}, 6),
    ],
    ids=["at a log", "before a checkpoint", "at the end"],
)
def test_a_loss_that_is_not_finite_is_named_by_its_step(tmp_path, windows, settings, found_at):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.step = state.global_step
            if state.global_step == 1:
                kernel = model.head.outputs.kernel
                kernel[...] = kernel[...] * np.float32(np.nan)

    poison = Poison()
    with pytest.raises(FloatingPointError, match=r"^step 2: loss nan"):
        train(tmp_path, windows, [poison], **settings)
    assert poison.step == found_at
    assert not list(tmp_path.glob("checkpoint-*"))


def test_without_logs_losses_are_read_from_time_to_time(tmp_path, windows, monkeypatch):
    reads = Reads(monkeypatch)
    monkeypatch.setattr(steps, "MOST_UNREAD", 2)
    trainer = train(tmp_path, windows, [reads], logging_strategy="no")
    assert reads.steps == sorted(reads.steps)
    assert reads.steps[0] < 5
    assert trainer.state.log_history[-1]["train_loss"] > 0


def test_each_shape_is_compiled_once_and_ahead(tmp_path, monkeypatch):
    examples, lengths = tiny.repeated_examples(5), {"max_seq_length": 96, "doc_stride": 16}
    windows = prepare_train_features(examples, tiny.tokenizer(), disable_tqdm=True, **lengths)
    events, shapes, ahead = [], set(), []

    def count(name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            is_step = "one_core" in kwargs.get("fun_name", "")
            events.append((is_step, threading.current_thread().name.split("_0")[0]))

    start, compile_ahead = steps.Steps.start, steps.Steps.compile_ahead

    def watched_start(self, ready, *rates):
        shapes.add(ready.arrays["input_ids"].shape)
        return start(self, ready, *rates)

    def watched_ahead(self, state, batches):
        ahead.extend(batch["input_ids"].shape for batch in batches)
        return compile_ahead(self, state, batches)

    monkeypatch.setattr(steps.Steps, "start", watched_start)
    monkeypatch.setattr(steps.Steps, "compile_ahead", watched_ahead)
    programs.clear()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        settings = {"per_device_train_batch_size": 3, "max_steps": -1, "num_train_epochs": 2}
        train(tmp_path, windows, packing=True, **settings)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(shapes) == len(ahead) == 2
    assert set(ahead) == shapes
    assert [thread for is_step, thread in events if is_step] == ["qa_flax compiling"] * 2
