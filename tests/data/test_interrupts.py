"""Ctrl-C acts after what must not be interrupted, and a training that it ends says what is kept."""

import os
import signal
import threading

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.data.interrupts import interrupts_deferred


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # Python calls the handler between two bytecodes
        pass


@pytest.fixture(autouse=True)
def _a_terminal_s_handler():
    """Python's own handler: a shell starts processes in the background without one."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_acts_when_the_outermost_context_exits():
    done = []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012
        with interrupts_deferred():
            press_ctrl_c()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_another_error_passes_through_and_the_handler_is_restored():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interrupts_deferred():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_handler_that_is_not_pythons_stays(handler):
    previous = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_deferred():
            assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_need_no_signals():
    results = []

    def run():
        with interrupts_deferred():
            results.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert results == ["ran"]


@pytest.mark.slow  # by a real kernel, too: train/test_notebook.py
def test_an_update_interrupted_at_its_worst_point_is_kept(tmp_path, caplog):
    """Ctrl-C comes when the step has released the old weights, and the new ones are not stored."""
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), 24, 3)
    models = [tiny.model(), tiny.model()]
    settings = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    expected, trainer = (
        Trainer(
            model,
            arguments(tmp_path / f"{steps}", max_steps=steps, **settings),
            train_dataset=windows,
        )
        for model, steps in zip(models, (2, 4), strict=True)
    )
    expected.train()
    replace, updates = trainer._live.replace, []

    def interrupted_replace(state):
        updates.append(state)
        if len(updates) == 2:
            press_ctrl_c()
        replace(state)

    trainer._live.replace = interrupted_replace
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    kept, two_updates = (np.asarray(model.head.outputs.kernel) for model in models[::-1])
    np.testing.assert_array_equal(kept, two_updates)
    (message,) = (r.getMessage() for r in caplog.records if "interrupted" in r.getMessage())
    assert "after step 2 of 4. The model has the weights of step 2" in message
    assert f"resumes from {tmp_path}/4/checkpoint-2" in message
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
