"""What each of several real processes does; `test_processes.py` starts them and compares.

python process_jobs.py JOB,JOB... FOLDER COUNT
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import tiny
from processes import Ended, environment, free_port, joining
from safetensors.numpy import load_file
from tiny_trainers import WINDOW, compute_metrics, post_process
from transformers import HfArgumentParser, TrainerCallback

from qa_flax import (
    QuestionAnsweringTrainer,
    TrainingArguments,
    prepare_train_features,
    prepare_validation_features,
)
from qa_flax.commands.arguments import DistributedArguments
from qa_flax.commands.env.report import start
from qa_flax.commands.run import parse_arguments
from qa_flax.commands.run.job import run
from qa_flax.device import parallel
from qa_flax.device.step import weights_of
from qa_flax.distributed import ProcessError, exchange, failure, processes

GLOBAL_BATCH = 8
STEPS = 4


def launch(
    *jobs: str, count: int, cores: int, folder: Path, timeout: float = 240.0
) -> list[list[Ended]]:
    """Do some of `JOBS` after each other, each in several processes until they have ended.

    They are forks of one process that has imported what all of them need, which takes longer than
    many a job; JAX is first used after that.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, ",".join(jobs), str(folder), str(count)]
    process = subprocess.Popen(command, env=environment(cores), start_new_session=True)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return [[_ended(folder / "logs" / f"{job}-{index}") for index in range(count)] for job in jobs]


def _ended(name: Path) -> Ended:
    log, status = name.with_suffix(".log"), name.with_suffix(".status")
    return Ended(
        int(status.read_text()) if status.exists() else -signal.SIGKILL,
        log.read_text(errors="replace") if log.exists() else "",
    )


def run_arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """Those of `qa-flax run`, for the same global batch on any number of cores."""
    return [
        f"--model_name_or_path={folder / 'checkpoint'}",
        f"--output_dir={output}",
        "--max_seq_length=64",
        "--doc_stride=16",
        f"--per_device_train_batch_size={GLOBAL_BATCH // parallel.core_count()}",
        "--per_device_eval_batch_size=1",
        "--disable_tqdm=True",
        "--report_to=none",
        *more,
    ]


def train_evaluate_predict(folder: Path, output: Path) -> dict:
    """`qa-flax run`, with windows as long as the longest, which are not all on one host."""
    data = folder / "data"
    arguments = run_arguments(
        folder,
        output,
        f"--train_file={data / 'v1.json'}",
        f"--validation_file={data / 'v1.json'}",
        f"--test_file={data / 'v1.json'}",
        "--do_train",
        "--do_eval",
        "--do_predict",
        f"--max_steps={STEPS}",
        "--learning_rate=0.5",
        "--optim=sgd",
        "--save_strategy=no",
        "--pad_to_max_length=False",
        "--include_num_input_tokens_seen=True",
    )
    return run(*parse_arguments(arguments))


def one_question(folder: Path, output: Path) -> dict:
    """Fewer questions than processes, and than a batch has rows; one without an answer."""
    file = folder / "data" / "one.jsonl"
    arguments = run_arguments(
        folder,
        output,
        f"--train_file={file}",
        f"--validation_file={file}",
        "--do_train",
        "--do_eval",
        "--version_2_with_negative",
        "--max_steps=2",
        "--learning_rate=0.5",
        "--optim=sgd",
        "--save_strategy=no",
    )
    return run(*parse_arguments(arguments))


class Kill(TrainerCallback):
    """Send this process SIGTERM at an event, the first time or a later one at that step."""

    def __init__(self, event: str, step: int, times: int = 1):
        self._event, self._step, self._left = event, step, times

    def on_step_begin(self, args, state, control, **kwargs):
        self._happens("on_step_begin", state)

    def on_step_end(self, args, state, control, **kwargs):
        self._happens("on_step_end", state)

    def on_prediction_step(self, args, state, control, **kwargs):
        self._happens("on_prediction_step", state)

    def on_save(self, args, state, control, **kwargs):
        self._happens("on_save", state)

    def _happens(self, event, state):
        if event == self._event and state.global_step == self._step:
            self._left -= 1
            if self._left:
                return
            os.kill(os.getpid(), signal.SIGTERM)
            if processes.count() > 1:  # JAX's service looks every second, and passes it on later
                time.sleep(3.0)


class Fail(TrainerCallback):
    """Raise on one host."""

    def on_step_end(self, args, state, control, **kwargs):
        if processes.index() == 1 and state.global_step == 2:
            raise RuntimeError("the disk of this host is on fire")


def library_trainer(output: Path, **changes) -> QuestionAnsweringTrainer:
    """As in a script of one's own: every process has all the data."""
    tokenizer, examples = tiny.tokenizer(), tiny.examples(answerable=True)
    settings = {
        "output_dir": str(output),
        "per_device_train_batch_size": GLOBAL_BATCH // parallel.core_count(),
        "per_device_eval_batch_size": 1,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 100,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_drop_last": True,
    }
    callbacks, dropout = changes.pop("callbacks", None), changes.pop("dropout", 0.2)
    return QuestionAnsweringTrainer(
        model=tiny.model(hidden_dropout_prob=dropout),
        args=TrainingArguments(**(settings | changes)),
        train_dataset=prepare_train_features(examples, tokenizer, disable_tqdm=True, **WINDOW),
        eval_dataset=prepare_validation_features(examples, tokenizer, disable_tqdm=True, **WINDOW),
        eval_examples=examples,
        post_process_function=post_process,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


def in_a_script(folder: Path, output: Path) -> dict:
    """The library, with all the data on every host: evaluation, all logits, one row alone."""
    trainer = library_trainer(output)
    metrics = trainer.evaluate()
    post, trainer.post_process_function = trainer.post_process_function, None
    one = trainer.predict(trainer.eval_dataset.select([0]))
    every = trainer.predict(trainer.eval_dataset)
    trainer.post_process_function = post
    if processes.is_main():
        output.mkdir(exist_ok=True)
        logits = {"start": every.predictions[0], "end": every.predictions[1]}
        np.savez(output / "logits.npz", one=one.predictions[0], labels=every.label_ids[0], **logits)
    return metrics | {"loss of one": one.metrics["test_loss"]}


def preempted(folder: Path, output: Path) -> dict:
    """Train, or go on; where `kill.json` says, the last process gets SIGTERM, once."""
    callbacks, kill = [], folder / "kill.json"
    if processes.index() == processes.count() - 1 and kill.exists():
        callbacks = [Kill(*json.loads(kill.read_text()))]
        kill.unlink()
    dropout = 0.0 if (folder / "no_dropout").exists() else 0.2
    trainer = library_trainer(output, callbacks=callbacks, dropout=dropout)
    found = any(output.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=found or None)
    trainer.predict(trainer.eval_dataset, trainer.eval_examples)
    if processes.is_main():
        leaves = jax.tree.leaves(weights_of(trainer.model).params)
        np.savez(output / "params.npz", *map(np.asarray, leaves))
    return {"history": trainer.state.log_history}


def resumed(folder: Path, output: Path) -> dict:
    """Go on with what `preempted` has left, in the same folder."""
    return preempted(folder, output.with_name("preempted"))


def never_stopped(folder: Path, output: Path) -> dict:
    """The run of `preempted` from its beginning to its end."""
    return preempted(folder, output)


def divided(folder: Path, output: Path) -> dict:
    """With the parameters divided over the cores of all hosts; saved, and gone on with."""
    halfway = {"save_steps": 2, "max_steps": 2, "disable_tqdm": False}
    library_trainer(output, shard_params=True, **halfway).train()
    trainer = library_trainer(output, shard_params=True)
    trainer.train(resume_from_checkpoint=True)
    metrics = trainer.evaluate()
    if processes.is_main():
        leaves = jax.tree.leaves(weights_of(trainer.model).params)
        np.savez(output / "params.npz", *map(np.asarray, leaves))
    return metrics


class AtEveryStep(TrainerCallback):
    """Calls `read(updates, state, model)` after each update, once for all events of it."""

    def __init__(self, read):
        self._read = read

    def on_step_end(self, args, state, control, model, **kwargs):
        self._read(state.global_step, state, model)


def weights_in(file: Path) -> dict[str, np.ndarray]:
    return load_file(file / "model.safetensors")


def reading(folder: Path, output: Path) -> dict:
    """Every process reads the model after each update, and writes it after the second."""
    wanted = {}
    for steps in (1, 2):
        changes = {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no"}
        trainer = library_trainer(output / "wanted", lr_scheduler_type="constant", **changes)
        trainer.train()
        wanted[steps] = [np.asarray(a) for a in jax.tree.leaves(weights_of(trainer.model).params)]
    found = {"right": [], "written": None}

    def read(updates, state, model):
        arrays = [np.asarray(a) for a in jax.tree.leaves(weights_of(model).params)]
        if updates in wanted:
            found["right"].append(all(map(np.array_equal, arrays, wanted[updates])))
            loss = trainer.evaluate()["eval_loss"]
        if updates == 2:
            model.head.outputs.kernel[...] = model.head.outputs.kernel[...] * 0
            found["written"] = trainer.evaluate()["eval_loss"] != loss

    changes = {"lr_scheduler_type": "constant", "callbacks": [AtEveryStep(read)]}
    trainer = library_trainer(output, **changes)
    trainer.train()
    end = [np.asarray(a) for a in jax.tree.leaves(weights_of(trainer.model).params)]
    return found | {"end": [float(np.abs(a).sum()) for a in end]}


def reading_shards(folder: Path, output: Path) -> dict:
    """One process alone cannot read shards; all together can save and evaluate."""
    found = {"errors": [], "losses": []}

    def read(updates, state, model):
        if state.is_world_process_zero:  # as scripts do that save by themselves
            try:
                model.save_pretrained(output / "alone")
            except RuntimeError as error:
                found["errors"].append(str(error))
        trainer.save_model(output / f"saved-{updates}")
        found["losses"].append(trainer.evaluate()["eval_loss"])
        np.asarray(model.head.outputs.kernel[...])  # gathered just now

    changes = {"shard_params": True, "save_strategy": "no", "eval_strategy": "no", "max_steps": 2}
    trainer = library_trainer(output, callbacks=[AtEveryStep(read)], **changes)
    trainer.train()
    if processes.is_main():
        for updates in (1, 2):
            saved = weights_in(output / f"saved-{updates}")
            found[f"sum {updates}"] = float(sum(abs(array).sum() for array in saved.values()))
    return found


def writing_apart(folder: Path, output: Path) -> dict:
    """The processes write other weights: each would train a model of its own from then on."""

    def read(updates, state, model):
        model.head.outputs.bias[...] = np.full(2, processes.index(), np.float32)

    trainer = library_trainer(output, callbacks=[AtEveryStep(read)], save_strategy="no")
    try:
        trainer.train()
    except ProcessError as error:
        return {"error": str(error)}
    return {}


def failing(folder: Path, output: Path) -> dict:
    library_trainer(output, callbacks=[Fail]).train()
    return {}


def late(folder: Path, output: Path) -> dict:
    """Process 0 waits a second for one that comes after two."""
    if processes.index() == 1:
        time.sleep(2)
    try:
        exchange.all_gather_bytes("a race", b"", timeout=1.0 if processes.index() == 0 else 60.0)
    except ProcessError as error:
        return {"error": str(error)}
    return {}


JOBS = {
    "all": [
        resumed,
        never_stopped,
        train_evaluate_predict,
        one_question,
        in_a_script,
        reading,
        reading_shards,
        writing_apart,
        late,
        failing,
    ],
    "preempted": [preempted],
    "resumed": [resumed, never_stopped],
    "divided": [divided],
}


def main() -> None:
    jobs, folder, count = sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3])
    for job in jobs:
        children = []
        for index, arguments in enumerate(joining(count, free_port())):
            name = folder / "logs" / f"{job}-{index}"
            if not (child := os.fork()):
                log = os.open(name.with_suffix(".log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
                for stream in (1, 2):
                    os.dup2(log, stream)
                do(job, folder, arguments)
                return
            children.append((name, child))
        for name, child in children:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            name.with_suffix(".status").write_text(str(status))


def do(job: str, folder: Path, arguments: list[str]) -> None:
    """All parts of a job, as one of the processes; what they find is written after each."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    (given,) = HfArgumentParser(DistributedArguments).parse_args_into_dataclasses(arguments)
    start(given)
    failure.end_together()
    found = {}
    for part in JOBS[job]:
        found[part.__name__] = part(folder, folder / part.__name__)
        (folder / f"{job}-{processes.index()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
