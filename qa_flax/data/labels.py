"""Stage 3 of 7: where windows' labels lie: inside their rows, on padding or outside (host, NumPy).

A label is inside its row if it is below the padded length L; a negative one counts as 0. Labels
outside, such as those that scripts write for an answer that truncation has cut off, take no part in
the loss, as in Hugging Face.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
from jaxtyping import Bool, Int64

from qa_flax.data import alignment
from qa_flax.data.examples import has_answers, keeps_misaligned
from qa_flax.data.gold_spans import are_inside
from qa_flax.data.readers import arrow_table
from qa_flax.data.rejected import ExampleError
from qa_flax.data.rows import OUTSIDE_WINDOW
from qa_flax.data.windows import Windows
from qa_flax.messages import first_few, quoted

NO_ANSWER = (-1, -1)
"""The span to label of an example without an answer."""
UNKNOWN_PLACE = (-2, -2)
"""The span to label of an example with answers that do not occur in its context."""
UNPLACED = OUTSIDE_WINDOW - 1
"""The label of these: outside every window, and reported when the examples are loaded."""


def answer_span(
    context: str, answers: Mapping[str, Any] | None, *, misaligned: str
) -> tuple[int, int]:
    """Return the part [start, end) of a context, in code points, that an example's labels mark.

    It is the place of the first answer whose text occurs in the context: at its `answer_start`,
    else as near to it as possible. `NO_ANSWER` if there is no answer, `UNKNOWN_PLACE` if none
    occurs. With "keep" it is the first answer at its `answer_start` unless that is negative.

    Args:
        context: the context.
        answers: the lists `text` and `answer_start`.
        misaligned: see `load_examples`.
    """
    return next(_answer_spans(context, answers, misaligned))


def answer_spans(
    context: str, answers: Mapping[str, Any] | None, *, misaligned: str
) -> list[tuple[int, int]]:
    """Return the places of all of an example's answers that occur, each once, as `answer_span`.

    The first is the result of `answer_span`; there is only this one if no answer occurs.
    """
    return list(dict.fromkeys(_answer_spans(context, answers, misaligned)))


def _answer_spans(
    context: str, answers: Mapping[str, Any] | None, misaligned: str
) -> Iterator[tuple[int, int]]:
    texts = answers["text"] if answers else []
    pairs = zip(texts, answers["answer_start"] if answers else [], strict=True)
    pairs = [(text, start) for text, start in pairs if text.strip()]
    is_placed = False
    for text, start in pairs:
        if alignment.is_at(context, text, start) or (misaligned == "keep" and start >= 0):
            place: int | None = start
        else:
            place = alignment.find_nearest(context, text, start)
        if place is not None:
            is_placed = True
            yield place, place + len(text)
    if not is_placed:
        yield UNKNOWN_PLACE if pairs else NO_ANSWER


def labels_inside(windows: Windows) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
    """Return whether each window's start label, and its end label, is inside its row.

    None if the windows have no labels.
    """
    starts, ends, length = windows.start_positions, windows.end_positions, windows.padded_length
    return None if starts is None or ends is None else (starts < length, ends < length)


def terms_inside(windows: Windows) -> list[int]:
    """Return how many windows' start terms and end terms take part in the loss; [] without labels.

    With all spans as labels, both count the windows of which a span is inside its row.
    """
    starts, ends = windows.start_positions_all, windows.end_positions_all
    if starts is not None and ends is not None:
        return [int(are_inside(starts, ends, windows.padded_length).sum())] * 2
    return [int(inside.sum()) for inside in labels_inside(windows) or ()]


def holds_answer(windows: Windows) -> Bool[np.ndarray, " n"] | None:
    """Return whether each window's labels mark an answer.

    Both are inside its row then, and they are not both on the token of the null: the CLS token or,
    without `cls_index`, the first token. None if the windows have no labels.
    """
    inside = labels_inside(windows)
    if inside is None:
        return None
    positions = (windows.start_positions, windows.end_positions)
    starts, ends = (np.maximum(array, 0) for array in positions if array is not None)
    nulls = [np.zeros(len(windows), np.int32) if windows.cls_index is None else windows.cls_index]
    if windows.cls_index is None and windows.is_left_padded:
        nulls.append((windows.padded_length - windows.lengths).astype(np.int32))
    is_null = np.any([(starts == null) & (ends == null) for null in nulls], axis=0)
    return inside[0] & inside[1] & ~is_null


def required_lengths(windows: Windows) -> Int64[np.ndarray, " n"]:
    """Return how many columns of each window a batch has to hold, counted from the text's side.

    These are the window's tokens and, for a label on the padding, the columns up to the label, so
    that no batch drops a label inside its row.
    """
    lengths = windows.lengths.astype(np.int64)
    length, is_left_padded = windows.padded_length, windows.is_left_padded
    starts = (windows.start_positions, windows.start_positions_all)
    for positions in (*starts, windows.end_positions, windows.end_positions_all):
        if positions is not None:
            columns = np.maximum(positions, 0).astype(np.int64).reshape(len(lengths), -1)
            required = length - columns if is_left_padded else columns + 1
            required = np.where(columns < length, required, 0).max(axis=1, initial=0)
            lengths = np.maximum(lengths, required)
    return lengths


def describe_labels_outside(windows: Windows) -> str | None:
    """Return a sentence that counts the labels outside their windows; None if there are none."""
    inside = labels_inside(windows)
    if inside is None or (inside[0].all() and inside[1].all()):
        return None
    outside = [~is_inside for is_inside in inside]
    for is_outside, positions in zip(
        outside, (windows.start_positions, windows.end_positions), strict=True
    ):
        is_outside &= positions != UNPLACED
    starts, ends = (int(is_outside.sum()) for is_outside in outside)
    rows = np.flatnonzero(outside[0] | outside[1])
    if not len(rows):
        return None
    ids = dict.fromkeys(windows.example_ids[row] for row in rows.tolist())
    return (
        f"{starts} start and {ends} end labels of {len(windows)} windows are at position "
        f"{windows.padded_length} or later, outside their windows, and take no part in the loss: "
        "examples " + first_few(list(ids), quoted)
    )


# --- Answers that cannot be learnt ---------------------------------------------------------------


def describe_answers_without_window(
    windows: Windows,
    spans: Int64[np.ndarray, "e 2"],
    examples: Int64[np.ndarray, " n"],
    ids: list[str],
) -> str | None:
    """Return a sentence that counts the answers that no window contains; None if there are none.

    Args:
        windows: N windows with labels.
        spans: the part of each example's context that its answer takes, see `answer_span`.
        examples: the example of each window.
        ids: the id of each example.
    """
    held = holds_answer(windows)
    if held is None:
        return None
    has_answer = spans[:, 0] >= 0
    has_window = np.bincount(examples[held], minlength=len(ids)) > 0
    missing = np.flatnonzero(has_answer & ~has_window).tolist()
    if not missing:
        return None
    return (
        f"{len(missing)} of {int(has_answer.sum())} answers are longer than the part of the "
        "context that their windows share, so no window contains them, and all windows of their "
        "questions are labelled as without answer: ids "
        f"{first_few([ids[e] for e in missing], quoted)}. Raise max_seq_length or doc_stride."
    )


def describe_long_answers(windows: Windows, limit: int) -> str | None:
    """Return a sentence that counts the answers of more than `limit` tokens; None without any.

    Args:
        windows: windows with labels.
        limit: the length of the longest span that is an answer, in tokens.
    """
    held = holds_answer(windows)
    if held is None or windows.start_positions is None or windows.end_positions is None:
        return None
    ids = np.array(windows.example_ids, object)
    is_long = held & (windows.end_positions - windows.start_positions >= limit)
    long_ids = list(dict.fromkeys(ids[is_long].tolist()))
    if not long_ids:
        return None
    return (
        f"{len(long_ids)} of {len(set(ids[held].tolist()))} answers have more than "
        f"{limit} tokens and can never be given: ids {first_few(long_ids, quoted)}. Raise "
        "max_answer_length."
    )


# --- Examples that are left out of training -------------------------------------------------------


def learnable_examples(examples: datasets.Dataset) -> datasets.Dataset:
    """Return the examples without those that `make_windows` leaves out of training.

    Args:
        examples: a result of `load_examples`.

    Raises:
        ExampleError: none with an answer is left.
    """
    kept = can_learn(examples)
    if kept.all():
        return examples
    learnable = examples.select(np.flatnonzero(kept))
    if not has_answers(learnable).any():
        raise nothing_to_learn(examples["id"][:])
    return learnable


def can_learn(examples: datasets.Dataset) -> Bool[np.ndarray, " e"]:
    """Return whether each example has no answer, or one whose text occurs in its context."""
    misaligned = "keep" if keeps_misaligned(examples) else "drop"
    rows = arrow_table(examples.select_columns(["context", "answers"])).to_pylist()
    spans = [answer_span(r["context"], r["answers"], misaligned=misaligned) for r in rows]
    return np.array([span != UNKNOWN_PLACE for span in spans], bool)


def nothing_to_learn(ids: list[str]) -> ExampleError:
    """Return the error for examples of which none has an answer that occurs in its context."""
    return ExampleError(
        f"no answer of the {len(ids)} examples occurs in its context (ids "
        f"{first_few(ids, quoted)}), so there is nothing to train on: correct the answers, or let "
        'misaligned="repair" look for other spellings.'
    )
