"""Batches: the questions of a file -> a line of JSON for each (host)."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from qa_flax import storage
from qa_flax.answering.answerer import QuestionAnswerer
from qa_flax.commands.answer.check import rejected_file
from qa_flax.commands.answer.progress import Progress
from qa_flax.commands.answer.texts import Texts
from qa_flax.commands.run.output import warn
from qa_flax.data.examples import LoadedExamples, read_questions
from qa_flax.data.rejected import ExampleError
from qa_flax.messages import escaped

_KEYS = ("score", "confidence", "start", "end", "context")
"""The entries of the best answer that a line has, as far as there are, after its text."""


# ---- questions -----------------------------------------------------------------------------------


def read_rows(args: argparse.Namespace, questions: list[str] | None = None) -> LoadedExamples:
    """Read the questions of `--input`, or take those that were given.

    The rows that `--bad_rows skip` leaves out are written beside the output.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: rows are invalid.
    """
    if questions is not None:
        return read_questions([{"question": text} for text in questions], needs_context=False)
    columns = {name: getattr(args, f"{name}_column") for name in ("question", "context", "id")}
    needs_context = args.context is None
    try:
        rows = read_questions(
            args.input,
            needs_context=needs_context,
            bad_rows=args.bad_rows or "refuse",
            columns=columns,
            warn=warn,
        )
    except ExampleError as error:
        hint = ""
        if needs_context and "context" in str(error):
            hint = "\nQuestions without a context of their own are asked of --context."
        elif str(args.input).lower().endswith(".txt"):
            hint = "\nA text file with a question in each line is piped: qa-flax answer ... < FILE"
        raise ExampleError(f"{error}{hint}") from error
    path = storage.path(rejected_file(args.output))
    if rows.rejected:
        storage.write_text(path, rows.rejected_lines())
        print(f"The rows that are left out, with the reasons: {escaped(path)}", file=sys.stderr)
    elif args.bad_rows == "skip":
        path.unlink(missing_ok=True)  # of an earlier attempt
    return rows


# ---- answers -------------------------------------------------------------------------------------


def answer_questions(
    answerer: QuestionAnswerer,
    rows: LoadedExamples,
    texts: Texts | None,
    output: storage.AnyPath,
    progress: Progress,
) -> None:
    """Answer all questions and write a line for each, in their order.

    Args:
        answerer: the model.
        rows: the questions; those without a context are asked of `texts`.
        texts: the texts of `--context`, if any.
        output: the `.jsonl` file. Until it is complete its name ends in `.partial`.
        progress: the answerer's.

    Raises:
        OSError: the file cannot be written.
        ValueError: a question cannot be answered.
    """
    examples, started = rows.examples, time.monotonic()
    total, done, unanswered = len(examples), 0, 0
    has_several = answerer.settings.top_k > 1 or answerer.settings.answers is not None
    results = answerer(_questions(rows, texts))
    try:
        with (
            storage.completing(output) as path,
            open(path, "w", encoding="utf-8", newline="\n", buffering=1) as file,
            progress.of_questions(total) as bar,
        ):
            keys = zip(examples["id"], examples["question"], strict=True)
            for (id_, question), result in zip(keys, results, strict=True):
                line = _line(id_, question, result, has_several)
                file.write(storage.json_text(line, ensure_ascii=False) + "\n")
                done, unanswered = done + 1, unanswered + (not line["answer"])
                bar.answered(done, total)
    except BaseException:
        if done:
            print(
                f"qa-flax: {done:,} of {total:,} questions are answered; their answers stay in "
                f"{escaped(output)}{storage.PARTIAL_SUFFIX} until the command is repeated",
                file=sys.stderr,
            )
        raise
    seconds = max(time.monotonic() - started, 1e-9)
    none = f", {unanswered:,} of them without an answer" if unanswered else ""
    print(
        f"{total:,} question{'s' * (total != 1)} in {seconds:.1f} s "
        f"({total / seconds:.1f} per second){none}: {escaped(output)}",
        file=sys.stderr,
    )


def _questions(rows: LoadedExamples, texts: Texts | None) -> Iterator[dict[str, Any]]:
    entries = {} if texts is None else texts.entries
    for row in rows.examples.select_columns(["id", "question", "context"]):
        own: Any = row
        has_context = bool(own["context"])
        yield own if has_context else {"id": own["id"], "question": own["question"], **entries}


def _line(id_: str, question: str, result: Any, has_several: bool) -> dict[str, Any]:
    """The line of a question: its best answer, and with several all of them."""
    answers = [result] if isinstance(result, dict) else result
    best = answers[0] if answers else {"answer": "", "score": None, "start": 0, "end": 0}
    line = {"id": id_, "question": question, "answer": best["answer"]}
    line |= {key: best[key] for key in _KEYS if key in best}
    return line | ({"answers": answers} if has_several else {})
