"""Stage 6 of 7: start and end logits -> the best spans of each example (host, NumPy).

Finds the same spans as the newest `postprocess_qa_predictions` in Hugging Face's `utils_qa.py`, but
with array operations on one chunk of examples at a time. Temporary memory does not grow with the
number of windows.

    logits [W, L] -> TopTokens [W, C] -> Spans [M] -> best Spans of each example

As in Hugging Face's code, the n best starts and the n best ends are chosen among all tokens of a
window, including the question and padding. Pairs that are no spans of the context are removed
afterwards; removing them first would give different n-best lists. Equal logits are ordered from
left to right, as by `jax.lax.top_k`. The first step can also run on the device (`step.reduce`); the
input is then `Candidates` instead of logits.

The null prediction of a window is Hugging Face's name for "no answer": its score is the sum of the
CLS token's start and end logits. "v2" means SQuAD v2.0, where a question may have no answer.

Dimensions: N all windows, W windows of a chunk, L tokens, C candidates of a window, E examples,
M spans.
"""

import dataclasses
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qa_flax.answers.arrivals import Arrivals
from qa_flax.data.columns import blocks
from qa_flax.data.tables import SpanSource, as_slice
from qa_flax.messages import first_few

# How much is processed at once: windows of a chunk of examples, and (start, end) pairs of tokens.
CHUNK_WINDOWS = 1024
CHUNK_PAIRS = 1 << 19

# The logit of a token that cannot be an answer. It is far below every real logit, and the sum of
# two of them does not overflow in float16.
PADDING_LOGIT = -1e4


class TopTokens(NamedTuple):
    """The best start and end tokens of each window, best first."""

    starts: Int[np.ndarray, "w c"]
    start_logits: Float[np.ndarray, "w c"]
    ends: Int[np.ndarray, "w c"]
    end_logits: Float[np.ndarray, "w c"]


class Candidates(NamedTuple):
    """The part of N windows' logits that answers need: the best tokens and the null's logits."""

    tokens: TopTokens
    null_starts: Float[np.ndarray, " n"]
    null_ends: Float[np.ndarray, " n"]
    padded_length: int  # L, the number of tokens that the best ones were chosen from
    arrivals: Arrivals | None = None  # which windows have arrived; None: all

    def __len__(self) -> int:
        return len(self.null_starts)


Logits = tuple[np.ndarray, np.ndarray]  # start logits [N, L], end logits [N, L]


class Spans(NamedTuple):
    """M spans of several examples, in the order in which Hugging Face finds them or best first."""

    owner: Int[np.ndarray, " m"]  # index of the example in the chunk
    chars: Int[np.ndarray, "m 2"]  # first character, and the character after the last
    start_logits: Float[np.ndarray, " m"]
    end_logits: Float[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]  # start + end, in the logits' dtype

    def take(self, rows: Any) -> "Spans":
        """Select rows, in the order of `rows`."""
        return Spans(*(column[rows] for column in self))

    @staticmethod
    def concatenate(parts: Sequence["Spans"]) -> "Spans":
        """Concatenate the rows of `parts`, without a copy if only one has rows."""
        filled = [part for part in parts if len(part.owner)] or parts[:1]
        if len(filled) == 1:
            return filled[0]
        return Spans(*map(np.concatenate, zip(*filled, strict=True)))


class SearchSettings(NamedTuple):
    """Settings of the search for spans; the names are those of `postprocess_qa_predictions`."""

    version_2_with_negative: bool
    n_best_size: int
    max_answer_length: int
    hf_compatible: bool = True


class Chunk(NamedTuple):
    """The best spans of E examples; the spans of example i are rows bounds[i]:bounds[i + 1]."""

    examples: Int[np.ndarray, " e"]  # rows of the example table
    bounds: Int[np.ndarray, " e+1"]
    spans: Spans
    null_scores: Float[np.ndarray, " e"]  # the smallest null score of each example's windows


def make_searches(
    ids: list, features: SpanSource, predictions: Logits | Candidates, settings: SearchSettings
) -> Iterator["Search"]:
    """Yield a search for each chunk of examples, in the order of the examples.

    Args:
        ids: the id of each example; a repeated id stands for its last row.
        features: N windows, in any order.
        predictions: start and end logits [N, L], or the candidates among them. Those that have not
            arrived yet are waited for, a chunk at a time.
        settings: which spans to return.

    Raises:
        ValueError: a window's example id is not in `ids`.
    """
    examples, owner = _match_ids(ids, features.example_ids)
    # Numbers of windows and examples are kept for the whole search: in half the memory.
    order = np.argsort(owner, kind="stable").astype(np.int32)
    bounds = _bounds(owner, len(examples))
    del owner
    position = null_positions(features.cls_index, settings.hf_compatible)
    largest = np.finfo(_dtype(predictions)).max
    lowest = largest if settings.hf_compatible else None  # the null score of the example before
    for first, last in _example_chunks(bounds):
        rows, counts = order[bounds[first] : bounds[last]], np.diff(bounds[first : last + 1])
        if isinstance(predictions, Candidates) and predictions.arrivals is not None:
            predictions.arrivals.wait_for(rows)
        nulls = _null_predictions(predictions, position, rows, settings)
        null_windows, null_scores = _smallest_nulls(nulls.scores, counts, lowest)
        lowest = null_scores[-1] if settings.hf_compatible else None
        yield Search(
            examples[first:last],
            rows,
            np.repeat(np.arange(last - first), counts),
            _null_spans(
                nulls, null_windows if settings.version_2_with_negative else null_windows[:0]
            ),
            null_scores,
            TokenReader(features, predictions, settings),
        )


@dataclasses.dataclass(frozen=True)
class Search:
    """Searches for the best spans of E examples: `n_best` of each, or only the `best`."""

    examples: Int[np.ndarray, " e"]  # rows of the example table
    rows: Int[np.ndarray, " w"]  # their windows, sorted by example
    owner: Int[np.ndarray, " w"]  # index of each window's example in `examples`
    nulls: Spans  # v2: each example's null prediction with the smallest score; v1: empty
    null_scores: Float[np.ndarray, " e"]
    reader: "TokenReader"

    def n_best(self) -> Chunk:
        """Return the `n_best_size` best spans of each example; v2: with its null prediction."""
        settings, blocks_of_spans = self.reader.settings, [_empty_spans(self.null_scores.dtype)]
        for block in self._window_blocks():
            candidates = self.reader.read(self.rows[block])
            spans = spans_of_tokens(candidates, self.owner[block], settings.max_answer_length)
            if len(candidates.start_chars) < len(self.rows):
                # One block of several: drop all but its best spans now, to save memory.
                spans = _best_of_examples(spans, len(self.examples), settings.n_best_size)
            blocks_of_spans.append(spans)
        spans = Spans.concatenate(blocks_of_spans)
        return self._chunk(
            _best_of_examples(spans, len(self.examples), settings.n_best_size, self.nulls)
        )

    def without_windows(self) -> Int[np.ndarray, " n"]:
        """Return the examples without windows, as rows of the example table."""
        return self.examples[np.bincount(self.owner, minlength=len(self.examples)) == 0]

    def best(self) -> Chunk:
        """Return only the best span of each example; v2: with its null prediction.

        This is faster than `n_best`, and enough to answer most questions. Returns `n_best` where
        the answer may depend on other spans: a score is not finite, a span has no characters, or
        `n_best_size` is 1 in v2.
        """
        settings, blocks_of_spans = self.reader.settings, [_empty_spans(self.null_scores.dtype)]
        for block in self._window_blocks():
            candidates = self.reader.read(self.rows[block])
            blocks_of_spans.append(
                best_of_windows(candidates, self.owner[block], settings.max_answer_length)
            )
        spans = Spans.concatenate(blocks_of_spans)
        is_finite = np.isfinite(spans.scores).all() and np.isfinite(self.nulls.scores).all()
        has_chars = (spans.chars[:, 0] < spans.chars[:, 1]).all()
        is_cut = settings.version_2_with_negative and settings.n_best_size == 1
        if is_cut or not (is_finite and has_chars):
            return self.n_best()
        best = _best_of_examples(spans, len(self.examples), 1)
        return self._chunk(_best_of_examples(best, len(self.examples), 2, self.nulls))

    def _window_blocks(self) -> Iterator[slice]:
        """Yield slices of windows with about CHUNK_PAIRS pairs of tokens each."""
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
    """Return the min(count, L) best starts and ends of each window, best first."""
    best_starts, best_ends = largest(starts, count), largest(ends, count)
    return TopTokens(
        best_starts,
        np.take_along_axis(starts, best_starts, axis=1),
        best_ends,
        np.take_along_axis(ends, best_ends, axis=1),
    )


def largest(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the positions [W, C] of each row's largest values; equal values from left to right."""
    width = logits.shape[1]
    if count >= width:
        return np.argsort(_descending(logits), axis=1, kind="stable")
    # `np.partition` finds the count-th largest value of a row much faster than sorting does. Every
    # larger value is selected. Of the values equal to it, the leftmost fill the remaining places.
    largest = np.partition(logits, width - count, axis=1)[:, width - count :]
    if np.isnan(largest).any():  # NaN has no order, but `_descending` gives it one
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
    """Return integers whose ascending order is the descending order of `values`, NaN first."""
    floats = values.astype(np.float32) if values.dtype == np.float16 else values
    # Adding 0.0 turns -0.0 into 0.0, so that the two are equal.
    bits = (floats + 0.0).view(np.int64 if floats.dtype == np.float64 else np.int32)
    largest = np.iinfo(bits.dtype).max
    # The bits of positive floats, read as integers, are in the order of the floats. Those of
    # negative floats are in reverse order.
    ascending = np.where(bits < 0, bits ^ largest, bits)
    return ~np.where(np.isnan(floats), largest, ascending)


class LocatedTokens(NamedTuple):
    """The best tokens of W windows, and their characters in the context."""

    tokens: TopTokens
    start_chars: Int[np.ndarray, "w c"]  # first character of each start; -1: outside the context
    end_chars: Int[np.ndarray, "w c"]  # the character after each end; -1: outside the context


@dataclasses.dataclass(frozen=True)
class TokenReader:
    """Reads the best tokens and their offsets, a block of windows at a time."""

    features: SpanSource
    predictions: Logits | Candidates
    settings: SearchSettings

    def read(self, rows: Int[np.ndarray, " w"]) -> LocatedTokens:
        """Return the best tokens of the windows `rows`."""
        selection = as_slice(rows)
        tokens = self._tokens(selection)
        offsets = self.features.offset_lookup(selection)
        start_chars, _ = offsets.at(tokens.starts)
        _, end_chars = offsets.at(tokens.ends)
        max_context = self.features.max_context(selection, offsets.width)
        if max_context is not None:
            start_chars = np.where(_is_max(max_context, tokens.starts), start_chars, -1)
        return LocatedTokens(tokens, start_chars, end_chars)

    def _tokens(self, rows: slice | np.ndarray) -> TopTokens:
        if isinstance(self.predictions, Candidates):
            arrays, count = self.predictions.tokens, self.settings.n_best_size
            return TopTokens(
                *(_finite_logits(array[rows, :count], self.settings) for array in arrays)
            )
        starts, ends = (_finite_logits(logits[rows], self.settings) for logits in self.predictions)
        return top_tokens(starts, ends, self.settings.n_best_size)


def _finite_logits(values: np.ndarray, settings: SearchSettings) -> np.ndarray:
    """Replace NaN and infinities by +-10000, but leave them with `hf_compatible`."""
    if settings.hf_compatible or values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    return np.nan_to_num(values, nan=PADDING_LOGIT, posinf=-PADDING_LOGIT, neginf=PADDING_LOGIT)


def spans_of_tokens(
    candidates: LocatedTokens, owner: Int[np.ndarray, " w"], max_answer_length: int
) -> Spans:
    """Return every pair of a best start and a best end that is a span of the context.

    Args:
        candidates: the best tokens of W windows.
        owner: index of each window's example.
        max_answer_length: the longest span, in tokens.
    """
    tokens = candidates.tokens
    pairs = np.flatnonzero(_are_spans(candidates, max_answer_length))
    start_index, j = np.divmod(pairs, tokens.ends.shape[1])
    w = start_index // tokens.starts.shape[1]
    return _make_spans(candidates, owner, w, start_index, w * tokens.ends.shape[1] + j)


def best_of_windows(
    candidates: LocatedTokens, owner: Int[np.ndarray, " w"], max_answer_length: int
) -> Spans:
    """Return the best span of each window that has any; of equal ones, the first.

    A window in which a span's score is NaN or +inf, or all of them are -inf, gets a span with such
    a score, so that `Search.best` notices it. The arguments are those of `spans_of_tokens`.
    """
    tokens = candidates.tokens
    are_spans = _are_spans(candidates, max_answer_length)
    scores = tokens.start_logits[:, :, None] + tokens.end_logits[:, None, :]
    scores[~are_spans] = -np.inf
    best = scores.reshape(len(owner), -1).argmax(axis=1)
    w = np.flatnonzero(are_spans.any(axis=(1, 2)))
    # If all spans of a window score -inf, the maximum found may be a pair that is no span.
    is_span = are_spans.reshape(len(owner), -1)
    no_span = w[~is_span[w, best[w]]]
    best[no_span] = is_span[no_span].argmax(axis=1)
    i, j = np.divmod(best[w], tokens.ends.shape[1])
    start_index, end_index = w * tokens.starts.shape[1] + i, w * tokens.ends.shape[1] + j
    return _make_spans(candidates, owner, w, start_index, end_index)


def _are_spans(candidates: LocatedTokens, max_answer_length: int) -> Bool[np.ndarray, "w c c"]:
    """Return which (start, end) pairs are spans of the context within `max_answer_length`."""
    # Move invalid starts far right and invalid ends far left. Read as uint32, `end - start` then
    # exceeds every allowed length for invalid tokens and for end < start alike, so one comparison
    # rejects all three.
    far = np.int32(1 << 30)
    start = np.where(candidates.start_chars >= 0, candidates.tokens.starts, far).astype(np.int32)
    end = np.where(candidates.end_chars >= 0, candidates.tokens.ends, -far).astype(np.int32)
    distance = (end[:, None, :] - start[:, :, None]).view(np.uint32)
    return distance < np.uint32(min(max_answer_length, 1 << 29))


def _make_spans(
    candidates: LocatedTokens,
    owner: np.ndarray,
    w: np.ndarray,
    start_index: np.ndarray,
    end_index: np.ndarray,
) -> Spans:
    """Build the spans of windows `w` from indices into the flattened starts and ends."""
    start_logits = candidates.tokens.start_logits.ravel()[start_index]
    end_logits = candidates.tokens.end_logits.ravel()[end_index]
    start_chars = candidates.start_chars.ravel()[start_index]
    end_chars = candidates.end_chars.ravel()[end_index]
    chars = np.stack([start_chars, end_chars], axis=1)
    return Spans(owner[w], chars, start_logits, end_logits, start_logits + end_logits)


def _best_of_examples(spans: Spans, examples: int, count: int, nulls: Spans | None = None) -> Spans:
    """Return the `count` best of each example's spans and null prediction, best first.

    The null prediction is returned even if it is not among the `count` best.
    """
    real = len(spans.owner)
    spans = spans if nulls is None else Spans.concatenate([spans, nulls])
    order = _best_first(spans)
    owner = spans.owner[order]
    rank = np.arange(len(order)) - _bounds(owner, examples)[owner]
    keep = rank < count
    if real < len(order):
        # Hugging Face adds the null prediction back unless one of the best spans has the offsets
        # (0, 0). Such a span may also be a real one.
        has_null = np.zeros(examples, bool)
        has_null[owner[keep & ~spans.chars[order].any(axis=1)]] = True
        keep |= (order >= real) & ~has_null[owner]
    return spans.take(order[keep])


def _best_first(spans: Spans) -> np.ndarray:
    """Return the stable order of spans by example, then by descending score."""
    rank = _descending(spans.scores)
    if rank.dtype == np.int32:  # sorting one int64 is several times faster than two keys
        order = np.argsort((spans.owner.astype(np.int64) << 32) + rank, kind="stable")
    else:
        order = np.lexsort((rank, spans.owner))
    # NaN scores have no order, so Hugging Face's result depends on how Python's `sorted` works:
    # apply `sorted` to the same list.
    for owner in np.unique(spans.owner[np.isnan(spans.scores)]):
        rows = np.flatnonzero(spans.owner == owner).tolist()
        first = np.searchsorted(spans.owner[order], owner)
        order[first : first + len(rows)] = sorted(rows, key=spans.scores.item, reverse=True)
    return order


def _bounds(owner: np.ndarray, examples: int) -> np.ndarray:
    """Return where each example's rows begin [E + 1]; the rows are sorted by example."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=examples))])


class _NullPredictions(NamedTuple):
    """The null predictions of W windows: start logits, end logits and scores."""

    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray


def _null_predictions(
    predictions: Logits | Candidates,
    position: np.ndarray | int,
    rows: Int[np.ndarray, " w"],
    settings: SearchSettings,
) -> _NullPredictions:
    """Return the null predictions of the windows `rows`; `position` is that of `null_positions`."""
    if isinstance(predictions, Candidates):
        starts, ends = predictions.null_starts[rows], predictions.null_ends[rows]
    else:
        column = position if isinstance(position, int) else position[rows]
        starts, ends = (logits[rows, column] for logits in predictions)
    starts, ends = _finite_logits(starts, settings), _finite_logits(ends, settings)
    return _NullPredictions(starts, ends, starts + ends)


def _dtype(predictions: Logits | Candidates) -> np.dtype:
    is_tokens = isinstance(predictions, Candidates)
    return (predictions.null_starts if is_tokens else predictions[0]).dtype


def null_positions(
    cls_index: Int[np.ndarray, " n"] | None, hf_compatible: bool
) -> Int[np.ndarray, " n"] | int:
    """Return the position of the null prediction's token in each window [N].

    It is the CLS token, or token 0 where `cls_index` is None. With `hf_compatible` it is always
    token 0, which is a padding token if the tokenizer pads on the left.
    """
    return 0 if hf_compatible or cls_index is None else cls_index


def _smallest_nulls(
    null_scores: Float[np.ndarray, " w"], counts: Int[np.ndarray, " e"], lowest: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return each example's window with the smallest null score [E], and that score [E].

    An example without windows gets the window -1 and the largest float as score, so that its answer
    is "". With `lowest` it gets the score of the example before it, if there is one.

    Args:
        null_scores: of the windows of E examples, sorted by example.
        counts: the number of windows of each example.
        lowest: the score of the example before these, as Hugging Face's loop keeps it: the largest
            float if there is none. None: no example gets another one's.
    """
    examples = len(counts)
    rows = np.full(examples, -1)
    largest = np.finfo(null_scores.dtype).max
    scores = np.full(examples, largest if lowest is None else lowest, null_scores.dtype)
    first = (np.cumsum(counts) - counts)[counts > 0]
    if len(first) == 0:
        return rows, scores
    # As in HF's loop: NaN never replaces the current minimum, and a NaN in an example's first
    # window is never replaced.
    rank = np.where(np.isnan(null_scores), np.inf, null_scores)
    rank[first[np.isnan(null_scores[first])]] = -np.inf
    rows[counts > 0] = np.lexsort((rank, np.repeat(np.arange(examples), counts)))[first]
    examples_with_windows = np.cumsum(rows >= 0)  # up to and including each example
    has_score = rows >= 0 if lowest is None else examples_with_windows > 0
    scores[has_score] = null_scores[rows[rows >= 0]][examples_with_windows[has_score] - 1]
    return rows, scores


def _null_spans(nulls: _NullPredictions, rows: np.ndarray) -> Spans:
    """Return the null predictions of the windows `rows` [E] as spans; -1: no window."""
    owner = np.flatnonzero(rows >= 0)
    rows = rows[owner]
    chars = np.zeros((len(owner), 2), np.int32)
    return Spans(owner, chars, nulls.starts[rows], nulls.ends[rows], nulls.scores[rows])


def _empty_spans(dtype: np.dtype) -> Spans:
    empty = np.zeros(0, dtype)
    return Spans(np.zeros(0, np.intp), np.zeros((0, 2), np.int32), empty, empty, empty)


# -------------------------------------------------------------------------------------- input


def _match_ids(ids: list, example_ids: list) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each distinct id [E], and the index [N] of each window's id among these.

    A repeated id stands for its last row.
    """
    # One dict of all ids, which is gone before the search begins: it takes 75 bytes an example.
    index_of: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    indices = np.fromiter((index_of[str(id_)] for id_ in ids), np.intp, len(ids))
    index_of.default_factory = None
    examples = np.empty(len(index_of), np.intp)
    examples[indices] = np.arange(len(ids))  # of equal indices, the last one counts
    unknown = dict.fromkeys(str(id_) for id_ in example_ids if str(id_) not in index_of)
    if unknown:
        raise ValueError(
            f"{len(unknown)} example ids of the {len(example_ids)} features are not among the "
            f"{len(index_of)} examples (first: {first_few(list(unknown))}): pass the examples "
            "that the features were computed from"
        )
    owner = np.fromiter((index_of[str(id_)] for id_ in example_ids), np.intp, len(example_ids))
    return examples, owner


def _example_chunks(bounds: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of chunks of examples with about CHUNK_WINDOWS windows, at least one."""
    first, count = 0, len(bounds) - 1
    while first < count:
        last = int(np.searchsorted(bounds, bounds[first] + CHUNK_WINDOWS, side="right")) - 1
        last = min(max(last, first + 1), first + CHUNK_WINDOWS, count)
        yield first, last
        first = last


def _is_max(allowed: Bool[np.ndarray, "w l"], tokens: np.ndarray) -> np.ndarray:
    """Return whether tokens [W, C] are allowed; tokens beyond the last column are not."""
    width = allowed.shape[1]
    if width == 0:
        return np.zeros(tokens.shape, bool)
    window = np.arange(len(tokens))[:, None]
    return (tokens < width) & allowed[window, np.minimum(tokens, width - 1)]


def __getattr__(name: str) -> Any:
    if name == "Settings":
        message = "qa_flax.answers.spans.Settings is deprecated; use SearchSettings instead"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return SearchSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
