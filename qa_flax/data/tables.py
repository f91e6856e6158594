"""Stage 6 of 7: a user's examples and windows -> the one form that answers read (host, Arrow).

Rows come as `Windows`, as a `datasets.Dataset` or as dicts. `span_source` and `example_source` are
the only places that ask which; a data set's columns stay in Arrow, and some rows at a time are
read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from qa_flax.data.columns import OffsetLookup, offset_lookup
from qa_flax.data.windows import Some, Windows

ExampleRows = datasets.Dataset | Sequence[Mapping[str, Any]]
FeatureRows = Windows | datasets.Dataset | Sequence[Mapping[str, Any]]


def span_source(features: FeatureRows) -> "SpanSource":
    """The windows that a user gave, to be searched."""
    if isinstance(features, Windows):
        return features
    return WindowTable(_table(features, "features"))


def example_source(examples: ExampleRows) -> "ExampleTable":
    """The examples that a user gave."""
    return ExampleTable(_table(examples, "examples"))


class ExampleTable:
    """Ids and contexts of examples."""

    def __init__(self, table: "_Arrow | _Dicts"):
        self._table = table

    def ids(self) -> list:
        """The id of each example, as the user wrote it."""
        return self._table.values("id", slice(None))

    def contexts(self, rows: np.ndarray) -> list[str]:
        """The contexts of some examples."""
        return self._table.values("context", as_slice(rows))


class WindowTable:
    """N windows, as far as the search for spans needs them, from rows with `example_id`,
    `offset_mapping` and perhaps `cls_index` and `token_is_max_context`.
    """

    def __init__(self, table: "_Arrow | _Dicts"):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @property
    def example_ids(self) -> list:
        """The example that each window was cut from [N]."""
        return self._table.values("example_id", slice(None))

    @property
    def cls_index(self) -> Int[np.ndarray, " n"] | None:
        """Where each window's CLS token is; None: the first token everywhere."""
        if not self._table.has("cls_index"):
            return None
        return np.array(self._table.values("cls_index", slice(None)))

    def offset_lookup(self, rows: Some) -> OffsetLookup:
        """Offsets of some windows' tokens, -1 outside the context."""
        return self._table.offset_lookup("offset_mapping", rows)

    def max_context(self, rows: Some, width: int) -> Bool[np.ndarray, "w {width}"] | None:
        """Which of the first `width` tokens of some windows an answer may start at; None: all."""
        if not self._table.has("token_is_max_context"):
            return None
        marks = self._table.values("token_is_max_context", rows)
        allowed = np.zeros((len(marks), width), bool)
        for row, mark in enumerate(marks):
            if mark is None:  # a row without marks allows all
                allowed[row] = True
                continue
            tokens = [int(token) for token, is_max in mark.items() if is_max]
            allowed[row, [token for token in tokens if 0 <= token < width]] = True
        return allowed


SpanSource = Windows | WindowTable
"""What the search for spans reads; both have the same methods."""


def as_slice(rows: np.ndarray) -> Some:
    """Consecutive rows as a slice, which makes a view in place of a copy."""
    if len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


# --- Tables --------------------------------------------------------------------------------------


class _Arrow:
    """A data set, whatever its format: columns in Arrow's memory, decoded only where used."""

    def __init__(self, dataset: datasets.Dataset, what: str):
        self._dataset, self._what = dataset, what

    def __len__(self) -> int:
        return len(self._dataset)

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self._dataset.column_names

    def values(self, name: str, rows: Some) -> list:
        """Some values of a column as Python objects; ValueError if there is none."""
        return self._column(name, rows).to_pylist()

    def offset_lookup(self, name: str, rows: Some) -> OffsetLookup:
        """Some values of a column of lists of pairs."""
        return offset_lookup(self._column(name, rows), name)

    def _column(self, name: str, rows: Some) -> pa.ChunkedArray:
        if not self.has(name):
            raise ValueError(_missing(name, self._dataset.column_names, self._what))
        # Without this, a row would be decoded with all its columns.
        one = self._dataset.select_columns(name).with_format("arrow")
        table: Any = one[rows]
        return table.column(name)


class _Dicts:
    """A sequence of dicts, one a row."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], what: str):
        self._rows, self._what = rows, what

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, name: str) -> bool:
        return bool(len(self._rows)) and name in self._rows[0]

    def values(self, name: str, rows: Some) -> list:
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        try:
            return [self._rows[row][name] for row in numbers]
        except KeyError:
            found = sorted(set.intersection(*(set(row) for row in self._rows)))
            raise ValueError(_missing(name, found, self._what)) from None

    def offset_lookup(self, name: str, rows: Some) -> OffsetLookup:
        lists = [
            pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
            for pairs in self.values(name, rows)
        ]
        array = pa.array(lists, pa.list_(pa.list_(pa.int32())))
        return offset_lookup(pa.chunked_array([array]), name)


_Table = _Arrow | _Dicts


def _table(rows: datasets.Dataset | Sequence[Mapping[str, Any]], what: str) -> _Table:
    """`what` the rows are, for a message."""
    return _Arrow(rows, what) if isinstance(rows, datasets.Dataset) else _Dicts(rows, what)


def _missing(name: str, found: list[str], what: str) -> str:
    return f"{what} have no column {name!r}; the columns are: {', '.join(found) or 'none'}"
