"""What the soak scripts share: a tiny `qa-flax run`, its processes, and what it leaves."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

import processes  # noqa: E402
import tiny  # noqa: E402

STEPS = 12
CHECKPOINTS = 2  # `save_total_limit`
PROCESS_TIMEOUT = 600.0


def parser(description: str | None, series: int) -> argparse.ArgumentParser:
    """The options of every script."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--series", type=int, default=series, help="how many (default %(default)s)")
    result.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no series after this time"
    )
    result.add_argument("--seed", type=int, default=0)
    return result


def prepare(folder: Path) -> None:
    """Write a tiny model, its tokenizer and eleven examples; choose the cache of programs."""
    os.environ["QA_FLAX_TEST_COMPILED"] = str(folder / "compiled")
    tiny.model(hidden_dropout_prob=0.1).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))


def command(folder: Path, output: Path, *more: str) -> list[str]:
    """A run with a checkpoint every two updates and an evaluation every three."""
    data = folder / "data.jsonl"
    return [
        *(sys.executable, "-m", "qa_flax", "run", "--do_train", "--do_eval"),
        *(f"--model_name_or_path={folder / 'model'}", f"--output_dir={output}"),
        *(f"--train_file={data}", f"--validation_file={data}"),
        *("--max_seq_length=64", "--doc_stride=16", "--per_device_train_batch_size=2"),
        *("--packing=false", "--report_to=none", "--disable_tqdm=true", "--logging_steps=1"),
        *("--eval_strategy=steps", "--eval_steps=3", "--save_strategy=steps", "--save_steps=2"),
        *(f"--save_total_limit={CHECKPOINTS}", f"--max_steps={STEPS}"),
        *more,
    ]


class Run:
    """The processes of one start of `command`, with one log for each.

    Args:
        folder: of `prepare`.
        output: the run's `output_dir`.
        count: number of processes. They have two cores together.
        limit: called with the id of each process as soon as it runs, such as to limit its files.
    """

    def __init__(
        self, folder: Path, output: Path, count: int = 1, limit: Callable[[int], None] | None = None
    ):
        self.logs = [output.with_name(f"{output.name}-{index}.log") for index in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        environment = processes.environment(2 // count)
        for log, joining in zip(
            self.logs, processes.join_arguments(count, processes.free_port()), strict=True
        ):
            with log.open("wb") as file:
                process = subprocess.Popen(
                    command(folder, output, *joining),
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            if limit is not None:
                limit(process.pid)
            self.processes.append(process)

    def text(self) -> str:
        """What the main process has written so far."""
        return self.logs[0].read_text(errors="replace")

    def is_running(self) -> bool:
        """Whether all processes are."""
        return all(process.poll() is None for process in self.processes)

    def wait(self, timeout: float = PROCESS_TIMEOUT) -> list[int | None]:
        """Wait for all processes; their statuses. One that does not end in time has None."""
        until = time.monotonic() + timeout
        statuses: list[int | None] = []
        for process in self.processes:
            try:
                statuses.append(process.wait(max(0.0, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                statuses.append(None)
        return statuses


def checkpoints_in(output: Path) -> list[Path]:
    """The folders with the name of a checkpoint, by step."""
    return sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def temporary_files(output: Path) -> list[str]:
    """The names below `output` that only a run in progress may have, except its lock."""
    names = [path.relative_to(output).as_posix() for path in output.rglob(".*")]
    return sorted(name for name in names if "lock" not in name)


def fingerprint(output: Path) -> dict[str, str]:
    """The results of a finished run: hashes of weights, and trainer states without their times."""
    found = {}
    for folder in [output, *checkpoints_in(output)]:
        name = folder.name if folder != output else "final"
        found[f"{name} weights"] = _hash((folder / "model.safetensors").read_bytes())
        state = json.loads((folder / "trainer_state.json").read_text())
        for number, logs in enumerate(state.pop("log_history")):
            for key, value in _without_times(logs).items():
                found[f"{name} state, {key} of log {number}"] = repr(value)
        found |= {f"{name} state, {key}": repr(value) for key, value in state.items()}
    return found


def _without_times(logs: dict[str, Any]) -> dict[str, Any]:
    # `train_fill` counts the updates of one start only: see `TrainingLoop.fill`.
    times = ("runtime", "per_second", "_time", "train_fill")
    return {name: value for name, value in logs.items() if not name.endswith(times)}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def differences(expected: dict[str, str], actual: dict[str, str]) -> list[str]:
    """What is not the same in two fingerprints, with both values."""
    names = sorted(expected.keys() | actual.keys())
    pairs = [(name, expected.get(name), actual.get(name)) for name in names]
    return [f"{name} ({a} became {b})" for name, a, b in pairs if a != b]
