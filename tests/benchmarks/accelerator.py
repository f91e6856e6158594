"""Check and time training and evaluation on this machine's TPU, GPU or CPU, within some minutes.

    python tests/benchmarks/accelerator.py [--minutes 8] [--output accelerator.json]
    python tests/benchmarks/accelerator.py --tiny     # tries the script on a CPU

BERT-base and BERT-large with random weights, bfloat16, dropout 0.1 and windows whose lengths are
those of SQuAD's, packed into rows of 384 tokens and not packed. In each process packed logits are
compared with unpacked ones before anything is timed, and the loss must fall. The peers are Hugging
Face's BERT with SDPA, batches of similar lengths and bfloat16 autocast, and with flash-attention
without padding; they need PyTorch with CUDA, and `flash_attn`. Their rows and those that do not fit
into the time say "not measured". Prints a table for `docs/performance.md`, whose columns are:

- MFU: of the matrix products and the attention of real tokens, none of padding, against the peak of
  the chip in bfloat16;
- cores busy, longest gap: from a trace of 8 updates or one evaluation;
- memory: the most that a core's allocator has had in use; where it does not count, as on a CPU,
  what the compiler plans. Training comes after the evaluation in the same process.

Each result comes from a process of its own, since a process keeps what it has of an accelerator.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerator_data import Job

HERE = Path(__file__).parent
LEAST_SECONDS = 30
"""A process that has less time left is not started: it would hardly be ready."""
STAGES = ("evaluation", "training")
OWN = ("qa_flax, packed", "qa_flax")
HF, FLASH = "Hugging Face, grouped", "Hugging Face, flash-attention"
COLUMNS = {
    "model": "model",
    "stage": "stage",
    "side": "side",
    "windows_at_once": "windows at once on a core",
    "windows_per_second": "windows/s",
    "ratio": f"to {HF}",
    "mfu": "MFU",
    "busy": "cores busy",
    "longest_gap": "longest gap",
    "peak_bytes": "memory",
}


def main() -> None:
    args = arguments()
    deadline = time.monotonic() + 60 * args.minutes
    results = Results()
    for job in jobs(args):
        seconds = deadline - time.monotonic()
        backend = results.device.get("backend", "")
        reason = obstacle(job, backend)
        if reason is None and seconds < LEAST_SECONDS:
            reason = f"{args.minutes:g} minutes are over"
        if reason:
            results.skip(job, reason)
            continue
        print(f"{job.model}, {job.side}", file=sys.stderr, flush=True)
        for reply in replies(job, seconds, args.minutes):
            results.add(job, reply)
    text = results.text()
    print(text, flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(results.as_json(), indent=1) + "\n")
    sys.exit(1 if results.has_failed else 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, help="for all together (default: 8; tiny: 2)")
    models = ["base", "large"]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: 8; tiny: 1)")
    parser.add_argument("--training_rows", type=int, help="rows of 384 on a core in an update")
    parser.add_argument("--evaluation_rows", type=int, help="rows of 384 on a core")
    parser.add_argument("--peak", type=float, help="TFLOP/s of a core, for chips not in the script")
    parser.add_argument(
        "--peer_device",
        choices=["cuda", "cpu", "none"],
        default="cuda",
        help="where Hugging Face's models run; cpu tries the script",
    )
    parser.add_argument("--output", type=Path, help="write the results to this file as JSON")
    args = parser.parse_args()
    for name in ("minutes", "seconds", "training_rows", "evaluation_rows", "peak"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be greater than 0")
    defaults = {"minutes": 2.0, "seconds": 1.0} if args.tiny else {"minutes": 8.0, "seconds": 8.0}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.output is not None and not args.output.absolute().parent.is_dir():
        parser.error(f"--output {args.output}: there is no such folder; create it first")
    return args


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """What to measure, the most important first."""
    rows = args.training_rows, args.evaluation_rows
    models = ["tiny"] if args.tiny else args.models
    for sides in ([*OWN, HF], [FLASH]):
        for model in models:
            for side in sides:
                yield Job(model, side, args.seconds, *rows, args.peak, args.peer_device)


def obstacle(job: Job, backend: str) -> str | None:
    """Why a side cannot be measured here; None: it can, or its process must say.

    Args:
        job: what would be measured.
        backend: what JAX runs on, which the first process has said; "" if it could not.
    """
    if job.side in OWN:
        return None
    if job.peer_device == "none":
        return "--peer_device none"
    if job.peer_device == "cuda" and backend in ("cpu", "tpu"):
        return f"JAX runs on a {backend.upper()}, these rows need CUDA"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    if job.side == FLASH and importlib.util.find_spec("flash_attn") is None:
        return "flash_attn is not installed"
    return None


def replies(job: Job, seconds: float, minutes: float) -> Iterator[dict[str, Any]]:
    """Start the process of a job, yield what it prints, and end it when the time is over."""
    script = HERE / ("accelerator_own.py" if job.side in OWN else "accelerator_torch.py")
    command = [sys.executable, str(script), json.dumps(job._asdict())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    began = time.monotonic()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield json.loads(line)
        status = process.wait()
    finally:
        timer.cancel()
        process.kill()
    if time.monotonic() - began >= seconds:
        yield {"kind": "skipped", "reason": f"{minutes:g} minutes were over before it was done"}
    elif status not in (0, 1):  # 1: it has said why
        yield {"kind": "failed", "reason": f"its process ended with status {status}"}


class Results:
    """What the processes have found."""

    def __init__(self):
        self.device: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.has_failed = False

    def add(self, job: Job, reply: dict[str, Any]) -> None:
        kind = reply.pop("kind")
        if kind == "device":
            self.device = self.device or reply
        elif kind == "check":
            self.checks.append(reply)
        elif kind == "row":
            self.rows.append(reply)
        elif kind == "skipped":
            self.skip(job, reply["reason"])
        else:
            self.has_failed = True
            self.skip(job, reply["reason"], "failed")

    def skip(self, job: Job, reason: str, word: str = "not measured") -> None:
        """Add rows for what a job has not measured. A result that was refused goes, too."""
        done = [(r["model"], r["side"], r["stage"]) for r in self.rows]
        for stage in STAGES:
            if (job.model, job.side, stage) not in done:
                missing = {"model": job.model, "side": job.side, "stage": stage}
                self.rows.append(missing | {"reason": f"{word}: {reason}"})

    def as_json(self) -> dict[str, Any]:
        return {"device": self.device, "checks": self.checks, "rows": self.rows}

    def text(self) -> str:
        """The results as they stand in `docs/performance.md`."""
        device = "No device could be used"
        if self.device:
            device = f"{self.device['count']} x {self.device['device']}, jax {self.device['jax']}"
        lines = [f"{device}, bfloat16, dropout 0.1, rows of 384 tokens."]
        for check in self.checks:
            lines.append(
                f"BERT-{check['model']}: packed logits differ from unpacked ones by "
                f"{check['packed']:.2%}; by {check['mixed']:.0%} if each row were one window."
            )
        if any(row.get("memory_from") == "compiler" for row in self.rows):
            lines.append("Memory is what the compiler plans; this device does not count it.")
        lines += ["", f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
        order = {stage: n for n, stage in enumerate(reversed(STAGES))}
        models = list(dict.fromkeys(row["model"] for row in self.rows))
        rows = sorted(self.rows, key=lambda r: (models.index(r["model"]), order[r["stage"]]))
        return "\n".join([*lines, *(self._line(row) for row in rows)])

    def _line(self, row: dict[str, Any]) -> str:
        if "reason" in row:
            cells = {name: row.get(name, "-") for name in COLUMNS}
            return f"| {' | '.join((cells | {'windows_per_second': row['reason']}).values())} |"
        peak = row["peak_bytes"]
        peers = [
            r["windows_per_second"]
            for r in self.rows
            if r["side"] == HF
            and all(r[k] == row[k] for k in ("model", "stage"))
            and "reason" not in r
        ]
        cells = {
            "windows_at_once": str(row["windows_at_once"]),
            "windows_per_second": significant(row["windows_per_second"]),
            "ratio": f"{row['windows_per_second'] / peers[0]:.2f}x" if peers else "-",
            "mfu": _percent(row["mfu"]),
            "busy": _percent(row.get("busy")),
            "longest_gap": f"{1e3 * row['longest_gap']:.1f} ms" if "longest_gap" in row else "-",
            "peak_bytes": f"{peak / (1 << 30):.3g} GiB" if peak is not None else "-",
        }
        return f"| {' | '.join((row | cells)[name] for name in COLUMNS)} |"


def significant(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    main()
