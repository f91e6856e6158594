"""When the host reads the losses of a training, and when a step is compiled."""

import re

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


def test_all_shapes_are_compiled_before_the_first_step(tmp_path, windows):
    compiled = []

    class Compiled(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.before = len(compiled)

        def on_step_end(self, args, state, control, **kwargs):
            self.during = len(compiled) - self.before

    def count(name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(re.sub(r"\W", "", kwargs.get("fun_name", "")))

    programs.clear()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        callback = Compiled()
        trainer = train(
            tmp_path,
            windows,
            [callback],
            packing=True,
            per_device_train_batch_size=3,
            max_steps=-1,
            num_train_epochs=3,
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert trainer.state.global_step > 3
    assert callback.before >= 1
    assert callback.during == 0
