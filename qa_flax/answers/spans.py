"""Stage 6 of 7: start and end logits -> the best spans of each example (host, NumPy).

The spans are those of the last `postprocess_qa_predictions` in Hugging Face's `utils_qa.py`, but
the work is done on whole arrays, chunk by chunk: extra memory does not grow with the windows.

    logits [W, L] -> TopTokens [W, C] -> Spans [M] -> best Spans of each example

The n best starts and n best ends of a window are chosen over the whole row, question and padding
included, and filtered afterwards, as Hugging Face does: filtering first gives other n-best lists.
Equal logits go from left to right, as with `jax.lax.top_k`. The first arrow may also be taken on
the device (`step.reduce`): then `Candidates` come instead of logits.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qa_flax.data.columns import blocks
from qa_flax.data.messages import first_few
from qa_flax.data.tables import SpanSource, as_slice

# What one step looks at together: windows per chunk of examples, and (start, end) pairs per search.
CHUNK_WINDOWS = 1024
CHUNK_PAIRS = 1 << 19

# The logit of a token that cannot be an answer: far below any real one, and two of them still add
# up in float16.
PADDING_LOGIT = -1e4


class TopTokens(NamedTuple):
    """The best start and end tokens of each window, best first."""

    starts: Int[np.ndarray, "w c"]
    start_logits: Float[np.ndarray, "w c"]
    ends: Int[np.ndarray, "w c"]
    end_logits: Float[np.ndarray, "w c"]


class Candidates(NamedTuple):
    """All that answers need of N windows' logits: their best tokens, and the null's two logits."""

    tokens: TopTokens
    null_starts: Float[np.ndarray, " n"]
    null_ends: Float[np.ndarray, " n"]
    padded_length: int  # L, of the logits

    def __len__(self) -> int:
        return len(self.null_starts)


Logits = tuple[np.ndarray, np.ndarray]  # of starts and ends, [N, L] each


class Spans(NamedTuple):
    """Spans of several examples, one a row, in Hugging Face's order of insertion or best first."""

    owner: Int[np.ndarray, " m"]  # which example of the chunk
    chars: Int[np.ndarray, "m 2"]  # first character, and the one after the last
    start_logits: Float[np.ndarray, " m"]
    end_logits: Float[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]  # start + end, in the logits' dtype

    def take(self, rows: Any) -> "Spans":
        """The given rows, in the given order."""
        return Spans(*(column[rows] for column in self))

    @staticmethod
    def concatenate(parts: Sequence["Spans"]) -> "Spans":
        """All rows of `parts`, one part after the other."""
        return Spans(*map(np.concatenate, zip(*parts, strict=True)))


class SearchSettings(NamedTuple):
    """What decides which spans are kept; the names are Hugging Face's."""

    version_2_with_negative: bool
    n_best_size: int
    max_answer_length: int
    hf_compatible: bool = True


class Chunk(NamedTuple):
    """The best spans of some examples: those of example i are rows bounds[i]:bounds[i + 1]."""

    examples: Int[np.ndarray, " e"]  # rows of the example table
    bounds: Int[np.ndarray, " e+1"]
    spans: Spans
    null_scores: Float[np.ndarray, " e"]


def searches(
    ids: list, features: SpanSource, predictions: Logits | Candidates, settings: SearchSettings
) -> Iterator["Search"]:
    """Yield a search for each chunk of examples, together all of them in their order.

    Args:
        ids: the id of each example; a repeated id stands for its last row.
        features: N windows.
        predictions: start and end logits [N, L], or the candidates among them.
        settings: which spans to keep.
    """
    row_of = {str(id_): row for row, id_ in enumerate(ids)}
    examples = np.fromiter(row_of.values(), np.intp, len(row_of))
    owner = _owners(features.example_ids, row_of)
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(examples) + 1))
    null = _null_logits(features, predictions, settings)
    nulls, null_scores = _nulls(null.scores, order, bounds, settings.hf_compatible)
    nulls = nulls if settings.version_2_with_negative else nulls[:0]
    for first, last in _example_chunks(bounds):
        rows = order[bounds[first] : bounds[last]]
        yield Search(
            examples[first:last],
            rows,
            owner[rows] - first,
            _null_spans(null, nulls[first:last]),
            null_scores[first:last],
            Reader(features, predictions, settings),
        )


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for the best spans of some examples, which can be done in two ways."""

    examples: Int[np.ndarray, " e"]  # rows of the example table
    rows: Int[np.ndarray, " w"]  # their windows, in order of example
    owner: Int[np.ndarray, " w"]  # the example of each window
    nulls: Spans  # v2: the smallest null of each example
    null_scores: Float[np.ndarray, " e"]
    reader: "Reader"

    def n_best(self) -> Chunk:
        """The `n_best_size` best spans of each example; in v2 the null is among them."""
        settings, parts = self.reader.settings, [_no_spans(self.null_scores.dtype)]
        for part in self._parts():
            found = self.reader.read(self.rows[part])
            spans = spans_of_tokens(found, self.owner[part], settings.max_answer_length)
            if len(found.first) < len(self.rows):  # one part of many: keep it small
                spans = _best_of_examples(spans, len(self.examples), settings.n_best_size)
            parts.append(spans)
        spans = Spans.concatenate(parts)
        return self._chunk(
            _best_of_examples(spans, len(self.examples), settings.n_best_size, self.nulls)
        )

    def best(self) -> Chunk:
        """The best span of each example, and in v2 the null: what most answers are made of.

        Where that would not do (a score is not finite, a span is without characters, or in v2
        `n_best_size` is 1) it is `n_best`.
        """
        settings, parts = self.reader.settings, [_no_spans(self.null_scores.dtype)]
        for part in self._parts():
            found = self.reader.read(self.rows[part])
            parts.append(best_of_windows(found, self.owner[part], settings.max_answer_length))
        spans = Spans.concatenate(parts)
        is_finite = np.isfinite(spans.scores).all() and np.isfinite(self.nulls.scores).all()
        has_chars = (spans.chars[:, 0] < spans.chars[:, 1]).all()
        is_cut = settings.version_2_with_negative and settings.n_best_size == 1
        if is_cut or not (is_finite and has_chars):
            return self.n_best()
        best = _best_of_examples(spans, len(self.examples), 1)
        return self._chunk(_best_of_examples(best, len(self.examples), 2, self.nulls))

    def _parts(self) -> Iterator[slice]:
        """Ranges of windows, so that one step holds about CHUNK_PAIRS pairs of tokens."""
        pairs = self.reader.settings.n_best_size**2
        size = min(CHUNK_WINDOWS, max(1, CHUNK_PAIRS // pairs))
        return blocks(len(self.rows), size)

    def _chunk(self, spans: Spans) -> Chunk:
        bounds = _bounds(spans.owner, len(self.examples))
        return Chunk(self.examples, bounds, spans, self.null_scores)


# ------------------------------------------------------------------------------------ search


def top_tokens(
    starts: Float[np.ndarray, "w l"], ends: Float[np.ndarray, "w l"], count: int
) -> TopTokens:
    """The `count` best starts and ends of each window (all L if it has fewer), best first."""
    best_starts, best_ends = _top(starts, count), _top(ends, count)
    return TopTokens(
        best_starts,
        np.take_along_axis(starts, best_starts, axis=1),
        best_ends,
        np.take_along_axis(ends, best_ends, axis=1),
    )


def _top(logits: np.ndarray, count: int) -> np.ndarray:
    """Positions [W, C] of the largest values of each row; equal values from left to right."""
    width = logits.shape[1]
    if count >= width:
        return np.argsort(_descending(logits), axis=1, kind="stable")
    # NumPy finds the bound with vector instructions; which of the equals are in is then a count.
    largest = np.partition(logits, width - count, axis=1)[:, width - count :]
    if np.isnan(largest).any():  # NaN cannot be compared; integers in its place can
        logits = _descending(logits)
        bound = np.partition(logits, count - 1, axis=1)[:, count - 1 : count]
        inside, at_bound = logits <= bound, logits == bound
    else:
        bound = largest[:, :1]
        inside, at_bound = logits >= bound, None
    if np.count_nonzero(inside) > count * len(logits):
        at_bound = logits == bound if at_bound is None else at_bound
        surplus = inside.sum(axis=1) - count
        for row in np.flatnonzero(surplus):
            inside[row, np.flatnonzero(at_bound[row])[-surplus[row] :]] = False
    columns = (np.flatnonzero(inside) % width).reshape(-1, count)
    values = np.take_along_axis(logits, columns, axis=1)
    if values.dtype.kind == "f":
        values = _descending(values)
    return np.take_along_axis(columns, np.argsort(values, axis=1, kind="stable"), axis=1)


def _descending(values: np.ndarray) -> np.ndarray:
    """Integers that sort as `values` from the largest: NaN first, -0.0 equal to 0.0."""
    floats = values.astype(np.float32) if values.dtype == np.float16 else values
    bits = (floats + 0.0).view(np.int64 if floats.dtype == np.float64 else np.int32)
    largest = np.iinfo(bits.dtype).max
    # Two's complement orders the positive floats; the negative ones run backwards.
    ascending = np.where(bits < 0, bits ^ largest, bits)
    return ~np.where(np.isnan(floats), largest, ascending)


class Found(NamedTuple):
    """The best tokens of some windows, and where they are in the context."""

    tokens: TopTokens
    first: Int[np.ndarray, "w c"]  # first character of each best start; -1: not of the context
    last: Int[np.ndarray, "w c"]  # the character after each best end; -1: not of the context


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads of windows and predictions what a search needs, some windows at a time."""

    features: SpanSource
    predictions: Logits | Candidates
    settings: SearchSettings

    def read(self, rows: Int[np.ndarray, " w"]) -> Found:
        """The best tokens of some windows."""
        some = as_slice(rows)
        tokens = self._tokens(some)
        offsets = self.features.offset_lookup(some)
        first, _ = offsets.at(tokens.starts)
        _, last = offsets.at(tokens.ends)
        max_context = self.features.max_context(some, offsets.width)
        if max_context is not None:
            first = np.where(_is_max(max_context, tokens.starts), first, -1)
        return Found(tokens, first, last)

    def _tokens(self, rows: slice | np.ndarray) -> TopTokens:
        if isinstance(self.predictions, Candidates):
            given, count = self.predictions.tokens, self.settings.n_best_size
            return TopTokens(*(_known(part[rows, :count], self.settings) for part in given))
        starts, ends = (_known(logits[rows], self.settings) for logits in self.predictions)
        return top_tokens(starts, ends, self.settings.n_best_size)


def _known(values: np.ndarray, settings: SearchSettings) -> np.ndarray:
    """The logits, where it is not to be as in Hugging Face without NaN and infinities."""
    if settings.hf_compatible or values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    return np.nan_to_num(values, nan=PADDING_LOGIT, posinf=-PADDING_LOGIT, neginf=PADDING_LOGIT)


def spans_of_tokens(found: Found, owner: Int[np.ndarray, " w"], max_answer_length: int) -> Spans:
    """Pair the best starts with the best ends, and keep the pairs that are spans of the context.

    `owner` [W] says which example a window belongs to.
    """
    tokens = found.tokens
    pairs = np.flatnonzero(_are_spans(found, max_answer_length))
    start_at, j = np.divmod(pairs, tokens.ends.shape[1])
    w = start_at // tokens.starts.shape[1]
    return _spans(found, owner, w, start_at, w * tokens.ends.shape[1] + j)


def best_of_windows(found: Found, owner: Int[np.ndarray, " w"], max_answer_length: int) -> Spans:
    """The first of the best spans of each window that has any.

    Where a window's scores are not all finite, one of those that are not is given.
    """
    tokens = found.tokens
    are_spans = _are_spans(found, max_answer_length)
    scores = tokens.start_logits[:, :, None] + tokens.end_logits[:, None, :]
    scores[~are_spans] = -np.inf
    best = scores.reshape(len(owner), -1).argmax(axis=1)
    w = np.flatnonzero(are_spans.any(axis=(1, 2)))
    i, j = np.divmod(best[w], tokens.ends.shape[1])
    return _spans(found, owner, w, w * tokens.starts.shape[1] + i, w * tokens.ends.shape[1] + j)


def _are_spans(found: Found, max_answer_length: int) -> Bool[np.ndarray, "w c c"]:
    """Which pairs of a start and an end are spans of the context, not too long."""
    # Invalid starts go far right and invalid ends far left. As a uint32, end - start is then larger
    # than any allowed length, as it is where the end comes before the start: one comparison
    # rejects all three.
    far = np.int32(1 << 30)
    start = np.where(found.first >= 0, found.tokens.starts, far).astype(np.int32)
    end = np.where(found.last >= 0, found.tokens.ends, -far).astype(np.int32)
    distance = (end[:, None, :] - start[:, :, None]).view(np.uint32)
    return distance < np.uint32(min(max_answer_length, 1 << 29))


def _spans(
    found: Found, owner: np.ndarray, w: np.ndarray, start_at: np.ndarray, end_at: np.ndarray
) -> Spans:
    """The spans of windows `w` from flat places of starts to flat places of ends."""
    start_logits = found.tokens.start_logits.ravel()[start_at]
    end_logits = found.tokens.end_logits.ravel()[end_at]
    chars = np.stack([found.first.ravel()[start_at], found.last.ravel()[end_at]], axis=1)
    return Spans(owner[w], chars, start_logits, end_logits, start_logits + end_logits)


def _best_of_examples(spans: Spans, examples: int, count: int, nulls: Spans | None = None) -> Spans:
    """The `count` best of each example's spans and null, best first; the null is never cut."""
    real = len(spans.owner)
    spans = spans if nulls is None else Spans.concatenate([spans, nulls])
    order = _best_first(spans)
    owner = spans.owner[order]
    rank = np.arange(len(order)) - _bounds(owner, examples)[owner]
    keep = rank < count
    if real < len(order):
        # What Hugging Face looks for is a kept span with characters (0, 0), whatever it is.
        has_null = np.zeros(examples, bool)
        has_null[owner[keep & ~spans.chars[order].any(axis=1)]] = True
        keep |= (order >= real) & ~has_null[owner]
    return spans.take(order[keep])


def _best_first(spans: Spans) -> np.ndarray:
    """Order by example, then from the best score; equal scores stay as they are."""
    rank = _descending(spans.scores)
    if rank.dtype == np.int32:  # both in one number: several times faster than two keys
        order = np.argsort((spans.owner.astype(np.int64) << 32) + rank, kind="stable")
    else:
        order = np.lexsort((rank, spans.owner))
    # With NaN there is no order; what Python's sort makes of the insertion order is Hugging Face's.
    for owner in np.unique(spans.owner[np.isnan(spans.scores)]):
        rows = np.flatnonzero(spans.owner == owner).tolist()
        first = np.searchsorted(spans.owner[order], owner)
        order[first : first + len(rows)] = sorted(rows, key=spans.scores.item, reverse=True)
    return order


def _bounds(owner: np.ndarray, examples: int) -> np.ndarray:
    """Where each example's rows begin [E + 1], the rows being in order of example."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=examples))])


class _Null(NamedTuple):
    """The null of each window [N]."""

    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray


def _null_logits(
    features: SpanSource, predictions: Logits | Candidates, settings: SearchSettings
) -> _Null:
    """The logits of each window's null: at its CLS token, or for Hugging Face at the first."""
    if isinstance(predictions, Candidates):
        starts, ends = predictions.null_starts, predictions.null_ends
    else:
        at = null_positions(features.cls_index, settings.hf_compatible)
        window = np.arange(len(predictions[0]))
        starts, ends = (logits[window, at] for logits in predictions)
    starts, ends = _known(starts, settings), _known(ends, settings)
    return _Null(starts, ends, starts + ends)


def null_positions(
    cls_index: Int[np.ndarray, " n"] | None, hf_compatible: bool
) -> Int[np.ndarray, " n"] | int:
    """The token [N] whose logits are the null's: the windows' `cls_index`, or without it the first.

    Hugging Face always takes the first, which with padding on the left is padding.
    """
    return 0 if hf_compatible or cls_index is None else cls_index


def _nulls(
    null: np.ndarray, order: np.ndarray, bounds: np.ndarray, hf_compatible: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The window with the smallest null score of each example (-1: no windows), and that score.

    An example without windows has the largest float, so that its answer is "". With Hugging Face it
    has the score of the example before it, if there is one.
    """
    examples = len(bounds) - 1
    rows = np.full(examples, -1)
    scores = np.full(examples, np.finfo(null.dtype).max, null.dtype)
    first = bounds[:-1][np.diff(bounds) > 0]
    if len(first) == 0:
        return rows, scores
    null = null[order]
    # HF's loop keeps the first window's score until it meets a smaller one. No comparison with NaN
    # is true: a NaN never replaces what is kept, and one in the first window stays.
    rank = np.where(np.isnan(null), np.inf, null)
    rank[first[np.isnan(null[first])]] = -np.inf
    smallest = np.lexsort((rank, np.repeat(np.arange(examples), np.diff(bounds))))[first]
    rows[np.diff(bounds) > 0] = order[smallest]
    seen = np.cumsum(rows >= 0)
    known = seen > 0 if hf_compatible else rows >= 0
    scores[known] = null[smallest][seen[known] - 1]
    return rows, scores


def _null_spans(null: _Null, rows: np.ndarray) -> Spans:
    owner = np.flatnonzero(rows >= 0)
    at = rows[owner]
    chars = np.zeros((len(owner), 2), np.int32)
    return Spans(owner, chars, null.starts[at], null.ends[at], null.scores[at])


def _no_spans(dtype: np.dtype) -> Spans:
    none = np.zeros(0, dtype)
    return Spans(np.zeros(0, np.intp), np.zeros((0, 2), np.int32), none, none, none)


# -------------------------------------------------------------------------------------- input


def _owners(example_ids: list, row_of: dict[str, int]) -> np.ndarray:
    """For each window, the place of its example among the distinct ids [N]."""
    place = {id_: n for n, id_ in enumerate(row_of)}
    unknown = dict.fromkeys(str(id_) for id_ in example_ids if str(id_) not in place)
    if unknown:
        raise ValueError(
            f"{len(unknown)} example ids of the {len(example_ids)} features are not among the "
            f"{len(row_of)} examples (first: {first_few(list(unknown))}): pass the examples "
            "that the features were made from"
        )
    return np.fromiter((place[str(id_)] for id_ in example_ids), np.intp, len(example_ids))


def _example_chunks(bounds: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of examples with about CHUNK_WINDOWS windows, never less than one example."""
    first, count = 0, len(bounds) - 1
    while first < count:
        last = int(np.searchsorted(bounds, bounds[first] + CHUNK_WINDOWS, side="right")) - 1
        last = min(max(last, first + 1), first + CHUNK_WINDOWS, count)
        yield first, last
        first = last


def _is_max(allowed: Bool[np.ndarray, "w l"], tokens: np.ndarray) -> np.ndarray:
    """Whether tokens [W, C] are allowed; behind the last column none is."""
    width = allowed.shape[1]
    if width == 0:
        return np.zeros(tokens.shape, bool)
    window = np.arange(len(tokens))[:, None]
    return (tokens < width) & allowed[window, np.minimum(tokens, width - 1)]
