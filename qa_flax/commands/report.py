"""`qa-flax report`: one HTML page that shows what an evaluation got right and wrong (host)."""

import argparse
import json
from typing import TYPE_CHECKING

from qa_flax.commands.errors import usage_errors
from qa_flax.ranges import SEED, at_least

if TYPE_CHECKING:
    from qa_flax.storage import AnyPath

SUMMARY = "write an HTML page of an evaluation: scores, where it fails, and every question"

DESCRIPTION = """Write one HTML page about an evaluation: exact match and F1 with intervals, by kind
of question, the no-answer threshold, confidence, learning curves, and the questions with their
contexts, answers and n-best lists, to search and filter. The page is one file that makes no network
requests. OUT is any folder with eval_predictions.json: of qa-flax run, of run_qa.py, or of an older
version; for the last two, name the data with --data."""

_POSITIVE = at_least(1)


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="qa-flax report", description=" ".join(DESCRIPTION.split())
    )
    parser.add_argument(
        "folder", metavar="OUT", help="folder of an evaluation (--output_dir of its run)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="the data that was evaluated: SQuAD JSON, JSONL, CSV, Parquet or a Hub id (default: "
        "where it was at the evaluation)",
    )
    parser.add_argument(
        "--prefix",
        help="of the files: eval, predict, ... for eval_predictions.json and so on, '' for "
        "predictions.json (default: eval, or the only one that there is)",
    )
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        help="folder of another evaluation of the same questions: which questions were mended and "
        "which were broken since, and whether the difference may be chance",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the page (default: eval_report.html in OUT)"
    )
    parser.add_argument(
        "--max_rows",
        type=int,
        metavar="N",
        help="list at most N questions, mistakes first (default: as many as fit into about 25 MB)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap and of samples (default: 0)"
    )
    parser.add_argument(
        "--language",
        help="score as MLQA's scorer does for ar, de, en, es, hi, vi or zh (default: as the "
        "evaluation did)",
    )
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Write the page, and print its path.

    Raises:
        UsageError: the folder, the data or an argument is invalid, or the page cannot be written.
    """
    from qa_flax import storage
    from qa_flax.answers.report.build import build_report
    from qa_flax.answers.report.page import render
    from qa_flax.messages import printable

    with usage_errors(ValueError, OSError):
        _check(parsed)
        report = build_report(
            parsed.folder,
            data=parsed.data,
            prefix=parsed.prefix,
            compare_with=parsed.compare,
            language=parsed.language,
            most_rows=parsed.max_rows,
            seed=parsed.seed,
            learning_curves=_learning_curves(parsed.folder),
        )
        file = _output(parsed, report.prefix)
        storage.write_text(file, render(report))
    for note in report.notes:
        print(printable(f"note: {note}"))
    for line in report.summary():
        print(printable(line))
    print(printable(f"The report is {file}"))


def _check(parsed: argparse.Namespace) -> None:
    """Check the arguments, before the files are read.

    Raises:
        ValueError: one is out of its range, or the page is no HTML file.
        OSError: the page cannot be written.
    """
    from qa_flax import storage

    if parsed.max_rows is not None and not _POSITIVE.contains(parsed.max_rows):
        raise ValueError(f"--max_rows is {parsed.max_rows}; it must be {_POSITIVE.allowed}")
    if not SEED.contains(parsed.seed):
        raise ValueError(f"--seed is {parsed.seed}; it must be {SEED.allowed}")
    if parsed.output is None:
        return
    if not parsed.output.lower().endswith((".html", ".htm")):
        raise ValueError(
            f"--output is {parsed.output}, but the report is an HTML page; give a name that ends "
            "in .html"
        )
    file = storage.path(parsed.output)
    if file.is_dir():
        raise ValueError(f"--output {parsed.output} is a folder; give a file in it")
    storage.check_writable(file.parent)


def _learning_curves(folder: str) -> str:
    """Return the picture of the training whose log is in the folder; "" if there is none."""
    from qa_flax import storage
    from qa_flax.train.learning_curves import has_curves, learning_curves

    file = storage.path(folder) / "trainer_state.json"
    if not file.is_file():
        return ""
    try:
        history = json.loads(file.read_bytes())["log_history"]
        if not has_curves(history):
            return ""
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        message = f"{file} has no log of a training ({error}); delete it to go without its curves"
        raise ValueError(message) from error
    return str(learning_curves(file))


def _output(parsed: argparse.Namespace, prefix: str) -> "AnyPath":
    """Return the file of the page; one in the evaluation's folder is checked here.

    Raises:
        OSError: the folder cannot be written to.
    """
    from qa_flax import storage

    if parsed.output is not None:
        return storage.path(parsed.output)
    folder = storage.path(parsed.folder)
    try:
        storage.check_writable(folder)
    except OSError as error:
        message = f"{folder} cannot be written to ({error.strerror}); say where: --output FILE.html"
        raise ValueError(message) from error
    return folder / (f"{prefix}_report.html" if prefix else "report.html")
