"""Stage 6 of 7: start and end logits -> the best spans of each example (host, NumPy).

The spans are those of the last `postprocess_qa_predictions` in Hugging Face's `utils_qa.py`, but
the work is done on whole arrays, chunk by chunk: extra memory does not grow with the windows.

    logits [W, L] -> TopTokens [W, C] -> Spans [M] -> best Spans of each example

The n best starts and n best ends of a window are chosen over the whole row, question and padding
included, and filtered afterwards, as Hugging Face does: filtering first gives other n-best lists.
Equal logits go from left to right, as with `jax.lax.top_k`. The first arrow may also be taken on
the device (`step.make_candidate_step`): then `Candidates` come instead of logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from qa_flax.columns import numpy_column
from qa_flax.features import Features

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
    length: int  # L, of the logits

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


class Settings(NamedTuple):
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


def best_spans(
    ids: list, features: Any, predictions: Logits | Candidates, settings: Settings
) -> Iterator[Chunk]:
    """Yield the best spans of all examples, best first, a chunk of examples at a time.

    Args:
        ids: the id of each example; a repeated id stands for its last row.
        features: N windows, as `postprocess_qa_predictions` takes them.
        predictions: start and end logits [N, L], or what `candidates` made of them.
        settings: which spans to keep; in v2 the null is among the spans, with characters (0, 0).
    """
    row_of = {str(id_): row for row, id_ in enumerate(ids)}
    examples = np.fromiter(row_of.values(), np.intp, len(row_of))
    owner = _owners(column(features, "example_id", None, "features"), row_of)
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(examples) + 1))
    null = _null_logits(features, predictions, settings)
    nulls, null_scores = _nulls(null.scores, order, bounds, settings.hf_compatible)
    for first, last in _example_chunks(bounds):
        count, parts = last - first, [_no_spans(null.scores.dtype)]
        for rows in _window_chunks(order[bounds[first] : bounds[last]], settings):
            tokens = _tokens(predictions, rows, settings)
            offsets, max_context = _offsets(features, rows)
            part = spans_of_tokens(
                tokens, offsets, max_context, owner[rows] - first, settings.max_answer_length
            )
            if len(rows) < bounds[last] - bounds[first]:  # one part of many: keep it small
                part = _best_of_examples(part, count, settings.n_best_size)
            parts.append(part)
        chunk_nulls = nulls[first:last] if settings.version_2_with_negative else nulls[:0]
        null_spans = _null_spans(null, chunk_nulls)
        spans = _best_of_examples(Spans.concatenate(parts), count, settings.n_best_size, null_spans)
        chunk_bounds = _bounds(spans.owner, count)
        yield Chunk(examples[first:last], chunk_bounds, spans, null_scores[first:last])


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
    rank = _descending(logits)
    if count >= width:
        return np.argsort(rank, axis=1, kind="stable")
    # NumPy finds the bound with vector instructions; which of the equals are in is then a count.
    bound = np.partition(rank, count - 1, axis=1)[:, count - 1 : count]
    inside = rank <= bound
    surplus = inside.sum(axis=1) - count
    for row in np.flatnonzero(surplus):
        inside[row, np.flatnonzero(rank[row] == bound[row])[-surplus[row] :]] = False
    columns = (np.flatnonzero(inside) % width).reshape(-1, count)
    within = np.argsort(np.take_along_axis(rank, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, within, axis=1)


def _descending(values: np.ndarray) -> np.ndarray:
    """Integers that sort as `values` from the largest: NaN first, -0.0 equal to 0.0."""
    floats = values.astype(np.float32) if values.dtype == np.float16 else values
    bits = (floats + 0.0).view(np.int64 if floats.dtype == np.float64 else np.int32)
    largest = np.iinfo(bits.dtype).max
    # Two's complement orders the positive floats; the negative ones run backwards.
    ascending = np.where(bits < 0, bits ^ largest, bits)
    return ~np.where(np.isnan(floats), largest, ascending)


def _tokens(predictions: Logits | Candidates, rows: np.ndarray, settings: Settings) -> TopTokens:
    """The best tokens of some windows."""
    if isinstance(predictions, Candidates):
        given, count = predictions.tokens, settings.n_best_size
        return TopTokens(*(_known(part[rows, :count], settings) for part in given))
    starts, ends = (_known(logits[rows], settings) for logits in predictions)
    return top_tokens(starts, ends, settings.n_best_size)


def _known(values: np.ndarray, settings: Settings) -> np.ndarray:
    """The logits, where it is not to be as in Hugging Face without NaN and infinities."""
    if settings.hf_compatible or values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    return np.nan_to_num(values, nan=PADDING_LOGIT, posinf=-PADDING_LOGIT, neginf=PADDING_LOGIT)


def spans_of_tokens(
    tokens: TopTokens,
    offsets: Int[np.ndarray, "w l 2"],
    max_context: Bool[np.ndarray, "w l"] | None,
    owner: Int[np.ndarray, " w"],
    max_answer_length: int,
) -> Spans:
    """Pair the best starts with the best ends, and keep the pairs that are spans of the context.

    `owner` [W] says which example a window belongs to; `offsets` are -1 outside the context, and so
    is all behind their last column.
    """
    first, last = _at(offsets[..., 0], tokens.starts, -1), _at(offsets[..., 1], tokens.ends, -1)
    start_is_open, end_is_open = first >= 0, last >= 0
    if max_context is not None:
        start_is_open &= _at(max_context, tokens.starts, False)
    # A closed start is put far right and a closed end far left: end - start as an unsigned number
    # is then beyond any length, and so it is where the end comes first. One comparison does all.
    far = np.int32(1 << 30)
    start = np.where(start_is_open, tokens.starts, far).astype(np.int32)
    end = np.where(end_is_open, tokens.ends, -far).astype(np.int32)
    distance = (end[:, None, :] - start[:, :, None]).view(np.uint32)
    pairs = np.flatnonzero(distance < np.uint32(min(max_answer_length, 1 << 29)))
    start_at, j = np.divmod(pairs, end.shape[1])
    w = start_at // start.shape[1]
    end_at = w * end.shape[1] + j
    start_logits = tokens.start_logits.ravel()[start_at]
    end_logits = tokens.end_logits.ravel()[end_at]
    chars = np.stack([first.ravel()[start_at], last.ravel()[end_at]], axis=1)
    return Spans(owner[w], chars, start_logits, end_logits, start_logits + end_logits)


def _at(values: np.ndarray, tokens: np.ndarray, outside: Any) -> np.ndarray:
    """`values` [W, l] at `tokens` [W, C]; behind the last column it is `outside`."""
    width = values.shape[1]
    if width == 0:
        return np.full(tokens.shape, outside, values.dtype)
    window = np.arange(len(tokens))[:, None]
    if tokens.max(initial=0) < width:
        return values[window, tokens]
    return np.where(tokens < width, values[window, np.minimum(tokens, width - 1)], outside)


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


def _null_logits(features: Any, predictions: Logits | Candidates, settings: Settings) -> _Null:
    """The logits of each window's null: at its CLS token, or for Hugging Face at the first."""
    if isinstance(predictions, Candidates):
        starts, ends = predictions.null_starts, predictions.null_ends
    else:
        at = null_positions(features, settings.hf_compatible)
        window = np.arange(len(predictions[0]))
        starts, ends = (logits[window, at] for logits in predictions)
    starts, ends = _known(starts, settings), _known(ends, settings)
    return _Null(starts, ends, starts + ends)


def null_positions(features: Any, hf_compatible: bool) -> Any:
    """The token [N] whose logits are the null's: the column `cls_index`, or without it the first.

    Hugging Face always takes the first, which with padding on the left is padding.
    """
    if hf_compatible:
        return 0
    if isinstance(features, Features):
        return 0 if features.cls_index is None else features.cls_index
    if isinstance(features, datasets.Dataset):
        has_column = "cls_index" in features.column_names
    else:
        has_column = bool(len(features)) and "cls_index" in features[0]
    return np.array(column(features, "cls_index", None, "features")) if has_column else 0


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
    # A NaN is never smaller than another, and in an example's first window never replaced.
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
            f"{len(row_of)} examples (first: {', '.join(list(unknown)[:5])}): pass the examples "
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


def _window_chunks(rows: np.ndarray, settings: Settings) -> Iterator[np.ndarray]:
    """Split windows so that one search holds about CHUNK_PAIRS pairs of tokens."""
    pairs = settings.n_best_size**2
    size = min(CHUNK_WINDOWS, max(1, CHUNK_PAIRS // max(pairs, 1)))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def column(table: Any, name: str, rows: np.ndarray | None, what: str) -> list:
    """Values of a column as Python objects, at some rows or at all."""
    if isinstance(table, Features):
        return table.example_ids
    if isinstance(table, datasets.Dataset):
        return _arrow_column(table, name, rows, what).to_pylist()
    chosen = table if rows is None else (table[row] for row in rows.tolist())
    try:
        return [row[name] for row in chosen]
    except KeyError:
        found = sorted(set.intersection(*(set(row) for row in table)))
        raise ValueError(_missing(name, found, what)) from None


def _arrow_column(
    table: datasets.Dataset, name: str, rows: np.ndarray | None, what: str
) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(_missing(name, table.column_names, what))
    if rows is None:
        key: Any = slice(None)
    elif len(rows) and (np.diff(rows) == 1).all():
        key = slice(int(rows[0]), int(rows[-1]) + 1)  # a slice of Arrow memory is no copy
    else:
        key = rows
    return table.select_columns(name).with_format("arrow")[key].column(name)


def _missing(name: str, found: list[str], what: str) -> str:
    return f"{what} have no column {name!r}; the columns are: {', '.join(found) or 'none'}"


def _offsets(features: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Offsets [W, l, 2] of some windows, -1 outside the context, and the allowed starts."""
    if isinstance(features, Features):
        if features.offsets is None:
            raise ValueError(
                "features have no offsets, which say where in the context a token is: make them "
                "with prepare_validation_features"
            )
        return features.offsets[rows], None
    if isinstance(features, datasets.Dataset):
        array = _arrow_column(features, "offset_mapping", rows, "features")
        has_marks = "token_is_max_context" in features.column_names
    else:
        lists = [
            pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
            for pairs in column(features, "offset_mapping", rows, "features")
        ]
        array = pa.chunked_array([pa.array(lists, pa.list_(pa.list_(pa.int32())))])
        has_marks = "token_is_max_context" in features[0]
    offsets = numpy_column(array, "offset_mapping")
    if not has_marks:
        return offsets, None
    marks = column(features, "token_is_max_context", rows, "features")
    return offsets, _max_context(marks, offsets.shape[1])


def _max_context(marks: list[Mapping[str, bool] | None], length: int) -> np.ndarray:
    """Which tokens [W, L] have their maximal context here; a row without marks allows all."""
    result = np.zeros((len(marks), length), bool)
    for row, mark in enumerate(marks):
        if mark is None:
            result[row] = True
            continue
        tokens = [int(token) for token, is_max in mark.items() if is_max]
        result[row, [token for token in tokens if 0 <= token < length]] = True
    return result
