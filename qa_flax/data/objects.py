"""Stage 1 of 7: tables and rows in memory -> lists and dicts of Python's values (host, text)."""

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import datasets

from qa_flax.data.cells import plain
from qa_flax.data.column_names import ColumnNames
from qa_flax.data.rejected import ExampleError
from qa_flax.data.text_files import FORMATS

_SOURCES = (
    f"files ({FORMATS}), a hub id, a datasets.Dataset, a pandas DataFrame, a dict of lists, or "
    "dicts in a list or generator"
)


def object_name(source: Any) -> str:
    """Return what messages call a source."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, list | tuple):
        return "the list of examples"
    if isinstance(source, datasets.DatasetDict):
        return "the DatasetDict"
    if isinstance(source, datasets.Dataset):
        return "the dataset"
    return "the dict of columns" if isinstance(source, Mapping) else f"the {type(source).__name__}"


def plain_object(source: Any, name: str) -> Any:
    """Return an object in memory as lists and dicts of Python's values.

    Args:
        source: rows in any iterable, a table of pandas or polars, or a dict of columns.
        name: what messages call it.

    Raises:
        ExampleError: it is none of these.
    """
    module = type(source).__module__.partition(".")[0]
    if type(source).__name__ == "DataFrame" and module == "pandas":
        return _frame_columns(source)
    if hasattr(source, "to_dicts"):  # polars
        return [plain(row) for row in source.to_dicts()]
    unread = (str, bytes, bytearray, io.IOBase, datasets.IterableDataset)
    splits = (datasets.DatasetDict, datasets.IterableDatasetDict)
    if isinstance(source, Mapping) and not isinstance(source, splits):
        return plain({key: plain(_listed(value)) for key, value in source.items()})
    is_rows = isinstance(source, Iterable) and not isinstance(source, unread + splits)
    if not is_rows or module in ("pandas", "numpy", "torch"):
        hint = f"Supported sources: {_SOURCES}."
        if isinstance(source, io.IOBase):
            hint = "Pass the path of the file instead of an open file."
        elif callable(source) and not isinstance(source, type):
            hint = "Call it, and pass what it returns or yields."
        raise ExampleError(f"cannot read examples from {type(source).__name__}. {hint}")
    rows = list(source)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ExampleError(
                f"{name}: item {number} is a {type(row).__name__}, but every example is a dict."
            )
    return [plain(row) for row in rows]


def _listed(values: Any) -> Any:
    """Return a column, such as a Series, as a list."""
    return values.tolist() if hasattr(values, "tolist") else values


def _frame_columns(frame: Any) -> dict[str, Any]:
    """Return the columns of a pandas DataFrame, with those of its index that have a name."""
    named = [level for level in frame.index.names if level is not None]
    if named and not set(named) & set(frame.columns):
        frame = frame.reset_index()
    names = [
        ".".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else name
        for name in frame.columns
    ]
    ColumnNames("the DataFrame").mapping(names)  # refuses a column that occurs twice
    return {str(name): plain(frame.iloc[:, n].tolist()) for n, name in enumerate(names)}
