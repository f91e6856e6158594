"""Stage 2 of 7: the places of answers in contexts -> tokens of windows (host, NumPy)."""

import dataclasses

import numpy as np
from jaxtyping import Int64

from qa_flax.data.columns import blocks
from qa_flax.data.gold_spans import ALL_LABELS, distinct_spans
from qa_flax.data.labels import UNKNOWN_PLACE, UNPLACED, describe_answers_without_window
from qa_flax.data.windows import WINDOWS_AT_ONCE, LazyWindows, Positions

Places = list[list[tuple[int, int]]]
"""The spans [start, end) of each example's answers in its context, in code points: one or more, or
only `labels.NO_ANSWER` or `labels.UNKNOWN_PLACE`."""


def labelled(
    windows: LazyWindows, places: Places, ids: list[str], *, has_all: bool
) -> tuple[LazyWindows, str | None]:
    """Label windows with the first tokens and the last tokens of answers.

    Args:
        windows: of all examples.
        places: of the answers of each example.
        ids: of the examples, for the sentence.
        has_all: whether to add the columns of all answers.

    Returns:
        The windows with labels, and a sentence that counts the answers that no window contains, or
        None if there are none. With `has_all` no answer of such an example is contained.
    """
    firsts = np.array([of_example[0] for of_example in places], np.int64).reshape(-1, 2)
    examples = windows.slices.example
    cls_index = windows.cls_index
    if cls_index is None:
        cls_index = np.zeros(len(windows), np.int32)
    starts, ends = _label(windows, firsts[examples], cls_index)
    windows = dataclasses.replace(windows, start_positions=starts, end_positions=ends)
    if not has_all:
        return windows, describe_answers_without_window(windows, firsts, examples, ids)
    spans = _all_spans(windows, places, cls_index, (starts, ends))
    best = dataclasses.replace(
        windows, start_positions=spans[0][:, 0], end_positions=spans[1][:, 0]
    )
    line = describe_answers_without_window(best, firsts, examples, ids)
    return dataclasses.replace(windows, **dict(zip(ALL_LABELS, spans, strict=True))), line


def describe_single_answers(windows: LazyWindows) -> str | None:
    """Return a sentence if labels of all answers are those of the first; None if they are not."""
    if windows.spans != 1:
        return None
    return (
        'answers="all" has no effect: no window contains several answers. Most training files have '
        "one answer to a question."
    )


def _all_spans(
    windows: LazyWindows,
    places: Places,
    cls_index: Positions,
    firsts: tuple[Positions, Positions],
) -> list[np.ndarray]:
    """Return the distinct spans of all answers in each window; without any the first label."""
    counts = np.array([len(of_example) for of_example in places], np.int64)[windows.slices.example]
    shape = (len(windows), int(counts.max(initial=1)))
    starts, ends = np.zeros((2, *shape), np.int32)
    is_span = np.zeros(shape, bool)
    for number in range(shape[1]):
        rows = np.flatnonzero(counts > number)
        of_rows = [places[example][number] for example in windows.slices.example[rows].tolist()]
        answers = np.array(of_rows, np.int64).reshape(-1, 2)
        labels = _label(windows.select(rows), answers, cls_index[rows])
        starts[rows, number], ends[rows, number] = labels
        is_null = (labels[0] == cls_index[rows]) & (labels[1] == cls_index[rows])
        is_span[rows, number] = ~is_null
    is_without = ~is_span.any(axis=1)
    for array, of_first in zip((starts, ends), firsts, strict=True):
        array[is_without, 0] = of_first[is_without]
    is_span[is_without, 0] = True
    return distinct_spans(starts, ends, is_span)


def _label(
    windows: LazyWindows, answers: Int64[np.ndarray, "n 2"], cls_index: Positions
) -> tuple[Positions, Positions]:
    """Return the first and last token of each window's answer, [start, end) in code points.

    The first token is the last context token that begins at or before `start`; the last token is
    the first context token that ends at or after `end`. Both are the CLS token if the window does
    not contain the whole answer, and outside the row if the answer's place is unknown. Hugging
    Face's loop differs if the answer begins in the window's last context token: it continues beyond
    the context and returns a start after the end.
    """
    starts, ends = cls_index.copy(), cls_index.copy()
    for rows in blocks(len(windows), WINDOWS_AT_ONCE):
        token_start, token_end = np.moveaxis(windows.offsets(rows), -1, 0)
        in_context = token_start >= 0
        start, end = answers[rows, 0, None], answers[rows, 1, None]
        can_start = in_context & (token_start <= start)
        can_end = in_context & (token_end >= end)
        first, last = first_true(in_context), last_true(in_context)
        row = np.arange(len(first))
        has_answer = can_start[row, first] & can_end[row, last] & (start[:, 0] >= 0)
        starts[rows] = np.where(has_answer, last_true(can_start), cls_index[rows])
        ends[rows] = np.where(has_answer, first_true(can_end), cls_index[rows])
    is_unknown = (answers == UNKNOWN_PLACE).all(axis=1)
    starts[is_unknown] = ends[is_unknown] = UNPLACED
    return starts, ends


def first_true(mask: np.ndarray) -> np.ndarray:
    """Return the first true column of each row; 0 if none is."""
    return mask.argmax(axis=1)


def last_true(mask: np.ndarray) -> np.ndarray:
    """Return the last true column of each row; the last if none is."""
    return mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
