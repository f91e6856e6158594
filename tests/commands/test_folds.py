"""`qa-flax run --folds`: a folder for each fold, `folds.json`, resuming, all models together."""

import contextlib
import io
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import tiny
from tiny_run import run

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.commands.run.folds import table
from qa_flax.models.averaged import AveragedModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.model(initializer_range=0.05, hidden_dropout_prob=0.1).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train.json: 24 questions about 12 contexts; test.json: the twelve of the other tests."""
    directory = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for text in range(12):
        words = rng.choice(["Ada", "Charles", "Elbe", "Dresden", "Tokyo", "Kyoto"], 6)
        context = " ".join(words) + f" {text}."
        for n, word in enumerate(words[:2]):
            answers = {"text": [str(word)], "answer_start": [context.index(word)]}
            row = {"id": f"{text}-{n}", "question": f"Where is {word}?", "context": context}
            rows.append(row | {"answers": answers})
    (directory / "train.json").write_text(json.dumps(rows))
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (directory / "test.json").write_text(json.dumps(rows))
    return directory


def read(path):
    return json.loads(path.read_text())


def test_the_table_has_a_row_for_each_fold_and_says_which_deviation():
    folds = [
        {"fold": n, "train_examples": 20, "eval_examples": 10, "eval_f1": f1, "train_loss": 1.0}
        for n, f1 in ((1, 50.0), (2, 62.5))
    ]
    summary = {"folds": folds, "mean": {"eval_f1": 56.25, "train_loss": 1.0}}
    lines = table(summary | {"std": {"eval_f1": 8.838, "train_loss": 0.0}})
    assert [line.split() for line in lines[:-1]] == [
        ["fold", "train", "eval", "train_loss", "eval_f1"],
        ["1", "20", "10", "1.0000", "50.00"],
        ["2", "20", "10", "1.0000", "62.50"],
        ["mean", "1.0000", "56.25"],
        ["std", "0.0000", "8.84"],
    ]
    assert "sample standard deviation" in lines[-1]


def folds_of(data):
    files = [f"--train_file={data / 'train.json'}", f"--test_file={data / 'test.json'}"]
    settings = ["--max_steps=6", "--save_steps=2", "--learning_rate=1e-3", "--report_to=none"]
    return [*files, "--do_train", "--do_predict", "--folds=3", "--disable_tqdm=True", *settings]


@pytest.fixture(scope="module")
def finished(checkpoint, data, tmp_path_factory):
    """The folder of a cross-validation that was stopped in its second fold and resumed."""
    out = tmp_path_factory.mktemp("out") / "out"
    arguments = folds_of(data)
    thread = threading.Thread(target=stop_once_it_exists, args=(out / "fold-2" / "checkpoint-2",))
    thread.start()
    with pytest.raises(SystemExit) as exit_:
        run(checkpoint, out, *arguments)
    thread.join()
    assert exit_.value.code == 143
    assert (out / "fold-1" / "fold.json").exists()
    assert not (out / "fold-2" / "fold.json").exists()
    assert not (out / "folds.json").exists()
    weights = (out / "fold-1" / "model.safetensors").stat().st_mtime_ns
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        run(checkpoint, out, *arguments)
    line = "Fold 1 of 3: 16 questions to train on, 8 to evaluate: already finished"
    assert line in printed.getvalue()
    assert f"Resuming from {out / 'fold-2' / 'checkpoint-'}" in errors.getvalue()
    assert (out / "fold-1" / "model.safetensors").stat().st_mtime_ns == weights
    return out


@pytest.mark.slow
def test_each_fold_is_a_whole_folder_and_its_results_are_summarised(finished, data):
    summary, ids = read(finished / "folds.json"), []
    assert summary.keys() == {"folds", "mean", "std"}
    assert [fold["fold"] for fold in summary["folds"]] == [1, 2, 3]
    for fold in summary["folds"]:
        folder = finished / f"fold-{fold['fold']}"
        assert (fold["train_examples"], fold["eval_examples"]) == (16, 8)
        assert read(folder / "all_results.json")["eval_f1"] == fold["eval_f1"]
        for name in ("config.json", "tokenizer.json", "trainer_state.json", "README.md"):
            assert (folder / name).exists(), name
        ids += read(folder / "eval_predictions.json").keys()
    assert sorted(ids) == sorted(row["id"] for row in read(data / "train.json"))
    for name in ("eval_f1", "eval_loss", "train_loss"):
        values = [fold[name] for fold in summary["folds"]]
        assert len(set(values)) > 1
        assert summary["mean"][name] == pytest.approx(np.mean(values))
        assert summary["std"][name] == pytest.approx(np.std(values, ddof=1))
    assert not any("runtime" in name or "samples" in name for name in summary["mean"])


@pytest.mark.slow
def test_an_interrupted_fold_ends_with_the_weights_of_an_uninterrupted_one(
    checkpoint, data, finished, tmp_path
):
    run(checkpoint, tmp_path / "out", *folds_of(data))
    for n in (1, 2, 3):
        files = [out / f"fold-{n}" / "model.safetensors" for out in (tmp_path / "out", finished)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_the_models_of_all_folds_answer_together(finished, data, tmp_path, capfd):
    assert read(finished / "predict_predictions.json").keys() == {f"q{n}" for n in range(11)}
    test = data / "test.json"
    run(finished, tmp_path / "out", f"--validation_file={test}", "--do_eval")
    together = read(tmp_path / "out" / "eval_results.json")["eval_loss"]
    assert together == pytest.approx(read(finished / "all_results.json")["predict_loss"])
    losses = []
    for n in (1, 2, 3):
        arguments = [f"--validation_file={test}", "--do_eval", "--disable_tqdm=True"]
        run(finished / f"fold-{n}", tmp_path / "single", *arguments)
        losses.append(read(tmp_path / "single" / "eval_results.json")["eval_loss"])
    # The logarithm is concave, so the mean probability has a smaller loss than the mean loss.
    assert together < np.mean(losses)
    train = ["--do_train", f"--train_file={data / 'train.json'}"]
    message = error_message(capfd, finished, tmp_path / "more", *train)
    assert "the average of 3 models cannot be trained" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_finished_folds_are_not_mixed_with_other_settings(checkpoint, data, finished, capfd):
    arguments, summary = folds_of(data), read(finished / "folds.json")
    message = error_message(capfd, checkpoint, finished, *arguments, "--learning_rate=1e-2")
    assert "learning_rate was 0.001 and is 0.01" in message
    assert "--overwrite_output_dir" in message
    message = error_message(capfd, checkpoint, finished, *arguments, "--folds=4")
    assert "folds was 3 and is 4" in message
    message = error_message(capfd, checkpoint, finished, *arguments, "--save_spans")
    assert "save_spans was False and is True" in message
    message = error_message(capfd, checkpoint, finished / "fold-1", *arguments)
    assert "holds a model already (config.json)" in message
    message = error_message(capfd, checkpoint, finished, *arguments, "--resume_from_checkpoint=x")
    assert "repeating the command resumes" in message
    assert read(finished / "folds.json") == summary
    changed = ["--learning_rate=1e-2", "--overwrite_output_dir"]
    run(checkpoint, finished, *arguments, *changed)
    assert "already finished" not in capfd.readouterr().out
    assert read(finished / "folds.json")["mean"] != summary["mean"]


@pytest.mark.slow
def test_folds_of_adapters_are_loaded_as_their_average(checkpoint, data, tmp_path):
    lora = ["--lora_r=2", "--lora_target_modules=query,value"]
    arguments = [*folds_of(data), *lora, "--folds=2", "--max_steps=2", "--save_spans"]
    run(checkpoint, tmp_path / "out", *arguments)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert isinstance(model, AveragedModel)
    assert model.model_count == 2
    for name in ("predictions", "spans"):
        assert len(read(tmp_path / "out" / f"predict_{name}.json")) == 11
        ids = [read(tmp_path / "out" / fold / f"eval_{name}.json") for fold in ("fold-1", "fold-2")]
        assert sum(map(len, ids)) == 24


def stop_once_it_exists(path):
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def error_message(capfd, checkpoint, out, *arguments):
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(checkpoint, out, *arguments)
    assert exit_.value.code == 2
    return capfd.readouterr().err
