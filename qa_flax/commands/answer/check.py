"""Check the arguments of `qa-flax answer`, before anything slow is imported or done (host)."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qa_flax import storage
from qa_flax.data.answers import is_unicode
from qa_flax.ranges import Range, at_least, check_flags

SUFFIX = ".jsonl"
_COUNT = at_least(1).or_none()
_RANGES = {
    "top_k": _COUNT,
    "answers": _COUNT,
    "threshold": Range("a number from 0 to 1", lambda v: 0 <= v <= 1, is_optional=True),
    "doc_stride": at_least(0).or_none(),
    "max_answer_len": _COUNT,
    "max_seq_len": _COUNT,
    "max_question_len": _COUNT,
    "batch_size": _COUNT,
}


def check(args: argparse.Namespace) -> None:
    """Refuse values that are not allowed, and arguments that do not go together.

    Raises:
        ValueError: says what to do instead.
    """
    check_flags(_RANGES, args)
    if args.answers is not None and args.top_k is not None:
        raise ValueError(
            "--answers and --top_k both say how many answers to give; use --answers for answers "
            "that do not overlap, or --top_k for the pipeline's"
        )
    for question in args.question or ():
        if not question.strip():
            raise ValueError("--question is empty; write the question after it, in quotes")
        if not is_unicode(question):
            raise ValueError("--question is no UTF-8 text; set the terminal to UTF-8")
    if args.threshold is not None and args.answers is None:
        raise ValueError("--threshold selects among the answers of --answers; add that, too")
    _check_questions(args)
    if args.output is not None:
        _check_output(args.output, args.overwrite_output)
        _refuse_sources(args.output, [args.input, *(args.context or ())])


def _check_questions(args: argparse.Namespace) -> None:
    if args.input is not None:
        if args.question is not None:
            raise ValueError("--input and --question both give the questions; remove one of them")
        if args.output is None:
            raise ValueError(
                "--input needs --output, the name of a .jsonl file for the answers; to see answers "
                "here, use --question, or pipe the questions, one in each line"
            )
        return
    flags = ["bad_rows", *(f"{column}_column" for column in ("question", "context", "id"))]
    if given := [f"--{flag}" for flag in flags if getattr(args, flag) is not None]:
        raise ValueError(f"{', '.join(given)} says how to read --input; add that, or remove it")
    if args.context is None:
        raise ValueError(
            "no text to ask about: give a file or a folder with --context, or --input with "
            "questions that have their contexts"
        )
    if args.output is None and args.overwrite_output:
        raise ValueError("--overwrite_output has no effect without --output")
    if args.output is not None and args.question is None and sys.stdin.isatty():
        raise ValueError(
            "--output needs questions: give a file of them with --input, or --question, or pipe "
            "them, one in each line"
        )


# ---- output --------------------------------------------------------------------------------------


def _check_output(output: str, overwrite: bool) -> None:
    """Refuse an output that is no `.jsonl` file, or exists.

    Raises:
        ValueError: says what to do instead.
    """
    if Path(output).suffix.lower() != SUFFIX:
        raise ValueError(
            f"--output is {output}, but answers are written as JSON Lines; give a name that ends "
            f"in {SUFFIX} (pandas.read_json(..., lines=True) reads it, and writes other formats)"
        )
    path = storage.path(output)
    if path.is_dir():
        raise ValueError(f"--output {output} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise ValueError(
            f"--output {output} exists already; add --overwrite_output to replace it, or give "
            "another name"
        )


def _refuse_sources(output: str, sources: Sequence[str | None]) -> None:
    """Refuse an output that would replace what is read.

    Raises:
        ValueError: names it.
    """
    names = (output, output + storage.PARTIAL_SUFFIX, rejected_file(output))
    targets = {_resolved(name) for name in names}
    for source in sources:
        if source is not None and _resolved(source) in targets:
            raise ValueError(
                f"--output {output} would overwrite {source}, which is read; give another name"
            )


def rejected_file(output: str) -> str:
    """Return the name of the file with the rows that `--bad_rows skip` leaves out."""
    return f"{output[: -len(SUFFIX)]}.rejected{SUFFIX}"


def _resolved(name: str) -> str:
    return name if storage.is_remote(name) else os.path.realpath(os.path.expanduser(name))
