"""Stage 1 of 7: the values of a row as they were written -> missing ones, numbers, text (host).

A word such as NA or None is a missing value only where it can be no text: `NA` is an answer if the
context has it, and always a possible question.
"""

import re
from collections.abc import Mapping
from typing import Any

from qa_flax.data.cells import (
    may_be_absent,
    number_as_text,
    parse_cell,
    parse_literal,
    plain,
    start_of,
)
from qa_flax.data.column_names import Row


def cleaned(row: Row, *, is_text: bool) -> Row:
    """Return a row whose missing values are None and whose numbers are what they were written for.

    Args:
        row: a row with the package's names of columns.
        is_text: whether every cell is text, as in a CSV file.
    """
    has_start = "answer_start" in row and "answer_text" not in row and "answers" in row
    if has_start and not _is_structured(row["answers"]):  # the text of an answer, not all of it
        row = {("answer_text" if k == "answers" else k): value for k, value in row.items()}
    result = dict(row)
    context = row.get("context")
    if is_text:
        for column in ("id", "title", "context", "question", "is_impossible"):
            if column in row and _is_certainly_absent(row[column], column):
                result[column] = None
    if "answer_start" in row:
        result["answer_start"] = start_of(parse_cell(row["answer_start"]))
    if "answer_text" in row:
        start = result.get("answer_start")
        texts = row["answer_text"]
        texts = texts if _is_in(texts, context) else parse_cell(texts)
        result["answer_text"] = _answer_texts(texts, start, context)
    if "answers" in row:
        result["answers"] = _answers(row["answers"], context)
    return result


def _is_structured(answers: Any) -> bool:
    """Whether a value holds the starts of answers, too."""
    if isinstance(answers, list):
        return any(isinstance(answer, Mapping) for answer in answers)
    is_text = isinstance(answers, str)
    return isinstance(answers, Mapping) or (
        is_text and bool(re.match(r"\s*(\{|\[\s*\{|(np\.)?array\(\s*\[\s*\{)", answers))
    )


def _is_certainly_absent(cell: Any, column: str) -> bool:
    """Whether a cell of a text file has no value, in a column where words may be text."""
    if not may_be_absent(cell):
        return False
    if column == "is_impossible":
        return True
    if column in ("context", "question"):
        return not cell or cell.strip() == "<NA>"
    return not cell.strip() or cell.strip() in ("<NA>", "NaN", "nan")


def _answer_texts(texts: Any, start: Any, context: Any) -> Any:
    """Return the text of an answer, or of several; None if it is missing."""
    if isinstance(texts, list):
        starts = start if isinstance(start, list) else [start] * len(texts)
        if len(starts) != len(texts):
            return texts
        return [number_as_text(t, context, s) for t, s in zip(texts, starts, strict=True)]
    if may_be_absent(texts) and start is None and not _occurs(texts, context):
        return None
    if isinstance(texts, str) and not texts.strip():
        return None
    only = start[0] if isinstance(start, list) and len(start) == 1 else start
    return number_as_text(texts, context, only)


def _is_in(text: Any, context: Any) -> bool:
    """Whether a cell such as `[1]` stands in the context, so that it is an answer and no list."""
    are_texts = isinstance(text, str) and isinstance(context, str)
    return are_texts and text.strip() not in ("", "[]", "{}") and text.strip() in context


def _occurs(word: Any, context: Any) -> bool:
    """Whether a word such as NA stands in the context, so that it may be an answer."""
    if not (isinstance(word, str) and word.strip() and isinstance(context, str)):
        return False
    return bool(re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", context))


def _answers(answers: Any, context: Any) -> Any:
    """Return the value of the column answers with its numbers as texts where they were texts."""
    is_list = isinstance(answers, str) and re.match(r"\s*(\{|\[|(np\.)?array\()", answers)
    if is_list and not _is_in(answers, context):
        answers = plain(parse_literal(answers))
    if isinstance(answers, Mapping) and "text" in answers:
        starts = start_of(answers.get("answer_start"))
        texts = answers["text"]
        if isinstance(texts, list):
            texts = _answer_texts(texts, starts, context)
        else:
            texts = number_as_text(texts, context, starts)
        return {**answers, "text": texts} | (
            {"answer_start": starts} if "answer_start" in answers else {}
        )
    if isinstance(answers, list):
        return [
            _answers(answer, context)
            if isinstance(answer, Mapping)
            else number_as_text(answer, context, None)
            for answer in answers
        ]
    if may_be_absent(answers):
        return answers if _occurs(answers, context) else None
    return number_as_text(answers, context, None)
