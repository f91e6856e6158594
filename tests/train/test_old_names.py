"""Names of transformers 4: they act, also when they are set later, and warn at the user's line."""

import copy
import dataclasses
import json
import pickle
import warnings

import pytest
from transformers import HfArgumentParser
from transformers.training_args import OptimizerNames

from qa_flax import TrainingArguments
from qa_flax.train.old_names import OLD_NAMES, used_name
from qa_flax.train.training_arguments import check_training_arguments

# Old name -> (a value, the attribute of today, its value).
CASES = {
    "evaluation_strategy": ("epoch", "eval_strategy", "epoch"),
    "warmup_ratio": (0.25, "warmup_steps", 0.25),
    "group_by_length": (True, "train_sampling_strategy", "group_by_length"),
    "tpu_metrics_debug": (True, "debug", "tpu_metrics_debug"),
    "logging_dir": ("logs", "_logging_dir", "logs"),
    "adafactor": (True, "optim", "adafactor"),
    "include_inputs_for_metrics": (True, "include_for_metrics", ["inputs"]),
    "no_cuda": (True, "use_cpu", True),
    "per_gpu_train_batch_size": (3, "per_device_train_batch_size", 3),
    "per_gpu_eval_batch_size": (5, "per_device_eval_batch_size", 5),
}


@dataclasses.dataclass
class Derived(TrainingArguments):
    extra: int = 1

    def __post_init__(self):
        super().__post_init__()


def constructed(name, value):
    with pytest.warns(FutureWarning, match=f"{name} is deprecated; use .* instead") as warned:
        args = TrainingArguments(output_dir="out", **{name: value})
    assert [warning.filename for warning in warned] == [__file__]
    return args


def test_every_old_name_has_a_case():
    assert CASES.keys() == OLD_NAMES.keys()


@pytest.mark.parametrize("name", CASES)
def test_an_old_name_reads_as_it_was_set_and_copies_do_not_repeat_the_warning(name):
    value, today, expected = CASES[name]
    args = constructed(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [
            args,
            copy.deepcopy(args),
            pickle.loads(pickle.dumps(args)),
            dataclasses.replace(args, seed=1),
            TrainingArguments(**args.to_dict()),
        ]
    for copied in copies:
        actual = getattr(copied, today)
        if today == "debug":
            actual = " ".join(getattr(option, "value", option) for option in actual)
        assert actual == expected
        assert getattr(copied, name) == value


@pytest.mark.parametrize("name", CASES)
def test_an_old_name_acts_when_it_is_set_later(name):
    value, today, expected = CASES[name]
    args = TrainingArguments(output_dir="out")
    with pytest.warns(FutureWarning, match=f"{name} is deprecated") as warned:
        setattr(args, name, value)
    assert [warning.filename for warning in warned] == [__file__]
    assert getattr(args, today) == expected


@pytest.mark.parametrize("name", [name for name, (value, *_) in CASES.items() if value is True])
def test_an_old_flag_can_be_set_to_false_again(name):
    args = constructed(name, True)
    with pytest.warns(FutureWarning, match=name):
        setattr(args, name, False)
    today = CASES[name][1]
    default = OptimizerNames.ADAMW_TORCH if today == "optim" else TrainingArguments("out")
    expected = default if today == "optim" else getattr(default, today)
    assert (getattr(args, today) or []) == (expected or [])
    assert getattr(args, name) is False


def test_a_copy_has_what_was_changed_by_the_new_name():
    args = constructed("evaluation_strategy", "epoch")
    for copied in (
        dataclasses.replace(args, eval_strategy="no"),
        TrainingArguments(**args.to_dict() | {"eval_strategy": "no"}),
    ):
        assert (copied.eval_strategy, copied.evaluation_strategy) == ("no", "no")


def test_old_and_new_name_that_contradict_each_other_are_refused():
    with pytest.raises(
        ValueError, match=r"evaluation_strategy='epoch' contradicts eval_strategy='steps'; remove"
    ):
        TrainingArguments("out", evaluation_strategy="epoch", eval_strategy="steps")


def test_warmup_steps_take_precedence_over_warmup_ratio():
    with pytest.warns(FutureWarning, match=r"warmup_ratio=0.1 has no effect: warmup_steps is set"):
        args = TrainingArguments("out", warmup_ratio=0.1, warmup_steps=7)
    assert args.get_warmup_steps(100) == 7


def test_inputs_are_added_to_the_other_values_for_metrics():
    with pytest.warns(FutureWarning, match="include_inputs_for_metrics"):
        args = TrainingArguments(
            "out", include_for_metrics=["loss"], include_inputs_for_metrics=True
        )
    assert args.include_for_metrics == ["loss", "inputs"]


def test_warnings_point_to_the_line_that_builds_the_arguments(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"output_dir": "out", "no_cuda": True}))
    line = ["--output_dir", "out", "--no_cuda"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        args = TrainingArguments("out", no_cuda=True)
        Derived("out", no_cuda=True)
        dataclasses.replace(args, no_cuda=True, use_cpu=False)
        HfArgumentParser(Derived).parse_args_into_dataclasses(line)
        HfArgumentParser(TrainingArguments).parse_json_file(str(file))
    assert all("no_cuda is deprecated" in str(warning.message) for warning in warned)
    assert [warning.filename for warning in warned] == [__file__] * 5
    first = warned[0].lineno
    assert [warning.lineno - first for warning in warned] == [0, 1, 2, 3, 4]


def test_a_loop_shows_the_warning_of_a_line_once():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for _ in range(3):
            TrainingArguments("out", no_cuda=True, gradient_checkpointing=True)
    assert [str(warning.message).split()[0] for warning in warned] == [
        "no_cuda",
        "`gradient_checkpointing`",
    ]


def test_warnings_of_transformers_point_there_too():
    with pytest.warns(FutureWarning, match="`gradient_checkpointing` is deprecated") as warned:
        args = Derived("out", gradient_checkpointing=True)
    assert [warning.filename for warning in warned] == [__file__]
    assert args.activation_checkpointing is True


def test_a_subclass_may_give_an_old_name_another_default():
    @dataclasses.dataclass
    class Epochs(TrainingArguments):
        evaluation_strategy: str = "epoch"

    with pytest.warns(FutureWarning, match="evaluation_strategy is deprecated"):
        assert Epochs("out").eval_strategy == "epoch"


def test_messages_use_the_name_that_the_user_wrote():
    assert used_name(constructed("no_cuda", True), "use_cpu") == "no_cuda"
    assert used_name(TrainingArguments("out", use_cpu=True), "use_cpu") == "use_cpu"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"no_cuda": True}, []),
        ({"use_cpu": True}, []),
        ({"torch_compile": True, "torch_compile_mode": "default"}, ["torch_compile"]),
        ({"torch_compile_backend": "inductor"}, ["torch_compile_backend"]),
        ({"gradient_checkpointing_kwargs": {"a": 1}}, ["gradient_checkpointing_kwargs"]),
        ({"activation_checkpointing_kwargs": {"a": 1}}, ["activation_checkpointing_kwargs"]),
        ({"save_safetensors": False, "tf32": True}, ["tf32", "save_safetensors"]),
        ({"half_precision_backend": "cuda_amp"}, ["half_precision_backend"]),
        ({"dataloader_num_workers": 2, "bf16": True}, ["dataloader_num_workers"]),
    ],
    ids=lambda value: next(iter(value), "none"),
)
@pytest.mark.filterwarnings("ignore:no_cuda is deprecated:FutureWarning")
def test_only_arguments_that_the_user_gave_are_reported_and_each_once(caplog, values, expected):
    args = TrainingArguments("out", **values)
    check_training_arguments(args)
    check_training_arguments(args)
    assert [record.getMessage().split("=")[0] for record in caplog.records] == expected
