"""A step that was compiled once serves every training and evaluation that is equal."""

import jax
import numpy as np
import tiny
from tiny_trainers import WINDOW, arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.device import programs

WHAT_IS_COMPILED = []


def _note(name, seconds, **kwargs):
    if name == "/jax/core/compile/backend_compile_duration":
        WHAT_IS_COMPILED.append(kwargs)


def run(folder, windows, seed=0, dropout=0.1, **changes):
    """A training and an evaluation; how many programs were compiled, the losses."""
    model = tiny.model(seed, hidden_dropout_prob=dropout)
    trainer = Trainer(
        model,
        arguments(folder, max_steps=2, logging_steps=1, **changes),
        train_dataset=windows,
        eval_dataset=windows,
    )
    WHAT_IS_COMPILED.clear()
    trainer.train()
    trainer.evaluate()
    compiled = len(WHAT_IS_COMPILED)
    return compiled, [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


def test_a_second_training_compiles_nothing(tmp_path):
    """As of another fold, seed or learning rate; what changes the step is compiled."""
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), disable_tqdm=True, **WINDOW
    )
    programs.forget()
    jax.monitoring.register_event_duration_secs_listener(_note)
    try:
        first, losses = run(tmp_path / "1", windows)
        again, same = run(tmp_path / "1", windows)
        other, others = run(tmp_path / "2", windows, seed=1, learning_rate=1e-2)
        changed = [
            run(tmp_path / "3", windows, weight_decay=0.3),
            run(tmp_path / "4", windows, dropout=0.5),
            run(tmp_path / "5", windows, label_smoothing_factor=0.1),
        ]
        programs.forget()
        forgotten, found_again = run(tmp_path / "6", windows)
    finally:
        jax.monitoring.unregister_event_duration_listener(_note)
    assert first >= 2
    assert (again, other) == (0, 0)
    assert same == losses == found_again
    assert not np.isclose(others, losses).any()
    assert all(count >= 1 for count, _ in changed)
    assert forgotten >= 2
