"""Stage 6 of 7: one interface to a user's examples and windows for `answers/` (host, Arrow).

Users pass `Windows`, a `datasets.Dataset` or dicts; only `span_source` and `example_source`
distinguish these types. The columns of a data set stay in Arrow memory and are decoded for the
requested rows only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from qa_flax.data.columns import OffsetLookup, offset_lookup
from qa_flax.data.windows import RowIndex, Windows

ExampleRows = datasets.Dataset | Sequence[Mapping[str, Any]]
FeatureRows = Windows | datasets.Dataset | Sequence[Mapping[str, Any]]


def span_source(features: FeatureRows) -> "SpanSource":
    """Wrap a user's windows for the search for spans."""
    if isinstance(features, Windows):
        return features
    return WindowTable(_table(features, "features"))


def example_source(examples: ExampleRows) -> "ExampleTable":
    """Wrap a user's examples."""
    return ExampleTable(_table(examples, "examples"))


class ExampleTable:
    """The ids and contexts of a user's examples."""

    def __init__(self, table: "_Arrow | _Dicts"):
        self._table = table

    def ids(self) -> list:
        """Return the id of every example, of the type in the user's data."""
        return self._table.values("id", slice(None))

    def contexts(self, rows: np.ndarray) -> list[str]:
        """Return the contexts of the examples with these indices."""
        return self._table.values("context", as_slice(rows))


class WindowTable:
    """N windows of a user, with the columns that the search for spans reads.

    These are `example_id`, `offset_mapping` and optionally `cls_index` and `token_is_max_context`.
    """

    def __init__(self, table: "_Arrow | _Dicts"):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @property
    def example_ids(self) -> list:
        """The id of each window's example [N]."""
        return self._table.values("example_id", slice(None))

    @property
    def cls_index(self) -> Int[np.ndarray, " n"] | None:
        """The position of each window's CLS token [N]; None if it is always the first token."""
        if not self._table.has("cls_index"):
            return None
        return np.array(self._table.values("cls_index", slice(None)))

    def offset_lookup(self, rows: RowIndex) -> OffsetLookup:
        """Return a lookup of the token offsets of some windows, -1 outside the context."""
        return self._table.offset_lookup("offset_mapping", rows)

    def max_context(self, rows: RowIndex, width: int) -> Bool[np.ndarray, "w {width}"] | None:
        """Return which of the first `width` tokens an answer may start at; None means all.

        As in Hugging Face, these are the tokens that `token_is_max_context` marks.
        """
        if not self._table.has("token_is_max_context"):
            return None
        marks = self._table.values("token_is_max_context", rows)
        allowed = np.zeros((len(marks), width), bool)
        for row, row_marks in enumerate(marks):
            if row_marks is None:  # no marks: every token is allowed
                allowed[row] = True
                continue
            tokens = [int(token) for token, is_max in row_marks.items() if is_max]
            allowed[row, [token for token in tokens if 0 <= token < width]] = True
        return allowed


SpanSource = Windows | WindowTable
"""The windows that the search for spans reads. Both types have the methods of `WindowTable`."""


def as_slice(rows: np.ndarray) -> RowIndex:
    """Convert consecutive row numbers to a slice, which selects a view instead of a copy."""
    if len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


# --- Tables --------------------------------------------------------------------------------------


class _Arrow:
    """A data set with any `set_format`; columns stay in Arrow memory until they are used."""

    def __init__(self, dataset: datasets.Dataset, kind: str):
        self._dataset, self._kind = dataset, kind

    def __len__(self) -> int:
        return len(self._dataset)

    def has(self, name: str) -> bool:
        """Return whether the column exists."""
        return name in self._dataset.column_names

    def values(self, name: str, rows: RowIndex) -> list:
        """Return some values of a column as Python objects.

        Raises:
            ValueError: the column does not exist.
        """
        return self._column(name, rows).to_pylist()

    def offset_lookup(self, name: str, rows: RowIndex) -> OffsetLookup:
        """Return a lookup of some rows of a column of lists of pairs."""
        return offset_lookup(self._column(name, rows), name)

    def _column(self, name: str, rows: RowIndex) -> pa.ChunkedArray:
        if not self.has(name):
            raise ValueError(_missing(name, self._dataset.column_names, self._kind))
        # Without select_columns, indexing would read all columns.
        dataset = self._dataset.select_columns(name).with_format("arrow")
        table: Any = dataset[rows]
        return table.column(name)


class _Dicts:
    """A sequence of dicts, one for each row."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], kind: str):
        self._rows, self._kind = rows, kind

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, name: str) -> bool:
        return bool(len(self._rows)) and name in self._rows[0]

    def values(self, name: str, rows: RowIndex) -> list:
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        try:
            return [self._rows[row][name] for row in numbers]
        except KeyError:
            common = sorted(set.intersection(*(set(row) for row in self._rows)))
            raise ValueError(_missing(name, common, self._kind)) from None

    def offset_lookup(self, name: str, rows: RowIndex) -> OffsetLookup:
        lists = [
            pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
            for pairs in self.values(name, rows)
        ]
        array = pa.array(lists, pa.list_(pa.list_(pa.int32())))
        return offset_lookup(pa.chunked_array([array]), name)


_Table = _Arrow | _Dicts


def _table(rows: datasets.Dataset | Sequence[Mapping[str, Any]], kind: str) -> _Table:
    """Wrap rows; `kind` is "examples" or "features", for error messages."""
    return _Arrow(rows, kind) if isinstance(rows, datasets.Dataset) else _Dicts(rows, kind)


def _missing(name: str, columns: list[str], kind: str) -> str:
    return f"{kind} have no column {name!r}; the columns are: {', '.join(columns) or 'none'}"
