"""Equal trainings and evaluations share one compiled step."""

import jax
import numpy as np
import optax
import tiny
from tiny_trainers import WINDOW, arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.device import programs
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import Reduction
from qa_flax.train.custom import as_direction

COMPILATIONS = []


def _count(name, seconds, **kwargs):
    if name == "/jax/core/compile/backend_compile_duration":
        COMPILATIONS.append(kwargs)


def run(folder, windows, seed=0, **changes):
    """Train and evaluate; the number of compiled programs, and the logged losses."""
    trainer = Trainer(
        tiny.model(seed, hidden_dropout_prob=0.1),
        arguments(folder, max_steps=2, logging_steps=1, **changes),
        train_dataset=windows,
        eval_dataset=windows,
    )
    COMPILATIONS.clear()
    trainer.train()
    trainer.evaluate()
    compiled = len(COMPILATIONS)
    return compiled, [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


def test_a_second_training_compiles_nothing(tmp_path):
    """Neither a repeated one, nor one with another seed and learning rate."""
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), disable_tqdm=True, **WINDOW
    )
    programs.clear()
    jax.monitoring.register_event_duration_secs_listener(_count)
    try:
        first, losses = run(tmp_path / "1", windows)
        repeated, same_losses = run(tmp_path / "1", windows)
        changed, other_losses = run(tmp_path / "2", windows, seed=1, learning_rate=1e-2)
    finally:
        jax.monitoring.unregister_event_duration_listener(_count)
    assert first >= 2
    assert (repeated, changed) == (0, 0)
    assert same_losses == losses
    assert not np.isclose(other_losses, losses).any()


def test_settings_that_change_the_step_give_another_program():
    def train(smoothing=0.0, dropout=0.1, **optimizer_settings):
        graphdef = tiny.model(hidden_dropout_prob=dropout).graphdef("float32")
        return programs.train_program(graphdef, make_optimizer(**optimizer_settings), smoothing)

    def evaluate(*reduction):
        graphdef = tiny.model().graphdef("float32")
        return programs.eval_program(graphdef, Reduction(*reduction) if reduction else None)

    assert train() is train()
    assert evaluate() is evaluate()
    assert evaluate(20, -1e4, True) is evaluate(20, -1e4, True)
    cached = [train(), train(0.1), train(dropout=0.2), train(weight_decay=0.1), train(name="sgd")]
    cached += [evaluate(), evaluate(20, -1e4, True), evaluate(20, -1e4, False)]
    assert len(set(map(id, cached))) == len(cached) == programs.CACHE_SIZE
    before = train()
    programs.clear()
    assert train() is not before


def test_a_second_training_with_an_own_optimizer_shares_its_program():
    graphdef, optimizer = tiny.model().graphdef("float32"), optax.sgd(1e-2)

    def train(optimizer):
        return programs.train_program(graphdef, as_direction(optimizer), 0.0)

    assert train(optimizer) is train(optimizer)
    assert train(optax.sgd(1e-2)) is not train(optimizer)
