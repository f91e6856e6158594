"""`qa-flax env` reports the environment of a run and its problems."""

import copy
import re
from types import SimpleNamespace

import jax
import pytest

from qa_flax.cli import main
from qa_flax.commands.arguments import DistributedArguments
from qa_flax.commands.env import report
from qa_flax.commands.run.output import report_backend
from qa_flax.device import parallel


def process_environment(**changes):
    values = report._environment() | changes
    return values | {"versions": values["versions"] | changes.get("versions", {})}


def test_the_report_of_this_machine_has_no_problem(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["env"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for line in (
        r"jaxlib: \d+\.\d+",
        r"libtpu: not installed",
        r"backend: cpu",
        r"cores: 8",
        r"process 0: .*, 8 x cpu, memory not reported; \d+ processors, \d+\.\d GiB",
        r"compilation cache: ",
        r"no problem found",
    ):
        assert re.search(f"^{line}", out, re.M), line


def test_another_backend_is_a_problem(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["env", "--require_backend", "tpu"])
    assert exit_.value.code == 1
    problem = "problem: --require_backend: tpu is required, but JAX runs on cpu; set JAX_PLATFORMS="
    assert problem in capsys.readouterr().out


def test_a_run_refuses_another_backend(capsys, tmp_path):
    arguments = ["--model_name_or_path=x", f"--output_dir={tmp_path}", "--validation_file=y"]
    with pytest.raises(SystemExit) as exit_:
        main(["run", *arguments, "--do_eval", "--require_backend=tpu"])
    assert exit_.value.code == 2
    assert "tpu is required, but JAX runs on cpu" in capsys.readouterr().err


def test_process_arguments_need_distributed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["env", "--coordinator", "here:1", "--num_processes=2"])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    expected = "without effect unless --distributed is set: --coordinator, --num_processes"
    assert expected in message
    with pytest.raises(ValueError, match=r"initialization_timeout is .* must be a number above 0"):
        DistributedArguments(initialization_timeout=0.0)


def test_an_incompatible_jaxlib_or_libtpu_is_a_problem(monkeypatch):
    versions = report._versions()
    monkeypatch.setattr(report, "_versions", lambda: versions | {"jaxlib": "0.4.1"})
    (problem,) = report._incompatible()
    assert problem.startswith(f"jaxlib is 0.4.1, but jax {versions['jax']} needs ")
    assert 'pip install -U "jax[tpu]"' in problem
    monkeypatch.setattr(report, "_versions", lambda: versions | {"libtpu": "0.0.1"})
    (problem,) = report._incompatible()
    assert "libtpu is 0.0.1" in problem


def test_different_versions_or_core_counts_of_processes_are_problems():
    first = process_environment()
    second = copy.deepcopy(first)
    second["versions"]["jaxlib"] = "0.0.1"
    second["devices"] = second["devices"][:4]
    problems = list(report._problems([first, second]))
    jaxlib = first["versions"]["jaxlib"]
    assert problems == [
        f"process 1: has jaxlib 0.0.1 (process 0: {jaxlib}): all processes need the same versions",
        "process 1: has 4 cores, but process 0 has 8",
    ]
    assert not list(report._problems([first, first]))
    assert "cores: 12, of 2 processes" in list(report._lines([first, second]))


def test_a_card_without_its_package_is_a_problem(tmp_path, monkeypatch, caplog, capsys):
    assert parallel.unused_accelerator() is None  # the tests run where JAX_PLATFORMS is cpu
    monkeypatch.setattr(parallel.jax, "config", SimpleNamespace(jax_platforms=None))
    card = tmp_path / "0000:01:00.0"
    accelerators = [("an NVIDIA card", str(tmp_path / "*"), "cuda")]
    monkeypatch.setattr(parallel, "_ACCELERATORS", accelerators)
    assert parallel.unused_accelerator() is None
    card.touch()
    message = (
        "this host has an NVIDIA card, but JAX runs on the CPU: install the package for it, pip "
        "install 'qa-flax[cuda]', or set JAX_PLATFORMS=cpu if the CPU is meant"
    )
    assert parallel.unused_accelerator() == message
    _, problems = report.report(DistributedArguments())
    assert message in problems
    report_backend()  # as qa-flax run does
    assert [record.getMessage() for record in caplog.records] == [message]
    assert capsys.readouterr().out == f"Running on cpu: 8 x cpu, JAX {jax.__version__}\n"


def test_an_unused_tpu_is_a_problem():
    (problem,) = report._problems([process_environment(versions={"libtpu": "0.0.17"})])
    assert problem.startswith(
        "libtpu is installed, but JAX runs on cpu: check that this host has a "
    )


def test_a_compilation_cache_that_is_not_writable_is_a_problem(tmp_path):
    assert report._cache_problem(None) is None
    assert report._cache_problem("gs://bucket/cache") is None
    assert report._cache_problem(str(tmp_path / "new" / "folder")) is None
    assert "is not writable" in report._cache_problem("/proc/1/cache")
