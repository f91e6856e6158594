"""Stage 1 of 7: rows that cannot be used, and the file that lists them (host, text)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qa_flax.messages import printable


class ExampleError(ValueError):
    """The examples cannot be read or are invalid; the message lists the problems and what to do.

    Control characters of the data are escaped in it.
    """

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


@dataclass(frozen=True)
class RejectedRow:
    """A row that was left out of a data set, and why."""

    reasons: tuple[str, ...]
    """What is wrong with it, in the words of the error message."""

    row: Any
    """The row as it was read: a dict, or the text of a line that could not be parsed."""

    id: str | None = None
    """The id of the row; None if it has none or could not be parsed."""

    line: int | None = None
    """The line of the file, from 1, where the row begins; None if the source has no lines."""


def json_lines(rows: Iterable[RejectedRow], source: str) -> str:
    """Return the content of `rejected.jsonl`: a line for each row, with its source and reasons."""
    return "".join(
        json.dumps(
            {
                "source": source,
                "line": row.line,
                "id": row.id,
                "reasons": list(row.reasons),
                "row": row.row,
            },
            ensure_ascii=False,
            default=str,
        )
        + "\n"
        for row in rows
    )
