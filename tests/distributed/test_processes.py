"""Several real processes do what one does, and end together."""

import json
import socket
import threading
import time
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
    divided,
    in_a_script,
    launch,
    one_question,
    preempted,
    train_evaluate_predict,
)
from processes import Ended, free_port
from safetensors.numpy import load_file

from qa_flax.distributed import ProcessError, join, processes
from qa_flax.distributed.processes import part_of

TIMES = ("runtime", "per_second", "_time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint and data; the folders below it hold what one process makes of them."""
    folder = tmp_path_factory.mktemp("hosts")
    tiny.model(initializer_range=0.05).save_pretrained(folder / "checkpoint")
    tiny.tokenizer().save_pretrained(folder / "checkpoint")
    (folder / "data").mkdir()
    answerable = [row for row in tiny.rows() if row["answers"]["text"]]
    (folder / "data" / "v1.json").write_text(json.dumps({"data": answerable}))
    (folder / "data" / "one.jsonl").write_text(json.dumps(answerable[1]))
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """What this process, alone with its eight cores, finds."""
    jobs = (train_evaluate_predict, one_question, in_a_script)
    return {job.__name__: job(folder, folder / "alone" / job.__name__) for job in jobs}


def without_times(metrics):
    return {k: v for k, v in metrics.items() if not k.endswith(TIMES)}


class Together(NamedTuple):
    """Processes that were stopped, went on, and did all the jobs; the last fails on one of them."""

    folder: Path
    found: list[dict]
    ended: list[Ended]
    seconds_to_the_end: float


@pytest.fixture(
    scope="module",
    params=[(2, 2), pytest.param((4, 2), marks=pytest.mark.slow)],
    ids=lambda given: "{}-{}".format(*given),
)
def together(request, tmp_path_factory, folder):
    count, cores = request.param
    here = tmp_path_factory.mktemp("together")
    for name in ("checkpoint", "data"):
        (here / name).symlink_to(folder / name)
    ended = stop_together(here, count, cores, "evaluating", "all", timeout=180.0 * count)
    files = [here / f"all-{index}.json" for index in range(count)]
    assert all(file.exists() for file in files), "\n".join(e.text[-3000:] for e in ended)
    seconds = time.time() - max(file.stat().st_mtime for file in files)
    return Together(here, [json.loads(file.read_text()) for file in files], ended, seconds)


def test_several_processes_find_what_one_finds(alone, folder, together):
    here, found, ended, _ = together
    for job, expected in alone.items():
        for process in found:
            assert process[job] == found[0][job], f"{job}: every process the same, times too"
        one, several = without_times(expected), without_times(found[0][job])
        assert several == pytest.approx(one, rel=1e-5, abs=1e-6), job
        assert one.keys() == several.keys()
    for job in ("train_evaluate_predict", "one_question"):
        names = {path.name for path in (folder / "alone" / job).iterdir()}
        assert {path.name for path in (here / job).iterdir()} == names
        for name in ("eval_predictions.json", "predict_predictions.json"):
            if name in names:
                one, several = (root / job / name for root in (folder / "alone", here))
                assert several.read_bytes() == one.read_bytes()
    for job in ("train_evaluate_predict", "one_question"):
        before = load_file(folder / "checkpoint" / "model.safetensors")
        one, several = (
            load_file(root / job / "model.safetensors") for root in (folder / "alone", here)
        )
        for name, array in one.items():
            np.testing.assert_allclose(several[name], array, rtol=0, atol=2e-6, err_msg=name)
        assert any(abs(one[name] - before[name]).max() > 1e-2 for name in one)
    one, several = (
        np.load(root / "in_a_script" / "logits.npz") for root in (folder / "alone", here)
    )
    for name in ("start", "end", "labels", "one"):
        np.testing.assert_array_equal(several[name], one[name], err_msg=name)
    assert len(one["start"]) > len(one["one"]) == 1

    errors = [process["late"] for process in found]
    assert "process 0 waited 1 s in vain for process 1 (a race)" in errors[0]["error"]
    text = ended[0].text
    assert text.count("***** eval metrics *****") == 2
    assert not any("eval metrics" in e.text for e in ended[1:])


def test_the_model_is_read_and_written_in_every_process(together):
    found, count = together.found, len(together.ended)
    for process in found:
        assert process["reading"]["right"] == [True, True]
        assert process["reading"]["written"]
        assert "wrote other weights into the model" in process["writing_apart"]["error"]
        assert "head.outputs.bias" in process["writing_apart"]["error"]
        assert process["reading"]["end"] == found[0]["reading"]["end"]
        assert process["reading_shards"]["losses"] == found[0]["reading_shards"]["losses"]
    main, other, *_ = (process["reading_shards"] for process in found)
    assert main["sum 1"] != main["sum 2"]
    assert (len(main["errors"]), other["errors"]) == (2, [])  # once after each update
    assert f"each of {count} processes holds a shard of this model's weights" in main["errors"][0]
    assert "Call trainer.save_model(folder) or trainer.evaluate() in every" in main["errors"][0]


def test_a_process_that_fails_ends_all_with_the_cause_in_every_log(together):
    _, found, ended, seconds_to_the_end = together
    assert all(list(jobs)[-1] == "late" for jobs in found), "the one after it does not end"
    assert {e.status for e in ended} == {1}
    for e in ended:
        assert "the disk of this host is on fire" in e.text
    assert "process 0 ends because process 1 failed: RuntimeError: the disk" in ended[0].text
    assert "Traceback" in ended[1].text
    assert seconds_to_the_end < 60


# ---- stopping and going on -----------------------------------------------------------------------

MOMENTS = {
    "evaluating": ("on_prediction_step", 2),
    "compiling": ("on_step_begin", 0),
    "training": ("on_step_end", 3),
    "saved just now": ("on_save", 4),
    "predicting": ("on_prediction_step", 4, 6),  # after the five batches of an evaluation
}


def stop_together(folder, count, cores, moment, *then, **settings):
    """Processes that all end at a signal to the last of them; how others ended that did `then`."""
    (folder / "kill.json").write_text(json.dumps(MOMENTS[moment]))
    jobs = ("preempted", *then)
    stopped, *later = launch(*jobs, count=count, cores=cores, folder=folder, **settings)
    assert [e.status for e in stopped] == [143] * count, "\n".join(e.text[-3000:] for e in stopped)
    # JAX's service stops them at a place that none has passed: a few batches later.
    step, folders = MOMENTS[moment][1], (folder / "preempted").glob("checkpoint-*")
    saved = sorted(int(path.name.removeprefix("checkpoint-")) for path in folders)
    assert step <= saved[0] <= step + 2
    assert set(saved[1:]) <= ({STEPS} if then else set())
    return later[0] if then else []


def assert_gone_on(folder, found):
    """`found` by every process, as in the run that was never stopped."""
    for job in ("resumed", "never_stopped"):
        assert all(process[job] == found[0][job] for process in found)
    resumed, never_stopped = (
        [without_times(logs) for logs in found[0][job]["history"]]
        for job in ("resumed", "never_stopped")
    )
    assert resumed == never_stopped
    resumed, never_stopped = (
        np.load(folder / name / "params.npz") for name in ("preempted", "never_stopped")
    )
    for name in never_stopped:
        np.testing.assert_array_equal(resumed[name], never_stopped[name], err_msg=name)


def test_processes_stop_together_and_go_on(together):
    assert_gone_on(together.folder, together.found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "cores", "moment"), [(2, 2, name) for name in MOMENTS] + [(4, 2, "training")]
)
def test_processes_stop_together_at_any_moment(tmp_path, count, cores, moment):
    ended = stop_together(tmp_path, count, cores, moment, "resumed", timeout=480.0)
    assert [e.status for e in ended] == [0] * count, ended[0].text[-3000:]
    files = [tmp_path / f"resumed-{index}.json" for index in range(count)]
    assert_gone_on(tmp_path, [json.loads(file.read_text()) for file in files])


@pytest.mark.slow
def test_a_run_of_two_hosts_goes_on_with_one(tmp_path):
    """The same rows in the same order: without dropout, whose masks are the cores', the same."""
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "no_dropout").touch()
    stop_together(tmp_path / "stopped", 2, 2, "training")
    found = []
    for name in ("stopped", "whole"):
        history = preempted(tmp_path / name, tmp_path / name / "preempted")["history"]
        found.append([logs["loss"] for logs in history if "loss" in logs])
    assert len(found[0]) == 4
    np.testing.assert_allclose(*found, rtol=1e-4)


# ---- more ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parameters_are_divided_over_the_cores_of_all_hosts(tmp_path):
    """Two processes of two cores against this one's eight, which hold other pieces."""
    (tmp_path / "here").mkdir()
    alone = divided(tmp_path, tmp_path / "here")
    (ended,) = launch("divided", count=2, cores=2, folder=tmp_path)
    assert [e.status for e in ended] == [0, 0], "\n".join(e.text[-3000:] for e in ended)
    found = [json.loads((tmp_path / f"divided-{i}.json").read_text())["divided"] for i in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["eval_samples_per_second"] > 0
    assert found[0].keys() == alone.keys()
    assert "Memory on each core, 2 x 64 tokens: parameters" in ended[0].text


@pytest.mark.parametrize("total", [0, 1, 3, 8, 11])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_parts_are_the_whole(monkeypatch, count, total):
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
    """What each of some processes, given as (number, of), is told; "" where it may go on."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: None)
    address, said = f"127.0.0.1:{free_port()}", {}

    def attempt(place, number, of):
        try:
            join.join(address, of, number, timeout)
            said[place] = ""
        except ProcessError as error:
            said[place] = str(error)

    threads = [
        threading.Thread(target=attempt, args=(place, *process))
        for place, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(30)
    return [said[place] for place in range(len(processes))]


def test_all_join(monkeypatch):
    assert join_in_threads(monkeypatch, (2, 3), (0, 3), (1, 3), timeout=20) == [""] * 3


def test_who_is_missing_is_said_to_all(monkeypatch):
    said = join_in_threads(monkeypatch, (0, 4), (2, 4))
    assert said[0] == said[1]
    assert "2 of 4 processes joined after 1 s (missing: process 1, 3): start the comm" in said[0]
    (said,) = join_in_threads(monkeypatch, (1, 2))
    assert "process 1 of 2 did not reach process 0 at 127.0.0.1:" in said
    assert "start the command on every worker" in said


def test_arguments_that_do_not_fit_are_refused(monkeypatch):
    assert (
        "two processes were given --process_id 1"
        in join_in_threads(monkeypatch, (0, 3), (1, 3), (1, 3), timeout=20)[0]
    )
    assert (
        "process 1 was told of 3 processes, process 0 of 2"
        in join_in_threads(monkeypatch, (0, 2), (1, 3), timeout=20)[0]
    )
    for arguments, message in (
        (("127.0.0.1:1", 2, 2), "--process_id is 2; with 2 processes it must be one of 0 to 1"),
        (("localhost", 2, 0), "--coordinator is 'localhost'; it must be HOST:PORT"),
        ((None, 2, 0), "JAX knows no cluster here"),
    ):
        with pytest.raises(ProcessError, match=message):
            join.join(*arguments)


def test_a_port_in_use_is_named(monkeypatch):
    message = r"cannot listen at port .* end that one"
    with socket.create_server(("", 0)) as taken, pytest.raises(ProcessError, match=message):
        join.join(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, 1.0)
