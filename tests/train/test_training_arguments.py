"""Every argument is honoured, or without effect and said so, or refused; none is forgotten."""

import dataclasses
import logging

import pytest
import transformers
from transformers.trainer_utils import SchedulerType

from qa_flax import TrainingArguments
from qa_flax.train.training_arguments import (
    GONE,
    HONOURED,
    OLDER,
    REFUSED,
    WITHOUT_EFFECT,
    check_training_arguments,
)


def test_every_argument_of_transformers_is_in_one_list():
    names = [f.name for f in dataclasses.fields(transformers.TrainingArguments)]
    listed = [*HONOURED, *WITHOUT_EFFECT, *REFUSED]
    assert len(listed) == len(set(listed))
    assert sorted(set(names) - set(listed)) == []


def test_own_fields_are_the_older_names_and_the_division():
    inherited = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    own = {f.name for f in dataclasses.fields(TrainingArguments)} - inherited
    assert own == OLDER.keys() | GONE.keys() | {"overwrite_output_dir", "shard_params"}


def test_the_defaults_are_those_of_transformers_and_honoured(caplog):
    ours, theirs = TrainingArguments(output_dir="out"), transformers.TrainingArguments("out")
    for one in dataclasses.fields(theirs):
        assert getattr(ours, one.name) == getattr(theirs, one.name), one.name
    for args in (ours, theirs):
        check_training_arguments(args)
    assert not caplog.records


@pytest.mark.parametrize(
    ("older", "now"),
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
def test_older_names_are_taken_with_one_warning(monkeypatch, older, now):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    (name,) = older
    with pytest.warns(FutureWarning, match=f"{name} is the older name of") as warned:
        args = TrainingArguments(output_dir="out", **older)
    assert len(warned) == 1
    plain = TrainingArguments(output_dir="out", **now)
    for one in now:
        assert getattr(args, one) == getattr(plain, one)


def test_what_torch_or_accelerate_would_be_asked_for_is_taken_without_them():
    given = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "bf16": True,
        "fsdp": "full_shard",
        "optim": "lamb",
    }
    args = TrainingArguments(output_dir="out", eval_strategy="epoch", **given)
    assert {name: getattr(args, name) for name in given} == given
    assert args.lr_scheduler_type is SchedulerType.REDUCE_ON_PLATEAU
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_a_plateau_needs_evaluations():
    with pytest.raises(ValueError, match="reduce_lr_on_plateau requires an eval strategy"):
        TrainingArguments(output_dir="out", lr_scheduler_type="reduce_lr_on_plateau")


def test_a_share_of_warm_up_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"warmup_ratio is 1.5; it must be in \[0, 1\)"):
        TrainingArguments(output_dir="out", warmup_ratio=1.5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_with_the_reason(name):
    args = TrainingArguments(output_dir="out")
    setattr(args, name, ["something else"])  # set afterwards: torch's own checks would come first
    with pytest.raises(ValueError, match="cannot be honoured") as refused:
        check_training_arguments(args)
    assert f"{name}=['something else']: {REFUSED[name][1]}" in str(refused.value)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_has_no_effect_is_said_with_the_reason(caplog, name):
    args = TrainingArguments(output_dir="out")
    setattr(args, name, "something else")
    with caplog.at_level(logging.WARNING):
        check_training_arguments(args)
    assert f"{name}='something else' has no effect: {WITHOUT_EFFECT[name]}" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("debug", "underflow_overflow")])
def test_choices_are_named(name, value):
    args = TrainingArguments(output_dir="out", **{name: value})
    with pytest.raises(ValueError, match=r"underflow_overflow.* \(allowed: tpu_metrics_debug\)"):
        check_training_arguments(args)


def test_lamb_has_a_name_here_alone():
    assert TrainingArguments(output_dir="out", optim="lamb").optim == "lamb"
    with pytest.raises(ValueError, match="lamb"):
        transformers.TrainingArguments(output_dir="out", optim="lamb")
