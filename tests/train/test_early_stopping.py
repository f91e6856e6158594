"""`early_stopping_patience` stops the training, keeps the best model, and says what it sets."""

import re

import jax
import numpy as np
import pytest
import tiny
import transformers
from flax import nnx
from tiny_trainers import SET_BY_PATIENCE, arguments, trainer_in
from transformers import TrainerCallback

from qa_flax import Trainer, prepare_train_features


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


@pytest.fixture(scope="module")
def windows(tokenizer, examples):
    return prepare_train_features(examples, tokenizer, max_seq_length=64, doc_stride=16)


# ---- the arguments -------------------------------------------------------------------------------


def test_a_patience_needs_an_evaluation_set(tmp_path, windows):
    args = arguments(tmp_path, early_stopping_patience=2)
    with pytest.raises(ValueError, match="early_stopping_patience=2 needs an eval_dataset"):
        Trainer(tiny.model(), args, train_dataset=windows)


def test_a_patience_that_is_set_later_can_be_taken_back(tmp_path, windows, caplog):
    args = arguments(tmp_path, save_strategy="steps")
    trainer = Trainer(tiny.model(), args, train_dataset=windows, eval_dataset=windows)
    names = (*SET_BY_PATIENCE, "save_steps")
    before = {name: getattr(args, name) for name in names}

    def early_stopping():
        return [c for c in trainer.callback_handler.callbacks if is_early_stopping(c)]

    args.early_stopping_patience, args.early_stopping_threshold = 2, 0.25
    trainer._apply_changed_arguments()
    (callback,) = early_stopping()
    assert (callback.early_stopping_patience, callback.early_stopping_threshold) == (2, 0.25)
    assert {name: getattr(args, name) for name in SET_BY_PATIENCE} == SET_BY_PATIENCE
    args.early_stopping_patience, args.eval_strategy, args.eval_steps = 5, "steps", 4
    trainer._apply_changed_arguments()
    (callback,) = early_stopping()
    assert callback.early_stopping_patience == 5
    assert (args.save_strategy, args.save_steps) == ("steps", 4)
    args.early_stopping_patience, args.early_stopping_threshold = None, 0.0
    caplog.clear()
    trainer._apply_changed_arguments()
    assert not early_stopping()
    # eval_strategy was changed by the script after the patience had set it, so it stays.
    assert {name: getattr(args, name) for name in names} == before | {"eval_strategy": "steps"}
    assert "early_stopping_patience=None resets save_strategy='steps', " in caplog.text


def is_early_stopping(callback):
    return isinstance(callback, transformers.EarlyStoppingCallback)


@pytest.mark.parametrize("is_added_later", [False, True])
def test_the_callback_of_a_script_takes_precedence(tmp_path, windows, caplog, is_added_later):
    own = transformers.EarlyStoppingCallback(7)
    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, early_stopping_patience=2),
        train_dataset=windows,
        eval_dataset=windows,
        callbacks=None if is_added_later else [own],
    )
    if is_added_later:
        trainer.add_callback(own)
    assert [c for c in trainer.callback_handler.callbacks if is_early_stopping(c)] == [own]
    assert "early_stopping_patience=2 does not stop the training" in caplog.text
    assert "with its patience of 7" in caplog.text


# ---- training ------------------------------------------------------------------------------------


class Scores:
    """`compute_metrics` that returns the next of some scores."""

    def __init__(self, *scores):
        self._scores = iter(scores)

    def __call__(self, scored):
        return {"exact_match": next(self._scores)}


STEPS = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 6, "logging_steps": 1}


class Weights(TrainerCallback):
    """Records the bias of the span head after each update."""

    def __init__(self):
        self.biases = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.biases.append(np.array(model.head.outputs.bias[...]))


@pytest.mark.slow  # the default suite has test_a_resumed_run_stops_early_at_the_same_step
@pytest.mark.parametrize("ema_decay", [0.0, 0.3])
def test_the_training_stops_with_the_best_model_and_says_so(
    tmp_path, examples, tokenizer, caplog, ema_decay
):
    changes = STEPS | {"metric_for_best_model": "exact_match", "ema_decay": ema_decay}
    record = Weights()
    trainer = trainer_in(
        tmp_path, examples, tokenizer, [record], early_stopping_patience=2, **changes
    )
    trainer.compute_metrics = Scores(10.0, 40.5, 40.5, 30.0, 20.0)
    trainer.train()
    assert trainer.state.global_step == 4  # an equal score is no improvement
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (40.5, 2)
    assert (
        "Stopped at step 4 of 6: eval_exact_match has not improved for 2 evaluations; "
        "the model is that of step 2 (eval_exact_match 40.5)." in caplog.messages
    )
    np.testing.assert_array_equal(trainer.model.head.outputs.bias[...], record.biases[1])
    assert (record.biases[1] != record.biases[3]).any()
    best = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2")
    jax.tree.map(np.testing.assert_array_equal, *(nnx.split(m)[1] for m in (trainer.model, best)))


@pytest.mark.slow
def test_a_training_that_goes_on_to_its_end_is_not_reported_as_stopped(
    tmp_path, examples, tokenizer, caplog
):
    changes = STEPS | {"metric_for_best_model": "exact_match", "max_steps": 4}
    trainer = trainer_in(tmp_path, examples, tokenizer, early_stopping_patience=3, **changes)
    trainer.compute_metrics = Scores(1.0, 0.0, 0.0, 0.0)
    trainer.train()
    assert trainer.state.global_step == 4
    assert not [text for text in caplog.messages if "Stopped" in text]
    warning = r"early_stopping_patience=3 cannot stop this training before its end: .* at step 4,"
    assert re.search(warning, caplog.text)
    # The same trainer, without a patience, and with one that is too short to matter before.
    trainer.args.early_stopping_patience = 1
    trainer.compute_metrics = Scores(1.0, 2.0, 2.0, 3.0)
    trainer.train()
    assert trainer.state.global_step == 3
    assert "has not improved for 1 evaluation; the model is that of step 2" in caplog.text
    trainer.args.early_stopping_patience = None
    trainer.compute_metrics = Scores(3.0, 2.0, 1.0, 0.0)
    trainer.train()
    assert trainer.state.global_step == 4
    assert not trainer.args.load_best_model_at_end


@pytest.mark.slow
def test_an_improvement_below_the_threshold_does_not_count(tmp_path, examples, tokenizer, caplog):
    changes = STEPS | {"metric_for_best_model": "exact_match", "early_stopping_threshold": 5.0}
    trainer = trainer_in(tmp_path, examples, tokenizer, early_stopping_patience=2, **changes)
    trainer.compute_metrics = Scores(10.0, 20.0, 21.0, 22.0, 50.0, 60.0)
    trainer.train()
    assert trainer.state.global_step == 4
    text = "has not improved by more than 5 for 2 evaluations; the model is that of step 4"
    assert text in caplog.text


@pytest.mark.slow
def test_only_the_data_set_with_the_metric_counts(tmp_path, examples, tokenizer, caplog):
    changes = STEPS | {"metric_for_best_model": "one_exact_match"}
    trainer = trainer_in(tmp_path, examples, tokenizer, early_stopping_patience=2, **changes)
    trainer.eval_dataset = {"one": trainer.eval_dataset, "two": trainer.eval_dataset}
    trainer.eval_examples = {"one": examples, "two": examples}
    # The scores of "one" and "two" in turn.
    trainer.compute_metrics = Scores(3.0, 0.0, 4.0, 1.0, 4.0, 2.0, 4.0, 3.0)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.best_global_step) == (4, 2)
    assert "early stopping is disabled" not in caplog.text


@pytest.mark.slow
def test_the_loss_is_followed_by_default(tmp_path, windows, caplog):
    """A learning rate this high makes the loss worse after each epoch."""
    args = arguments(
        tmp_path, learning_rate=0.3, num_train_epochs=8, early_stopping_patience=2, optim="sgd"
    )
    trainer = Trainer(tiny.model(), args, train_dataset=windows, eval_dataset=windows)
    trainer.compute_metrics = None
    trainer.train()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    best = int(np.argmin(losses))
    assert trainer.state.best_metric == min(losses)
    assert np.isclose(trainer.evaluate()["eval_loss"], min(losses), atol=1e-6)
    stopped = [text for text in caplog.messages if text.startswith("Stopped at step")]
    assert len(stopped) == (len(losses) < 8)
    assert len(losses) == min(8, best + 3)
