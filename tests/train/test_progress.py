"""Progress of a training: bars on a terminal, lines in a log."""

import itertools
import re
import sys

import pytest
import tiny
from tiny_trainers import arguments
from transformers import TrainerControl, TrainerState

from qa_flax import Trainer, TrainingArguments, prepare_train_features
from qa_flax.device import parallel
from qa_flax.train import progress, training

NUMBERS = r"loss{0}\d\.\d{{3}}, lr{0}\d\.\d\de-\d\d, grad_norm{0}\d+\.\d\d, examples/s{0}\d+\.\d"


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 24, "doc_stride": 3}
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)


def train(tmp_path, windows, **changes):
    settings = {"disable_tqdm": False, "logging_steps": 3, "max_steps": 6, "eval_strategy": "epoch"}
    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, **(settings | changes)),
        train_dataset=windows.select(range(24)),
        eval_dataset=windows.select(range(40)),
    )
    trainer.train()


def test_a_terminal_gets_progress_bars(tmp_path, windows, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(tmp_path, windows)
    shown = capsys.readouterr().err
    assert re.search(r"Training:  83%.*\| 5/6 .*" + NUMBERS.format("="), shown)
    assert "| 6/6 " in shown
    assert re.search(r"Evaluating: .*\| 3/3 ", shown)


def test_a_log_gets_lines_without_repetition(tmp_path, windows, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(tmp_path, windows)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "\r" not in printed.err
    lines = printed.err.splitlines()
    assert lines[0] == "Training: 6 steps"
    steps = [line for line in lines if re.match(r"step \d/6, \d+ s left, ", line)]
    # Their speed is known when two steps have finished, and the last one is still running.
    assert [line[5] for line in steps] == ["3", "4", "5", "6"]
    assert all(re.search(NUMBERS.format(" ") + "$", line) for line in steps[1:])
    assert re.search(r"left, examples/s [\d.]+$", steps[0])  # no loss has been logged yet
    logged = [line for line in lines if re.match(r"step \d: ", line)]
    beginnings = [
        "step 3: loss",
        "step 3: eval_loss",
        "step 6: loss",
        "step 6: eval_loss",
        "step 6: train_runtime",
    ]
    assert all(map(str.startswith, logged, beginnings))
    assert len(logged) == len(beginnings)
    assert len(lines) == 1 + len(steps) + len(logged)


@pytest.mark.parametrize("printer", [progress.TrainingLines, progress.LogPrinter])
def test_values_that_a_command_prints_as_a_table_have_no_line_of_their_own(
    printer, tmp_path, windows, capsys, monkeypatch
):
    is_line = printer is progress.TrainingLines
    args = TrainingArguments(str(tmp_path), disable_tqdm=not is_line)
    vars(args)["_prints_tables"] = True
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback = printer()
    events = [
        ("log", {"eval_f1": 1.0}),
        ("train_begin", None),
        ("log", {"loss": 2.0}),
        ("log", {"eval_f1": 3.0}),
        ("log", {"train_runtime": 4.0}),
        ("train_end", None),
        ("log", {"eval_f1": 5.0}),
    ]
    for event, logs in events:
        more = {} if logs is None else {"logs": logs}
        getattr(callback, f"on_{event}")(args, state, control, **more)
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "Training" not in line]
    assert [re.findall(r"\d+", line)[-1] for line in lines] == ["2", "3"]


def test_disable_tqdm_and_logging_strategy_no_print_only_the_final_metrics(
    tmp_path, windows, capsys
):
    train(tmp_path, windows, disable_tqdm=True, logging_strategy="no", eval_strategy="no")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1  # the final metrics, by transformers' PrinterCallback
    assert "train_loss" in printed.out


def test_the_memory_is_reported_once_in_a_process_and_only_where_its_size_is_known(
    tmp_path, windows, capsys, monkeypatch
):
    monkeypatch.setattr(training, "_memory_lines", itertools.count())
    shown = []
    for limit in (None, 1 << 30, 1 << 30):
        monkeypatch.setattr(parallel, "memory_limit", lambda limit=limit: limit)
        train(tmp_path, windows, max_steps=1, eval_strategy="no")
        shown.append(re.findall("^Memory on each core, .*", capsys.readouterr().err, re.MULTILINE))
    assert [len(lines) for lines in shown] == [0, 1, 0]
    assert re.search(r"1 x 24 tokens: parameters .*; fits in 1.00 GiB: yes$", shown[1][0])


def test_a_batch_that_does_not_fit_into_memory_logs_a_warning(
    tmp_path, windows, caplog, monkeypatch
):
    monkeypatch.setattr(parallel, "memory_limit", lambda: 1 << 10)
    train(tmp_path, windows, disable_tqdm=True, max_steps=1, eval_strategy="no")
    (warning,) = (
        record.getMessage() for record in caplog.records if "Memory" in record.getMessage()
    )
    assert re.search(
        r"1 x 24 tokens: .* fits in 0.00 MiB: NO. Lower per_device_train_batch", warning
    )
