"""A step that was compiled once serves every training and evaluation that is equal."""

import jax
import numpy as np
import tiny
from tiny_trainers import WINDOW, arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.device import programs
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import Reduction

WHAT_IS_COMPILED = []


def _note(name, seconds, **kwargs):
    if name == "/jax/core/compile/backend_compile_duration":
        WHAT_IS_COMPILED.append(kwargs)


def run(folder, windows, seed=0, **changes):
    """A training and an evaluation; how many programs were compiled, the losses."""
    trainer = Trainer(
        tiny.model(seed, hidden_dropout_prob=0.1),
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
    """As of another fold, seed or learning rate."""
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), disable_tqdm=True, **WINDOW
    )
    programs.forget()
    jax.monitoring.register_event_duration_secs_listener(_note)
    try:
        first, losses = run(tmp_path / "1", windows)
        again, same = run(tmp_path / "1", windows)
        other, others = run(tmp_path / "2", windows, seed=1, learning_rate=1e-2)
    finally:
        jax.monitoring.unregister_event_duration_listener(_note)
    assert first >= 2
    assert (again, other) == (0, 0)
    assert same == losses
    assert not np.isclose(others, losses).any()


def test_what_changes_the_step_is_another_program():
    def train(smoothing=0.0, dropout=0.1, **of_optimizer):
        graphdef = tiny.model(hidden_dropout_prob=dropout).graphdef("float32")
        return programs.train_program(graphdef, make_optimizer(**of_optimizer), smoothing)

    def evaluate(*reduction):
        graphdef = tiny.model().graphdef("float32")
        return programs.eval_program(graphdef, Reduction(*reduction) if reduction else None)

    assert train() is train()
    assert evaluate() is evaluate()
    assert evaluate(20, -1e4, True) is evaluate(20, -1e4, True)
    made = [train(), train(0.1), train(dropout=0.2), train(weight_decay=0.1), train(name="sgd")]
    made += [evaluate(), evaluate(20, -1e4, True), evaluate(20, -1e4, False)]
    assert len(set(map(id, made))) == len(made) == programs.KEPT
    before = train()
    programs.forget()
    assert train() is not before
