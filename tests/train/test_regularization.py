"""Arguments against overfitting: their ranges, and what early stopping sets of the others."""

import dataclasses

import pytest
import transformers
from tiny_trainers import SET_BY_PATIENCE

from qa_flax import TrainingArguments
from qa_flax.train.training_arguments import check_training_arguments


@pytest.mark.parametrize(
    ("changes", "expected", "line"),
    [
        (
            {"save_strategy": "steps"},
            SET_BY_PATIENCE,
            "eval_strategy='epoch', save_strategy='epoch', load_best_model_at_end=True, "
            "metric_for_best_model='loss'",
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 30, "metric_for_best_model": "exact_match"},
            {"save_strategy": "steps", "save_steps": 30, "greater_is_better": True},
            "save_strategy='steps', save_steps=30, load_best_model_at_end=True",
        ),
        (
            {"eval_strategy": "steps", "logging_steps": 7, "save_strategy": "steps"},
            {"eval_steps": 7, "save_steps": 7},
            "save_steps=7, load_best_model_at_end=True, metric_for_best_model='loss'",
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 0.1, "save_strategy": "epoch"},
            {"save_strategy": "steps", "save_steps": 0.1},
            "save_strategy='steps', save_steps=0.1, load_best_model_at_end=True, "
            "metric_for_best_model='loss'",
        ),
        (
            {"eval_steps": 20},  # without a strategy it would have no effect
            {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 20},
            "eval_strategy='steps', save_strategy='steps', save_steps=20, "
            "load_best_model_at_end=True, metric_for_best_model='loss'",
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 9, "save_strategy": "best"},
            {"eval_strategy": "steps", "save_strategy": "best", "save_steps": 500},
            "load_best_model_at_end=True, metric_for_best_model='loss'",
        ),
        (
            {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True},
            SET_BY_PATIENCE,
            "metric_for_best_model='loss'",
        ),
    ],
)
def test_a_patience_sets_what_it_needs_and_says_what_it_changed(caplog, changes, expected, line):
    settings = {"save_strategy": "no"} | changes
    args = TrainingArguments(output_dir="out", early_stopping_patience=2, **settings)
    check_training_arguments(args)
    expected = expected | {"load_best_model_at_end": True, "do_eval": True}
    assert {name: getattr(args, name) for name in expected} == expected
    assert [r.getMessage() for r in caplog.records] == [f"early_stopping_patience=2 sets {line}."]
    caplog.clear()
    copy = dataclasses.replace(args, seed=1)  # nothing is left to set
    assert {name: getattr(copy, name) for name in expected} == expected
    assert not caplog.records


def test_without_a_patience_nothing_is_set(caplog):
    args, expected = TrainingArguments(output_dir="out"), transformers.TrainingArguments("out")
    for name in (*SET_BY_PATIENCE, "save_steps", "eval_steps", "do_eval"):
        assert getattr(args, name) == getattr(expected, name), name
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "allowed", "values"),
    [
        ("layerwise_lr_decay", "above 0 and at most 1", (0, -1.0, 1.01, "0.9", True)),
        ("reinit_layers", "a whole number of at least 0", (-1, 1.0, "1", True)),
        ("early_stopping_patience", "a whole number of at least 1", (0, 1.5)),
        ("early_stopping_threshold", "at least 0", (-0.1, float("inf"))),
        ("ema_decay", "at least 0 and below 1", (1.0, -0.1)),
        ("eval_train_samples", "a whole number of at least 0", (-1, 2.5)),
    ],
)
def test_values_outside_the_range_are_refused_by_name(name, allowed, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}={value!r}: it must be {allowed}$"):
            TrainingArguments(**({"early_stopping_patience": 1} | {name: value}))


def test_every_problem_is_named():
    with pytest.raises(ValueError, match=r"hidden_dropout_prob=2: .*; freeze_layers='x': "):
        TrainingArguments(hidden_dropout_prob=2, freeze_layers="x")


def test_a_threshold_alone_is_refused():
    message = "early_stopping_threshold=0.5: it has no effect without early_stopping_patience"
    with pytest.raises(ValueError, match=message):
        TrainingArguments(output_dir="out", early_stopping_threshold=0.5)
