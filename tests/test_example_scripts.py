"""The scripts in examples/ run as their heads say."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import docs_folder
import pytest

from qa_flax.cli import main

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
QUICK = ("question_answering",)
SCRIPTS = [
    pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem)
    for path in sorted(FOLDER.glob("*.py"))
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return docs_folder.make(tmp_path_factory.mktemp("examples"))


def command_of(script):
    """The arguments of the command in the script's head."""
    (line,) = re.findall(rf"^ +python examples/{script.name} (.*)$", script.read_text(), re.M)
    return line.split()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_as_its_head_says(script, original, tmp_path, monkeypatch, capsys):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    arguments = command_of(script)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    out, output = capsys.readouterr().out, tmp_path / arguments[-1]
    check = {"question_answering": trained, "lora": adapters, "small_data": curves}[script.stem]
    check(output, out)


def trained(output, out):
    assert {"model.safetensors", "tokenizer.json", "eval_results.json"} <= names(output)
    answers = json.loads((output / "predict_predictions.json").read_text())
    assert len(answers) == 10
    for id_, text in answers.items():
        assert f"{id_}: {text}\n" in out
    assert 0 <= json.loads((output / "eval_results.json").read_text())["eval_f1"] <= 100
    main(["report", str(output)])
    assert "dev-v1.1.json" in (output / "eval_report.html").read_text()


def adapters(output, out):
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names(output)
    assert "model.safetensors" not in names(output)
    assert "trainable params" in out
    assert "'eval_f1'" in out
    assert "'answer'" in out


def curves(output, out):
    assert {"model.safetensors", "tokenizer.json", "learning_curves.svg"} <= names(output)
    assert re.search(r"^\d+ questions that were not trained on: F1 \d+\.\d$", out, re.M)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_tpu_script_copies_the_files_and_gives_the_run_their_new_place(original):
    settings = {"PROJECT": "p", "ZONE": "z", "BUCKET": "gs://b/qa", "PATH": os.environ["PATH"]}

    def run(*arguments, **changes):
        return subprocess.run(
            [FOLDER / "tpu.sh", *arguments],
            env=settings | changes,
            cwd=original,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("train-v1.1.json", "dev-v1.1.json", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "gcloud storage cp train-v1.1.json gs://b/qa/data/"
    assert lines[1] == "gcloud storage cp dev-v1.1.json gs://b/qa/data/"
    (start,) = (line for line in lines if " start" in line and "--do_train" in line)
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        assert f"gs://b/qa/data/{name}" in start
    assert lines[-1].startswith("gcloud compute tpus queued-resources delete")
    assert run("train-v1.1.json").returncode == 2
    missing = run("none.json", "dev-v1.1.json", "--dry-run")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no file none.json" in missing.stderr
    unset = run("train-v1.1.json", "dev-v1.1.json", BUCKET="")
    assert unset.returncode != 0
    assert "BUCKET" in unset.stderr
