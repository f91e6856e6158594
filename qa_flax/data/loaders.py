"""Data loaders: the batches of a data set as scripts, collators and callbacks see them (host).

A `Loader` has the interface of PyTorch's `DataLoader` as far as scripts use it. The trainer builds
its batches from windows (`batches.py`) where that gives the same; otherwise it iterates over the
loader, whether it is a `Loader` or a script's own.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import DataCollatorWithPadding, DefaultDataCollator, default_data_collator

from qa_flax import messages
from qa_flax.data.batches import WIDTH_STEP, HostBatch
from qa_flax.data.gold_spans import ALL_LABELS
from qa_flax.data.rows import (
    INPUTS,
    LABELS,
    OUTSIDE_WINDOW,
    DataError,
    as_features,
    batch_arrays,
    check_dataset,
    fetch,
    is_constant,
    is_stream,
    pad_to,
    seeded,
    stack_rows,
    used_columns,
)
from qa_flax.data.windows import Features, Windows

logger = messages.logger(__name__)

_END: Any = object()
COLLATED_WIDTH_STEP = 128
"""Widths of training batches that a collator makes are multiples of this many tokens, or
`WIDTH_STEP`. How long its longest batch will be is not known, so they cannot be `train_widths`."""
CHUNK_ROWS = 1024
"""Rows of a loader that are evaluated together; bounds the memory for the tokens of a stream."""


def is_known_collator(collator: Any) -> bool:
    """Whether a collator only pads and stacks rows, as the trainer does itself."""
    if collator is None or collator is default_data_collator:
        return True
    calls = (DefaultDataCollator.__call__, DataCollatorWithPadding.__call__)
    return getattr(type(collator), "__call__", None) in calls  # noqa: B004


def as_windows(dataset: Any, pad_token_id: int = 0) -> Windows:
    """Return a data set whose rows never change as windows.

    Args:
        dataset: windows, a `datasets.Dataset` with the columns of Hugging Face's features, or a
            list of dicts with these names.
        pad_token_id: the id of padding tokens, for rows of different lengths.

    Raises:
        ValueError: a column is missing or invalid.
    """
    if isinstance(dataset, Windows):
        return dataset
    if isinstance(dataset, list | tuple):
        if not dataset:
            nothing = np.zeros((0, 0), np.int32)
            return Features(example_ids=[], input_ids=nothing, attention_mask=nothing)
        return as_features([stack_rows(dataset, "the list", pad_token_id)])
    return Features.from_dataset(dataset, pad_token_id)


class Loader:
    """Yields the batches of a data set; what `get_train_dataloader` and its like return.

    Args:
        dataset: any data set with rows, or a stream of rows.
        batch_size: rows of a batch in this process.
        collator: makes a batch of a list of rows; None: dicts of NumPy arrays, padded on the right.
        order: the order of the rows in an epoch; None: that of the data set. A stream has its own.
        rows: number of rows in that order; None: all of the data set.
        drop_last: leave out a last batch with fewer rows.
        pad_token_id: the id of padding tokens, if there is no collator.
        only_used: give the collator only columns that models read (`remove_unused_columns`).
        share: which rows of each batch are this process's, and how many rows it has in all
            processes; None: all of `batch_size`.

    Raises:
        DataError: it is not a data set.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        collator: Callable[[list[Any]], Any] | None = None,
        *,
        order: Callable[[int], np.ndarray] | None = None,
        rows: int | None = None,
        drop_last: bool = False,
        pad_token_id: int = 0,
        only_used: bool = True,
        share: tuple[slice, int] | None = None,
    ):
        check_dataset(dataset, "the data set")
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.collate_fn, self._pad_token_id = collator, pad_token_id
        self._order, self._rows, self._only_used = order, rows, only_used
        self._share, self._rows_of_all = share or (slice(None), batch_size)
        self._epoch = 0

    def __len__(self) -> int:
        """Return the number of batches of an epoch; TypeError if the data set is a stream."""
        if self.is_stream:
            raise TypeError(f"a stream ({type(self.dataset).__name__}) has no length")
        rows = len(self.dataset) if self._rows is None else self._rows
        return rows // self._rows_of_all if self.drop_last else -(-rows // self._rows_of_all)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    @property
    def is_stream(self) -> bool:
        """Whether the data set can only be iterated."""
        return is_stream(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order the next iteration has."""
        self._epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def batches(self, skip: int = 0) -> Iterator[Any]:
        """Yield the batches of the epoch after the first `skip`."""
        if self.is_stream:
            rows, lists = iter(self.dataset), iter(lambda: self._take(rows), [])
            if self.drop_last:
                lists = (rows for rows in lists if len(rows) == self.batch_size)
            yield from map(self._collate, itertools.islice(lists, skip, None))
            return
        size, order_of = self._rows_of_all, self._order
        order = np.arange(len(self.dataset)) if order_of is None else order_of(self._epoch)
        for number in range(skip, len(self)):
            indices = order[number * size : (number + 1) * size][self._share]
            yield self._collate(fetch(self.dataset, indices.tolist()))

    def windows(self) -> Windows | None:
        """Return the data set as windows if its batches can be built from them, else None."""
        if not (is_constant(self.dataset) and is_known_collator(self.collate_fn)):
            return None
        return as_windows(self.dataset, self._pad_token_id)

    def row_lengths(self) -> np.ndarray:
        """Return the number of tokens of each row; every row is read once."""
        windows = self.windows()
        if windows is not None:
            return windows.lengths
        rows = (fetch(self.dataset, [n])[0] for n in range(len(self.dataset)))
        return np.array([len(row["input_ids"]) for row in rows])

    def _take(self, rows: Iterator[Any]) -> list[Any]:
        return list(itertools.islice(rows, self.batch_size))

    def _collate(self, rows: list[Any]) -> Any:
        if self.collate_fn is None:
            return stack_rows(rows, pad_token_id=self._pad_token_id) if rows else {}
        if self._only_used:
            rows = [used_columns(row) for row in rows]
        # Without PyTorch, transformers' own collators can only make NumPy arrays.
        if is_known_collator(self.collate_fn) and importlib.util.find_spec("torch") is None:
            return stack_rows(rows, pad_token_id=self._pad_token_id)
        return self.collate_fn(rows)


def describe(loader: Any) -> str:
    """Name a loader, or the collator of a `Loader`, for error messages."""
    if not isinstance(loader, Loader):
        return f"the data loader ({type(loader).__name__})"
    collator = loader.collate_fn
    if collator is None:
        return f"the data set ({type(loader.dataset).__name__})"
    return f"data_collator ({getattr(collator, '__name__', type(collator).__name__)})"


def length_of(loader: Any) -> int | None:
    """The number of batches of an epoch; None if it is not known."""
    try:
        return len(loader)
    except TypeError:
        return None


def rows_of(loader: Any) -> int | None:
    """The number of rows of a loader's data set; None if it is not known."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def seeded_batches(loader: Any, seed: int, epoch: int, skip: int = 0) -> Iterator[Any]:
    """Yield the batches of an epoch, each made with generators seeded for it alone.

    What a collator, a transform or a data set draws from the global generators of Python, NumPy and
    PyTorch depends on the seed, the epoch and the batch's number. So a resumed run draws the same.

    Args:
        loader: a `Loader`, or anything that yields batches whenever it is iterated.
        seed: the seed of the run.
        epoch: number of the epoch, from 0.
        skip: batches of the epoch to leave out.
    """
    for part in (loader, getattr(loader, "sampler", None)):
        if (set_epoch := getattr(part, "set_epoch", None)) is not None:
            set_epoch(epoch)
    can_skip = isinstance(loader, Loader) and not loader.is_stream
    first = skip if can_skip else 0
    with seeded(seed, epoch):
        batches = loader.batches(skip) if can_skip else iter(loader)
    for number in itertools.count(first):
        with seeded(seed, epoch, number):
            batch = next(batches, _END)
        if batch is _END:
            return
        if number >= skip:
            yield batch


def loader_windows(
    loader: Any, seed: int, *, takes_extras: bool = False, needs_labels: bool = False
) -> Iterator[Windows]:
    """Yield the rows of a loader as windows, some batches at a time, in the loader's order.

    Raises:
        DataError: a batch cannot be used.
    """
    what, part, rows = describe(loader), [], 0
    for batch in seeded_batches(loader, seed, 0):
        arrays = batch_arrays(batch, what, needs_labels=needs_labels, takes_extras=takes_extras)
        part.append(arrays)
        rows += len(arrays["input_ids"])
        if rows >= CHUNK_ROWS:
            yield as_features(part)
            part, rows = [], 0
    if part:
        yield as_features(part)


class UpdateBatches:
    """Turns the batches of a loader into the batches of updates, `[D, A, B, ...]`.

    Args:
        loader: yields batches of at most `cores * per_core` rows.
        cores: number of cores (D).
        per_core: rows on each core (B); more if the loader's batches have more rows.
        accumulation: batches of an update (A).
        seed: see `seeded_batches`.
        pad_token_id: the id of padding tokens.
        limit: the longest row that the model can take; None: any.
        takes_extras: whether other arrays of a batch are passed on, to the script's own loss.
    """

    def __init__(
        self,
        loader: Any,
        cores: int,
        per_core: int,
        accumulation: int,
        seed: int,
        *,
        pad_token_id: int = 0,
        limit: int | None = None,
        takes_extras: bool = False,
    ):
        self._loader, self._seed = loader, seed
        self._shape = cores, accumulation, per_core
        self._pad_token_id, self._limit = pad_token_id, limit
        self._takes_extras = takes_extras
        self._has_reported = False

    def epoch(self, epoch: int, skip: int) -> Iterator[HostBatch]:
        """Yield the batches of an epoch after the first `skip` updates.

        Raises:
            DataError: a batch cannot be used, or the epoch has none.
        """
        accumulation, what = self._shape[1], describe(self._loader)
        length = length_of(self._loader)
        raw = seeded_batches(self._loader, self._seed, epoch, skip * accumulation)
        if length is not None:
            raw = itertools.islice(raw, max(0, length - skip * accumulation))
        checked = (
            batch_arrays(b, what, needs_labels=True, takes_extras=self._takes_extras) for b in raw
        )
        rows, outside = 0, 0
        try:
            while batches := list(itertools.islice(checked, accumulation)):
                rows += sum(len(batch["input_ids"]) for batch in batches)
                outside += sum(_labels_outside(batch) for batch in batches)
                yield self._update(batches)
        finally:
            self._report(rows, outside)
        if not (rows or skip):
            raise DataError(
                f"{what} yields no batches in epoch {epoch + 1}; it must yield them whenever it is "
                "iterated"
            )

    def _report(self, rows: int, outside: int) -> None:
        """Report once how many labels are outside their windows, after the first batches."""
        if outside and not (self._has_reported or self._takes_extras):
            logger.warning(
                "training: %d labels of the first %d windows of %s are outside their windows, and "
                "take no part in the loss.",
                outside,
                rows,
                describe(self._loader),
            )
        self._has_reported = True

    def _update(self, batches: Sequence[Mapping[str, np.ndarray]]) -> HostBatch:
        cores, accumulation, per_core = self._shape
        if any(batch.keys() != batches[0].keys() for batch in batches):
            raise DataError(f"{describe(self._loader)} gives batches with different arrays")
        counts = [len(batch["input_ids"]) for batch in batches]
        per_core = max(per_core, -(-max(counts) // cores))
        width = self._width(max(batch["input_ids"].shape[1] for batch in batches))
        size = cores * per_core
        batches = [*batches, *[batches[0]] * (accumulation - len(batches))]
        counts += [0] * (accumulation - len(counts))
        valid = np.arange(size) < np.array(counts)[:, None]  # [A, size]
        padded = [self._padded(batch, width, size) for batch in batches]
        arrays = {name: np.stack([batch[name] for batch in padded]) for name in padded[0]}
        arrays = {
            name: array.reshape(accumulation, cores, per_core, *array.shape[2:]).swapaxes(0, 1)
            for name, array in (arrays | {"valid": valid}).items()
        }
        tokens = int(arrays["attention_mask"][arrays["valid"]].sum())
        rows = np.zeros(arrays["valid"].shape, np.int64)
        windows = sum(counts)
        columns = slice(0, width)
        return HostBatch(rows, arrays["valid"], arrays, columns, windows, tokens, windows * width)

    def _padded(
        self, batch: Mapping[str, np.ndarray], width: int, size: int
    ) -> dict[str, np.ndarray]:
        """Pad a batch to `size` rows of `width` tokens."""
        tokens = batch["input_ids"].shape
        padded = {}
        for name, array in batch.items():
            if name in INPUTS or (array.shape == tokens and name not in ALL_LABELS):
                array = pad_to(array, width, self._pad_token_id if name == "input_ids" else 0)
            # Padding rows repeat a real one: an all-zero attention mask would give NaN.
            padding = np.repeat(array[:1], size - len(array), axis=0)
            padded[name] = np.concatenate([array, padding])
        return padded

    def _width(self, longest: int) -> int:
        """Round up to a compiled width, but not beyond what the model can take."""
        step = COLLATED_WIDTH_STEP if longest > WIDTH_STEP else WIDTH_STEP
        width = -(-longest // step) * step
        return width if self._limit is None else max(longest, min(width, self._limit))


def _labels_outside(batch: Mapping[str, np.ndarray]) -> int:
    return sum(int((batch[name] == OUTSIDE_WINDOW).sum()) for name in LABELS)


def first_batch_rows(loader: Any, default: int) -> int:
    """The rows of a loader's batches, from its `batch_size`."""
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else default
