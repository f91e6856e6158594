"""Conversion between numeric Arrow columns and NumPy arrays, without a copy if possible (host)."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int32, Int64

OUTSIDE = -1  # start and end offset of a token outside the context


def blocks(count: int, size: int) -> Iterator[slice]:
    """Split `count` rows into consecutive blocks of `size` rows; the last may be smaller."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def ranges(
    first: Int64[np.ndarray, " n"], count: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " m"]:
    """Concatenate the ranges first[i], ..., first[i] + count[i] - 1 for every i."""
    before = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - before, count)


def arrow_column(values: np.ndarray | Sequence[str]) -> pa.Array:
    """Wrap an array [n, ...] as fixed-size lists on the same memory; copy a list of strings."""
    if not isinstance(values, np.ndarray):
        return pa.array(values, pa.string())
    array = pa.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


_OFFSET_LISTS = pa.list_(pa.list_(pa.int32()))


def numpy_column(column: pa.ChunkedArray, name: str, *, clip: bool = False) -> np.ndarray:
    """Convert a column of numbers, lists or lists of pairs to int32 [n], [n, l] or [n, l, 2].

    Ragged rows are padded on the right with 0, or with (-1, -1) for pairs. A pair may be None or
    [], which also becomes (-1, -1). The array may be a read-only view of the column's memory.

    Args:
        column: the Arrow column.
        name: its name, for the error message.
        clip: whether numbers beyond int32 become the largest, or the smallest, int32.

    Raises:
        ValueError: a number is None, not an integer, or does not fit into int32.
    """
    if pa.types.is_list(column.type) and pa.types.is_null(column.type.value_type):
        column = column.cast(_OFFSET_LISTS)  # Arrow infers type null if no token has offsets
    try:
        arrays = [
            _numpy_chunk(chunk, clip) for chunk in column.chunks or [pa.array([], column.type)]
        ]
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from error
    if arrays[0].ndim > 1:
        width = max(array.shape[1] for array in arrays)
        arrays = [_pad_columns(array, width) for array in arrays]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _pad_columns(rows: np.ndarray, width: int) -> np.ndarray:
    if rows.shape[1] == width:
        return rows
    margins = [(0, 0), (0, width - rows.shape[1]), (0, 0)][: rows.ndim]
    return np.pad(rows, margins, constant_values=OUTSIDE if rows.ndim == 3 else 0)


def _has_fixed_size(array: pa.Array) -> bool:
    """Return whether all lists have the same length, so that a reshape gives the rows."""
    return pa.types.is_fixed_size_list(array.type) and not array.null_count


def _numpy_chunk(chunk: pa.Array, clip: bool = False) -> np.ndarray:
    if isinstance(chunk, pa.ExtensionArray):  # such as datasets.Array2D
        return _numpy_chunk(chunk.storage, clip)
    if not pa.types.is_nested(chunk.type):
        if chunk.null_count:
            raise ValueError(
                f"{chunk.null_count} of its numbers are None; no number may be missing."
            )
        return int32_array(chunk.to_numpy(zero_copy_only=False), clip=clip)
    flat = chunk.flatten()
    pairs = pa.types.is_nested(flat.type)
    values = _offsets(flat) if pairs else _numpy_chunk(flat, clip)
    if _has_fixed_size(chunk):
        return values.reshape(len(chunk), chunk.type.list_size, *values.shape[1:])
    count = list_lengths(chunk)
    width = int(count.max(initial=0))
    if (count == width).all():
        return values.reshape(len(chunk), width, *values.shape[1:])
    rows = np.full((len(chunk), width, *values.shape[1:]), OUTSIDE if pairs else 0, np.int32)
    rows.reshape(-1, *values.shape[1:])[ranges(np.arange(len(chunk)) * width, count)] = values
    return rows


_INT32 = np.iinfo(np.int32)


def int32_array(numbers: np.ndarray, *, clip: bool = False) -> np.ndarray:
    """Convert numbers to int32, without a copy if they are int32 already.

    Args:
        numbers: integers, or floats that are integers, of any shape.
        clip: whether numbers beyond int32 become the largest, or the smallest, int32.

    Raises:
        ValueError: a number is not an integer, or does not fit into int32.
    """
    if np.can_cast(numbers.dtype, np.int32) or not numbers.size:
        return numbers.astype(np.int32, copy=False)
    if clip and numbers.dtype == object and all(isinstance(n, int) for n in numbers.flat):
        numbers = np.clip(numbers, _INT32.min, _INT32.max)  # Python integers may exceed 64 bits
    elif numbers.dtype.kind not in "iuf":
        raise ValueError(f"numbers are required, got {numbers.flat[0]!r}.")
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float64, copy=False)  # float32 cannot hold the largest int32
        if (wrong := numbers[np.isnan(numbers) | (numbers != np.rint(numbers))]).size:
            raise ValueError(f"whole numbers are required, got {wrong[0]}.")
    least, largest = numbers.min(), numbers.max()
    if least < _INT32.min or largest > _INT32.max:
        if not clip:
            number = least if least < _INT32.min else largest
            raise ValueError(f"{number} does not fit into 32 bits.")
        # Python integers would overflow unsigned types, which have no negative numbers.
        numbers = np.minimum(np.maximum(numbers, max(_INT32.min, least)), _INT32.max)
    return numbers.astype(np.int32)


def _offsets(lists: pa.Array) -> Int32[np.ndarray, "t 2"]:
    """Convert the offsets of t tokens to [t, 2]; None and [] become (-1, -1)."""
    if _has_fixed_size(lists):
        return _numpy_chunk(lists.flatten()).reshape(len(lists), lists.type.list_size)
    size = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    valid = lists.is_valid().to_numpy(zero_copy_only=False) & (size == 2)
    pairs = np.full((len(lists), 2), OUTSIDE, np.int32)
    pairs[valid] = _numpy_chunk(lists.filter(pa.array(valid)).flatten()).reshape(-1, 2)
    return pairs


class OffsetLookup(NamedTuple):
    """Reads the offsets of selected tokens of w windows, without decoding all of [w, l, 2]."""

    at: Callable[[Int[np.ndarray, "w c"]], tuple[np.ndarray, np.ndarray]]
    """Return the start and end offsets [w, c] at token positions [w, c]; -1 outside the context."""

    width: int
    """The length of the longest row, in tokens."""


def offset_lookup(column: pa.ChunkedArray | np.ndarray, name: str) -> OffsetLookup:
    """Build the lookup for an array [w, l, 2], or for a column that `numpy_column` accepts.

    A column of variable-length lists, as `Dataset.map` writes it, is not decoded. The search for
    spans reads about 40 of 384 pairs in a row; decoding all of them takes several times as long
    as the search.

    Args:
        column: the offsets.
        name: the column's name, for error messages.

    Raises:
        ValueError: a number is None.
    """
    if isinstance(column, np.ndarray):
        return _dense_lookup(column)
    array = column.combine_chunks()
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    kind = array.type
    is_lists = pa.types.is_list(kind) and pa.types.is_list(kind.value_type)
    is_integer = is_lists and pa.types.is_integer(kind.value_type.value_type)
    if not is_integer or array.values.values.null_count:  # decoding says which numbers are None
        return _dense_lookup(numpy_column(column, name))
    return _list_lookup(array)


def _dense_lookup(pairs: np.ndarray) -> OffsetLookup:
    width = pairs.shape[1]

    def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if width == 0:
            return _all_outside(positions)
        row = np.arange(len(positions))[:, None]
        inside = positions < width
        selected = pairs[row, positions if inside.all() else np.minimum(positions, width - 1)]
        start, end = selected[..., 0], selected[..., 1]
        if not inside.all():
            start, end = np.where(inside, start, OUTSIDE), np.where(inside, end, OUTSIDE)
        return start, end

    return OffsetLookup(at, width)


def _list_lookup(rows: pa.ListArray) -> OffsetLookup:
    """Read through Arrow's list offsets, without copying or decoding the lists."""
    row_begins = rows.offsets.to_numpy()
    first = int(row_begins[0]) if len(row_begins) else 0
    pairs = rows.values.slice(first, int(row_begins[-1]) - first if len(row_begins) else 0)
    lengths = list_lengths(rows)
    pair_begins = pairs.offsets.to_numpy()
    numbers = pairs.values.to_numpy(zero_copy_only=False)
    is_valid = pairs.is_valid().to_numpy(zero_copy_only=False) if pairs.null_count else None

    def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(numbers):
            return _all_outside(positions)
        inside = positions < lengths[:, None]
        pair = np.where(inside, positions + (row_begins[:-1] - first)[:, None], 0)
        start = pair_begins[pair]
        is_pair = inside & (pair_begins[pair + 1] - start == 2)
        if is_valid is not None:
            is_pair &= is_valid[pair]
        start = np.where(is_pair, start, 0)
        end = np.where(is_pair, start + 1, 0)
        return (
            np.where(is_pair, numbers[start], OUTSIDE).astype(np.int32, copy=False),
            np.where(is_pair, numbers[end], OUTSIDE).astype(np.int32, copy=False),
        )

    return OffsetLookup(at, int(lengths.max(initial=0)))


def _all_outside(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.full(positions.shape, OUTSIDE, np.int32)
    return offsets, offsets


def list_lengths(lists: pa.Array) -> Int64[np.ndarray, " n"]:
    """Return the number of items of each list; 0 for None."""
    counts = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return counts.astype(np.int64)
