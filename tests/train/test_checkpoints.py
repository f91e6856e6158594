"""Checkpoints are complete or invalid, even if the process that saves one is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import limits
import numpy as np
import pytest
import tiny
from processes import environment
from saved_state import STATE, save
from tiny_trainers import trainer_in

from qa_flax import storage
from qa_flax.train import checkpoints
from qa_flax.train.checkpoints import ResumeError


@pytest.fixture
def saved(tmp_path):
    for step in (2, 10):  # sorted by name, 10 would come first
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
    "truncated": (truncate, r"model.safetensors has 4999 bytes, expected 5000"),
    "one byte changed": (change, r"model.safetensors has changed since it was saved .*SHA-256"),
    "no file": (remove("model.safetensors"), "model.safetensors is missing"),
    "no manifest": (remove("manifest.json"), "no manifest.json: saving it was interrupted"),
    "no run": (remove("run.json"), "has no run.json"),
    "empty folder": (empty, "has no trainer_state.json, train_state, run.json"),
    "manifest without sums": (
        lambda folder: (folder / "manifest.json").write_text('{"files": {"a": {"size": 1}}}'),
        "manifest.json is damaged",
    ),
    "bad manifest": (
        lambda folder: (folder / "manifest.json").write_text("{"),
        "manifest.json is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_or_refused(saved, caplog, damage):
    apply_damage, message = DAMAGES[damage]
    newest = saved / "checkpoint-10"
    assert checkpoints.find(True, saved) == newest
    apply_damage(newest)
    with pytest.raises(ResumeError, match=message) as refused:
        checkpoints.find(newest, saved)
    assert "Pass another checkpoint" in str(refused.value)
    assert checkpoints.find(True, saved) == saved / "checkpoint-2"
    assert f"Skipping {newest}: " in caplog.text
    apply_damage(saved / "checkpoint-2")
    with pytest.raises(ResumeError, match=r"no checkpoint-<step> in .* can be resumed from"):
        checkpoints.find(True, saved)


def test_load_state_returns_what_save_state_wrote(saved):
    state, run = checkpoints.load_state(saved / "checkpoint-10", STATE)
    np.testing.assert_array_equal(state["a"], STATE["a"])
    assert state["b"]["c"] == 7
    assert run == {"step": "checkpoint-10"}
    half_precision = STATE | {"a": STATE["a"].astype(np.float16)}
    with pytest.raises(
        ResumeError, match=r"\['a'\] has dtype float32 in the checkpoint, float16 now"
    ):
        checkpoints.load_state(saved / "checkpoint-10", half_precision)


def test_recover_cleans_up_after_a_killed_process(saved):
    """Killed while it filled a folder, between the two renames, or while it deleted or wrote."""
    shutil.copytree(saved / "checkpoint-2", saved / ".checkpoint-11.new")
    (saved / "checkpoint-10").rename(saved / ".checkpoint-10.old")
    (saved / "checkpoint-2").rename(saved / ".checkpoint-2.deleted")
    (saved / f".eval_predictions.json.4711{storage.TEMPORARY_SUFFIX}").write_text("{")
    (saved / ".mine.4711.tmp").write_text("{")
    checkpoints.recover(saved)
    (saved / ".mine.4711.tmp").unlink()
    assert [path.name for path in saved.iterdir()] == ["checkpoint-10"]
    shutil.copytree(saved / "checkpoint-10", saved / ".checkpoint-10.old")
    checkpoints.recover(saved)
    assert [path.name for path in saved.iterdir()] == ["checkpoint-10"]


def test_saving_the_same_step_replaces_it_unless_saving_fails(saved):
    other = STATE | {"b": {"c": np.int32(8)}}
    with pytest.raises(OSError, match="full"):  # noqa: SIM117
        with checkpoints.new_folder(saved / "checkpoint-10"):
            raise OSError("full")
    assert checkpoints.load_state(checkpoints.find(True, saved), STATE)[0]["b"]["c"] == 7
    save(saved / "checkpoint-10", other)
    assert checkpoints.load_state(checkpoints.find(True, saved), STATE)[0]["b"]["c"] == 8
    assert {path.name for path in saved.iterdir()} == {"checkpoint-2", "checkpoint-10"}


@pytest.mark.parametrize(
    ("limit", "best", "remaining"),
    [
        (None, None, [2, 10, 11, 12]),
        (0, None, [2, 10, 11, 12]),
        (2, None, [11, 12]),
        (2, 10, [10, 12]),
        (1, 2, [2, 12]),
        (1, 12, [12]),
    ],
)
def test_rotation_equals_that_of_transformers(saved, tmp_path_factory, limit, best, remaining):
    from transformers.trainer_utils import rotate_checkpoints

    for step in (11, 12):
        shutil.copytree(saved / "checkpoint-2", saved / f"checkpoint-{step}")
    reference = tmp_path_factory.mktemp("transformers")
    shutil.copytree(saved, reference, dirs_exist_ok=True)

    def name(root):
        return None if best is None else str(root / f"checkpoint-{best}")

    checkpoints.rotate(saved, limit, saved / "checkpoint-12", name(saved))
    rotate_checkpoints(str(reference), limit, name(reference))
    paths = checkpoints.list_checkpoints(saved)
    assert [int(path.name.partition("-")[2]) for path in paths] == remaining
    assert {path.name for path in saved.iterdir()} == {path.name for path in reference.iterdir()}


def test_rotation_retains_the_checkpoint_just_saved_rather_than_a_damaged_later_one(saved):
    """Step 10 is damaged, so the run resumes from step 2 and saves step 3."""
    truncate(saved / "checkpoint-10")
    save(saved / "checkpoint-3")
    checkpoints.rotate(saved, 1, saved / "checkpoint-3", None)
    assert [path.name for path in saved.iterdir()] == ["checkpoint-3"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, capfd):
    """A limit of the size of files stands in for a full disk, which fails each of the writers."""
    save(tmp_path / "checkpoint-1")
    large = {f"a{n}": np.random.default_rng(n).random(2000) for n in range(8)}
    for limit in (50, 1000, 4000, 4990):  # of Orbax's first file, of its arrays, of the model
        with limits.file_size(limit), pytest.raises(OSError, match=r"File too large; raise .*-2'$"):
            save(tmp_path / "checkpoint-2", large if limit == 4000 else STATE)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.find(True, tmp_path).name == "checkpoint-1"
    assert capfd.readouterr() == ("", "")  # neither Orbax nor its threads print a traceback


# ---- things that this trainer has not made -------------------------------------------------------


def make_file(path):
    path.write_text("mine")


def make_link(path):
    (path.parent / "elsewhere").mkdir(exist_ok=True)
    (path.parent / "elsewhere" / "kept").write_text("mine")
    path.symlink_to("elsewhere")


def make_dangling(path):
    path.symlink_to("nowhere")


def make_circle(path):
    path.symlink_to(path.name)


THINGS = {f.__name__: f for f in (make_file, make_link, make_dangling, make_circle, os.mkfifo)}


@pytest.mark.parametrize("thing", THINGS)
def test_foreign_things_are_left_alone_with_one_warning(saved, caplog, thing):
    names = ["checkpoint-5", "checkpoint-99", ".checkpoint-11.new", ".checkpoint-2.old"]
    names += [".checkpoint-10.deleted"]
    for name in names:
        THINGS[thing](saved / name)
    before = {path.name for path in saved.iterdir()} - {"checkpoint-2"}
    checkpoints.recover(saved)
    save(saved / "checkpoint-11")
    checkpoints.rotate(saved, 1, saved / "checkpoint-11", None)
    checkpoints.delete_others(saved, saved / "checkpoint-11")
    assert checkpoints.find(True, saved) == saved / "checkpoint-11"
    assert [path.name for path in checkpoints.list_checkpoints(saved)] == ["checkpoint-11"]
    after = {path.name for path in saved.iterdir()}
    assert after == before - {"checkpoint-10"} | {"checkpoint-11"}
    if thing == "make_link":
        assert (saved / "elsewhere" / "kept").read_text() == "mine"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(names)
    for name in names:
        assert sum(f"{saved / name} is " in warning for warning in warnings) == 1, warnings
    assert not checkpoints.is_free(saved / "checkpoint-5")
    assert checkpoints.is_free(saved / "checkpoint-6")
    assert checkpoints.is_free(saved / "checkpoint-11")


@pytest.mark.slow
def test_a_training_goes_on_if_something_foreign_has_the_name_of_a_checkpoint(tmp_path, caplog):
    make_file(tmp_path / "checkpoint-2")
    changes = {"save_steps": 1, "max_steps": 3, "save_total_limit": 2, "save_only_model": True}
    trainer = trainer_in(tmp_path, tiny.examples(True), tiny.tokenizer(), **changes)
    trainer.train()
    assert (tmp_path / "checkpoint-2").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{n}" for n in (1, 2, 3)}
    assert f"{tmp_path / 'checkpoint-2'} is not saved, because" in caplog.text


def test_numbers_that_this_trainer_does_not_write_are_left_alone(saved, caplog):
    names = ["checkpoint-\u0663", "checkpoint-007", "checkpoint-\uff15"]
    for name in names:
        shutil.copytree(saved / "checkpoint-2", saved / name)
    (saved / ".checkpoint-\u0663.new").mkdir()
    (saved / "checkpoint-last").mkdir()
    checkpoints.recover(saved)
    checkpoints.delete_others(saved, saved / "checkpoint-10")
    assert {path.name for path in saved.iterdir()} == {
        *names,
        "checkpoint-10",
        "checkpoint-last",
        ".checkpoint-\u0663.new",
    }
    assert sum("is a folder, and no checkpoint of this trainer" in m for m in caplog.messages) == 3


def test_the_old_copy_of_a_checkpoint_stays_if_something_foreign_has_its_name(saved):
    (saved / "checkpoint-10").rename(saved / ".checkpoint-10.old")
    make_dangling(saved / "checkpoint-10")
    checkpoints.recover(saved)
    assert (saved / ".checkpoint-10.old" / "run.json").is_file()
    (saved / "checkpoint-10").unlink()
    checkpoints.recover(saved)
    assert checkpoints.find(True, saved).name == "checkpoint-10"


@pytest.mark.parametrize("name", ["run.json", "train_state", "manifest.json"])
def test_a_checkpoint_with_a_link_that_leads_out_of_it_is_damaged(saved, name):
    newest = saved / "checkpoint-10"
    (newest / name).rename(saved / "moved")
    (newest / name).symlink_to("../moved")
    with pytest.raises(ResumeError, match="is a link that leads out of the folder"):
        checkpoints.find(newest, saved)
    assert checkpoints.find(True, saved).name == "checkpoint-2"


def test_a_manifest_without_the_sums_of_what_is_loaded_is_damaged(saved):
    manifest = saved / "checkpoint-10" / "manifest.json"
    for name in ("run.json", "train_state", "trainer_state.json"):
        files = json.loads(manifest.read_text())["files"]
        kept = {file: values for file, values in files.items() if not file.startswith(name)}
        manifest.write_text(json.dumps({"files": kept}))
        with pytest.raises(ResumeError, match=rf"is damaged \(it has no sum of {name}\)"):
            checkpoints.find(saved / "checkpoint-10", saved)
        manifest.write_text(json.dumps({"files": files}))
    assert checkpoints.find(True, saved).name == "checkpoint-10"
    one = next(name for name in files if name.startswith("train_state/"))
    manifest.write_text(json.dumps({"files": {n: v for n, v in files.items() if n != one}}))
    with pytest.raises(ResumeError, match=rf"is damaged \(it has no sum of {one}\)"):
        checkpoints.find(saved / "checkpoint-10", saved)


KILLS = [1, pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_kill_9_loses_at_most_the_checkpoint_being_saved(tmp_path, kills):
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
        printed = process.communicate()[0].split()
        last_saved = int(printed[-1]) if printed else step
        path = checkpoints.find(True, tmp_path)
        assert int(path.name.partition("-")[2]) in (last_saved, last_saved + 1)
        assert checkpoints.load_state(path, STATE)[1] == {"step": path.name}
        json.loads((path / "manifest.json").read_text())
        step = last_saved + 2
