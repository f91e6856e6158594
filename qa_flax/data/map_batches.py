"""Stage 2 of 7: the batches that `Dataset.map` passes to `prepare_*` -> rows, and back (host).

`map(function, batched=True)` passes a dict of columns, and expects one: with the values of all the
windows of these examples. `with_transform` and `set_transform` do the same.
"""

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import datasets

from qa_flax import messages
from qa_flax.data.columns import OUTSIDE
from qa_flax.data.gold_spans import ALL_LABELS, ragged
from qa_flax.data.readers import ExampleError, Row
from qa_flax.data.windows import COLUMNS, Features

logger = messages.logger(__name__)

BATCH = "the batch"
"""What messages call the examples of a batch."""


def is_batch(examples: Any) -> bool:
    """Return whether `examples` are columns by name, and not splits by name."""
    splits = datasets.DatasetDict | datasets.IterableDatasetDict
    return isinstance(examples, Mapping) and not isinstance(examples, splits)


def is_map_batch(batch: Any) -> bool:
    """Return whether a batch is that of `Dataset.map`, which takes any number of rows for it.

    A transform has to return a row for each example.
    """
    return hasattr(batch, "formatter")


def batch_rows(batch: Mapping[str, Any], columns: tuple[str, ...]) -> list[Row]:
    """Return the rows of a batch, with those of `columns` that it has.

    Raises:
        ExampleError: the batch is a single row, or its columns differ in length.
    """
    # A batch of `map` decodes a column when it is read.
    used = {name: _plain(batch[name]) for name in columns if name in batch}
    if not used:
        raise ExampleError(
            f"{BATCH} has none of the columns {', '.join(columns)}; columns found: "
            f"{', '.join(map(str, batch)) or 'none'}."
        )
    if not all(isinstance(values, list) for values in used.values()):
        raise ExampleError(
            "got a single example, but a batch is required: call Dataset.map with batched=True, or "
            "pass a data set or a list of examples."
        )
    if len({len(values) for values in used.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in used.items())
        raise ExampleError(f"the columns of {BATCH} differ in length: {lengths}.")
    return [dict(zip(used, values, strict=True)) for values in zip(*used.values(), strict=True)]


def _plain(value: Any) -> Any:
    """Turn arrays and tensors, which a data set with a format gives, into Python objects."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def feature_columns(features: Features, *, padded: bool) -> dict[str, list[Any]]:
    """Return the columns of some windows as lists, in Hugging Face's form.

    Args:
        features: the windows.
        padded: whether to keep the padding, which is on the right if not. Without padding, rows of
            different batches need no common length.
    """
    lengths = features.lengths.tolist()
    columns: dict[str, list[Any]] = {}
    for field, name in COLUMNS.items():
        values = getattr(features, field)
        if values is None or field in ALL_LABELS:
            continue
        rows = values if isinstance(values, list) else values.tolist()
        if field == "offsets":
            rows = [[_pair_or_none(*pair) for pair in row] for row in rows]
        is_by_token = not isinstance(values, list) and values.ndim > 1
        if is_by_token and not padded:
            rows = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        columns[name] = rows
    starts, ends = features.start_positions_all, features.end_positions_all
    if starts is not None and ends is not None:
        columns |= dict(zip(ALL_LABELS, ragged(starts, ends)[1], strict=True))
    return columns


def _pair_or_none(start: int, end: int) -> tuple[int, int] | None:
    return None if start == OUTSIDE else (start, end)


Warn = Callable[..., None]
"""Logs a warning: a message and its arguments, as `logging` takes them."""

_LATER = " (Later batches are not reported; load_examples reads and checks a whole data set.)"

# The messages that were logged, by what the batches have in common.
_logged: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def warn_once_per_map(batch: Mapping[str, Any], tokenizer: Any) -> Warn:
    """Return a function that logs each message for the first batch of a `map` that has it.

    Batches of one `map` have the same formatter. Other batches, such as those of a transform, are
    recognized by their tokenizer.
    """
    logged = _logged.setdefault(getattr(batch, "formatter", tokenizer), set())

    def warn(message: str, *values: Any) -> None:
        if message not in logged:
            logged.add(message)
            logger.warning(message + _LATER, *values)

    return warn
