"""Permissions and room are checked before a training; a disk that is full later is one line."""

import json
import os
import shutil
import subprocess
import sys

import fake_gs
import limits
import pytest
import tiny
from processes import environment
from tiny_run import run
from tiny_trainers import trainer_in

from qa_flax import LoraConfig, get_peft_model, storage
from qa_flax.train.output_room import Room, check_room, checkpoint_room, model_room


def test_the_estimate_is_that_of_the_files(tmp_path):
    model = tiny.model()
    model.save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    room = model_room(model)
    assert room.total == room.largest == 4 * model.num_parameters()
    assert room.total < weights < 1.05 * room.total
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    adapted.save_pretrained(tmp_path / "adapters")
    adapters = (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size
    assert model_room(adapted).total < adapters < model_room(adapted).total + 3000
    assert checkpoint_room(model, None) == room


def test_too_little_room_is_an_error_with_both_figures(tmp_path, tmp_path_factory):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "new", Room(1000, 1000), "a checkpoint")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(OSError, match=r"a checkpoint of this run takes .* MB, and there is room"):
        check_room(tmp_path, Room(2 * free, 1000), "a checkpoint")
    with (
        limits.file_size(5000),
        pytest.raises(OSError, match=r"a file of 6,000 bytes, and the limit .* is 5,000 bytes"),
    ):
        check_room(tmp_path, Room(6000, 6000), "the model")
    fake_gs.register(str(tmp_path_factory.mktemp("buckets")))
    check_room(storage.path("gs://bucket/folder"), Room(2 * free, 0), "a checkpoint")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with limits.file_size(0), pytest.raises(OSError, match=r"File too large; raise .*/new'$"):
        check_room(tmp_path / "new", Room(0, 0), "a checkpoint")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        check_room(tmp_path / "file" / "new", Room(0, 0), "a checkpoint")


def test_the_trainer_checks_before_the_first_step(tmp_path):
    trainer = trainer_in(
        tmp_path, tiny.examples(answerable=True), tiny.tokenizer(), max_steps=2, save_steps=1
    )
    with limits.file_size(70_000), pytest.raises(OSError, match="a checkpoint of this run has a"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.iterdir())


@pytest.fixture
def inputs(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (tmp_path / "v1.json").write_text(json.dumps({"data": rows}))
    return tmp_path / "model", [f"--train_file={tmp_path / 'v1.json'}", "--do_train"]


@pytest.mark.slow
def test_a_command_whose_checkpoint_cannot_be_saved_ends_with_one_line(inputs, tmp_path, capsys):
    model, arguments = inputs
    output = tmp_path / "out"
    steps = ["--save_steps=1", "--disable_tqdm=True"]
    # The model is smaller, but not the training state.
    with limits.file_size(81_000), pytest.raises(SystemExit) as ended:
        run(model, output, *arguments, *steps, "--max_steps=2")
    assert ended.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("qa-flax: OSError: [Errno 27] File too large; raise the limit"), errors
    assert last.endswith(f"'{output / 'checkpoint-1'}'")
    assert not list(output.iterdir())


@pytest.mark.slow
def test_a_path_that_the_libraries_cannot_open_is_refused_at_the_start(inputs, tmp_path):
    model, arguments = inputs
    command = [sys.executable, "-m", "qa_flax", "run", f"--model_name_or_path={model}"]
    command += [f"--output_dir={tmp_path}/\u00e9t\u00e9", *arguments, "--max_steps=1"]
    command += ["--per_device_train_batch_size=1"]
    for variables, status in (({}, 2), ({"PYTHONUTF8": "1"}, 0)):
        ended = subprocess.run(
            command,
            env=environment(1) | {"LC_ALL": "C", "PYTHONUTF8": "0"} | variables,
            capture_output=True,
            check=False,
        )
        assert ended.returncode == status, ended.stderr
        assert b"Traceback" not in ended.stderr
        assert (b"set PYTHONUTF8=1 or LC_ALL=C.UTF-8" in ended.stderr) == bool(status)
        assert (tmp_path / "\u00e9t\u00e9").exists() == (not status)


def test_a_name_that_is_no_utf_8_is_refused(tmp_path):
    storage.check_encodable(tmp_path / "\u00e9", "output_dir")
    with pytest.raises(ValueError, match=r"^output_dir='a\\udce9' has letters that Python.*UTF-8$"):
        storage.check_encodable(os.fsdecode(b"a\xe9"), "output_dir")
