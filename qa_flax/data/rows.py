"""Rows of any data set that scripts pass to the trainer, and the arrays of a batch (host, NumPy).

A row is a dict of values: token lists, label numbers. A batch is a dict of arrays, from a
`data_collator` or from `stack_rows`.
"""

import dataclasses
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np

from qa_flax.data.gold_spans import ALL_LABELS, check_both, stacked_spans, with_room
from qa_flax.data.windows import Features, Windows

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs of the model, `[n, l]` in a batch of n rows."""
LABELS = ("start_positions", "end_positions")
"""Labels, `[n]` in a batch of n rows."""
# Columns of a row that a collator gets with `remove_unused_columns`: the parameters of
# transformers' question answering models, and the names that its Trainer always keeps.
USED_COLUMNS = frozenset(
    {
        *INPUTS,
        *LABELS,
        *ALL_LABELS,
        "position_ids",
        "inputs_embeds",
        "head_mask",
        "label",
        "label_ids",
    }
)
OUTSIDE_WINDOW = np.iinfo(np.int32).max
"""The position of a label that is beyond its row, whatever the row's padding."""


class DataError(ValueError):
    """A data set, a data loader or a collator gives what the trainer cannot use."""


# ---- kinds of data sets --------------------------------------------------------------------------


def is_stream(dataset: Any) -> bool:
    """Whether a data set can only be iterated, such as `datasets.IterableDataset`."""
    if isinstance(dataset, Windows):
        return False
    if any(cls.__name__ == "IterableDataset" for cls in type(dataset).__mro__):
        return True
    return not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))


def is_constant(dataset: Any) -> bool:
    """Whether reading a row of the data set always gives the same values.

    It holds for windows, lists and data sets without a transform. A PyTorch `Dataset` may draw
    random numbers whenever a row is read.
    """
    if isinstance(dataset, datasets.Dataset):
        return dataset.format["type"] != "custom"
    return isinstance(dataset, Windows | list | tuple)


def check_dataset(dataset: Any, argument: str) -> None:
    """Refuse what has no rows.

    Raises:
        DataError: names the argument and says what it may be.
    """
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset)) or "no keys"
        if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
            raise DataError(
                f"{argument} is a {type(dataset).__name__} with the splits {names}; pass one of "
                f'them, such as data["{next(iter(dataset), "train")}"]'
            )
        raise DataError(
            f"{argument} is a {type(dataset).__name__} with the keys {names}; pass rows, such as "
            "datasets.Dataset.from_dict(...)"
        )
    can_iterate = hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")
    can_iterate |= isinstance(dataset, Windows)
    if isinstance(dataset, str) or not can_iterate:
        raise DataError(
            f"{argument} is a {type(dataset).__name__}; it must be a datasets.Dataset or "
            "IterableDataset, a PyTorch Dataset, or a list of dicts"
        )
    if isinstance(dataset, list | tuple) and dataset and not isinstance(dataset[0], Mapping):
        raise DataError(
            f"{argument} is a {type(dataset).__name__} of {type(dataset[0]).__name__}s; its rows "
            "must be dicts with input_ids, attention_mask, start_positions and end_positions"
        )


def fetch(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Read some rows of a data set, all of them in one call if it supports that, as PyTorch does.

    A transform of `datasets` is called once for all of them.
    """
    if isinstance(dataset, Windows):
        return _window_rows(dataset, np.asarray(indices))
    if hasattr(dataset, "__getitems__") and dataset.__getitems__ is not None:
        return dataset.__getitems__(list(indices))
    return [dataset[index] for index in indices]


class ChosenRows:
    """Some rows of a data set that is not `datasets`'; each is read whenever it is used.

    Args:
        dataset: a PyTorch `Dataset`, or anything else with rows.
        rows: the numbers of the rows.
    """

    def __init__(self, dataset: Any, rows: Sequence[int]):
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._rows[index]]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return fetch(self._dataset, [self._rows[index] for index in indices])


def _window_rows(windows: Windows, indices: np.ndarray) -> list[dict[str, Any]]:
    columns: dict[str, Any] = windows.inputs(indices, windows.padded_length)
    for name in (*LABELS, *ALL_LABELS):
        if (positions := getattr(windows, name)) is not None:
            columns[name] = positions[indices]
    return [{name: values[n] for name, values in columns.items()} for n in range(len(indices))]


def used_columns(row: Any) -> Any:
    """Return a row without the columns that no model reads, as for `remove_unused_columns`."""
    if not isinstance(row, Mapping):
        return row
    return {name: value for name, value in row.items() if name in USED_COLUMNS}


# ---- rows -> batches -----------------------------------------------------------------------------


def stack_rows(
    rows: Sequence[Any], what: str = "the data set", pad_token_id: int = 0
) -> dict[str, np.ndarray]:
    """Stack the model's inputs and the labels of some rows, padded on the right to the longest.

    Args:
        rows: n dicts. `input_ids` is needed; without `attention_mask` every token counts.
        what: the origin of the rows, for error messages.
        pad_token_id: the id of padding tokens.

    Returns:
        int32 `[n, l]` for inputs, `[n]` for labels and `[n, g]` for those of all answers.

    Raises:
        DataError: a row is no dict, has no `input_ids`, or its values are not integers.
    """
    first = rows[0]
    if not isinstance(first, Mapping):
        raise DataError(
            f"a row of {what} is a {type(first).__name__}; it must be a dict with input_ids, "
            "attention_mask, start_positions and end_positions"
        )
    if "input_ids" not in first:
        raise DataError(f"a row of {what} has no input_ids; it has: {', '.join(map(str, first))}")
    columns = {}
    for name in (*INPUTS, *LABELS):
        if name in first:
            columns[name] = [_integers(_value(row, name, what), name, what) for row in rows]
    if "attention_mask" not in columns:
        columns["attention_mask"] = [np.ones_like(ids) for ids in columns["input_ids"]]
    width = max(ids.size for ids in columns["input_ids"])
    padding = {"input_ids": pad_token_id}
    stacked = {
        name: _stacked(values, name, width, what, padding.get(name, 0))
        for name, values in columns.items()
    }
    return stacked | _stacked_spans(rows, what)


def _stacked_spans(rows: Sequence[Any], what: str) -> dict[str, np.ndarray]:
    """Stack the labels of all answers, if the rows have them."""
    names = [name for name in ALL_LABELS if name in rows[0]]
    if not names:
        return {}
    try:
        check_both(names, what)
        values = [
            [_integers(_value(row, name, what), name, what).reshape(-1) for row in rows]
            for name in ALL_LABELS
        ]
        return dict(zip(ALL_LABELS, stacked_spans(values, what), strict=True))
    except ValueError as error:
        raise DataError(str(error)) from error


def _value(row: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in row:
        raise DataError(f"some rows of {what} have {name} and others have not")
    return row[name]


def _stacked(
    values: list[np.ndarray], name: str, width: int, what: str, padding: int
) -> np.ndarray:
    if name in LABELS:
        if any(value.size != 1 for value in values):
            raise DataError(f"{name} of {what} must be one number for each row")
        return np.array([value.reshape(()) for value in values], np.int32)
    stacked = np.full((len(values), width), padding, np.int32)
    for n, value in enumerate(values):
        stacked[n, : value.size] = value.reshape(-1)
    return stacked


def _integers(value: Any, name: str, what: str) -> np.ndarray:
    """Convert a tensor, an array or a list to integers that fit int32."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iub":
        raise DataError(
            f"{name} of {what} must be integers, in rows of equal length; got {_short(value)}"
        )
    if array.size and array.max() > OUTSIDE_WINDOW:
        array = np.minimum(array, OUTSIDE_WINDOW)
    return array


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


# ---- what a collator or a data loader gives ------------------------------------------------------


def batch_arrays(
    batch: Any, what: str, *, needs_labels: bool, takes_extras: bool
) -> dict[str, np.ndarray]:
    """Check the batch of a collator or a data loader and convert it to NumPy arrays.

    Args:
        batch: a dict of PyTorch tensors, NumPy arrays or lists.
        what: where it comes from, for error messages.
        needs_labels: whether it must have labels.
        takes_extras: whether arrays with other names are used, by the script's own loss function.

    Returns:
        int32 `[n, l]` for inputs, `[n]` for labels. A label beyond its row is `OUTSIDE_WINDOW`.
        Other arrays `[n, ...]` in their own dtype.

    Raises:
        DataError: an array is missing, has another shape or dtype, or is not used.
    """
    if not isinstance(batch, Mapping):
        raise DataError(f"{what} gives a {type(batch).__name__}; it must be a dict of arrays")
    if "input_ids" not in batch:
        raise DataError(f"{what} gives no input_ids; it gives: {', '.join(map(str, batch))}")
    extras = [name for name in batch if name not in (*INPUTS, *LABELS, *ALL_LABELS)]
    if extras and not takes_extras:
        raise DataError(
            f"{what} gives {', '.join(map(str, extras))}, which these models do not take; leave "
            "them out of the batch (only compute_loss_func can use other arrays)"
        )
    arrays = {name: _input_array(batch[name], name, what) for name in INPUTS if name in batch}
    shape = arrays["input_ids"].shape
    arrays.setdefault("attention_mask", np.ones(shape, np.int32))
    for name in LABELS:
        if name in batch:
            arrays[name] = _integers(batch[name], name, what)
    missing = [name for name in LABELS if name not in arrays]
    if needs_labels and missing:
        raise DataError(f"{what} gives no {' and no '.join(missing)}, which training needs")
    if len(missing) == 1:
        raise DataError(f"{what} gives no {missing[0]}, but the other label")
    for name in (name for name in LABELS if name in arrays):
        if arrays[name].size != shape[0]:
            raise DataError(
                f"{what} gives {name} of shape {arrays[name].shape}; there are {shape[0]} rows"
            )
        positions = arrays[name].reshape(-1)
        arrays[name] = np.where(positions >= shape[1], OUTSIDE_WINDOW, positions).astype(np.int32)
    for name, array in arrays.items():
        if name in INPUTS and array.shape != shape:
            raise DataError(
                f"{what} gives {name} of shape {array.shape} and input_ids of shape {shape}; both "
                "must be equal"
            )
    arrays |= _span_arrays(batch, what, shape)
    return arrays | {name: _extra_array(batch[name], name, shape[0], what) for name in extras}


def _span_arrays(
    batch: Mapping[str, Any], what: str, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Convert the labels of all answers `[n, g]`; those beyond their rows are `OUTSIDE_WINDOW`."""
    names = [name for name in ALL_LABELS if name in batch]
    if not names:
        return {}
    try:
        check_both(names, what)
    except ValueError as error:
        raise DataError(str(error)) from error
    arrays = [_integers(batch[name], name, what) for name in ALL_LABELS]
    for name, array in zip(ALL_LABELS, arrays, strict=True):
        if array.ndim != 2 or len(array) != shape[0] or array.shape != arrays[0].shape:
            raise DataError(
                f"{what} gives {name} of shape {array.shape}; it must be [{shape[0]} rows, spans], "
                f"as many spans for {' and '.join(ALL_LABELS)}"
            )
    starts, ends = arrays
    spans = stacked_spans([list(starts), list(ends)], what)
    return {
        name: np.where(array >= shape[1], OUTSIDE_WINDOW, array).astype(np.int32)
        for name, array in zip(ALL_LABELS, spans, strict=True)
    }


def _input_array(value: Any, name: str, what: str) -> np.ndarray:
    if isinstance(value, list | tuple) and value and hasattr(value[0], "detach"):
        raise DataError(
            f"{what} gives {name} as a list of tensors, as PyTorch's default collate_fn does with "
            "lists of numbers; pass collate_fn=trainer.data_collator to the DataLoader"
        )
    array = _integers(value, name, what)
    if array.ndim != 2:
        raise DataError(f"{what} gives {name} of shape {array.shape}; it must be [rows, tokens]")
    return array.astype(np.int32, copy=False)


def _extra_array(value: Any, name: str, rows: int, what: str) -> np.ndarray:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "iubf" or array.ndim == 0 or len(array) != rows:
        raise DataError(
            f"{what} gives {name} as {_short(value)}; compute_loss_func can use arrays of numbers "
            f"with one entry for each of the {rows} rows"
        )
    return array


def as_features(batches: Sequence[Mapping[str, np.ndarray]]) -> Features:
    """Concatenate batches from `batch_arrays`; ids are the rows' numbers."""
    width = max(batch["input_ids"].shape[1] for batch in batches)
    fields: dict[str, Any] = {}
    for name in batches[0]:
        arrays = [batch[name] for batch in batches]
        if name in INPUTS:
            arrays = [pad_to(array, width) for array in arrays]
        elif name in ALL_LABELS:
            most = max(array.shape[1] for array in arrays)
            arrays = [with_room(array, most) for array in arrays]
        fields[name] = np.concatenate(arrays)
    known = (*INPUTS, *LABELS, *ALL_LABELS)
    extras = {name: fields.pop(name) for name in list(fields) if name not in known}
    ids = [str(n) for n in range(len(fields["input_ids"]))]
    return dataclasses.replace(Features(example_ids=ids, **fields), extras=extras or None)


def pad_to(array: np.ndarray, width: int, fill: int = 0) -> np.ndarray:
    """Pad `[n, l]` on the right to `[n, width]`."""
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)


# ---- random numbers ------------------------------------------------------------------------------


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the global random generators of Python, NumPy and PyTorch inside the context.

    They depend only on `numbers`, so that a resumed run draws the same values. Afterwards the
    generators have their previous states. PyTorch's is seeded only if the script imported PyTorch.
    """
    seed = int(np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1)[0])
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state = None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        if torch is not None and torch_state is not None:
            torch.set_rng_state(torch_state)
