"""Stage 2 of 7: all gold spans of windows, for the loss over several answers (host, NumPy).

A window has the columns `start_positions_all` and `end_positions_all` beside the usual two if its
features were made with `answers="all"`: one entry for each distinct span of tokens that is the
whole of an answer, or the CLS token alone if the window contains none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32

from qa_flax.data.columns import list_lengths, numpy_column, ranges

ALL_LABELS = ("start_positions_all", "end_positions_all")
"""The columns: lists of integers, of equal lengths in a row; int32 `[n, g]` in a batch."""
ANSWERS = ("first", "all")
"""Which of an example's answers are labels."""
NO_SPAN = np.iinfo(np.int32).max
"""Fills the rows of windows with fewer spans; beyond every row, so that it is in no loss."""

Spans = Int32[np.ndarray, "n g"]


def distinct_spans(
    starts: Spans, ends: Spans, is_span: Bool[np.ndarray, "n g"]
) -> list[Int32[np.ndarray, "n most"]]:
    """Move each window's distinct spans to the front, in their order.

    Args:
        starts: first tokens.
        ends: last tokens.
        is_span: which entries are to be kept. A window needs none.

    Returns:
        The starts and the ends, with room for the most spans of a window, at least one. Other
        entries are `NO_SPAN`.
    """
    is_kept = is_span.copy()
    for later in range(1, starts.shape[1]):
        for earlier in range(later):
            is_same = starts[:, earlier] == starts[:, later]
            is_same &= ends[:, earlier] == ends[:, later]
            is_kept[:, later] &= ~(is_same & is_kept[:, earlier])
    most = max(1, int(is_kept.sum(axis=1).max(initial=0)))
    order = np.argsort(~is_kept, axis=1, kind="stable")[:, :most]
    is_kept = np.take_along_axis(is_kept, order, axis=1)
    return [
        np.where(is_kept, np.take_along_axis(array, order, axis=1), np.int32(NO_SPAN))
        for array in (starts, ends)
    ]


def with_room(spans: Spans, count: int) -> Int32[np.ndarray, "n count"]:
    """Add entries without a span, up to `count`."""
    missing = max(0, count - spans.shape[1])
    return np.pad(spans, ((0, 0), (0, missing)), constant_values=NO_SPAN)


def shifted(positions: Int32[np.ndarray, "..."], by: int) -> Int32[np.ndarray, "..."]:
    """Move positions to the right; those at the end of int32, outside every row, stay there."""
    return np.minimum(positions.astype(np.int64) + by, NO_SPAN).astype(np.int32)


def are_inside(starts: Any, ends: Any, length: int) -> Bool[np.ndarray, " n"]:
    """Return whether any span of each window is inside a row of `length` tokens."""
    return ((starts < length) & (ends < length)).any(axis=1)


def ragged(starts: Spans, ends: Spans) -> tuple[list[pa.Array], list[list[list[int]]]]:
    """Return both columns as Arrow lists, and as lists, without the entries that are no span."""
    is_span = (starts != NO_SPAN) | (ends != NO_SPAN)
    is_span[:, :1] |= ~is_span.any(axis=1, keepdims=True)  # every window keeps one
    counts = is_span.sum(axis=1)
    begins = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    columns = [pa.ListArray.from_arrays(begins, pa.array(x[is_span])) for x in (starts, ends)]
    return columns, [column.to_pylist() for column in columns]


def spans_of_table(table: pa.Table) -> list[Spans] | None:
    """Read the two columns of a data set; None without them. A span that is repeated counts once.

    Raises:
        ValueError: one of them is missing, has no lists, an empty list or a missing number, or
            lists of another length than the other.
    """
    names = [name for name in ALL_LABELS if name in table.column_names]
    if not names:
        return None
    check_both(names, "the data set")
    arrays, counts = [], []
    for name in ALL_LABELS:
        column = table[name]
        if not pa.types.is_nested(column.type):
            raise ValueError(
                f"column {name}: every row needs a list of integers, one for each answer, got "
                f"{column.type}. One answer belongs into {name.removesuffix('_all')}."
            )
        chunks = [list_lengths(chunk) for chunk in column.chunks]
        counts.append(np.concatenate([*chunks, np.zeros(0, np.int64)]))
        if not counts[-1].all():
            raise ValueError(
                f"column {name}: the lists of {int((counts[-1] == 0).sum())} rows are empty (row "
                f"{int(np.argmin(counts[-1]))}). Without an answer the list holds the position of "
                f"the CLS token, as {name.removesuffix('_all')} does."
            )
        flat = pa.chunked_array([x.flatten() for x in column.chunks], column.type.value_type)
        arrays.append(numpy_column(flat, name, clip=True))
    _check_counts(*counts)
    shape = (len(table), int(counts[0].max(initial=1)))
    places = ranges(np.arange(len(table)) * shape[1], counts[0])
    spans = np.full((2, *shape), NO_SPAN, np.int32)
    for rows, values in zip(spans, arrays, strict=True):
        rows.reshape(-1)[places] = values
    is_span = np.zeros(shape, bool)
    is_span.reshape(-1)[places] = True
    return distinct_spans(spans[0], spans[1], is_span)


def stacked_spans(rows: Sequence[Sequence[np.ndarray]], what: str) -> list[Spans]:
    """Stack the starts and the ends of some rows, padded with `NO_SPAN`.

    Batches that a script's rows are stacked to should have few shapes, because a step is compiled
    for each: g is a power of 2.

    Args:
        rows: for both columns one array of integers for each row.
        what: the origin of the rows, for error messages.

    Raises:
        ValueError: as of `spans_of_table`.
    """
    counts = [np.array([row.size for row in column]) for column in rows]
    for name, count in zip(ALL_LABELS, counts, strict=True):
        if not count.all():
            raise ValueError(f"{name} of {what} needs at least one number for each row")
    _check_counts(*counts)
    width = 1 << int(counts[0].max() - 1).bit_length()
    spans = np.full((2, len(counts[0]), width), NO_SPAN, np.int32)
    for column, values in zip(spans, rows, strict=True):
        for row, value in enumerate(values):
            column[row, : value.size] = np.minimum(value.reshape(-1), NO_SPAN)
    starts, ends = distinct_spans(spans[0], spans[1], np.arange(width) < counts[0][:, None])
    return [with_room(starts, width), with_room(ends, width)]


def check_both(names: Sequence[str], what: str) -> None:
    """Raise `ValueError` if only one of the two columns is there."""
    if len(names) == 1:
        missing = next(name for name in ALL_LABELS if name not in names)
        raise ValueError(f"{what} has {names[0]} but no {missing}; both are needed")


def _check_counts(starts: np.ndarray, ends: np.ndarray) -> None:
    if (starts != ends).any():
        row = int(np.argmax(starts != ends))
        raise ValueError(
            f"{' and '.join(ALL_LABELS)} differ in length in {int((starts != ends).sum())} rows: "
            f"row {row} has {starts[row]} starts and {ends[row]} ends"
        )
