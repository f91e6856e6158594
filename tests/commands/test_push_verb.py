"""`qa-flax push`, and `qa-flax run --push_to_hub`: what they print, and their exit status."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tiny
from hub_stand_in import TOKEN, environment
from huggingface_hub import ModelCard
from processes import environment as process_environment
from processes import free_port, join_arguments
from tiny_run import run

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.cli import main

REPO = "ada/pushed"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.model().save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (directory / "data.json").write_text(json.dumps({"data": rows}))
    return directory


def status_of(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    return stopped.value.code


def test_push_prints_where_the_model_is(hub, checkpoint, capsys):
    main(["push", str(checkpoint), REPO, "--private", "--commit_message", "By hand"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Pushed to {hub.url}/{REPO}/commit/")
    assert lines[1:] == [f"Not part of the model, and only in {checkpoint}: data.json"]
    assert hub.repos[REPO].private
    assert hub.repos[REPO].commits[0]["summary"] == "By hand"
    main(["push", str(checkpoint), REPO, "--revision", "v2", f"--token={TOKEN}"])
    assert "model.safetensors" in hub.files(REPO, "v2")
    main(["push", str(checkpoint), REPO])  # nothing has changed
    captured = capsys.readouterr()
    assert "No files have been modified" not in captured.err


def test_push_refuses_what_cannot_work(hub, checkpoint, tmp_path, capsys, monkeypatch):
    cases = [
        ((checkpoint, "a/b/c"), "REPO='a/b/c' cannot be the name of a repository"),
        ((tmp_path, REPO), "has no model"),
        ((tmp_path / "nothing", REPO), "is not a folder"),
        ((checkpoint, REPO, "--create_pr", "--revision=x"), "leave --revision out"),
    ]
    for arguments, message in cases:
        assert status_of("push", *arguments) == 2
        assert message in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert status_of("push", checkpoint, REPO) == 2
    assert "needs an access token" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("request_", "status"), [("create", 403), ("preupload", 404), ("/lfs/", 400)]
)
def test_a_failed_push_ends_with_1_and_the_command_that_repeats_it(
    hub, checkpoint, capsys, request_, status
):
    hub.failures[request_] = status
    assert status_of("push", checkpoint, REPO, "--private", f"--token={TOKEN}") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"qa-flax: the push to {hub.url}/{REPO} failed: ")
    assert "Traceback" not in captured.err
    assert TOKEN not in captured.err
    command = captured.err.strip().partition("To repeat only the push: qa-flax ")[2]
    hub.failures.clear()
    main(shlex.split(command))
    assert hub.repos[REPO].private
    assert "model.safetensors" in hub.files(REPO)


def test_run_refuses_a_push_that_cannot_work_before_it_reads_the_data(
    hub, checkpoint, tmp_path, capsys, monkeypatch
):
    data = ["--validation_file=nothing.json", "--do_eval", "--push_to_hub"]
    for more, status, message in [
        ([f"--hub_model_id={REPO}/x"], 2, "cannot be the name of a repository"),
        (["--hub_model_id=eve/x"], 1, "You cannot write to eve/x"),
        (["--folds=3", "--do_train", "--train_file=x.json"], 2, "cannot be used with --folds"),
    ]:
        given = data[1:] if "--folds=3" in more else data
        with pytest.raises(SystemExit) as stopped:
            run(checkpoint, tmp_path / "out", *given, *more)
        assert stopped.value.code == status
        assert message in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "out", *data)
    assert "needs an access token" in capsys.readouterr().err


def test_run_evaluates_writes_everything_and_pushes(hub, checkpoint, tmp_path, capsys):
    arguments = [f"--validation_file={checkpoint / 'data.json'}", "--do_eval", "--push_to_hub"]
    arguments += [f"--hub_model_id={REPO}", f"--hub_token={TOKEN}", "--report_to=none"]
    hub.failures["/commit/"] = 500
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, tmp_path / "out", *arguments)
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert f"All files are in {tmp_path / 'out'}" in captured.out
    error = captured.err.splitlines()[-1]
    assert error.endswith(f"To repeat only the push: qa-flax push {tmp_path / 'out'} {REPO}")
    assert TOKEN not in captured.out + captured.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"eval_results.json", "eval_predictions.json", "model.safetensors"} < written
    hub.failures.clear()
    main(["push", str(tmp_path / "out"), REPO])
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    (exact, f1) = card.data.eval_results
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert (exact.metric_value, f1.metric_value) == (
        results["eval_exact_match"],
        results["eval_f1"],
    )
    assert (f1.dataset_name, f1.dataset_split) == ("data.json", "validation")
    assert card.data.model_name == "pushed"
    assert str(tmp_path) not in hub.files(REPO)["README.md"].decode()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


# ---- as processes --------------------------------------------------------------------------------

TRAIN = ["--do_train", "--do_eval", "--max_steps=2", "--report_to=none", "--disable_tqdm=True"]


def start(hub, folder, checkpoint, *more):
    data = checkpoint / "data.json"
    arguments = [
        *("run", f"--model_name_or_path={checkpoint}", f"--output_dir={folder / 'out'}"),
        *(f"--train_file={data}", f"--validation_file={data}", "--max_seq_length=64"),
        *("--doc_stride=16", "--per_device_train_batch_size=2", *TRAIN),
        *("--push_to_hub", f"--hub_model_id={REPO}", *more),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "qa_flax", *arguments],
        env=process_environment(1) | environment(hub, folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 403])
def test_only_the_main_process_of_several_pushes(hub, checkpoint, tmp_path, status):
    if status:
        hub.failures["/commit/"] = status
    port = free_port()
    started = [
        start(hub, tmp_path, checkpoint, *join, "--hub_strategy=end")
        for join in join_arguments(2, port)
    ]
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [bool(status)] * 2, outputs
    assert sum("All files are in" in out for out, _ in outputs) == 1
    commits = [request for request in hub.requests if "/commit/" in request]
    assert len(commits) == 1
    for _, error in outputs:
        assert "Traceback" not in error
        assert ("403 Forbidden" in error) == bool(status)
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_push_that_is_killed_loses_nothing(hub, checkpoint, tmp_path):
    hub.delay = 3.0
    process = start(hub, tmp_path, checkpoint, "--hub_strategy=end")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Pushing"):
            break
    process.kill()
    process.communicate()
    hub.delay = 0.0
    assert not hub.repos[REPO].commits
    main(["push", str(tmp_path / "out"), REPO])
    AutoModelForQuestionAnswering.from_pretrained(REPO)


@pytest.mark.slow
def test_pytorch_computes_the_same_logits_from_the_pushed_model(hub, checkpoint, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    import transformers

    process = start(hub, tmp_path, checkpoint)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(REPO).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(REPO)
    row = tiny.rows()[0]
    inputs = tokenizer(row["question"], row["context"], return_tensors="np")
    ours = AutoModelForQuestionAnswering.from_pretrained(REPO)(**inputs)
    with torch.no_grad():
        output = theirs(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(getattr(output, name), getattr(ours, name), atol=1e-5)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
