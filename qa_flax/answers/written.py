"""Which files of answers are written while a function runs (host)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple


class WrittenAnswers(NamedTuple):
    """A call of `postprocess_qa_predictions` that wrote files."""

    folder: str | os.PathLike
    prefix: str
    """Of the files' names; "" for none."""
    settings: dict[str, bool | int | float]
    """How the answers were found: its arguments."""
    texts: Mapping[Any, str]
    """The answer to each question, by id."""
    features: Any
    """The windows of the questions."""


_noted: ContextVar[list[WrittenAnswers] | None] = ContextVar("written answers", default=None)


@contextmanager
def noting_answers() -> Iterator[list[WrittenAnswers]]:
    """Collect the calls that write files in this context and thread.

    Example:
        >>> with noting_answers() as written:
        ...     note_answers(WrittenAnswers("out", "eval", {}, {"q0": "Elbe"}, []))
        >>> written[0].prefix
        'eval'
    """
    written: list[WrittenAnswers] = []
    token = _noted.set(written)
    try:
        yield written
    finally:
        _noted.reset(token)


def note_answers(written: WrittenAnswers) -> None:
    """Note a call, if somebody collects them."""
    if (calls := _noted.get()) is not None:
        calls.append(written)
