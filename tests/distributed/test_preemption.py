"""Runs resume after SIGTERM, which saves a checkpoint at any point, and after SIGKILL."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny
from process_jobs import SendSigterm
from processes import environment
from tiny_trainers import assert_same_run, trainer_in

from qa_flax.cli import main
from qa_flax.distributed import preemption
from qa_flax.distributed.preemption import Preempted
from qa_flax.train import checkpoints

RUN = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_eval_batch_size": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "one_f1",
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


def trainer(folder, examples, tokenizer, callbacks=None, **changes):
    """A trainer with two evaluation sets of three batches each."""
    trainer = trainer_in(folder, examples, tokenizer, callbacks, **(RUN | changes))
    trainer.eval_dataset = {"one": trainer.eval_dataset, "two": trainer.eval_dataset}
    trainer.eval_examples = {"one": examples, "two": examples}
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, examples, tokenizer):
    finished = trainer(tmp_path_factory.mktemp("uninterrupted"), examples, tokenizer)
    finished.train()
    return finished


# The event that sends the signal, the step of the latest checkpoint, and the pending actions in it.
CASES = {
    "compiling": (("on_step_begin", 0), 1, {}),
    "training": (("on_step_end", 1), 1, {}),
    "evaluating": (("on_prediction_step", 2), 2, {"should_evaluate": True}),
    "evaluating the second set": (("on_prediction_step", 2, 4), 2, {"should_evaluate": True}),
    "saved just now": (("on_save", 2), 2, {}),
}


# Slow; the other cases, and those of several processes, cover the same code.
SLOW = ("compiling", "training", "evaluating", "evaluating the second set")


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def test_a_resumed_run_equals_an_uninterrupted_run(
    tmp_path, examples, tokenizer, uninterrupted, case
):
    event, step, pending = CASES[case]
    handler = signal.getsignal(signal.SIGTERM)
    stopped = trainer(tmp_path, examples, tokenizer, [SendSigterm(*event)])
    with pytest.raises(SystemExit) as exit:
        stopped.train()
    assert exit.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    path = checkpoints.find(True, tmp_path)
    assert path.name == f"checkpoint-{step}"
    saved = json.loads((path / "run.json").read_text())["pending"]
    assert saved == (pending | {"should_save": True} if pending else {})

    resumed = trainer(tmp_path, examples, tokenizer)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(uninterrupted, resumed)


def test_a_signal_while_saving_waits_until_the_checkpoint_is_complete(
    tmp_path, examples, tokenizer, uninterrupted, monkeypatch
):
    original, saved = checkpoints.save_state, []

    def save_state(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        saved.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(checkpoints, "save_state", save_state)
    with pytest.raises(Preempted):
        trainer(tmp_path, examples, tokenizer).train()
    assert len(saved) == 1
    monkeypatch.undo()
    assert checkpoints.find(True, tmp_path).name == "checkpoint-2"
    resumed = trainer(tmp_path, examples, tokenizer)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(uninterrupted, resumed)


def test_a_run_without_checkpoints_saves_one_when_it_is_stopped(tmp_path, examples, tokenizer):
    changes = {"save_strategy": "no", "load_best_model_at_end": False}
    with pytest.raises(Preempted):
        trainer(tmp_path, examples, tokenizer, [SendSigterm("on_step_end", 3)], **changes).train()
    assert checkpoints.find(True, tmp_path).name == "checkpoint-3"


def test_prediction_stops_at_once(tmp_path, examples, tokenizer):
    callbacks = [SendSigterm("on_prediction_step", 0)]
    trainer = trainer_in(tmp_path, examples, tokenizer, callbacks, **RUN)
    with pytest.raises(Preempted):
        trainer.predict(trainer.eval_dataset, examples)
    assert trainer.predict(trainer.eval_dataset, examples).metrics["test_f1"] >= 0


def test_a_signal_without_a_later_check_is_raised_on_exit():
    with pytest.raises(Preempted), preemption.sigterm_handled(), preemption.sigterm_handled():
        os.kill(os.getpid(), signal.SIGTERM)
    preemption.check()  # does nothing outside of the context


def test_the_command_reports_how_to_resume(tmp_path, capfd, monkeypatch):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, tiny.rows())))
    command = [
        "run",
        f"--model_name_or_path={tmp_path / 'model'}",
        f"--output_dir={tmp_path / 'out'}",
        f"--validation_file={tmp_path / 'data.jsonl'}",
        "--do_eval",
        "--version_2_with_negative",
        "--max_seq_length=64",
        "--doc_stride=16",
    ]
    monkeypatch.setattr("qa_flax.train.tokenizer_fit.load_tokenizer", _load_and_signal)
    with pytest.raises(SystemExit) as exit:
        main(command)
    assert exit.value.code == 143
    assert "stopped by SIGTERM; repeat the command to resume" in capfd.readouterr().err


def _load_and_signal(*arguments, **settings):
    """Send SIGTERM while the tokenizer is loaded."""
    os.kill(os.getpid(), signal.SIGTERM)
    return tiny.tokenizer()


# ---- SIGKILL -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_at_most_one_interval(tmp_path):
    """20 times; each start resumes from a checkpoint at most one interval behind."""
    interval, rng = 5, random.Random(0)
    tiny.model(hidden_dropout_prob=0.1).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        *(sys.executable, "-m", "qa_flax", "run"),
        *(f"--model_name_or_path={tmp_path / 'model'}", f"--output_dir={tmp_path / 'out'}"),
        *(f"--train_file={tmp_path / 'data.jsonl'}", "--do_train"),
        *("--max_seq_length=64", "--doc_stride=16", "--report_to=none", "--logging_steps=1"),
        *(f"--save_steps={interval}", "--save_total_limit=3", "--per_device_train_batch_size=2"),
    ]
    reached = killed = 0
    while killed < 20:
        log = tmp_path / f"{killed}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, "--max_steps=100000"],
                env=environment(2),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            started = time.monotonic()
            while "Training: " not in log.read_text() and process.poll() is None:
                assert time.monotonic() - started < 120
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 4.0))
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL, log.read_text()[-3000:]
        killed += 1
        text = log.read_text()
        match = re.search(r"Training: \d+ steps from step (\d+)", text)
        start = int(match[1]) if match else 0
        assert start > reached - interval - 1 or not reached, (start, reached, text[-2000:])
        logged = [int(step) for step in re.findall(r"^step (\d+): loss", text, re.M)]
        # A step is logged before its checkpoint is written.
        reached = max([start, *logged])
    steps = reached + 10
    final = subprocess.run(
        [*command, f"--max_steps={steps}"],
        env=environment(2),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert final.returncode == 0, final.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == steps
