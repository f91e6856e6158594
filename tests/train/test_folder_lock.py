"""Two runs never write into one output folder, and a run that has ended blocks no other."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import fake_gs
import lock_jobs
import pytest
import tiny
from processes import python_path
from tiny_trainers import trainer_in

from qa_flax import storage
from qa_flax.train import folder_lock
from qa_flax.train.folder_lock import NAME, FolderLockedError, check_lock, locked

RUN = {"max_steps": 2, "save_steps": 2, "eval_strategy": "no"}


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    if request.param == "local":
        return tmp_path / "new" / "out"
    fake_gs.register()
    return storage.path(f"gs://bucket-{tmp_path.name}-{time.time_ns()}/out")


def owner(**changes):
    """The content of a lock of another host."""
    values = json.loads(folder_lock._Owner.new().text(0))
    other = {"token": "other", "pid": 4, "host": "vm-3", "machine": "other", "since": "2026-01-02"}
    return json.dumps(values | other | changes)


def test_the_folder_is_left_as_it_was(folder):
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [NAME]
        with locked(folder):
            pass
        assert (folder / NAME).exists()
        (folder / "file").write_text("")
    assert [path.name for path in folder.iterdir()] == ["file"]
    with pytest.raises(RuntimeError, match="an error"), locked(folder / "other"):
        raise RuntimeError("an error")
    assert not (folder / "other" / NAME).exists()
    assert storage.is_remote(folder) or not (folder / "other").exists()


def test_a_run_that_renews_its_lock_is_named_wherever_it_runs(folder, monkeypatch, caplog):
    """A host's clock may be days off: what counts is that the lock changes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(owner(host="vm\x1b[31m-3", renewed=1))
    renewed = [None]

    def read(file, original=folder_lock._read):
        renewed.append(owner(host="vm\x1b[31m-3", renewed=1, renewals=len(renewed)))
        (folder / NAME).write_text(renewed[-1])
        return original(file)

    monkeypatch.setattr(folder_lock, "_read", read)
    with pytest.raises(FolderLockedError) as caught, locked(folder):
        pass
    assert str(caught.value) == (
        f"output_dir={folder}: another run is writing into this folder: process 4 on host "
        "vm?[31m-3, since 2026-01-02. Wait until it has ended, stop it there, or use another "
        "output_dir"
    )
    assert "Waiting up to" in caplog.text
    assert (folder / NAME).read_text() in renewed


@pytest.mark.parametrize("text", [owner(), "", "[1]", owner(pid="7")])
def test_a_lock_that_is_not_renewed_is_taken_over(folder, monkeypatch, caplog, text):
    monkeypatch.setattr(folder_lock, "SECONDS_UNTIL_STALE", 0.1)
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_WATCH", 0.1)
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_SETTLE", 0.01)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(text)
    with locked(folder):
        assert folder_lock._Owner.parse((folder / NAME).read_text()).pid == os.getpid()
    assert [path.name for path in folder.iterdir()] == [] if folder.exists() else True
    assert re.search(r"taking over the lock of .*, which was not renewed for 0 s", caplog.text)


def test_how_long_a_lock_is_watched_depends_on_its_age_by_the_file_systems_clock(tmp_path):
    file = tmp_path / NAME
    file.write_text(owner(renewed=2**31))
    for age, expected in ((45, 45), (90, 90), (-1000, 0)):
        now = time.time()
        os.utime(file, (now - age, now - age))
        assert folder_lock._age(file) == pytest.approx(expected, abs=1)
    assert os.listdir(tmp_path) == [NAME]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcomes of all jobs of `lock_jobs.py`."""
    command = [sys.executable, lock_jobs.__file__, str(tmp_path_factory.mktemp("jobs"))]
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"log": done.stderr}


def test_a_process_of_this_host_is_named_and_blocks_nothing_once_killed(outcomes):
    killed = outcomes["killed"]
    assert f"process {killed['process']} on host " in killed["refused"]
    assert f"stop it (kill {killed['process']}), or use another output_dir" in killed["refused"]
    assert killed["seconds"] < 2
    assert killed["left"] == []
    assert "taking over the lock of process" in outcomes["log"]


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_several_that_start_at_once_wins(outcomes, stale):
    assert outcomes[f"stale {stale}"] == ["lost"] * 5 + ["won"]


def test_an_exit_because_of_a_failure_deletes_the_lock(outcomes):
    assert outcomes["failed"] == [7, False]


def test_the_same_id_of_a_later_process_is_not_the_owner(tmp_path):
    """Process ids are few in a container: a restarted one often has the old id."""
    values = json.loads(folder_lock._Owner.new().text(0))
    other = values | {"pid": os.getppid(), "process_started": "1", "token": "other"}
    (tmp_path / NAME).write_text(json.dumps(other))
    with locked(tmp_path):
        pass


def test_another_thread_is_refused_and_a_lock_left_by_an_interrupt_is_not_in_the_way(tmp_path):
    refused = []

    def enter():
        try:
            with locked(tmp_path):
                pass
        except FolderLockedError as error:
            refused.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on host" in refused[0]
    (tmp_path / NAME).write_text(folder_lock._Owner.new().text(0))
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_is_renewed_and_its_loss_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_RENEW", 0.05)
    with locked(folder):
        first = (folder / NAME).read_text()
        until(lambda: (folder / NAME).read_text() not in ("", first))
        assert len((folder / NAME).read_text()) == len(first)
        (folder / NAME).unlink()
        until(lambda: (folder / NAME).exists())
        check_lock(folder)
        (folder / NAME).unlink()
        (folder / NAME).write_text(owner())
        lock = folder_lock._held[folder_lock._key(folder)]
        until(lambda: lock.is_lost)
        with pytest.raises(OSError, match="another run has taken over the folder"):
            check_lock(folder)
    assert json.loads((folder / NAME).read_text())["host"] == "vm-3"


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_training_is_refused_and_deletes_its_lock(tmp_path):
    tokenizer, examples = tiny.tokenizer(), tiny.examples(answerable=True)
    trainer = trainer_in(tmp_path / "out", examples, tokenizer, **RUN)
    command = [sys.executable, lock_jobs.__file__, str(tmp_path / "out"), "hold"]
    environment = os.environ | {"PYTHONPATH": python_path()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(FolderLockedError, match=rf"process {process.pid} on host"):
            trainer.train()
        assert os.listdir(tmp_path / "out") == [NAME]
        process.kill()
        process.wait()
    trainer.train()
    trainer.train()
    assert os.listdir(tmp_path / "out") == ["checkpoint-2"]
