"""Every argument is supported, logs a warning that it has no effect, or is refused."""

import dataclasses
import logging

import pytest
import transformers
from transformers.trainer_utils import SchedulerType

from qa_flax import TrainingArguments
from qa_flax.train.training_arguments import (
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
    package_flags = {"overwrite_output_dir", "shard_params"}
    assert additional == OLD_NAMES.keys() | REMOVED.keys() | package_flags


def test_the_defaults_equal_those_of_transformers_and_are_supported(caplog):
    actual, expected = TrainingArguments(output_dir="out"), transformers.TrainingArguments("out")
    for field in dataclasses.fields(expected):
        assert getattr(actual, field.name) == getattr(expected, field.name), field.name
    for args in (actual, expected):
        check_training_arguments(args)
    assert not caplog.records


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"tpu_metrics_debug": True}, {"debug": "tpu_metrics_debug"}),
        ({"adafactor": True}, {"optim": "adafactor"}),
        ({"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}),
        ({"no_cuda": True}, {"use_cpu": True}),
        ({"logging_dir": "logs"}, {}),
    ],
    ids=lambda value: next(iter(value), "none"),
)
def test_an_old_name_works_and_issues_one_warning(monkeypatch, old, new):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    (old_name,) = old
    with pytest.warns(FutureWarning, match=f"{old_name} is deprecated; use .* instead") as warned:
        args = TrainingArguments(output_dir="out", **old)
    assert len(warned) == 1
    expected = TrainingArguments(output_dir="out", **new)
    for name in new:
        assert getattr(args, name) == getattr(expected, name)


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


@pytest.mark.parametrize(("name", "value"), [("debug", "underflow_overflow")])
def test_an_unknown_choice_is_refused_with_the_allowed_ones(name, value):
    args = TrainingArguments(output_dir="out", **{name: value})
    with pytest.raises(ValueError, match=r"underflow_overflow.* \(allowed: tpu_metrics_debug\)"):
        check_training_arguments(args)


def test_lamb_is_accepted_although_transformers_does_not_have_it():
    assert TrainingArguments(output_dir="out", optim="lamb").optim == "lamb"
    with pytest.raises(ValueError, match="lamb"):
        transformers.TrainingArguments(output_dir="out", optim="lamb")
