"""Processes, cores and devices as scripts read them from the training arguments."""

import copy
import functools
import inspect
import subprocess
import sys

import jax
import pytest
import tiny
import transformers
from transformers.training_args import ParallelMode

from qa_flax import TrainingArguments
from qa_flax.distributed import exchange, processes

PROPERTIES = [
    name
    for name in dir(transformers.TrainingArguments)
    if isinstance(
        inspect.getattr_static(transformers.TrainingArguments, name),
        property | functools.cached_property,
    )
]
SETTERS = [name for name in dir(transformers.TrainingArguments) if name.startswith("set_")]

# Reads every property, and calls every method that needs no argument, without torch's packages.
SCRIPT = """
import importlib.metadata, sys
sys.modules |= dict.fromkeys(("torch", "accelerate"))
find = importlib.metadata.version
def version(name):
    if name in ("torch", "accelerate"):
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)
importlib.metadata.version = version
import transformers
from qa_flax import TrainingArguments
assert not transformers.is_torch_available() and not transformers.utils.is_accelerate_available()
args = TrainingArguments(output_dir="out")
for name in sys.argv[1:]:
    value = getattr(args, name)
    if callable(value):
        value = value(*([1] if name in ("get_warmup_steps", "set_push_to_hub") else []))
with args.main_process_first(desc="work"), args.distributed_state.main_process_first():
    args.distributed_state.wait_for_everyone()
print(args.device, args.train_batch_size, "torch" in sys.modules and sys.modules["torch"])
"""


@pytest.mark.slow
def test_every_property_and_method_needs_neither_torch_nor_accelerate():
    methods = ["to_dict", "to_json_string", "to_sanitized_dict", "get_process_log_level"]
    names = [*PROPERTIES, *methods, "get_warmup_steps", *SETTERS, "_n_gpu", "distributed_state"]
    command = [sys.executable, "-c", SCRIPT, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["cpu", "64", "None"]


def test_every_property_of_transformers_has_a_value_of_the_same_kind():
    """transformers' own arguments are on the CPU, with one process and no GPU."""
    pytest.importorskip("accelerate")
    ours, theirs = TrainingArguments(output_dir="out"), transformers.TrainingArguments("out")
    cores = jax.local_device_count()
    different = {"n_gpu": cores, "train_batch_size": 8 * cores, "eval_batch_size": 8 * cores}
    different["parallel_mode"] = ParallelMode.NOT_DISTRIBUTED
    for name in PROPERTIES:
        assert getattr(ours, name) == different.get(name, getattr(theirs, name)), name


@pytest.mark.parametrize("name", SETTERS)
def test_the_set_methods_set_what_those_of_transformers_set(name):
    arguments = ["model"] if name == "set_push_to_hub" else []
    ours, theirs = TrainingArguments(output_dir="out"), transformers.TrainingArguments("out")
    assert getattr(ours, name)(*arguments) is ours
    expected = getattr(theirs, name)(*arguments).to_dict() | {"accelerator_config": None}
    del expected["accelerator_config"]  # transformers removes a value when it sets up a device
    assert {key: ours.to_dict()[key] for key in expected} == expected


def test_the_windows_of_an_update_follow_from_the_batch_size_and_the_processes(monkeypatch):
    args = TrainingArguments(output_dir="out", per_device_train_batch_size=3)
    assert args.train_batch_size == 3 * jax.local_device_count()
    monkeypatch.setattr(processes, "count", lambda: 4)
    monkeypatch.setattr(processes, "index", lambda: 2)
    assert (args.world_size, args.process_index, args.local_process_index) == (4, 2, 2)
    assert args.local_rank == 2
    assert not args.should_save
    assert not args.should_log
    assert args.parallel_mode is ParallelMode.DISTRIBUTED
    state = args.distributed_state
    assert (state.num_processes, state.process_index, state.is_main_process) == (4, 2, False)


def test_local_rank_is_minus_one_alone_and_keeps_a_given_value():
    assert TrainingArguments(output_dir="out").local_rank == -1
    args = TrainingArguments(output_dir="out", local_rank=3)
    assert (args.local_rank, copy.deepcopy(args).local_rank) == (3, 3)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("fails", [False, True])
def test_the_main_process_works_first_and_releases_the_others_even_if_it_fails(
    monkeypatch, index, fails
):
    events = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: index)
    monkeypatch.setattr(exchange, "barrier", lambda label: events.append(label))
    args = TrainingArguments(output_dir="out")
    try:
        with args.main_process_first(desc="tokenizing"):
            events.append("work")
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert events == (["work", "tokenizing"] if index == 0 else ["tokenizing", "work"])


def test_the_device_is_the_models():
    device = TrainingArguments(output_dir="out").device
    assert type(device) is type(tiny.model().device)
    assert device == tiny.model().device == "cpu"


def test_another_number_of_cores_is_refused():
    args = TrainingArguments(output_dir="out")
    args._n_gpu = args.n_gpu
    with pytest.raises(ValueError, match="_n_gpu=99: JAX uses all"):
        args._n_gpu = 99
