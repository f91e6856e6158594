"""A checkpoint is whole or not there, whatever happened to it or to the process that saved it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import environment
from saved_state import STATE, save

from qa_flax.train import checkpoints
from qa_flax.train.checkpoints import ResumeError


@pytest.fixture
def saved(tmp_path):
    for step in (2, 10):  # by number, not by name
        save(tmp_path / f"checkpoint-{step}")
    return tmp_path


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def change(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(100)
        file.write(b"x")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def remove(name):
    return lambda folder: (folder / name).unlink()


DAMAGES = {
    "cut off": (truncate, r"model.safetensors has 4999 bytes, of 5000"),
    "one byte": (change, r"model.safetensors has another content .*SHA-256"),
    "no file": (remove("model.safetensors"), "model.safetensors is missing"),
    "no manifest": (remove("manifest.json"), "no manifest.json: its saving was cut off"),
    "no run": (remove("run.json"), "has no run.json"),
    "empty folder": (empty, "has no trainer_state.json, train_state, run.json"),
    "bad manifest": (
        lambda folder: (folder / "manifest.json").write_text("{"),
        "manifest.json cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_refused(saved, caplog, damage):
    spoil, message = DAMAGES[damage]
    newest = saved / "checkpoint-10"
    assert checkpoints.find(True, saved) == newest
    spoil(newest)
    with pytest.raises(ResumeError, match=message) as refused:
        checkpoints.find(newest, saved)
    assert "Give another" in str(refused.value)
    assert checkpoints.find(True, saved) == saved / "checkpoint-2"
    assert "checkpoint-10 is passed over" in caplog.text
    spoil(saved / "checkpoint-2")
    with pytest.raises(ResumeError, match=r"no checkpoint-<step> in .* could be resumed from"):
        checkpoints.find(True, saved)


def test_what_is_read_is_what_was_saved(saved):
    found, run = checkpoints.load_state(saved / "checkpoint-10", STATE)
    np.testing.assert_array_equal(found["a"], STATE["a"])
    assert found["b"]["c"] == 7
    assert run == {"step": "checkpoint-10"}
    halves = STATE | {"a": STATE["a"].astype(np.float16)}
    with pytest.raises(ResumeError, match=r"\['a'\] is float32, here float16"):
        checkpoints.load_state(saved / "checkpoint-10", halves)


def test_what_a_killed_process_left_is_put_right(saved):
    """Killed while it filled a folder, between the two renames, and while it deleted one."""
    shutil.copytree(saved / "checkpoint-2", saved / ".checkpoint-11.new")
    (saved / "checkpoint-10").rename(saved / ".checkpoint-10.old")
    (saved / "checkpoint-2").rename(saved / ".checkpoint-2.deleted")
    checkpoints.recover(saved)
    assert [path.name for path in saved.iterdir()] == ["checkpoint-10"]
    shutil.copytree(saved / "checkpoint-10", saved / ".checkpoint-10.old")
    checkpoints.recover(saved)
    assert [path.name for path in saved.iterdir()] == ["checkpoint-10"]


def test_the_same_step_again_replaces_and_an_error_does_not(saved):
    other = STATE | {"b": {"c": np.int32(8)}}
    with pytest.raises(OSError, match="full"):  # noqa: SIM117
        with checkpoints.new_folder(saved / "checkpoint-10"):
            raise OSError("full")
    assert checkpoints.load_state(checkpoints.find(True, saved), STATE)[0]["b"]["c"] == 7
    save(saved / "checkpoint-10", other)
    assert checkpoints.load_state(checkpoints.find(True, saved), STATE)[0]["b"]["c"] == 8
    assert {path.name for path in saved.iterdir()} == {"checkpoint-2", "checkpoint-10"}


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 10, 11, 12]),
        (0, None, [2, 10, 11, 12]),
        (2, None, [11, 12]),
        (2, 10, [10, 12]),
        (1, 2, [2, 12]),
        (1, 12, [12]),
    ],
)
def test_rotation_is_that_of_transformers(saved, tmp_path_factory, limit, best, left):
    from transformers.trainer_utils import rotate_checkpoints

    for step in (11, 12):
        shutil.copytree(saved / "checkpoint-2", saved / f"checkpoint-{step}")
    theirs = tmp_path_factory.mktemp("theirs")
    shutil.copytree(saved, theirs, dirs_exist_ok=True)

    def name(root):
        return None if best is None else str(root / f"checkpoint-{best}")

    checkpoints.rotate(saved, limit, saved / "checkpoint-12", name(saved))
    rotate_checkpoints(str(theirs), limit, name(theirs))
    assert [int(p.name.partition("-")[2]) for p in checkpoints.all_of(saved)] == left
    assert {p.name for p in saved.iterdir()} == {p.name for p in theirs.iterdir()}


def test_rotation_keeps_what_was_saved_last_and_not_one_that_is_damaged(saved):
    """Gone on from step 2, as the checkpoint of step 10 is damaged, and saved at step 3."""
    truncate(saved / "checkpoint-10")
    save(saved / "checkpoint-3")
    checkpoints.rotate(saved, 1, saved / "checkpoint-3", None)
    assert [path.name for path in saved.iterdir()] == ["checkpoint-3"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """The kernel refuses to write more: the process fails, and what was saved is there."""
    program = (
        "import resource, signal, sys, pathlib\n"
        "from saved_state import save\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "save(root / 'checkpoint-1')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "save(root / 'checkpoint-2')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "too large" in ended.stderr or "EFBIG" in ended.stderr, ended.stderr[-2000:]
    checkpoints.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.find(True, tmp_path).name == "checkpoint-1"


KILLS = [1, pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_kill_9_while_saving_loses_at_most_the_one_being_saved(tmp_path, kills):
    program = (
        "import pathlib, sys, itertools\n"
        "from saved_state import save\n"
        "from qa_flax.train import checkpoints\n"
        "root, first = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "checkpoints.recover(root)\n"
        "for step in itertools.count(first):\n"
        "    save(root / f'checkpoint-{step}')\n"
        "    print(step, flush=True)\n"
        "    checkpoints.rotate(root, 2, root / f'checkpoint-{step}', None)\n"
    )
    rng, step = random.Random(kills), 1
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(step)],
            env=environment(1),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline().strip() == str(step)
        time.sleep(rng.uniform(0.0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        said = process.communicate()[0].split()
        announced = int(said[-1]) if said else step
        found = checkpoints.find(True, tmp_path)
        assert int(found.name.partition("-")[2]) in (announced, announced + 1)
        assert checkpoints.load_state(found, STATE)[1] == {"step": found.name}
        json.loads((found / "manifest.json").read_text())
        step = announced + 2
