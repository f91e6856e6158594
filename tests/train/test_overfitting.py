"""The warning that the gap between training and validation opens, and logs of short trainings."""

import logging

import pytest
import tiny
from tiny_trainers import WINDOW, arguments
from transformers import TrainerCallback

from qa_flax import EarlyStoppingCallback, Trainer, prepare_train_features
from qa_flax.train.overfitting import warnings_of
from qa_flax.train.plan import describe_few_evaluations, logging_steps_of

RISE = "validation loss has risen for 3 evaluations while training loss falls; the best was at"


def history_of(eval_losses, losses, accuracies=None):
    """An evaluation every 10 steps, after the training losses of steps 5 and 10."""
    history = []
    for n, (eval_loss, loss) in enumerate(zip(eval_losses, losses, strict=True), 1):
        history += [{"step": 10 * n - s, "loss": loss} for s in (5, 0)]
        entry = {"step": 10 * n, "eval_loss": eval_loss}
        if accuracies is not None:
            pair = zip(("train", "eval"), accuracies[n - 1], strict=True)
            entry |= {f"{p}_accuracy_{end}": v for p, v in pair for end in ("start", "end")}
        history.append(entry)
    return history


def warned_at(history, **settings):
    """The steps of the evaluations that warn, with what they say."""
    ends = [n for n, entry in enumerate(history) if "eval_loss" in entry]
    texts = {history[n]["step"]: warnings_of(history[: n + 1], **settings) for n in ends}
    return {step: text for step, text in texts.items() if text}


def test_a_rising_validation_loss_is_warned_of_once():
    rising = history_of([3, 2, 2.1, 2.2, 2.3, 2.4, 2.2, 2.5, 2.6, 2.7], range(10, 0, -1))
    ((step, (text,)),) = warned_at(rising, prefix="--").items()
    assert step == 50
    assert text == (
        f"{RISE} step 20: --early_stopping_patience, --hidden_dropout_prob, --layerwise_lr_decay"
    )
    ((_, (in_python,)),) = warned_at(rising).items()
    assert "--" not in in_python
    # A finished run that is resumed has two evaluations of its last step.
    at = next(n for n, entry in enumerate(rising) if entry["step"] == 40 and "eval_loss" in entry)
    resumed = [*rising[: at + 1], {"step": 40, "eval_loss": 1.0}, *rising[at + 1 :]]
    assert warned_at(resumed, prefix="--")[50] == [text]


@pytest.mark.parametrize(
    ("eval_losses", "losses"),
    [
        ([3, 2, 2.1, 2.2, 2.1, 2.2, 2.3], range(10, 3, -1)),  # never three times in a row
        ([2, 2.1, 2.2, 2.3, 2.4], [1, 2, 3, 4, 5]),  # both rise: the learning rate, perhaps
        ([2, 2, 2, 2, 2], [5, 4, 3, 2, 1]),
        ([2, 2.1, 2.2], [5, 4, 3]),
        ([], []),
    ],
)
def test_what_is_not_overfitting_is_not_warned_of(eval_losses, losses):
    assert warned_at(history_of(eval_losses, losses)) == {}


def test_without_losses_of_both_sets_there_is_no_warning():
    rising = history_of([2, 2.1, 2.2, 2.3], [5, 4, 3, 2])
    assert warned_at(rising)
    assert warned_at([entry for entry in rising if "loss" not in entry]) == {}
    unlabelled = [{k: v for k, v in entry.items() if k != "eval_loss"} for entry in rising]
    assert warnings_of(unlabelled) == []
    assert warned_at(rising, stops_early=True) == {}


def test_a_gap_between_the_accuracies_is_warned_of_if_the_loss_falls():
    gaps = [(50, 50), (70, 50), (70, 60), (80, 60), (90, 70), (95, 70)]
    falling = history_of([6, 5, 4, 3, 2, 1], range(6, 0, -1), gaps)
    ((step, (text,)),) = warned_at(falling).items()
    assert step == 50
    assert text == (
        "the accuracy of starts and ends is 90.0% on the training questions and 70.0% on the "
        "validation set, 20 points lower: hidden_dropout_prob, weight_decay, layerwise_lr_decay"
    )
    rising = history_of([1, 2, 3, 4, 5, 6], range(6, 0, -1), gaps)
    assert [RISE in text[0] for text in warned_at(rising).values()] == [True]
    assert list(warned_at(rising, stops_early=True)) == [50]


@pytest.mark.parametrize(
    ("updates", "expected"),
    [(1, None), (9, None), (10, 1), (30, 2), (90, 4), (300, 15), (499, 25), (500, None)],
)
def test_short_trainings_log_about_twenty_times(tmp_path, updates, expected):
    args = arguments(tmp_path)
    assert logging_steps_of(args, updates) == expected
    assert args.logging_steps == 500
    for changes in ({"logging_steps": 50}, {"logging_strategy": "epoch"}, {"logging_steps": 0.1}):
        assert logging_steps_of(arguments(tmp_path, **changes), updates) is None


def test_an_eval_steps_beyond_the_training_is_reported(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps")
    message = describe_few_evaluations(args, 90)
    assert "eval_steps=500, but the training has only 90 updates" in message
    assert "Set eval_steps=9, or eval_strategy='epoch'" in message
    for changes, updates in (
        ({}, 500),
        ({}, 9),
        ({"eval_steps": 90}, 90),
        ({"eval_steps": 0.5}, 90),
    ):
        args = arguments(tmp_path, eval_strategy="steps", **changes)
        assert describe_few_evaluations(args, updates) is None
    assert describe_few_evaluations(arguments(tmp_path), 90) is None


class Worse(TrainerCallback):
    """Let each evaluation have a larger loss than the one before, and the training a smaller."""

    def on_log(self, args, state, control, logs, **kwargs):
        entry = state.log_history[-1]
        for name, sign in (("eval_loss", 1), ("loss", -1)):
            if name in entry:
                entry[name] = float(sign * state.global_step)


@pytest.mark.slow
def test_a_resumed_run_does_not_warn_again(tmp_path, caplog):
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **WINDOW)

    def warnings(*callbacks, resume=None, **changes):
        caplog.clear()
        settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 10}
        settings |= {"save_strategy": "steps", "save_steps": 5} | changes
        args = arguments(tmp_path, **settings)
        few = windows.select(range(2))
        trainer = Trainer(
            tiny.model(), args, train_dataset=few, eval_dataset=few, callbacks=[Worse, *callbacks]
        )
        with caplog.at_level(logging.WARNING):
            trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.logging_steps == 1
        return [r.getMessage() for r in caplog.records if "risen" in r.getMessage()]

    assert len(warnings()) == 1
    assert warnings(resume=str(tmp_path / "checkpoint-5")) == []
    early = {"metric_for_best_model": "loss", "load_best_model_at_end": True}
    assert warnings(EarlyStoppingCallback(9), **early) == []
