"""Ctrl-C during a training saves a checkpoint to resume from; a second one ends at once."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny
from process_jobs import SendSigterm, launch
from processes import environment
from tiny_trainers import assert_same_run, trainer_in

from qa_flax.distributed import preemption
from qa_flax.distributed.preemption import Interrupted
from qa_flax.train import checkpoints

RUN = {"max_steps": 4, "save_steps": 100, "logging_steps": 1, "eval_strategy": "no"}


@pytest.fixture(autouse=True)
def _python_handles_sigint():
    """Background jobs of a shell start with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


def interrupt(step, event="on_step_end", n=1):
    return SendSigterm(event, step, n, signal.SIGINT)


def test_a_training_stops_after_its_step_and_is_resumed(tmp_path, examples, tokenizer, caplog):
    stopped = trainer_in(tmp_path / "a", examples, tokenizer, [interrupt(2)], **RUN)
    with pytest.raises(KeyboardInterrupt) as caught:
        stopped.train()
    assert caught.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "a")] == ["checkpoint-2"]
    (line,) = [r.getMessage() for r in caplog.records if "interrupted" in r.getMessage()]
    assert "Training was interrupted after step 2 of 4." in line
    assert f"resumes from {tmp_path / 'a' / 'checkpoint-2'}." in line
    resumed = trainer_in(tmp_path / "a", examples, tokenizer, **RUN)
    resumed.train(resume_from_checkpoint=True)
    uninterrupted = trainer_in(tmp_path / "b", examples, tokenizer, **RUN)
    uninterrupted.train()
    assert_same_run(uninterrupted, resumed)


def test_without_checkpoints_nothing_is_saved(tmp_path, examples, tokenizer, caplog):
    changes = RUN | {"save_strategy": "no"}
    stopped = trainer_in(tmp_path / "out", examples, tokenizer, [interrupt(4)], **changes)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert not (tmp_path / "out").exists()
    assert "it has saved no checkpoint to resume from" in caplog.text


@pytest.mark.slow
def test_an_evaluation_is_discarded_and_repeated(tmp_path, examples, tokenizer):
    changes = RUN | {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}
    callbacks = [interrupt(2, "on_prediction_step")]
    with pytest.raises(KeyboardInterrupt):
        trainer_in(tmp_path / "a", examples, tokenizer, callbacks, **changes).train()
    saved = json.loads((tmp_path / "a" / "checkpoint-2" / "run.json").read_text())
    assert saved["pending"] == {"should_evaluate": True, "should_save": False}
    resumed = trainer_in(tmp_path / "a", examples, tokenizer, **changes)
    resumed.train(resume_from_checkpoint=True)
    uninterrupted = trainer_in(tmp_path / "b", examples, tokenizer, **changes)
    uninterrupted.train()
    assert_same_run(uninterrupted, resumed)


def test_a_second_ctrl_c_while_saving_ends_at_once(tmp_path, examples, tokenizer, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "save_state", lambda *arguments: os.kill(os.getpid(), signal.SIGINT)
    )
    stopped = trainer_in(tmp_path, examples, tokenizer, [interrupt(1)], **RUN)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert checkpoints.list_checkpoints(tmp_path) == []


def test_a_signal_without_a_later_check_is_raised_on_exit():
    with pytest.raises(Interrupted), preemption.interrupt_handled(exits=False):
        os.kill(os.getpid(), signal.SIGINT)
    with preemption.interrupt_handled(exits=True), preemption.sigterm_handled():
        with pytest.raises(Interrupted):
            _interrupt_and_check()
        preemption.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def _interrupt_and_check():
    os.kill(os.getpid(), signal.SIGINT)
    preemption.check()


def test_a_handler_of_the_program_and_threads_are_left_alone():
    received = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with preemption.interrupt_handled(exits=False):
            os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, previous)

    def enter():
        with preemption.interrupt_handled(exits=False):
            received.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert received[1] is previous


# ---- the command, and several processes ----------------------------------------------------------


class Command:
    """`qa-flax run` in a process of its own, with its output in a file."""

    def __init__(self, folder, *more):
        if not (folder / "model").exists():
            tiny.model(hidden_dropout_prob=0.1).save_pretrained(folder / "model")
            tiny.tokenizer().save_pretrained(folder / "model")
            rows = [row for row in tiny.rows() if row["answers"]["text"]]
            (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        self.log = folder / f"{time.time_ns()}.log"
        arguments = [
            *(sys.executable, "-m", "qa_flax", "run"),
            *(f"--model_name_or_path={folder / 'model'}", f"--output_dir={folder / 'out'}"),
            *(f"--train_file={folder / 'data.jsonl'}", "--do_train", "--save_steps=1000000"),
            *("--max_seq_length=64", "--doc_stride=16", "--report_to=none", "--logging_steps=1"),
            *more,
        ]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                arguments, env=environment(2), stdout=file, stderr=subprocess.STDOUT
            )

    def wait_for(self, text, seconds=240.0):
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def wait(self, seconds=120.0):
        return self.process.wait(seconds), self.log.read_text()


@pytest.mark.slow
def test_the_command_says_what_is_saved_and_resumes(tmp_path):
    command = Command(tmp_path, "--max_steps=1000000")
    command.wait_for("step 3: ")
    command.process.send_signal(signal.SIGINT)
    status, output = command.wait()
    assert status == 130, output[-3000:]
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    match = re.fullmatch(
        r"qa-flax: interrupted after step (\d+) of 1000000; .*/out/checkpoint-(\d+) is saved, and "
        r"repeating the command resumes from it",
        last,
    )
    assert match, output[-3000:]
    assert match[1] == match[2]
    again = Command(tmp_path, f"--max_steps={int(match[1]) + 2}")
    status, output = again.wait(240)
    assert status == 0, output[-3000:]
    assert f"Resuming from {tmp_path / 'out' / f'checkpoint-{match[1]}'}" in output


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_command_at_once(tmp_path):
    command = Command(tmp_path, "--max_steps=1000000")
    command.wait_for("step 3: ")
    sent = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    command.process.send_signal(signal.SIGINT)
    status, output = command.wait()
    print("seconds:", time.monotonic() - sent)
    assert status == 130, output[-3000:]
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("qa-flax: interrupted")


@pytest.mark.slow
def test_processes_stop_at_the_same_step_when_one_is_interrupted(tmp_path):
    (tmp_path / "signal.json").write_text(json.dumps(["on_step_end", 2, 1, int(signal.SIGINT)]))
    stopped, finished = launch("preempted", "resumed", count=2, cores=2, folder=tmp_path)
    outputs = "\n".join(process.output[-3000:] for process in stopped)
    assert [process.status for process in stopped] == [130, 130], outputs
    assert [process.status for process in finished] == [0, 0], finished[0].output[-3000:]
    folders = (tmp_path / "preempted").glob("checkpoint-*")
    assert min(int(path.name.removeprefix("checkpoint-")) for path in folders) in (2, 3, 4)
    resumed, uninterrupted = (
        np.load(tmp_path / name / "params.npz") for name in ("preempted", "uninterrupted")
    )
    for name in uninterrupted:
        np.testing.assert_array_equal(resumed[name], uninterrupted[name], err_msg=name)
