"""What each means gives with 300 labelled questions: a table of EM and F1, made in parts.

    export QA_FLAX_SHARED=DIR
    python tests/benchmarks/small_data.py --minutes 40                 # as many runs as fit
    python tests/benchmarks/small_data.py --rows baseline "sentences kept" --minutes 40
    python tests/benchmarks/small_data.py --table                      # what has been measured

The model is MiniLM (its encoder; the span head is new), the questions are those of reddit posts.
Training, validation, the tuning set and the unlabelled passages have no context in common. The
learning rate and the epochs of the baseline were chosen on the tuning set (`--rows tune`), all
figures of the table are of the validation set. Each run is the command that a user would type; its
result is kept in the folder, and a later call runs what is missing.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import qa_flax

SEEDS = {"baseline": [0, 1, 2], "sentences kept": [0, 1, 2]}
"""Other rows have one seed, because the machine has two cores."""
LENGTHS = ["--max_seq_length", "384", "--doc_stride", "128"]
QUIET = [
    "--disable_tqdm",
    "true",
    "--report_to",
    "none",
    "--save_strategy",
    "no",
    "--overwrite_output_dir",
]
TUNED = {"--learning_rate": "2e-4", "--num_train_epochs": "8"}
"""The best of `GRID` on the tuning set."""
GRID = [("2e-4", "8"), ("4e-4", "8"), ("4e-4", "4"), ("2e-4", "4"), ("1e-4", "8")]
USUAL = {
    "--per_device_train_batch_size": "8",
    "--per_device_eval_batch_size": "16",
    "--warmup_steps": "0.1",
}


class Row(NamedTuple):
    """A row of the table."""

    flags: dict[str, str]
    """What its run has beside the baseline's, or instead of it."""
    clozes: tuple[str, ...] | None = None
    """The flags of `qa-flax clozes`, if the run begins with clozes."""
    passages: int = 900
    """The unlabelled passages that the clozes are made from."""
    batch: str = "8"
    """How many clozes each update of the training on them has."""
    ratio: str = ""
    """If given, clozes are this share of each epoch's batches, and no training comes first."""


CLOZES = ("--max_clozes", "3000")
WORDS = tuple(f"--mask={word}" for word in ("what", "who", "where", "when", "which", "how"))
KEPT = (*CLOZES, "--keep_sentence", *WORDS)
TWICE = ("--max_clozes", "6000", *KEPT[2:])
AUGMENTED = {"--augment": "shuffle,distract,noise:0.02,question_dropout"}
BOTH = {"--answers": "all", **AUGMENTED}
ROWS: dict[str, Row] = {
    "baseline": Row({}),
    "answers all": Row({"--answers": "all"}),
    "label smoothing 0.1": Row({"--label_smoothing_factor": "0.1"}),
    "weight decay 0.1": Row({"--weight_decay": "0.1"}),
    "layer-wise rates 0.9": Row({"--layerwise_lr_decay": "0.9"}),
    "averaged weights 0.99": Row({"--ema_decay": "0.99"}),
    "augment shuffle": Row({"--augment": "shuffle"}),
    "augment distract": Row({"--augment": "distract"}),
    "augment noise": Row({"--augment": "noise:0.02"}),
    "augment question_dropout": Row({"--augment": "question_dropout"}),
    "augment all four": Row(AUGMENTED),
    "answers all, augment all four": Row(BOTH),
    "sentences kept": Row({}, KEPT),
    "sentences kept, 1,000 clozes": Row({}, ("--max_clozes", "1000", *KEPT[2:])),
    "sentences kept, 300 passages": Row({}, KEPT, 300),
    "sentences kept, mask token": Row({}, (*CLOZES, "--keep_sentence")),
    "sentences kept, beside the labels": Row({}, KEPT, ratio="0.5"),
    "clozes": Row({}, CLOZES),
    "clozes, question words": Row({}, (*CLOZES, *WORDS)),
    "sentences kept, 1,700 passages, batches of 4": Row({}, KEPT, 1700, "4"),
    "sentences kept, augment all four": Row(AUGMENTED, KEPT),
    "all that help": Row(BOTH, KEPT),
    "all that help, 16 epochs": Row(BOTH | {"--num_train_epochs": "16"}, KEPT),
    "all that help, 6,000 clozes of 1,700 passages, batches of 4": Row(BOTH, TWICE, 1700, "4"),
}
FIRST_STAGE = {"--num_train_epochs": "1", "--learning_rate": "2e-4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    shared = Path(os.environ.get("QA_FLAX_SHARED", ""))
    parser.add_argument("--model", default=str(shared / "models/all-MiniLM-L6-v2"))
    parser.add_argument("--data", default=str(shared / "data/squadshifts/reddit_v1.0.json"))
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--eval_questions", type=int, default=500)
    parser.add_argument("--rows", nargs="+", choices=["tune", *ROWS], default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of each row")
    parser.add_argument(
        "--clozes_seed", type=int, help="of the clozes and the training on them; default: the run's"
    )
    parser.add_argument("--minutes", type=float, default=40, help="no run begins after this time")
    parser.add_argument("--table", action="store_true", help="only print what has been measured")
    parser.add_argument("--output_dir", type=Path, default=Path("small_data"))
    args = parser.parse_args()
    study = Study(args)
    if not args.table:
        study.run()
    study.print_table()


class Study:
    """The runs of the study, and their results in a folder."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, args.output_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, dict[str, float]] = {}
        if (path := self.folder / "results.json").exists():
            self.results = json.loads(path.read_text())
        self.ends = perf_counter() + 60 * args.minutes

    def run(self) -> None:
        """Run what is missing, until the time is over."""
        write_data(self.args, self.folder)
        for row in self.args.rows:
            if row == "tune":
                for rate, epochs in GRID:
                    flags = {"--learning_rate": rate, "--num_train_epochs": epochs}
                    self.run_once(f"tune {rate}, {epochs} epochs", Row(flags), 0, "tune.json")
                continue
            for seed in self.args.seeds or SEEDS.get(row, [0]):
                self.run_once(row, ROWS[row], seed, "validation.json")

    def run_once(self, name: str, row: Row, seed: int, evaluated: str) -> None:
        """Run one cell, unless it has been run or the time is over."""
        key = f"{name} | {seed}"
        if key in self.results or perf_counter() > self.ends:
            return
        began, model = perf_counter(), self.args.model
        further: dict[str, str] = {}
        if row.clozes is not None:
            chosen = seed if self.args.clozes_seed is None else self.args.clozes_seed
            if row.ratio:
                clozes = str(self.written_clozes(row, chosen))
                further = {"--extra_train_file": clozes, "--extra_train_ratio": row.ratio}
            else:
                model = self.trained_on_clozes(row, chosen)
        output = self.folder / "run"
        files = ["--train_file", self.path("train.json"), "--validation_file", self.path(evaluated)]
        run(
            *("run", "--model_name_or_path", model, *files, "--do_train", "--do_eval"),
            *flags_of(USUAL | TUNED | row.flags | further | {"--seed": str(seed)}),
            *("--output_dir", str(output), *LENGTHS, *QUIET),
        )
        metrics = json.loads((output / "all_results.json").read_text())
        result = {"exact_match": metrics["eval_exact_match"], "f1": metrics["eval_f1"]}
        result["minutes"] = (perf_counter() - began) / 60
        self.results[key] = result
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1))
        values = f"EM {result['exact_match']:.1f}, F1 {result['f1']:.1f}"
        print(f"{key}: {values}, {result['minutes']:.1f} minutes", flush=True)

    def written_clozes(self, row: Row, seed: int) -> Path:
        """Return a file of clozes, which later runs share."""
        assert row.clozes is not None
        settings = "".join(re.findall(r"\w+", " ".join(row.clozes)))
        clozes = self.folder / f"clozes_{row.passages}_{settings}_{seed}.json"
        if not clozes.exists():
            run(
                *("clozes", self.path(f"passages_{row.passages}")),
                *("--tokenizer_name", self.args.model, "--output", str(clozes)),
                *(*row.clozes, "--seed", str(seed)),
            )
        return clozes

    def trained_on_clozes(self, row: Row, seed: int) -> str:
        """Return a folder with a model that was trained on clozes, which later runs share."""
        clozes = self.written_clozes(row, seed)
        output = clozes.with_name(f"{clozes.stem}_batches_of_{row.batch}")
        if not (output / "config.json").exists():
            first_flags = {"--per_device_train_batch_size": row.batch, "--seed": str(seed)}
            run(
                *("run", "--model_name_or_path", self.args.model, "--train_file", str(clozes)),
                *("--do_train", *flags_of(USUAL | FIRST_STAGE | first_flags)),
                *("--output_dir", str(output), *LENGTHS, *QUIET),
            )
        return str(output)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def print_table(self) -> None:
        """Print the measured cells, and the command for those that are missing."""
        scores: dict[str, list[dict[str, float]]] = {}
        for key, result in self.results.items():
            scores.setdefault(key.split(" | ")[0], []).append(result)
        print("\n| row | seeds | EM | F1 | minutes a run |\n|---|---|---|---|---|")
        for name, cells in scores.items():
            means = [spread([cell[n] for cell in cells]) for n in ("exact_match", "f1")]
            minutes = mean(cell["minutes"] for cell in cells)
            print(f"| {name} | {len(cells)} | {' | '.join(means)} | {minutes:.1f} |")
        missing = [
            row
            for row in ROWS
            if any(f"{row} | {seed}" not in self.results for seed in SEEDS.get(row, [0]))
        ]
        if missing:
            names = " ".join(map(shlex.quote, missing))
            print(f"\nNot measured: python tests/benchmarks/small_data.py --rows {names}")


def spread(values: list[float]) -> str:
    """The mean, and the standard deviation of several."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def flags_of(flags: dict[str, str]) -> list[str]:
    return [part for pair in flags.items() for part in pair]


def run(*command: str) -> None:
    """Run `qa-flax` with these arguments; its last lines are printed if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "qa_flax", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"qa-flax {shlex.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def write_data(args: argparse.Namespace, folder: Path) -> None:
    """Write training, validation and tuning questions, and passages, all of different contexts."""
    if (folder / "train.json").exists():
        return
    examples = qa_flax.load_examples(args.data)
    contexts = list(dict.fromkeys(examples["context"]))
    order = np.random.default_rng(0).permutation(len(contexts))
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in examples:
        rows_of.setdefault(row["context"], []).append(dict(row))
    queue = [contexts[n] for n in order]

    def questions(count: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            rows += rows_of[queue.pop()]
        return rows[:count]

    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "train.json": lambda: questions(args.questions),
        "validation.json": lambda: questions(args.eval_questions),
        "tune.json": lambda: questions(args.questions),
    }
    for name, of_part in parts.items():
        (folder / name).write_text(json.dumps({"data": of_part()}))
    for count in {row.passages for row in ROWS.values()}:
        (folder / f"passages_{count}").mkdir()
        for number, text in enumerate(queue[:count]):  # one post a file: they are not joined
            (folder / f"passages_{count}" / f"{number:04}.txt").write_text(text)


if __name__ == "__main__":
    main()
