"""`profile=N`: a trace of N updates and its summary."""

import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments
from transformers import TrainerCallback

from qa_flax import Trainer, prepare_train_features


@pytest.fixture(scope="module")
def windows():
    examples = tiny.repeated_examples(24)
    return prepare_train_features(examples, tiny.tokenizer(), disable_tqdm=True, **WINDOW)


def train(folder, windows, **changes):
    args = arguments(folder, **({"max_steps": 8, "logging_steps": 4} | changes))
    trainer = Trainer(tiny.model(), args, train_dataset=windows)
    trainer.train()
    return trainer


def test_a_training_with_a_profile_is_the_same_and_prints_a_summary(tmp_path, windows, capsys):
    plain = train(tmp_path / "plain", windows)
    assert "Profile" not in capsys.readouterr().err
    profiled = train(tmp_path / "profiled", windows, profile=3)
    lines = capsys.readouterr().err.splitlines()
    (first,) = [n for n, line in enumerate(lines) if line.startswith("Profile of 3 updates, in ")]
    assert lines[first].endswith("profiled/profile:")
    assert "the cores computed" in lines[first + 1]
    assert list((tmp_path / "profiled" / "profile").rglob("*.xplane.pb"))
    losses = [
        [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
        for trainer in (plain, profiled)
    ]
    assert losses[0] == losses[1]


def test_a_training_that_ends_before_has_a_shorter_profile(tmp_path, windows, capsys):
    train(tmp_path, windows, profile=50)
    assert "Profile of 6 updates" in capsys.readouterr().err


def test_a_training_that_is_too_short_says_so(tmp_path, windows, caplog):
    train(tmp_path, windows, max_steps=1, profile=5)
    assert "profile=5 has no effect: the trace begins after update 2" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="profile=-1: it must be"):
        arguments(tmp_path, profile=-1)


def test_a_training_that_fails_while_it_is_recorded_ends_the_trace(tmp_path, windows, capsys):
    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                kernel = model.head.outputs.kernel
                kernel[...] = kernel[...] * np.float32(np.nan)
            if state.global_step == 6:  # before anybody has read the losses
                raise RuntimeError("of the script")

    args = arguments(tmp_path / "1", max_steps=8, logging_strategy="no", profile=20)
    trainer = Trainer(tiny.model(), args, train_dataset=windows, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="of the script"):
        trainer.train()
    train(tmp_path / "2", windows, profile=2)
    assert "Profile of 2 updates" in capsys.readouterr().err
