"""Stage 1 of 7: a row's answers, in any of the layouts that people write them in (host).

One rule says what "no answer" is: no answers at all, None, NaN, an empty list, or a text that is
blank. A row may still say that a question has an answer, or none, with `is_impossible`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qa_flax.data.cells import is_missing, parse_cell, parse_literal
from qa_flax.data.readers import INT32_MAX, Row

ANSWER_COLUMNS = ("answers", "answer_text", "answer")
"""The columns that may hold answers; the first of them that is not empty is read."""

_ABSENT = {"", "nan", "<na>", "none", "null"}
"""What tables write for an empty cell, in lower case."""


class AnswerError(ValueError):
    """A row's answers cannot be used; the message says why, without the row's id."""


@dataclass(frozen=True)
class Answer:
    """An answer as a row gives it."""

    text: str
    start: int | None
    """Where it starts in the context, in code points; None if the row does not say."""


@dataclass(frozen=True)
class RowAnswers:
    """The answers of a row."""

    answers: list[Answer]
    is_given: bool
    """Whether the row says what its answers are, be it that there are none."""
    has_blank: bool = False
    """Whether a blank text was left out."""


def read_answers(row: Row, context: str | None) -> RowAnswers:
    """Read the answers of a row.

    Args:
        row: a row with one of the columns `ANSWER_COLUMNS`, or none.
        context: its context: a number is read as the text that the context has. None: only the
            texts are read, as the official scorers do.

    Raises:
        AnswerError: they are in no layout that is known.
    """
    if (usual := _usual_answers(row.get("answers"))) is not None:
        return usual
    raw = _raw_answers(row, context)
    if raw is None:
        return RowAnswers([], is_given=False)
    pairs = _pairs(raw)
    answers = []
    for raw_text, raw_start in pairs:
        start = None if context is None or _is_blank(raw_text) else _start(raw_start)
        text = _text(raw_text, context, start)
        if text is not None:
            answers.append(Answer(text, start))
    return RowAnswers(answers, is_given=True, has_blank=len(answers) < len(pairs))


def read_is_impossible(row: Row) -> bool | None:
    """Return what a row's `is_impossible` says: True, False, or None if it says nothing.

    Raises:
        AnswerError: it says something else.
    """
    value = _plain(row.get("is_impossible"))
    if _is_absent(value):
        return None
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0", "yes"):
        return True
    if text in ("false", "0", "0.0", "no"):
        return False
    raise AnswerError("is_impossible is neither true nor false")


def _usual_answers(raw: Any) -> RowAnswers | None:
    """Return answers in Hugging Face's layout without any fault; None if they are in another.

    Nearly all rows are of this kind, so this decides how long loading takes.
    """
    if type(raw) is not dict or raw.keys() != {"text", "answer_start"}:
        return None
    texts, starts = raw["text"], raw["answer_start"]
    if type(texts) is not list or type(starts) is not list or len(texts) != len(starts):
        return None
    for text, start in zip(texts, starts, strict=True):
        if type(text) is not str or type(start) is not int or abs(start) > INT32_MAX:
            return None
        if not (text.strip() and is_unicode(text)):
            return None
    return RowAnswers(list(map(Answer, texts, starts)), is_given=True)


# --- Layouts -------------------------------------------------------------------------------------


def _raw_answers(row: Row, context: str | None) -> Any:
    """Return the value of the first column that has answers, with its start if that is apart.

    None if the row says nothing about its answers.
    """
    start = row.get("answer_start")
    columns = [column for column in ANSWER_COLUMNS if column in row]
    for column in columns:
        value = _plain(row[column])
        if _is_verbatim(value, start, context):
            return {"text": value, "answer_start": start}
        if _is_absent_text(value, context):
            continue
        if isinstance(value, str):
            value = _parse_text(value, context)
            if _is_absent(value):
                continue
        items = value if isinstance(value, list | tuple) else [value]
        if _is_absent(start) or any(isinstance(item, Mapping) for item in items):
            return value
        return {"text": value, "answer_start": parse_cell(start)}
    if columns and not _is_absent(start):
        return {"text": "", "answer_start": start}  # a blank text with a start
    return None


def _is_verbatim(value: Any, start: Any, context: str | None) -> bool:
    """Return whether a text such as "[1]" or "None" is itself in the context at the start."""
    if context is None or not isinstance(value, str) or not value.strip():
        return False
    try:
        position = _start(start)
    except AnswerError:
        return False
    return position is not None and position >= 0 and context.startswith(value, position)


def _parse_text(value: str, context: str | None) -> Any:
    """Parse a cell with a list or a dict of answers; other texts are an answer."""
    if not value.lstrip().startswith(("[", "{", "array(")):
        return value
    parsed = parse_literal(value)
    return value if parsed and context and value.strip() in context else parsed


def _pairs(raw: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Return (text, start) of each answer; a start that is not given is None.

    Raises:
        AnswerError: the value is no text, no `{text, answer_start}` and no list of these.
    """
    raw = _plain(raw)
    if isinstance(raw, Mapping) and "text" in raw:
        return _zipped(_as_list(raw["text"]), _as_list(raw.get("answer_start")))
    if isinstance(raw, list | tuple) and depth < 2:
        return [pair for item in raw if not is_missing(item) for pair in _pairs(item, depth + 1)]
    if isinstance(raw, str) or _is_number(raw):
        return [(raw, None)]
    raise AnswerError(_MALFORMED)


def _zipped(texts: list[Any], starts: list[Any]) -> list[tuple[Any, Any]]:
    if not texts and starts:
        texts = [""]  # a start without a text
    if all(_is_blank(text) for text in texts) or all(_is_absent(start) for start in starts):
        return [(text, None) for text in texts]
    if len(texts) != len(starts):
        raise AnswerError("answers.text and answers.answer_start differ in length")
    return list(zip(texts, starts, strict=True))


_MALFORMED = (
    "answers is neither {text: [...], answer_start: [...]} nor a list of {text, answer_start} nor "
    "text"
)


# --- Values --------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Turn an array or a number of NumPy into Python objects."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_absent(value: Any) -> bool:
    """Return whether a value is None, NaN, or what tables write for an empty cell."""
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() in _ABSENT)


def _is_absent_text(value: Any, context: str | None) -> bool:
    """Return whether a text is absent; "None" is a text if the context has that word."""
    if not isinstance(value, str) or not value.strip():
        return _is_absent(value)
    if context is None:
        return False
    is_word = re.search(rf"(?<!\w){re.escape(value.strip())}(?!\w)", context)
    return _is_absent(value) and not is_word


def _is_blank(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_list(value: Any) -> list[Any]:
    value = _plain(value)
    if is_missing(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _start(value: Any) -> int | None:
    """Convert a value such as 7, 7.0 or "7" to an int; None if there is none.

    Raises:
        AnswerError: it is no whole number, or out of the range of int32.
    """
    value = _plain(value)
    if _is_absent(value):
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        number = int(float(value)) if isinstance(value, str) else int(value)
        if number != float(value) or abs(number) > INT32_MAX:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise AnswerError("an answer_start is not a 32-bit integer") from None
    return number


def _text(value: Any, context: str | None, start: int | None) -> str | None:
    """Return the text of an answer; None if it is blank.

    Raises:
        AnswerError: it is no text, or a number that the context does not have.
    """
    value = _plain(value)
    if _is_blank(value):
        return None
    if _is_number(value):
        return _number_text(value, context, start)
    if not isinstance(value, str) or not is_unicode(value):
        raise AnswerError("an answer's text is not a valid string")
    return value


def _number_text(value: float, context: str | None, start: int | None) -> str:
    """Return how the context writes a number: 1912.0 of a column of floats may be the year 1912."""
    spellings = [str(value)]
    if isinstance(value, float) and value.is_integer():
        spellings.insert(0, str(int(value)))
    if context is None:
        return spellings[0]
    found = [text for text in spellings if text in context]
    if not found:
        raise AnswerError("an answer is a number that is not in the context")
    at_start = [text for text in found if start is not None and context.startswith(text, start)]
    return (at_start or found)[0]


def is_unicode(text: str) -> bool:
    """Return False for unpaired surrogates: JSON can contain them, but Arrow's UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
