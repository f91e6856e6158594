"""`qa-flax env` says what a run would find, and what is wrong with it."""

import copy
import re

import pytest

from qa_flax.cli import main
from qa_flax.commands.arguments import DistributedArguments
from qa_flax.commands.env import report as environment


def found(**changes):
    one = environment._of_this_process() | changes
    return one | {"versions": one["versions"] | changes.get("versions", {})}


def test_what_is_here_is_printed_and_nothing_is_wrong(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["env"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for line in (
        r"jaxlib: \d+\.\d+",
        r"libtpu: not installed",
        r"backend: cpu",
        r"cores: 8",
        r"process 0: .*, 8 x cpu, memory not told; \d+ processors, \d+\.\d GiB",
        r"compilation cache: ",
        r"no problem found",
    ):
        assert re.search(f"^{line}", printed, re.M), line


def test_another_backend_is_a_problem(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["env", "--require_backend", "tpu"])
    assert ended.value.code == 1
    said = "problem: --require_backend: tpu is asked for, and JAX runs on cpu; set JAX_PLATFORMS="
    assert said in capsys.readouterr().out


def test_a_run_refuses_another_backend(capsys, tmp_path):
    arguments = ["--model_name_or_path=x", f"--output_dir={tmp_path}", "--validation_file=y"]
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments, "--do_eval", "--require_backend=tpu"])
    assert ended.value.code == 2
    assert "tpu is asked for, and JAX runs on cpu" in capsys.readouterr().err


def test_arguments_without_distributed_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["env", "--coordinator", "here:1", "--num_processes=2"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--coordinator, --num_processes has no effect without --distributed" in said
    with pytest.raises(ValueError, match=r"initialization_timeout is .* must be above 0"):
        DistributedArguments(initialization_timeout=0.0)


def test_a_jaxlib_of_another_release_is_a_problem(monkeypatch):
    real = environment._versions()
    monkeypatch.setattr(environment, "_versions", lambda: real | {"jaxlib": "0.4.1"})
    (problem,) = environment._misfits()
    assert problem.startswith(f"jaxlib is 0.4.1, and jax {real['jax']} needs ")
    assert 'pip install -U "jax[tpu]"' in problem
    monkeypatch.setattr(environment, "_versions", lambda: real | {"libtpu": "0.0.1"})
    (problem,) = environment._misfits()
    assert "libtpu is 0.0.1" in problem


def test_hosts_that_differ_are_a_problem():
    first = found()
    other = copy.deepcopy(first)
    other["versions"]["jaxlib"] = "0.0.1"
    other["devices"] = other["devices"][:4]
    problems = list(environment._problems([first, other]))
    here = first["versions"]["jaxlib"]
    assert problems == [
        f"process 1: has jaxlib 0.0.1 (process 0: {here}): all hosts need the same",
        "process 1: 4 cores, process 0 has 8",
    ]
    assert not list(environment._problems([first, first]))
    assert "cores: 12, of 2 processes" in list(environment._lines([first, other]))


def test_a_tpu_that_is_not_used_is_a_problem():
    (problem,) = environment._problems([found(versions={"libtpu": "0.0.17"})])
    assert problem.startswith("libtpu is installed, but JAX runs on cpu: is there a TPU")


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path):
    assert environment._cache_problem(None) is None
    assert environment._cache_problem("gs://bucket/cache") is None
    assert environment._cache_problem(str(tmp_path / "new" / "folder")) is None
    assert "cannot be written to" in environment._cache_problem("/proc/1/cache")
