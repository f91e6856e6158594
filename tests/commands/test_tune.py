"""`qa-flax tune`: the space, the trials, resuming, and the command line of the best trial."""

import json
import os
import shlex
import signal
import threading
import time

import numpy as np
import pytest
import tiny

from qa_flax.cli import main
from qa_flax.commands import tune as command
from qa_flax.commands.tune.report import run_command
from qa_flax.commands.tune.space import DEFAULT, Choice, Range, first_trial, read_space

pytest.importorskip("optuna", reason="pip install '.[tune]'")

WINDOW = ["--max_seq_length=64", "--doc_stride=16", "--per_device_train_batch_size=1"]


def space_of(*texts, given=(), left_out=()):
    parser = command.parser()
    names = parser._option_string_actions
    allowed = {name[2:] for name in names if name.startswith("--")}
    return read_space(texts, parser, allowed, given, left_out)


def test_the_space_is_narrowed_fixed_and_extended():
    space, fixed = space_of()
    assert space.keys() == DEFAULT.keys()
    assert space["learning_rate"] == Range(1e-5, 3e-4, is_log=True)
    assert space["num_train_epochs"] == Range(2, 8)
    assert space["num_train_epochs"].is_whole
    assert space["weight_decay"] == Choice((0.0, 0.01, 0.1))
    assert fixed == {}
    space, fixed = space_of(
        "learning_rate=2e-5..5e-5",
        "--weight-decay=1e-4..1e-1:log",
        "layerwise_lr_decay=0.9",
        "lr_scheduler_type=linear,cosine",
        "warmup_steps=0.0..0.2",
        given=["num_train_epochs"],
        left_out=["hidden_dropout_prob"],
    )
    assert fixed == {"layerwise_lr_decay": 0.9}
    assert space == {
        "learning_rate": Range(2e-5, 5e-5, is_log=True),
        "weight_decay": Range(1e-4, 1e-1, is_log=True),
        "lr_scheduler_type": Choice(("linear", "cosine")),
        "warmup_steps": Range(0.0, 0.2),
    }
    assert first_trial(space) == {"learning_rate": 5e-5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate", "it must be NAME=VALUES"),
        ("learning_rates=1..2", "no training argument learning_rates"),
        ("learning_rate=1e-4..1e-5", "LOW must be above 0 and below HIGH"),
        ("learning_rate=0..1e-5", "LOW must be above 0"),
        ("learning_rate=a..b", "needs two numbers"),
        ("lr_scheduler_type=1..2", "needs two numbers"),
        ("lr_scheduler_type=linear,bent", "'bent'"),
        ("weight_decay=0.1,0.1", "a value twice"),
        ("weight_decay=0.1:log", "only a range has a scale"),
        ("weight_decay=0.1..0.2:exp", "write a range as LOW..HIGH"),
        ("per_device_train_batch_size=1.5..4", "is a whole number"),
        ("seed=1,x", "'x' is no value of --seed"),
        ("num_train_epochs=3", "--num_train_epochs fixes its value"),
    ],
)
def test_what_is_wrong_with_a_space_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        space_of(text, given=["num_train_epochs"])


def test_a_space_needs_something_to_search():
    with pytest.raises(ValueError, match="nothing is left to search"):
        space_of(given=DEFAULT.keys())


def test_the_command_of_the_best_trial_is_quoted_for_a_shell():
    given = {
        "model_name_or_path": "my model's",
        "packing": False,
        "include_for_metrics": ["inputs", "loss"],
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "learning_rate": 1.0,
    }
    line = run_command(given, {"learning_rate": 5e-5, "num_train_epochs": 3}, "out put/best")
    words = shlex.split(line)
    assert words[:4] == ["qa-flax", "run", "--model_name_or_path", "my model's"]
    from qa_flax.commands import run

    model, _, training, _ = run.parse_arguments([*words[2:], "--train_file", "x.json"])
    assert model.model_name_or_path == "my model's"
    assert (training.packing, training.include_for_metrics) == (False, ["inputs", "loss"])
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (training.learning_rate, training.num_train_epochs) == (5e-5, 3.0)
    assert (training.do_train, training.do_eval) == (True, True)
    assert training.output_dir == "out put/best"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("check point")  # a name that a shell would split
    tiny.model(initializer_range=0.05).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for text in range(12):
        words = rng.choice(["Ada", "Charles", "Elbe", "Dresden", "Tokyo", "Kyoto"], 6)
        context = " ".join(words) + f" {text}."
        for n, word in enumerate(words[:2]):
            answers = {"text": [str(word)], "answer_start": [context.index(word)]}
            row = {"id": f"{text}-{n}", "question": f"Where is {word}?", "context": context}
            rows.append(row | {"answers": answers})
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text(json.dumps(rows))
    return file


def tune(checkpoint, data, out, *arguments):
    settings = [*WINDOW, "--disable_tqdm=True", "--seed=3"]
    settings += [
        "--search",
        "learning_rate=1e-3..1e-1",
        "num_train_epochs=1..2",
        "weight_decay=0.01",
    ]
    files = [f"--model_name_or_path={checkpoint}", f"--train_file={data}", f"--output_dir={out}"]
    main(["tune", *files, *settings, *map(str, arguments)])


def error_of(capfd, *arguments):
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        tune(*arguments)
    assert exit_.value.code == 2
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


def read(path):
    return json.loads(path.read_text())


def stop_in_third_trial(file):
    """Send SIGTERM to this process once two trials are finished, and the third has begun."""
    while not file.exists() or len(read(file)["trials"]) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_stopped_search_goes_on_and_its_command_works_as_printed(
    checkpoint, data, tmp_path, capfd
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tune(checkpoint, data, whole, "--n_trials=4")
    printed = capfd.readouterr().out.splitlines()
    result = read(whole / "tune.json")
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 4
    best = max(trial["value"] for trial in result["trials"])
    assert result["best"]["value"] == best
    name = f"run-{result['best']['number']}"
    assert any(line.startswith(f"Best trial: {name}, f1") for line in printed)
    assert sum(line.startswith("Trial ") and f", {name}: " in line for line in printed) == 1
    assert printed[-1] == result["command"]
    assert sorted(path.name for path in whole.iterdir()) == ["trials.log", "tune.json"]

    thread = threading.Thread(target=stop_in_third_trial, args=(parts / "tune.json",))
    thread.start()
    with pytest.raises(SystemExit) as exit_:
        tune(checkpoint, data, parts, "--n_trials=4")
    thread.join()
    assert exit_.value.code == 143
    tune(checkpoint, data, parts, "--n_trials=4")
    assert "4 trials, of which 2 are finished" in capfd.readouterr().out
    assert not list(parts.glob("run-*")), "checkpoints were left"
    resumed = read(parts / "tune.json")
    drawn, expected = (
        [(trial["value"], trial["hyperparameters"]) for trial in one["trials"]]
        for one in (resumed, result)
    )
    assert drawn == expected, "the stopped search has drawn other trials"

    words = shlex.split(printed[-1])
    assert words[:2] == ["qa-flax", "run"]
    main(words[1:])
    assert read(whole / "best" / "eval_results.json")["eval_f1"] == pytest.approx(best)
    message = error_of(capfd, checkpoint, data, whole, "--hidden_dropout_prob=0.5")
    assert "hidden_dropout_prob" in message
    assert "--overwrite_output_dir" in message


@pytest.mark.slow
def test_trials_may_be_judged_by_folds(checkpoint, data, tmp_path, capfd):
    tune(checkpoint, data, tmp_path / "out", "--n_trials=2", "--folds=2")
    printed = capfd.readouterr().out
    assert "judged by the mean f1 of 2 folds" in printed
    result = read(tmp_path / "out" / "tune.json")
    assert "--folds 2" in result["command"]
    main(shlex.split(result["command"])[1:])
    mean = read(tmp_path / "out" / "best" / "folds.json")["mean"]["eval_f1"]
    assert mean == pytest.approx(result["best"]["value"])


def test_what_makes_no_sense_is_refused(checkpoint, data, tmp_path, capfd):
    out = tmp_path / "out"
    message = error_of(capfd, checkpoint, data, out, f"--validation_file={data}")
    assert "a search that sees the data you report on" in message
    assert "--n_trials is 0" in error_of(capfd, checkpoint, data, out, "--n_trials=0")
    message = error_of(capfd, checkpoint, data, out, "--metric_for_best_model=f2")
    assert "did you mean 'f1'" in message
    message = error_of(capfd, checkpoint, data, "hf://buckets/out")
    assert "give a local folder" in message
    message = error_of(capfd, checkpoint, data, out, "--learning_rate=1e-5")
    assert "--learning_rate fixes its value" in message
    for text, what in (("weight_decay=-1.0..0.1", "weight_decay"), ("freeze_layers=9", "freeze")):
        message = error_of(capfd, checkpoint, data, out, "--search", text)
        assert what in message


def test_without_optuna_the_extra_is_named(checkpoint, data, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    message = error_of(capfd, checkpoint, data, tmp_path / "out")
    assert "qa-flax tune needs optuna" in message
    assert "pip install 'qa-flax[tune]'" in message
