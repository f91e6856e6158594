"""Values of the arguments against overfitting are checked when the arguments are built."""

import pytest

from qa_flax import TrainingArguments


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
            TrainingArguments(**{name: value})


def test_every_problem_is_named():
    with pytest.raises(ValueError, match=r"hidden_dropout_prob=2: .*; freeze_layers='x': "):
        TrainingArguments(hidden_dropout_prob=2, freeze_layers="x")
