"""Several processes compute the same results as one process, and they stop together."""

import json
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import datasets
import jax
import numpy as np
import pytest
import tiny
from datasets.distributed import split_dataset_by_node
from process_jobs import (
    STEPS,
    calibrated,
    in_a_script,
    launch,
    one_question,
    packed,
    preempted,
    searched,
    sharded,
    train_evaluate_predict,
)
from processes import ProcessResult, free_port
from safetensors.numpy import load_file

from qa_flax.distributed import ProcessError, join, processes
from qa_flax.distributed.processes import part_of

OF_CORES = ("runtime", "per_second", "_time", "_fill")
"""What the names of the metrics end with that depend on time or on the number of cores."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint and data."""
    folder = tmp_path_factory.mktemp("input")
    tiny.model(initializer_range=0.05).save_pretrained(folder / "checkpoint")
    tiny.tokenizer().save_pretrained(folder / "checkpoint")
    (folder / "data").mkdir()
    answerable = [row for row in tiny.rows() if row["answers"]["text"]]
    (folder / "data" / "v1.json").write_text(json.dumps({"data": answerable}))
    (folder / "data" / "one.jsonl").write_text(json.dumps(answerable[1]))
    tiny.repeated_examples(6).to_json(folder / "data" / "many.jsonl")
    return folder


@pytest.fixture(scope="module")
def single(folder):
    """`single(job)`: the results of a job in this process alone, which has eight cores."""
    return cache(lambda job: job(folder, folder / "single" / job.__name__))


def without_times(metrics):
    return {k: v for k, v in metrics.items() if not k.endswith(OF_CORES)}


class Several(NamedTuple):
    """Several processes that have run a list of jobs."""

    folder: Path
    results: list[dict]
    processes: list[ProcessResult]
    seconds_to_exit: float


SIZES = (2, 2), (4, 2)


def with_sizes(*slow):
    return {
        "params": [
            pytest.param(size, marks=[pytest.mark.slow] if size in slow else [], id=f"{size[0]}")
            for size in SIZES
        ],
        "scope": "module",
    }


@pytest.fixture(**with_sizes(SIZES[1]))
def several(request, tmp_path_factory, folder):
    """Processes that were stopped and resumed. In the last job, `fail`, process 1 has an error."""
    count, cores = request.param
    shared = shared_folder(tmp_path_factory, folder)
    exited = stop_all(shared, count, cores, "evaluating", "main", timeout=180.0 * count)
    return results_of("main", shared, exited)


@pytest.fixture(**with_sizes(*SIZES))
def several_with_more_jobs(request, tmp_path_factory, folder):
    count, cores = request.param
    shared = shared_folder(tmp_path_factory, folder)
    (exited,) = launch("more", count=count, cores=cores, folder=shared, timeout=180.0 * count)
    return results_of("more", shared, exited)


def shared_folder(tmp_path_factory, folder):
    shared = tmp_path_factory.mktemp("several")
    for name in ("checkpoint", "data"):
        (shared / name).symlink_to(folder / name)
    return shared


def results_of(jobs, shared, exited):
    files = [shared / f"{jobs}-{index}.json" for index in range(len(exited))]
    assert all(file.exists() for file in files), "\n".join(p.output[-3000:] for p in exited)
    seconds = time.time() - max(file.stat().st_mtime for file in files)
    return Several(shared, [json.loads(file.read_text()) for file in files], exited, seconds)


@pytest.mark.slow
def test_several_processes_search_together(single, tmp_path):
    pytest.importorskip("optuna", reason="pip install '.[tune]'")
    (exited,) = launch("searched", count=2, cores=2, folder=tmp_path, timeout=360.0)
    results = [result["searched"] for result in results_of("searched", tmp_path, exited).results]
    assert results[0] == results[1]
    assert [number for number, _ in results[0]["steps"]] == [0, 2, 3], "a trial that fails ends"
    assert results[0]["steps"][1] == [2, 2], "the hopeless trial was not stopped"
    expected = single(searched)
    assert results[0]["steps"] == expected["steps"]
    assert results[0]["best"]["run_id"] == expected["best"]["run_id"]
    assert results[0]["best"]["objective"] == pytest.approx(expected["best"]["objective"])


# ---- the same results ----------------------------------------------------------------------------


def assert_same_metrics(job, single, several):
    results = [results[job.__name__] for results in several.results]
    assert all(result == results[0] for result in results), "processes or times differ"
    expected, actual = without_times(single(job)), without_times(results[0])
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert expected.keys() == actual.keys()


def assert_same_files(job, folder, several):
    roots = folder / "single" / job.__name__, several.folder / job.__name__
    names = {path.name for path in roots[0].iterdir()}
    assert {path.name for path in roots[1].iterdir()} == names
    for stage in ("eval", "predict"):
        if (name := f"{stage}_predictions.json") in names:
            expected, actual = (root / name for root in roots)
            assert actual.read_bytes() == expected.read_bytes()
            records = [json.loads((root / f"{stage}_report.json").read_text()) for root in roots]
            assert list(records[0]["questions"].items()) == list(records[1]["questions"].items())
            assert records[0]["metrics"] == records[1]["metrics"]
    initial = load_file(folder / "checkpoint" / "model.safetensors")
    expected, actual = (load_file(root / "model.safetensors") for root in roots)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=2e-6, err_msg=name)
    assert any(abs(expected[name] - initial[name]).max() > 1e-2 for name in expected)


def texts_of(file):
    """The ids, and the texts of each of the best spans, in the order of the file."""
    lists = json.loads(file.read_text())
    return [(id_, [entry["text"] for entry in entries]) for id_, entries in lists.items()]


def test_several_processes_have_the_results_of_a_single_one(single, folder, several):
    assert_same_metrics(train_evaluate_predict, single, several)
    assert_same_files(train_evaluate_predict, folder, several)
    for stage in ("eval", "predict"):
        files = (f"{stage}_{name}.json" for name in ("spans", "nbest_predictions"))
        texts = [texts_of(several.folder / train_evaluate_predict.__name__ / f) for f in files]
        assert texts[0] == texts[1]
        assert len(texts[0]) == 11
    error = several.results[0]["time_out"]["error"]
    assert "process 0 timed out after 1 s waiting for process 1 (test)" in error
    main, *others = several.processes
    assert main.output.count("***** eval metrics *****") == 1
    assert not any("eval metrics" in process.output for process in others)


def test_one_question_has_the_results_of_a_single_process(single, folder, several_with_more_jobs):
    assert_same_metrics(one_question, single, several_with_more_jobs)
    assert_same_files(one_question, folder, several_with_more_jobs)


def test_packed_rows_have_the_results_of_a_single_process(single, several_with_more_jobs):
    results = [results["packed"] for results in several_with_more_jobs.results]
    assert all(result == results[0] for result in results)
    expected = single(packed)
    same = ["evaluation"]
    if len(results) == 4:  # as many cores, so each update has the same windows
        same.append("training")
        assert results[0]["training"]["train_fill"] > 0.7
    for stage in same:
        actual = results[0][stage]
        assert actual["eval_fill"] > 0.7
        assert without_times(actual) == pytest.approx(
            without_times(expected[stage]), rel=1e-5, abs=1e-6
        )


def test_several_processes_fit_one_calibration(single, folder, several_with_more_jobs):
    results = [results["calibrated"] for results in several_with_more_jobs.results]
    assert all(result == results[0] for result in results)
    expected, actual = without_times(single(calibrated)), without_times(results[0])
    assert {"eval_ece_after", "predict_ece_after", "eval_temperature"} <= actual.keys()
    assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)
    files = [
        json.loads((root / "calibrated" / "calibration.json").read_text())
        for root in (folder / "single", several_with_more_jobs.folder)
    ]
    assert files[1]["temperature"] == pytest.approx(files[0]["temperature"], rel=1e-3)
    assert files[1]["fitted_questions"] == files[0]["fitted_questions"] == 11


def test_a_script_gets_the_logits_of_a_single_process(single, folder, several_with_more_jobs):
    assert_same_metrics(in_a_script, single, several_with_more_jobs)
    expected, actual = (
        np.load(root / "in_a_script" / "logits.npz")
        for root in (folder / "single", several_with_more_jobs.folder)
    )
    for name in ("start", "end", "labels", "single"):
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    assert len(expected["start"]) > len(expected["single"]) == 1


def test_loaders_have_the_rows_of_their_process_and_collators_are_refused(several_with_more_jobs):
    results = [results["own_loaders"] for results in several_with_more_jobs.results]
    count = len(results)
    first = [row for result in results for row in result["rows"][0]]
    assert len(first) == len({tuple(row) for row in first}) == 8
    for result in results:
        assert len(result["rows"]) == len(results[0]["rows"])
        train, evaluate = result["messages"]
        assert f"train() with {count} processes cannot use data_collator (<lambda>)" in train
        assert f"evaluation with {count} processes cannot use data_collator" in evaluate


def test_the_arguments_know_the_processes_and_let_the_main_one_work_first(several):
    count = len(several.processes)
    for index, results in enumerate(several.results):
        values = results["read_arguments"]
        cores = values["n_gpu"]
        assert values == {
            "world_size": count,
            "process_index": index,
            "local_rank": index,
            "n_gpu": cores,
            "train_batch_size": 3 * cores,
            "is_main": [index == 0] * 3,
            "mode": "distributed",
            "is_found": index > 0,
            "is_read": True,
        }


def test_the_model_can_be_read_and_modified_in_every_process(several_with_more_jobs):
    count = len(several_with_more_jobs.processes)
    for results in several_with_more_jobs.results:
        assert results["access_model"]["is_expected"] == [True, True]
        assert results["access_model"]["is_modified"]
        error = results["write_different_weights"]["error"]
        assert "wrote different weights into the model" in error
        assert "head.outputs.bias" in error
        for job, name in (("access_model", "final_sums"), ("access_sharded_model", "losses")):
            assert results[job][name] == several_with_more_jobs.results[0][job][name]
    main, other, *_ = (
        results["access_sharded_model"] for results in several_with_more_jobs.results
    )
    assert main["sum 1"] != main["sum 2"]
    assert (len(main["errors"]), other["errors"]) == (2, [])  # once after each update
    assert f"each of {count} processes holds a shard of this model's weights" in main["errors"][0]
    assert "Call trainer.save_model(folder) or trainer.evaluate() in every" in main["errors"][0]


def test_all_processes_exit_when_one_fails_with_the_cause_in_every_log(several):
    assert all(list(results)[-1] == "time_out" for results in several.results), "`fail` returned"
    assert {process.status for process in several.processes} == {1}
    for process in several.processes:
        assert "the disk of this host is full" in process.output
    message = "process 0 exits because process 1 failed: RuntimeError: the disk"
    assert message in several.processes[0].output
    assert "Traceback" in several.processes[1].output
    assert several.seconds_to_exit < 60


# ---- stopping and resuming -----------------------------------------------------------------------

MOMENTS = {
    "evaluating": ("on_prediction_step", 2),
    "compiling": ("on_step_begin", 0),
    "training": ("on_step_end", 3),
    "saved just now": ("on_save", 4),
    "predicting": ("on_prediction_step", 4, 6),  # the evaluation before it has five batches
}


def stop_all(folder, count, cores, moment, *then, **settings):
    """Stop all processes by sending SIGTERM to the last one, and then run a second job.

    Args:
        folder: for the checkpoints, results and logs.
        count, cores: the number of processes, and of cores of each.
        moment: when the signal is sent, one of `MOMENTS`.
        then: the second job, or nothing.
        settings: further arguments of `launch`.

    Returns:
        The processes of the second job.
    """
    (folder / "signal.json").write_text(json.dumps(MOMENTS[moment]))
    jobs = ("preempted", *then)
    stopped, *later = launch(*jobs, count=count, cores=cores, folder=folder, **settings)
    outputs = "\n".join(process.output[-3000:] for process in stopped)
    assert [process.status for process in stopped] == [143] * count, outputs
    # JAX's service picks a point to stop at that no process has passed, up to two updates later.
    step, folders = MOMENTS[moment][1], (folder / "preempted").glob("checkpoint-*")
    saved = sorted(int(path.name.removeprefix("checkpoint-")) for path in folders)
    assert step <= saved[0] <= step + 2
    assert set(saved[1:]) <= ({STEPS} if then else set())
    return later[0] if then else []


def assert_resumed(folder, all_results):
    """In every process the resumed run equals the uninterrupted one."""
    for job in ("resumed", "uninterrupted"):
        assert all(results[job] == all_results[0][job] for results in all_results)
    resumed, uninterrupted = (
        [without_times(logs) for logs in all_results[0][job]["history"]]
        for job in ("resumed", "uninterrupted")
    )
    assert resumed == uninterrupted
    resumed, uninterrupted = (
        np.load(folder / name / "params.npz") for name in ("preempted", "uninterrupted")
    )
    for name in uninterrupted:
        np.testing.assert_array_equal(resumed[name], uninterrupted[name], err_msg=name)


def test_processes_stop_together_and_resume(several):
    assert_resumed(several.folder, several.results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "cores", "moment"), [(2, 2, name) for name in MOMENTS] + [(4, 2, "training")]
)
def test_processes_stop_together_at_any_moment_and_resume(tmp_path, count, cores, moment):
    exited = stop_all(tmp_path, count, cores, moment, "resumed", timeout=480.0)
    assert [process.status for process in exited] == [0] * count, exited[0].output[-3000:]
    files = [tmp_path / f"resumed-{index}.json" for index in range(count)]
    assert_resumed(tmp_path, [json.loads(file.read_text()) for file in files])


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_with_one(tmp_path):
    """The batches are the same; dropout is off because its masks depend on the number of cores."""
    for name in ("stopped", "uninterrupted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "no_dropout").touch()
    stop_all(tmp_path / "stopped", 2, 2, "training")
    losses = []
    for name in ("stopped", "uninterrupted"):
        history = preempted(tmp_path / name, tmp_path / name / "preempted")["history"]
        losses.append([logs["loss"] for logs in history if "loss" in logs])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-4)


# ---- sharding and splitting ----------------------------------------------------------------------


@pytest.mark.slow
def test_parameters_are_sharded_over_the_cores_of_all_processes(tmp_path):
    """Two processes of two cores each, compared with this one of eight cores."""
    (tmp_path / "single").mkdir()
    expected = sharded(tmp_path, tmp_path / "single")
    (exited,) = launch("sharded", count=2, cores=2, folder=tmp_path)
    outputs = "\n".join(process.output[-3000:] for process in exited)
    assert [process.status for process in exited] == [0, 0], outputs
    files = [tmp_path / f"sharded-{i}.json" for i in (0, 1)]
    actual = [json.loads(file.read_text())["sharded"] for file in files]
    assert actual[0] == actual[1]
    assert actual[0]["eval_samples_per_second"] > 0
    assert actual[0].keys() == expected.keys()
    assert "Memory on each core, 2 x 64 tokens: parameters" in exited[0].output


@pytest.mark.parametrize("total", [0, 1, 3, 8, 11])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_rows_are_split_over_the_processes_as_datasets_splits_them(monkeypatch, count, total):
    rows = datasets.Dataset.from_dict({"n": list(range(total))})
    parts = []
    for index in range(count):
        monkeypatch.setattr(processes, "count", lambda: count)
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        parts.append(list(range(total))[part_of(total)])
        if total >= count:
            assert split_dataset_by_node(rows, index, count)["n"] == parts[-1]
    assert [n for part in parts for n in part] == list(range(total))


# ---- joining -------------------------------------------------------------------------------------


def join_in_threads(monkeypatch, *processes, timeout=1.0):
    """Call `join` for each (process id, number of processes); return the errors, "" if joined."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: None)
    address, messages = f"127.0.0.1:{free_port()}", {}

    def attempt(position, process_id, num_processes):
        try:
            join.join(address, num_processes, process_id, timeout)
            messages[position] = ""
        except ProcessError as error:
            messages[position] = str(error)

    threads = [
        threading.Thread(target=attempt, args=(position, *process))
        for position, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(30)
    return [messages[position] for position in range(len(processes))]


def test_processes_join_in_any_order(monkeypatch):
    assert join_in_threads(monkeypatch, (2, 3), (0, 3), (1, 3), timeout=20) == [""] * 3


def test_missing_processes_are_reported_to_all(monkeypatch):
    messages = join_in_threads(monkeypatch, (0, 4), (2, 4))
    assert messages[0] == messages[1]
    expected = "2 of 4 processes joined after 1 s (missing: process 1, 3): start the comm"
    assert expected in messages[0]
    (message,) = join_in_threads(monkeypatch, (1, 2))
    assert "process 1 of 2 did not reach process 0 at 127.0.0.1:" in message
    assert "start the command on every worker" in message


def test_invalid_arguments_are_rejected(monkeypatch):
    assert (
        "two processes have the same --process_id 1"
        in join_in_threads(monkeypatch, (0, 3), (1, 3), (1, 3), timeout=20)[0]
    )
    assert (
        "--num_processes is 3 in process 1 and 2 in process 0"
        in join_in_threads(monkeypatch, (0, 2), (1, 3), timeout=20)[0]
    )
    for arguments, message in (
        (("127.0.0.1:1", 2, 2), "--process_id is 2; with 2 processes it must be one of 0 to 1"),
        (("localhost", 2, 0), "--coordinator is 'localhost'; it must be HOST:PORT"),
        ((None, 2, 0), "JAX detects no cluster"),
    ):
        with pytest.raises(ProcessError, match=message):
            join.join(*arguments)


def test_a_port_in_use_is_reported(monkeypatch):
    message = r"cannot listen on port .* stop that run"
    with socket.create_server(("", 0)) as server, pytest.raises(ProcessError, match=message):
        join.join(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1.0)
