"""Every argument is supported, logs a warning that it has no effect, or is refused."""

import dataclasses
import logging

import pytest
import transformers
from transformers.trainer_utils import SchedulerType

from qa_flax import TrainingArguments
from qa_flax.train.more_data import MoreData
from qa_flax.train.regularization import Regularization
from qa_flax.train.training_arguments import (
    COUNTS,
    OLD_NAMES,
    REFUSED,
    REMOVED,
    SUPPORTED,
    WITHOUT_EFFECT,
    check_training_arguments,
)


def test_every_argument_of_transformers_is_in_exactly_one_list():
    names = [f.name for f in dataclasses.fields(transformers.TrainingArguments)]
    listed = [*SUPPORTED, *WITHOUT_EFFECT, *REFUSED]
    assert len(listed) == len(set(listed))
    assert sorted(set(names) - set(listed)) == []


def test_additional_fields_are_the_old_names_and_the_flags_of_this_package():
    inherited = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    additional = {f.name for f in dataclasses.fields(TrainingArguments)} - inherited
    package_flags = {"overwrite_output_dir", "shard_params", "packing", "profile"}
    package_flags |= {"bf16_gradients", "dropout_bits"}
    package_flags |= {
        f.name for kind in (Regularization, MoreData) for f in dataclasses.fields(kind)
    }
    assert additional == OLD_NAMES.keys() | REMOVED.keys() | package_flags


def test_the_defaults_equal_those_of_transformers_and_are_supported(caplog):
    actual, expected = TrainingArguments(output_dir="out"), transformers.TrainingArguments("out")
    for field in dataclasses.fields(expected):
        assert getattr(actual, field.name) == getattr(expected, field.name), field.name
    for args in (actual, expected):
        check_training_arguments(args)
    assert not caplog.records


def test_values_that_transformers_checks_with_torch_or_accelerate_need_neither():
    values = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "bf16": True,
        "fsdp": "full_shard",
        "optim": "lamb",
    }
    args = TrainingArguments(output_dir="out", eval_strategy="epoch", **values)
    assert {name: getattr(args, name) for name in values} == values
    assert args.lr_scheduler_type is SchedulerType.REDUCE_ON_PLATEAU
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_reduce_lr_on_plateau_needs_an_eval_strategy():
    with pytest.raises(ValueError, match="reduce_lr_on_plateau requires an eval strategy"):
        TrainingArguments(output_dir="out", lr_scheduler_type="reduce_lr_on_plateau")


def test_a_warmup_ratio_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"warmup_ratio is 1.5; it must be in \[0, 1\)"):
        TrainingArguments(output_dir="out", warmup_ratio=1.5)


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_argument_is_refused_with_the_reason(name):
    args = TrainingArguments(output_dir="out")
    setattr(args, name, ["something else"])  # set after the checks of transformers
    with pytest.raises(ValueError, match="does not support these training arguments") as refused:
        check_training_arguments(args)
    assert f"{name}=['something else']: {REFUSED[name][1]}" in str(refused.value)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_an_argument_without_effect_logs_a_warning_with_the_reason(caplog, name):
    args = TrainingArguments(output_dir="out")
    setattr(args, name, "something else")
    with caplog.at_level(logging.WARNING):
        check_training_arguments(args)
    assert f"{name}='something else' has no effect: {WITHOUT_EFFECT[name]}" in caplog.text


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_argument_logs_a_warning_with_the_reason(caplog, name):
    args = TrainingArguments(output_dir="out", **{name: "something else"})
    check_training_arguments(args)
    assert f"{name}='something else' has no effect: {REMOVED[name][1]}." in caplog.text


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -2, 1.5, None])
def test_a_count_below_one_is_refused(name, value):
    args = TrainingArguments(output_dir="out")
    setattr(args, name, value)
    with pytest.raises(ValueError, match=f"{name}={value}: it must be a whole number of at least"):
        check_training_arguments(args)


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_argument_of_the_constructor_is_refused_by_the_check(name):
    """transformers would look for DeepSpeed and others, and say that they are not installed."""
    other = {"label_names": ["labels"], "skip_memory_metrics": False, "eval_do_concat_batches": 0}
    args = TrainingArguments(output_dir="out", **{name: other.get(name, {"a": True})})
    with pytest.raises(ValueError, match=f"does not support these .*\n  {name}="):
        check_training_arguments(args)


@pytest.mark.parametrize(("name", "value"), [("debug", "underflow_overflow")])
def test_an_unknown_choice_is_refused_with_the_allowed_ones(name, value):
    args = TrainingArguments(output_dir="out", **{name: value})
    with pytest.raises(ValueError, match=r"underflow_overflow.* \(allowed: tpu_metrics_debug\)"):
        check_training_arguments(args)


def test_lamb_is_accepted_although_transformers_does_not_have_it():
    assert TrainingArguments(output_dir="out", optim="lamb").optim == "lamb"
    with pytest.raises(ValueError, match="lamb"):
        transformers.TrainingArguments(output_dir="out", optim="lamb")
