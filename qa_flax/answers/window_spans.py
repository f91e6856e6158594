"""Stage 6 of 7: logits -> the most probable spans of each window (host, NumPy).

The probabilities are those of the question answering pipeline that transformers 5.3 removed: in
each window one softmax over the starts and one over the ends, both over the CLS token and the
context's tokens. A span's probability is the product of its start's and its end's. The pipeline
multiplies all starts with all ends. This search first finds the best end of every start, because
the k best spans begin at those k starts whose best spans are the best.

Dimensions: N windows, C tokens of the longest part of a context, K spans of a window.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qa_flax.answers.spans import Logits, largest
from qa_flax.data.columns import blocks
from qa_flax.data.windows import LazyWindows

CHUNK_SPANS = 1 << 21  # bounds the temporary arrays: spans that are compared at once
MASKED_LOGIT = np.float32(-10000)  # the pipeline's logit of a token that cannot be in an answer


class WindowLogits(NamedTuple):
    """The logits of N windows' context tokens. Column 0 is the window's first context token."""

    starts: Float[np.ndarray, "n c"]
    ends: Float[np.ndarray, "n c"]
    in_context: Bool[np.ndarray, "n c"]  # False beyond the window's context
    null_starts: Float[np.ndarray, " n"]  # of the CLS token; the masked logit if there is none
    null_ends: Float[np.ndarray, " n"]


class WindowSpans(NamedTuple):
    """The K most probable spans of N windows, best first, and their "no answer".

    Tokens are counted from the window's first context token. A window with fewer than K spans
    has the probability -1 in place of the others.
    """

    starts: Int[np.ndarray, "n k"]
    ends: Int[np.ndarray, "n k"]  # the last token
    probabilities: Float[np.ndarray, "n k"]  # the start's times the end's
    scores: Float[np.ndarray, "n k"]  # the start's logit plus the end's
    null_probabilities: Float[np.ndarray, " n"]  # of the CLS token; infinity if not finite
    null_scores: Float[np.ndarray, " n"]


class _Probabilities(NamedTuple):
    starts: Float[np.ndarray, "n c"]  # -1 where a token cannot be in an answer
    ends: Float[np.ndarray, "n c"]
    nulls: Float[np.ndarray, " n"]


def window_logits(
    windows: LazyWindows, logits: Logits, nulls: Int[np.ndarray, " n"] | None
) -> WindowLogits:
    """Select the logits of the context's tokens and of the CLS token.

    Args:
        windows: N windows.
        logits: of starts and ends, float32 [N, L] each.
        nulls: the position of each window's CLS token; None: the windows have none.
    """
    count = windows.slices.count
    columns = np.arange(int(count.max(initial=0)))
    places = np.minimum(windows.context_begins()[:, None] + columns, windows.padded_length - 1)
    starts, ends = (np.take_along_axis(array, places, axis=1) for array in logits)
    null_starts = null_ends = np.full(len(windows), MASKED_LOGIT)
    if nulls is not None:
        null_starts, null_ends = (array[np.arange(len(windows)), nulls] for array in logits)
    return WindowLogits(starts, ends, columns < count[:, None], null_starts, null_ends)


def probable_spans(logits: WindowLogits, count: int, max_answer_length: int) -> WindowSpans:
    """Return the `count` most probable spans of each window; of equal ones the leftmost first.

    A window with a logit that is not finite has none.

    Args:
        logits: of N windows.
        count: how many spans of each window (K). It is less if no window has so many.
        max_answer_length: the longest span, in tokens.

    Example:
        >>> import numpy as np
        >>> starts, ends = np.float32([[0, 3, 0]]), np.float32([[0, 0, 2]])
        >>> null = np.float32([-1])
        >>> logits = WindowLogits(starts, ends, np.ones((1, 3), bool), null, null)
        >>> spans = probable_spans(logits, 2, max_answer_length=15)
        >>> spans.starts[0].tolist(), spans.ends[0].tolist()
        ([1, 1], [2, 1])
    """
    width = logits.starts.shape[1]
    longest = min(max_answer_length, width)
    size = max(1, CHUNK_SPANS // max(1, width, min(count, width) * longest))
    parts = []
    for rows in blocks(max(1, len(logits.starts)), size):
        part = WindowLogits(*(array[rows] for array in logits))
        parts.append(_search(part, _probabilities(part), count, longest))
    return WindowSpans(*map(np.concatenate, zip(*parts, strict=True)))


Widen = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Return the first and the last tokens [N, K] that spans from starts to ends [N, K] cover."""


def separate_spans(
    logits: WindowLogits, count: int, max_answer_length: int, widen: Widen
) -> WindowSpans:
    """Return up to `count` spans of each window that do not overlap: the best, then the best of
    the remaining tokens, and so on.

    Args:
        logits: of N windows.
        count: how many spans of each window (K).
        max_answer_length: the longest span, in tokens.
        widen: widens the spans, such as to whole words, before they are compared.
    """
    probabilities = _probabilities(logits)
    columns = np.arange(logits.starts.shape[1])
    is_free, parts = logits.in_context.copy(), []
    for _ in range(max(1, min(count, len(columns)))):
        # Spans from one side of a taken token to the other are no spans either.
        runs = np.cumsum(~is_free, axis=1)
        free = _Probabilities(
            np.where(is_free, probabilities.starts, -1),
            np.where(is_free, probabilities.ends, -1),
            probabilities.nulls,
        )
        best = _search(logits, free, 1, min(max_answer_length, len(columns)), runs)
        parts.append(best)
        is_span = best.probabilities >= 0  # [N, 1], or [N, 0] without tokens
        if not is_span.any():
            break
        first, last = widen(best.starts, best.ends)
        is_free &= ~((columns >= first) & (columns <= last) & is_span)
    joined = [
        np.concatenate(arrays, axis=1) for arrays in zip(*(p[:4] for p in parts), strict=True)
    ]
    return WindowSpans(*joined, *parts[0][4:])


def _probabilities(logits: WindowLogits) -> _Probabilities:
    starts, null_starts = _softmax(logits.starts, logits.null_starts, logits.in_context)
    ends, null_ends = _softmax(logits.ends, logits.null_ends, logits.in_context)
    return _Probabilities(starts, ends, null_starts * null_ends)


def _softmax(
    logits: np.ndarray, nulls: np.ndarray, in_context: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of the context's tokens [N, C], else -1, and of the CLS token."""
    masked = np.where(in_context, logits, MASKED_LOGIT)
    is_finite = np.isfinite(masked).all(axis=1) & np.isfinite(nulls)
    masked = np.where(is_finite[:, None], masked, MASKED_LOGIT)
    nulls = np.where(is_finite, nulls, MASKED_LOGIT)
    highest = np.maximum(masked.max(axis=1, initial=MASKED_LOGIT), nulls)
    exponentials, null = np.exp(masked - highest[:, None]), np.exp(nulls - highest)
    total = exponentials.sum(axis=1) + null
    is_token = in_context & is_finite[:, None]
    return (
        np.where(is_token, exponentials / total[:, None], np.float32(-1)),
        np.where(is_finite, null / total, np.float32(np.inf)),
    )


def _search(
    logits: WindowLogits,
    probabilities: _Probabilities,
    count: int,
    longest: int,
    runs: Int[np.ndarray, "n c"] | None = None,
) -> WindowSpans:
    """Return the best spans; if there are `runs`, only spans whose tokens are of one run."""
    starts, ends, nulls = probabilities
    windows, width = starts.shape
    best = _best_of_starts(starts, ends, longest, runs)
    first = largest(best, min(count, width))
    lengths = np.arange(longest)
    last = np.minimum(first[:, :, None] + lengths, max(0, width - 1))
    rows = np.arange(windows)[:, None, None]
    has_span = np.take_along_axis(best, first, 1)[:, :, None] >= 0
    is_span = has_span & (first[:, :, None] + lengths < width) & (ends[rows, last] >= 0)
    if runs is not None:
        is_span &= runs[rows, first[:, :, None]] == runs[rows, last]
    products = np.where(is_span, starts[rows, first[:, :, None]] * ends[rows, last], -1)
    products = products.reshape(windows, first.shape[1] * longest)
    chosen = largest(products, min(count, products.shape[1]))
    span_starts = np.take_along_axis(first, chosen // max(1, longest), 1)
    span_ends = np.take_along_axis(last.reshape(products.shape), chosen, 1)
    scores = np.take_along_axis(logits.starts, span_starts, 1)
    return WindowSpans(
        span_starts,
        span_ends,
        np.take_along_axis(products, chosen, 1),
        scores + np.take_along_axis(logits.ends, span_ends, 1),
        nulls,
        np.where(np.isfinite(nulls), logits.null_starts + logits.null_ends, np.float32(np.inf)),
    )


def _best_of_starts(
    starts: np.ndarray, ends: np.ndarray, longest: int, runs: np.ndarray | None
) -> np.ndarray:
    """Return the probability of the best span from each start [N, C]; -1 if there is none."""
    best = ends.copy()
    for shift in range(1, longest):
        later = ends[:, shift:]
        if runs is not None:
            later = np.where(runs[:, shift:] == runs[:, :-shift], later, -1)
        np.maximum(best[:, :-shift], later, out=best[:, :-shift])
    return np.where((starts < 0) | (best < 0), -1, starts * best)
