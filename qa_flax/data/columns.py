"""Arrow's columns of numbers <-> NumPy arrays, without a copy where that is possible (host)."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int32, Int64

OUTSIDE = -1  # both offsets of a token that is not of the context


def blocks(count: int, size: int) -> Iterator[slice]:
    """`count` rows in consecutive blocks of `size`, the last perhaps smaller."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def ranges(
    first: Int64[np.ndarray, " n"], count: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " m"]:
    """first[i], first[i] + 1, ... (count[i] of them), for every i, end to end."""
    before = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - before, count)


def arrow_column(values: np.ndarray | Sequence[str]) -> pa.Array:
    """An array [n, ...] as fixed-size lists over the same memory; ids as strings."""
    if not isinstance(values, np.ndarray):
        return pa.array(values, pa.string())
    array = pa.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


_OFFSET_LISTS = pa.list_(pa.list_(pa.int32()))


def numpy_column(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Numbers, lists of them or lists of pairs as int32 [n], [n, l] or [n, l, 2].

    Rows may be ragged: they are padded on the right with 0, or with pairs (-1, -1). A pair may be
    None or []. Arrays may be read-only views of the column's memory.

    Raises:
        ValueError: a number is None.
    """
    if pa.types.is_list(column.type) and pa.types.is_null(column.type.value_type):
        column = column.cast(_OFFSET_LISTS)  # no token of the column is of a context
    try:
        parts = [_numpy_chunk(chunk) for chunk in column.chunks or [pa.array([], column.type)]]
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from error
    if parts[0].ndim > 1:
        width = max(part.shape[1] for part in parts)
        parts = [_widened(part, width) for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _widened(rows: np.ndarray, width: int) -> np.ndarray:
    if rows.shape[1] == width:
        return rows
    margins = [(0, 0), (0, width - rows.shape[1]), (0, 0)][: rows.ndim]
    return np.pad(rows, margins, constant_values=OUTSIDE if rows.ndim == 3 else 0)


def _is_fixed(array: pa.Array) -> bool:
    """Whether all lists are of one length, so that a reshape makes the rows."""
    return pa.types.is_fixed_size_list(array.type) and not array.null_count


def _numpy_chunk(chunk: pa.Array) -> np.ndarray:
    if isinstance(chunk, pa.ExtensionArray):  # such as Array2D of datasets
        return _numpy_chunk(chunk.storage)
    if not pa.types.is_nested(chunk.type):
        if chunk.null_count:
            raise ValueError(f"{chunk.null_count} of its numbers are None; every one is needed.")
        return chunk.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    flat = chunk.flatten()
    pairs = pa.types.is_nested(flat.type)
    values = _offsets(flat) if pairs else _numpy_chunk(flat)
    if _is_fixed(chunk):
        return values.reshape(len(chunk), chunk.type.list_size, *values.shape[1:])
    count = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    width = int(count.max(initial=0))
    if (count == width).all():
        return values.reshape(len(chunk), width, *values.shape[1:])
    rows = np.full((len(chunk), width, *values.shape[1:]), OUTSIDE if pairs else 0, np.int32)
    rows.reshape(-1, *values.shape[1:])[ranges(np.arange(len(chunk)) * width, count)] = values
    return rows


def _offsets(lists: pa.Array) -> Int32[np.ndarray, "t 2"]:
    """Offsets [t, 2] of tokens, (-1, -1) where there is none (None or [])."""
    if _is_fixed(lists):
        return _numpy_chunk(lists.flatten()).reshape(len(lists), lists.type.list_size)
    size = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    valid = lists.is_valid().to_numpy(zero_copy_only=False) & (size == 2)
    pairs = np.full((len(lists), 2), OUTSIDE, np.int32)
    pairs[valid] = _numpy_chunk(lists.filter(pa.array(valid)).flatten()).reshape(-1, 2)
    return pairs


class OffsetLookup(NamedTuple):
    """Looks up the offsets of tokens by window and position, without decoding all of [w, l, 2]."""

    at: Callable[[Int[np.ndarray, "w c"]], tuple[np.ndarray, np.ndarray]]
    """Both numbers of the pairs at some positions [w, c]; -1 where there is none."""

    width: int
    """The longest row."""


def offset_lookup(column: pa.ChunkedArray | np.ndarray, name: str) -> OffsetLookup:
    """The pairs of an array [w, l, 2], or of a column as `numpy_column` takes it.

    To decode what `Dataset.map` stores takes several times as long as to use it: 40 of the 384
    pairs of a row are looked at.
    """
    if isinstance(column, np.ndarray):
        return _dense_lookup(column)
    array = column.combine_chunks()
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    kind = array.type
    is_lists = pa.types.is_list(kind) and pa.types.is_list(kind.value_type)
    if not (is_lists and pa.types.is_integer(kind.value_type.value_type)):
        return _dense_lookup(numpy_column(column, name))
    return _list_lookup(array)


def _dense_lookup(pairs: np.ndarray) -> OffsetLookup:
    width = pairs.shape[1]

    def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if width == 0:
            return _nothing(positions)
        row = np.arange(len(positions))[:, None]
        inside = positions < width
        both = pairs[row, positions if inside.all() else np.minimum(positions, width - 1)]
        first, last = both[..., 0], both[..., 1]
        if not inside.all():
            first, last = np.where(inside, first, OUTSIDE), np.where(inside, last, OUTSIDE)
        return first, last

    return OffsetLookup(at, width)


def _list_lookup(rows: pa.ListArray) -> OffsetLookup:
    """Of rows of lists: by Arrow's offsets, without copying or decoding the lists."""
    begins = rows.offsets.to_numpy()
    first = int(begins[0]) if len(begins) else 0
    lists = rows.values.slice(first, int(begins[-1]) - first if len(begins) else 0)
    lengths = _lengths(rows)
    ends = lists.offsets.to_numpy()
    numbers = lists.values.to_numpy(zero_copy_only=False)
    is_valid = lists.is_valid().to_numpy(zero_copy_only=False) if lists.null_count else None

    def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(numbers):
            return _nothing(positions)
        inside = positions < lengths[:, None]
        place = np.where(inside, positions + (begins[:-1] - first)[:, None], 0)
        start = ends[place]
        is_pair = inside & (ends[place + 1] - start == 2)
        if is_valid is not None:
            is_pair &= is_valid[place]
        start = np.where(is_pair, start, 0)
        second = np.where(is_pair, start + 1, 0)
        return (
            np.where(is_pair, numbers[start], OUTSIDE).astype(np.int32, copy=False),
            np.where(is_pair, numbers[second], OUTSIDE).astype(np.int32, copy=False),
        )

    return OffsetLookup(at, int(lengths.max(initial=0)))


def _nothing(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nothing = np.full(positions.shape, OUTSIDE, np.int32)
    return nothing, nothing


def _lengths(lists: pa.Array) -> Int64[np.ndarray, " n"]:
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)
