"""Every training argument that is a number has a range; what lies outside is refused by name."""

import dataclasses

import numpy as np
import pytest
import transformers

from qa_flax import TrainingArguments
from qa_flax.train.argument_changes import KnownArguments
from qa_flax.train.argument_ranges import TRAINING_RANGES
from qa_flax.train.training_arguments import REFUSED, WITHOUT_EFFECT

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("value", [-1, -0.5, NAN, INFINITE, "1", True, [1], None])
@pytest.mark.parametrize("name", TRAINING_RANGES)
def test_a_value_outside_the_range_is_refused_in_one_line(name, value):
    needed = {"early_stopping_patience": 1} if name == "early_stopping_threshold" else {}
    if TRAINING_RANGES[name].contains(value):
        assert value is None or (name, value) == ("max_steps", -1)
        return
    with pytest.raises(ValueError, match=f"^{name}=.*: it must be ") as error:
        TrainingArguments(output_dir="out", **(needed | {name: value}))
    assert "\n" not in str(error.value)


def test_the_defaults_and_every_other_valid_value_are_accepted():
    args = TrainingArguments(
        output_dir="out",
        max_steps=np.int64(3),
        weight_decay=0,
        learning_rate=np.float32(0.5),
        max_grad_norm=None,
        save_steps=0.5,
        save_total_limit=0,
        eval_steps=0,
        seed=2**32 - 1,
        warmup_steps=0.1,
        num_train_epochs=0,
    )
    assert args.max_steps == 3


def test_an_interval_of_zero_is_allowed_where_nothing_uses_it():
    TrainingArguments(output_dir="out", save_steps=0, save_strategy="no")
    for name in ("save", "logging"):
        with pytest.raises(ValueError, match=f"^{name}_steps=0: it must be a number above 0$"):
            TrainingArguments(**{"output_dir": "out", f"{name}_steps": 0})


def test_no_number_is_without_a_range():
    """A new argument of transformers that is a number must get one here."""
    listed = TRAINING_RANGES.keys() | WITHOUT_EFFECT.keys() | REFUSED.keys()
    numbers = {
        field.name
        for field in dataclasses.fields(transformers.TrainingArguments)
        if type(field.default) in (int, float)
    }
    assert numbers - listed == set()


def test_transformers_own_arguments_are_checked_by_the_trainer():
    args = transformers.TrainingArguments(output_dir="out", seed=-1, use_cpu=True)
    with pytest.raises(ValueError, match="seed=-1: it must be a whole number from 0"):
        KnownArguments().check(args, set())
