"""Evaluate published checkpoints and print EM and F1 beside the published figures.

    python tests/benchmarks/published.py                      # every checkpoint; needs a network
    python tests/benchmarks/published.py --only distilbert    # those whose name contains this
    python tests/benchmarks/published.py --list
    python tests/benchmarks/published.py --model DIR --data FILE   # a folder in place of the Hub

Each checkpoint and data set is downloaded by its id and evaluated by `qa-flax run --do_eval`, with
the windows that its card names. Scores that differ from the published ones by more than `--margin`
points are marked, and the exit status is 1: EM and F1 of the same weights differ by some tenths
with the search for spans and the version of the tokenizer. With `--model` there is no published
figure: it tries the chain, and says that nothing was run against the Hub.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """A checkpoint and what its source says of it."""

    name: str
    f1: float
    exact_match: float | None
    """None: the source does not say."""
    source: str
    v2: bool = False
    """Whether it was evaluated on SQuAD 2.0; else on 1.1."""
    max_seq_length: int = 384


CARD = "its model card"
VERIFIED = "its model card, verified by the Hub's evaluator"
CHECKPOINTS = [
    Published("bert-large-uncased-whole-word-masking-finetuned-squad", 93.15, 86.91, CARD),
    Published("distilbert-base-cased-distilled-squad", 87.1, None, CARD),
    Published("mrp/bert-finetuned-squad", 87.606, 80.0853, VERIFIED),
    Published("csarron/mobilebert-uncased-squad-v1", 90.0, 82.6, CARD, max_seq_length=320),
    Published("deepset/roberta-base-squad2", 82.91, 79.87, CARD, v2=True),
    Published("deepset/minilm-uncased-squad2", 79.498, 76.131, CARD, v2=True),
    Published("deepset/electra-base-squad2", 81.354, 77.301, CARD, v2=True),
    Published("deepset/bert-base-uncased-squad2", 78.6191, 75.6529, VERIFIED, v2=True),
    Published(
        "deepset/bert-large-uncased-whole-word-masking-squad2", 83.8765, 80.8846, VERIFIED, v2=True
    ),
]


class EvaluationError(RuntimeError):
    """The command failed; the message has what it printed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="those whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the published figures only")
    parser.add_argument("--margin", type=float, default=0.5, help="points; default 0.5")
    parser.add_argument("--batch_size", type=int, default=16, help="windows per core")
    parser.add_argument("--model", help="a folder with a checkpoint, instead of the published ones")
    parser.add_argument("--data", help="its data, a file")
    args = parser.parse_args()
    if (args.model is None) != (args.data is None):
        parser.error("--model and --data go together")
    chosen = [row for row in CHECKPOINTS if args.only in row.name]
    if not chosen:
        names = ", ".join(row.name for row in CHECKPOINTS)
        parser.error(f"no checkpoint's name contains {args.only!r}; there are {names}")
    print("| checkpoint | data | published EM / F1 | measured EM / F1 | minutes | source |")
    print("|---|---|---|---|---|---|")
    if args.model is not None:
        try:
            metrics, minutes = evaluate(args.model, ["--validation_file", args.data], [], args)
        except EvaluationError as error:
            sys.exit(str(error))
        scores = " / ".join(f"{score:.2f}" for score in metrics)
        print(f"| {args.model} | {args.data} | none | {scores} | {minutes:.1f} | none |")
        print("\nNot run against the Hub: a folder in place of a published checkpoint.")
        return 0
    return report(chosen, args)


def report(chosen: list[Published], args: argparse.Namespace) -> int:
    """Print a line for each checkpoint; return 1 if a score is not the published one."""
    is_off = False
    for row in chosen:
        data = "squad_v2" if row.v2 else "squad"
        measured = "not run"
        minutes = 0.0
        if not args.list:
            flags = ["--max_seq_length", str(row.max_seq_length), "--doc_stride", "128"]
            flags += ["--version_2_with_negative"] * row.v2
            try:
                metrics, minutes = evaluate(row.name, ["--dataset_name", data], flags, args)
            except EvaluationError as error:
                print(error, file=sys.stderr)
                print(f"| {row.name} | {data} | | failed, see above | | |")
                is_off = True
                continue
            measured = " / ".join(f"{score:.2f}" for score in metrics)
            pairs = zip(metrics, (row.exact_match, row.f1), strict=True)
            differs = any(said is not None and abs(m - said) > args.margin for m, said in pairs)
            measured += " (differs)" * differs
            is_off |= differs
        exact = "?" if row.exact_match is None else f"{row.exact_match:.2f}"
        said = f"{exact} / {row.f1:.2f}"
        print(f"| {row.name} | {data} | {said} | {measured} | {minutes:.1f} | {row.source} |")
    return int(is_off)


def evaluate(
    model: str, data: list[str], flags: list[str], args: argparse.Namespace
) -> tuple[tuple[float, float], float]:
    """Return EM and F1, and the minutes that the command took.

    Raises:
        EvaluationError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", "--model_name_or_path", model, *data, *flags, "--do_eval"]
        command += ["--per_device_eval_batch_size", str(args.batch_size), "--report_to", "none"]
        command += ["--disable_tqdm", "true", "--output_dir", folder]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "qa_flax", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise EvaluationError(f"qa-flax {shlex.join(command)}\n{said}")
        metrics = json.loads((Path(folder) / "eval_results.json").read_text())
    exact = metrics.get("eval_exact_match", metrics.get("eval_exact"))
    return (exact, metrics["eval_f1"]), (time.perf_counter() - began) / 60


if __name__ == "__main__":
    sys.exit(main())
