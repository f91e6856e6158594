"""Jobs that `test_processes.py` runs in several real processes.

python process_jobs.py JOB,JOB... FOLDER COUNT

A job calls one or more functions `f(folder, output) -> results`. Process i writes their results, by
name, to FOLDER/JOB-i.json, and its output to FOLDER/logs/JOB-i.log.
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
from processes import ProcessResult, environment, free_port, join_arguments
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
) -> list[list[ProcessResult]]:
    """Run some of `JOBS` one after the other, each in `count` processes; their results by job.

    The processes are forked from one that has imported all libraries, because the imports take
    longer than many jobs. JAX is first used after the fork.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, ",".join(jobs), str(folder), str(count)]
    process = subprocess.Popen(command, env=environment(cores), start_new_session=True)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return [[_result(folder / "logs" / f"{job}-{index}") for index in range(count)] for job in jobs]


def _result(name: Path) -> ProcessResult:
    log, status = name.with_suffix(".log"), name.with_suffix(".status")
    return ProcessResult(
        int(status.read_text()) if status.exists() else -signal.SIGKILL,
        log.read_text(errors="replace") if log.exists() else "",
    )


def run_arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """Arguments of `qa-flax run` with the same global batch size on any number of cores."""
    return [
        f"--model_name_or_path={folder / 'checkpoint'}",
        f"--output_dir={output}",
        "--max_seq_length=64",
        "--doc_stride=16",
        f"--per_device_train_batch_size={GLOBAL_BATCH // parallel.core_count()}",
        "--per_device_eval_batch_size=1",
        "--disable_tqdm=True",
        "--report_to=none",
        "--packing=false",  # with packed rows, the windows of an update depend on the cores
        *more,
    ]


def train_evaluate_predict(folder: Path, output: Path) -> dict:
    """`qa-flax run` with batches padded to their longest window, whichever process has it."""
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
        "--ema_decay=0.5",
        "--pad_to_max_length=False",
        "--eval_train_samples=4",
        "--save_spans",
        "--include_num_input_tokens_seen=True",
    )
    return run(*parse_arguments(arguments))


def packed(folder: Path, output: Path) -> dict:
    """`qa-flax run` with several windows in each row: an evaluation, then a training."""
    file = folder / "data" / "many.jsonl"
    more = ["--max_seq_length=96", "--packing=true", f"--validation_file={file}", "--do_eval"]
    arguments = run_arguments(folder, output, *more)
    results = {"evaluation": run(*parse_arguments(arguments))}
    more += [f"--train_file={file}", "--do_train", "--learning_rate=0.5", "--optim=sgd"]
    more += ["--max_steps=3", "--save_strategy=no"]
    arguments = run_arguments(folder, Path(f"{output}-trained"), *more)
    return results | {"training": run(*parse_arguments(arguments))}


def one_question(folder: Path, output: Path) -> dict:
    """`qa-flax run` with a single question: fewer than processes, and than rows of a batch."""
    file = folder / "data" / "one.jsonl"
    arguments = run_arguments(
        folder,
        output,
        f"--train_file={file}",
        f"--validation_file={file}",
        "--do_train",
        "--do_eval",
        "--calibrate",
        "--version_2_with_negative",
        "--max_steps=2",
        "--learning_rate=0.5",
        "--optim=sgd",
        "--save_strategy=no",
    )
    return run(*parse_arguments(arguments))


def calibrated(folder: Path, output: Path) -> dict:
    """`qa-flax run --calibrate`: each process answers its own share of the questions."""
    arguments = run_arguments(
        folder,
        output,
        f"--train_file={folder / 'data' / 'v1.json'}",
        f"--validation_file={folder / 'data' / 'v1.json'}",
        f"--test_file={folder / 'data' / 'v1.json'}",
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--calibrate",
        f"--max_steps={STEPS}",
        "--learning_rate=0.5",
        "--optim=sgd",
        "--save_strategy=no",
    )
    return run(*parse_arguments(arguments))


class SendSigterm(TrainerCallback):
    """Send this process a signal at the n-th occurrence of an event at a step."""

    def __init__(self, event: str, step: int, n: int = 1, number: int = signal.SIGTERM):
        self._event, self._step, self._remaining, self._number = event, step, n, number

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
            self._remaining -= 1
            if self._remaining:
                return
            os.kill(os.getpid(), self._number)
            if processes.count() > 1:  # JAX's service polls for the signal every second
                time.sleep(3.0)


class FailInProcess1(TrainerCallback):
    """Raise an error in process 1."""

    def on_step_end(self, args, state, control, **kwargs):
        if processes.index() == 1 and state.global_step == 2:
            raise RuntimeError("the disk of this host is full")


class KillProcess(TrainerCallback):
    """Kill one process with SIGKILL after the second update."""

    def __init__(self, process: int):
        self._process = process

    def on_step_end(self, args, state, control, **kwargs):
        if processes.index() == self._process and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def library_trainer(output: Path, **changes) -> QuestionAnsweringTrainer:
    """A trainer as in a user's script: every process has all the data."""
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
    model_init = changes.pop("model_init", None)
    model = tiny.model(hidden_dropout_prob=dropout) if model_init is None else None
    return QuestionAnsweringTrainer(
        model=model,
        model_init=model_init,
        args=TrainingArguments(**(settings | changes)),
        train_dataset=prepare_train_features(examples, tokenizer, disable_tqdm=True, **WINDOW),
        eval_dataset=prepare_validation_features(examples, tokenizer, disable_tqdm=True, **WINDOW),
        eval_examples=examples,
        train_examples=examples,
        post_process_function=post_process,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


def in_a_script(folder: Path, output: Path) -> dict:
    """Evaluate and predict with the library, and predict a single window; all data everywhere."""
    trainer = library_trainer(output, eval_train_samples=5)
    metrics = trainer.evaluate()
    post_process_function, trainer.post_process_function = trainer.post_process_function, None
    single = trainer.predict(trainer.eval_dataset.select([0]))
    full = trainer.predict(trainer.eval_dataset)
    # Only windows of the first process have labels outside.
    starts = [64] * 5 + list(trainer.eval_dataset["start_positions"][5:])
    outside = trainer.eval_dataset.remove_columns("start_positions")
    outside = trainer.predict(outside.add_column("start_positions", starts))
    trainer.post_process_function = post_process_function
    if processes.is_main():
        output.mkdir(exist_ok=True)
        logits = {"start": full.predictions[0], "end": full.predictions[1]}
        logits["single"] = single.predictions[0]
        np.savez(output / "logits.npz", labels=full.label_ids[0], **logits)
    losses = {
        "loss of single window": single.metrics["test_loss"],
        "loss with labels outside": outside.metrics["test_loss"],
    }
    return metrics | losses


def read_arguments(folder: Path, output: Path) -> dict:
    """Read the properties of the arguments, and let the main process work first."""
    args = TrainingArguments(output_dir=str(output), per_device_train_batch_size=3)
    # All children of this test share one file: the others must find it written.
    shared = folder / "main_process_first"
    with args.main_process_first(desc="writing a file"):
        is_found = shared.exists()
        if args.process_index == 0:
            time.sleep(0.5)
            shared.write_text("written")
    with args.distributed_state.main_process_first():
        is_read = shared.read_text() == "written"
    names = ("world_size", "process_index", "local_rank", "n_gpu", "train_batch_size")
    values = {name: getattr(args, name) for name in names}
    flags = [args.should_save, args.should_log, args.distributed_state.is_main_process]
    mode = args.parallel_mode.value
    return values | {"is_main": flags, "mode": mode, "is_found": is_found, "is_read": is_read}


def own_loaders(folder: Path, output: Path) -> dict:
    """Iterate over the loaders, and use a collator, which several processes cannot share."""
    trainer = library_trainer(output)
    rows = [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]
    evaluated = len(next(iter(trainer.get_eval_dataloader()))["input_ids"])
    trainer.data_collator = lambda batch: {}
    messages = []
    for call in (trainer.train, trainer.evaluate):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    return {"rows": rows, "evaluated": evaluated, "messages": messages}


def preempted(folder: Path, output: Path) -> dict:
    """Train, or resume; `signal.json` says when the last process gets SIGTERM, once."""
    callbacks, signal_file = [], folder / "signal.json"
    if processes.index() == processes.count() - 1 and signal_file.exists():
        callbacks = [SendSigterm(*json.loads(signal_file.read_text()))]
        signal_file.unlink()
    dropout = 0.0 if (folder / "no_dropout").exists() else 0.2
    trainer = library_trainer(output, callbacks=callbacks, dropout=dropout)
    has_checkpoint = any(output.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=has_checkpoint or None)
    trainer.predict(trainer.eval_dataset, trainer.eval_examples)
    if processes.is_main():
        leaves = jax.tree.leaves(weights_of(trainer.model).params)
        np.savez(output / "params.npz", *map(np.asarray, leaves))
    return {"history": trainer.state.log_history}


def resumed(folder: Path, output: Path) -> dict:
    """Resume the run that `preempted` stopped, in its folder."""
    return preempted(folder, output.with_name("preempted"))


def uninterrupted(folder: Path, output: Path) -> dict:
    """The run of `preempted` without a signal."""
    return preempted(folder, output)


def sharded(folder: Path, output: Path) -> dict:
    """Train with parameters sharded over the cores of all processes, save, and resume."""
    changes = {"shard_params": True, "ema_decay": 0.5}
    halfway = {"save_steps": 2, "max_steps": 2, "disable_tqdm": False}
    library_trainer(output, **changes, **halfway).train()
    trainer = library_trainer(output, **changes)
    trainer.train(resume_from_checkpoint=True)
    metrics = trainer.evaluate()
    if processes.is_main():
        leaves = jax.tree.leaves(weights_of(trainer.model).params)
        np.savez(output / "params.npz", *map(np.asarray, leaves))
    return metrics


class AfterEachStep(TrainerCallback):
    """Call `function(step, state, model)` after each update."""

    def __init__(self, function):
        self._function = function

    def on_step_end(self, args, state, control, model, **kwargs):
        self._function(state.global_step, state, model)


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def access_model(folder: Path, output: Path) -> dict:
    """Every process reads the model after each update, and modifies it after the second."""
    expected = {}
    for steps in (1, 2):
        changes = {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no"}
        trainer = library_trainer(output / "expected", lr_scheduler_type="constant", **changes)
        trainer.train()
        expected[steps] = [np.asarray(a) for a in jax.tree.leaves(weights_of(trainer.model).params)]
    results = {"is_expected": [], "is_modified": None}

    def access(step, state, model):
        arrays = [np.asarray(a) for a in jax.tree.leaves(weights_of(model).params)]
        if step in expected:
            results["is_expected"].append(all(map(np.array_equal, arrays, expected[step])))
            loss = trainer.evaluate()["eval_loss"]
        if step == 2:
            model.head.outputs.kernel[...] = model.head.outputs.kernel[...] * 0
            results["is_modified"] = trainer.evaluate()["eval_loss"] != loss

    changes = {"lr_scheduler_type": "constant", "callbacks": [AfterEachStep(access)]}
    trainer = library_trainer(output, **changes)
    trainer.train()
    final = [np.asarray(a) for a in jax.tree.leaves(weights_of(trainer.model).params)]
    return results | {"final_sums": [float(np.abs(a).sum()) for a in final]}


def access_sharded_model(folder: Path, output: Path) -> dict:
    """A single process cannot read shards; all processes together can save and evaluate."""
    results = {"errors": [], "losses": []}

    def access(step, state, model):
        if state.is_world_process_zero:  # as in scripts that save the model themselves
            try:
                model.save_pretrained(output / "process-0")
            except RuntimeError as error:
                results["errors"].append(str(error))
        trainer.save_model(output / f"saved-{step}")
        results["losses"].append(trainer.evaluate()["eval_loss"])
        np.asarray(model.head.outputs.kernel[...])  # `evaluate` has gathered the weights

    changes = {"shard_params": True, "save_strategy": "no", "eval_strategy": "no", "max_steps": 2}
    trainer = library_trainer(output, callbacks=[AfterEachStep(access)], **changes)
    trainer.train()
    if processes.is_main():
        for step in (1, 2):
            saved = weights_in(output / f"saved-{step}")
            results[f"sum {step}"] = float(sum(abs(array).sum() for array in saved.values()))
    return results


def write_different_weights(folder: Path, output: Path) -> dict:
    """The processes write different weights into the model, which must be an error."""

    def write(step, state, model):
        model.head.outputs.bias[...] = np.full(2, processes.index(), np.float32)

    trainer = library_trainer(output, callbacks=[AfterEachStep(write)], save_strategy="no")
    try:
        trainer.train()
    except ProcessError as error:
        return {"error": str(error)}
    return {}


def searched(folder: Path, output: Path) -> dict:
    """A search whose second trial fails and whose third is stopped, in every process alike."""
    import optuna

    rates, steps = [1e-2, 1e-3, 1e-12, 2e-2], []

    def model_init(trial):
        model = tiny.model()
        if trial is not None and trial.params["rate"] == 1:
            model.head.outputs.kernel[...] = model.head.outputs.kernel[...] * np.nan
        return model

    def space(trial):
        return {"learning_rate": rates[trial.suggest_int("rate", *[trial.number] * 2)]}

    trainer = library_trainer(output, model_init=model_init, save_strategy="no")
    ends = AtTheEnd(lambda state: steps.append([state.trial_params["rate"], state.global_step]))
    trainer.add_callback(ends)
    best = trainer.hyperparameter_search(
        space,
        compute_objective=lambda metrics: metrics["eval_f1"],
        direction="maximize",
        n_trials=4,
        pruner=optuna.pruners.ThresholdPruner(lower=5.0),
    )
    return {"best": best._asdict(), "steps": steps}


class AtTheEnd(TrainerCallback):
    """Call `function(state)` at the end of a training."""

    def __init__(self, function):
        self._function = function

    def on_train_end(self, args, state, control, **kwargs):
        self._function(state)


def fail(folder: Path, output: Path) -> dict:
    library_trainer(output, callbacks=[FailInProcess1]).train()
    return {}


def killed(folder: Path, output: Path) -> dict:
    """Train until the process that `victim` names is killed."""
    (output.parent / f"pid-{processes.index()}").write_text(str(os.getpid()))
    victim = int((folder / "victim").read_text())
    library_trainer(output, callbacks=[KillProcess(victim)], max_steps=100_000).train()
    return {}


def time_out(folder: Path, output: Path) -> dict:
    """Process 0 waits one second for process 1, which takes two."""
    if processes.index() == 1:
        time.sleep(2)
    try:
        exchange.all_gather_bytes("test", b"", timeout=1.0 if processes.index() == 0 else 60.0)
    except ProcessError as error:
        return {"error": str(error)}
    return {}


JOBS = {
    "main": [
        resumed,
        uninterrupted,
        train_evaluate_predict,
        read_arguments,
        time_out,
        fail,
    ],
    "more": [
        one_question,
        packed,
        calibrated,
        in_a_script,
        own_loaders,
        access_model,
        access_sharded_model,
        write_different_weights,
    ],
    "killed": [killed],
    "preempted": [preempted],
    "resumed": [resumed, uninterrupted],
    "sharded": [sharded],
    "searched": [searched],
}


def main() -> None:
    jobs, folder, count = sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3])
    for job in jobs:
        children = []
        for index, arguments in enumerate(join_arguments(count, free_port())):
            name = folder / "logs" / f"{job}-{index}"
            if not (child := os.fork()):
                log = os.open(name.with_suffix(".log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
                for stream in (1, 2):
                    os.dup2(log, stream)
                run_job(job, folder, arguments)
                return
            children.append((name, child))
        names = {child: name for name, child in children}
        for _ in children:  # so that the times of the files are those of the ends
            child, status = os.wait()
            file = names[child].with_suffix(".status")
            file.write_text(str(os.waitstatus_to_exitcode(status)))


def run_job(job: str, folder: Path, arguments: list[str]) -> None:
    """Call a job's functions in this process; results are written after each of them."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    (distributed,) = HfArgumentParser(DistributedArguments).parse_args_into_dataclasses(arguments)
    start(distributed)
    failure.propagate_failures()
    results = {}
    for function in JOBS[job]:
        results[function.__name__] = function(folder, folder / function.__name__)
        (folder / f"{job}-{processes.index()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
