"""A training set of which a share of the batches is of another one (host).

Own and extra batches are spread evenly over an epoch. The extra set has an order of its own for
each pass over it, and an epoch goes on where the one before has stopped: nothing is repeated before
everything was used. An extra batch has the shape of an own one, so that nothing is compiled for it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import transformers

from qa_flax.data.batches import HostBatch
from qa_flax.data.gold_spans import ALL_LABELS
from qa_flax.data.packing import Packing, RowCounts
from qa_flax.data.rows import LABELS
from qa_flax.data.windows import Features, LazyWindows, Windows
from qa_flax.device import parallel
from qa_flax.device.programs import batch_shapes
from qa_flax.train import checkpoints
from qa_flax.train.plan import Plan
from qa_flax.train.train_data import WindowData, packing_key

Shapes = list[dict[str, jax.ShapeDtypeStruct]]

_ROOM = 1.01
"""How many more rows than its first pass needs the other passes over an extra set may need."""


def extra_ratio(args: Any) -> float | None:
    """`extra_train_ratio`; transformers' own TrainingArguments does not have it."""
    return getattr(args, "extra_train_ratio", None)


def extra_updates(own: int, ratio: float) -> int:
    """Return how many updates are added to those of an epoch, at least 1 unless the ratio is 0.

    Example:
        >>> extra_updates(90, 0.1), extra_updates(3, 0.5), extra_updates(3, 0.01)
        (10, 3, 1)
    """
    return max(1, math.floor(own * ratio / (1 - ratio) + 0.5)) if ratio else 0


def extra_before(update: int, extra: int, updates: int) -> int:
    """Return how many of the first `update` updates of an epoch are extra ones.

    Args:
        update: from 0 to `updates`.
        extra: the extra updates of an epoch.
        updates: all updates of an epoch.

    Example:
        >>> [extra_before(update, 2, 6) for update in range(7)]
        [0, 0, 1, 1, 1, 2, 2]
    """
    return (2 * update * extra + updates) // (2 * updates)


class _ExtraData(WindowData):
    """The extra set: passes over it, in batches of the shape of the own ones."""

    def __init__(self, windows: Windows, packing: Packing, is_of_family: bool):
        with _named():
            super().__init__(windows, is_of_family=is_of_family, packing=packing)
        self._pass_counts: dict[Any, RowCounts] = {}

    def updates(self, args: Any, rows: int | None) -> int:
        """Return the updates of a pass.

        Args:
            args: the trainer's arguments.
            rows: the packed rows of a microbatch on each core; None: one window a row.
        """
        if rows is not None:
            return self._counts_of(args, rows).updates
        with _named():
            return self.plan(args).updates_per_epoch

    def of_pass(self, args: Any, number: int, skip: int, rows: int | None) -> Iterator[HostBatch]:
        """Return the batches of a pass, after the first `skip` updates."""
        if rows is None:
            return self.unpacked_batches(args, self._windows, number, skip)
        packed = self.pack(args, self._windows, number, self._counts_of(args, rows))
        return self.packed_batches(args, self._windows, packed, skip)

    def widths(self, args: Any, number: int) -> list[int]:
        """Return the width of each update of a pass, with one window a row."""
        return self.unpacked_widths(args, self._windows, number)

    def _counts_of(self, args: Any, rows: int) -> RowCounts:
        key = packing_key(args), rows
        if key not in self._pass_counts:
            first = len(self.pack(args, self._windows, 0, None).members)
            per_update = rows * parallel.core_count() * args.gradient_accumulation_steps
            # Every update has at least one of the rows, also of a pass that needs fewer.
            updates = min(math.ceil(first * _ROOM / per_update), int(first / _ROOM))
            self._pass_counts[key] = RowCounts(rows, max(1, updates), 0)
        return self._pass_counts[key]


@contextmanager
def _named() -> Iterator[None]:
    """Let errors say that they are about the extra set."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"extra_train_dataset: {error}") from error


class MixedData:
    """A `TrainData` of own windows and of those of an extra set.

    Args:
        own: the own set.
        extra: the windows of the extra one, padded to the same length.
        is_of_family: see `WindowData`.
    """

    is_built_here = True

    def __init__(self, own: WindowData, extra: Windows, is_of_family: bool):
        self._own = own
        self._extra = _ExtraData(extra, own.packing, is_of_family)
        self._windows = extra

    def plan(self, args: transformers.TrainingArguments) -> Plan:
        """See `TrainData`."""
        own = self._own.plan(args)
        extra = self._extra_updates(args) * own.accumulation
        windows = len(self._own) + extra * own.rows
        return Plan.from_batches(args, own.batches_per_epoch + extra, windows, own.rows)

    def batches(
        self, args: transformers.TrainingArguments, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """See `TrainData`."""
        updates, extra = self.plan(args).updates_per_epoch, self._extra_updates(args)
        before = [extra_before(update, extra, updates) for update in range(updates + 1)]
        own = self._own.batches(args, epoch, skip - before[skip])
        others = self._extra_batches(args, epoch * extra + before[skip])
        for update in range(skip, updates):
            if before[update + 1] > before[update]:
                yield next(others)._replace(is_extra=True)
            else:
                yield next(own)

    def shapes(self, args: transformers.TrainingArguments, epoch: int, updates: range) -> Shapes:
        """See `TrainData`."""
        all_updates, extra = self.plan(args).updates_per_epoch, self._extra_updates(args)
        last = min(updates.stop, all_updates)
        before = [extra_before(update, extra, all_updates) for update in (updates.start, last)]
        own = range(updates.start - before[0], last - before[1])
        shapes = self._own.shapes(args, epoch, own)
        numbers = range(epoch * extra + before[0], epoch * extra + before[1])
        first = next(self._extra_batches(args, numbers.start), None) if numbers else None
        if first is None:
            return shapes
        rows, width = first.arrays["input_ids"].shape[-2:]
        widths = [width]
        if self._own.rows_of_update(args) is None:
            widths = self._extra_widths(args, numbers)
        others = [batch_shapes(first.arrays, rows, other) for other in dict.fromkeys(widths)]
        return shapes + [shape for shape in others if shape not in shapes]

    def digest(self) -> str:
        """See `TrainData`."""
        return self._own.digest()

    def conditions(self, args: transformers.TrainingArguments) -> dict[str, Any]:
        """See `TrainData`."""
        digest = checkpoints.windows_digest(self._windows)
        extra = {"extra_train_ratio": extra_ratio(args), "extra_train_windows": digest}
        return self._own.conditions(args) | extra

    def describe(self, args: transformers.TrainingArguments) -> list[str]:
        """See `TrainData`."""
        updates, extra = self.plan(args).updates_per_epoch, self._extra_updates(args)
        passes = extra / self._extra.updates(args, self._own.rows_of_update(args))
        line = (
            f"Extra training data: {extra:,} of {updates:,} updates of each epoch come from "
            f"its {len(self._windows):,} windows"
        )
        if passes > 1:
            line += f", each of which comes {passes:.1f} times in an epoch"
        elif extra:
            line += f", all of which are used in {1 / passes:.1f} epochs"
        return [*self._own.describe(args), line]

    def describe_labels_outside(self) -> str | None:
        """See `TrainData`."""
        return self._own.describe_labels_outside() or self._extra.describe_labels_outside()

    def describe_packing(self, args: transformers.TrainingArguments) -> str | None:
        """See `TrainData`."""
        return self._own.describe_packing(args)

    def packed_as(self, args: transformers.TrainingArguments) -> str | None:
        """See `TrainData`."""
        return self._own.packed_as(args)

    def _extra_updates(self, args: Any) -> int:
        return extra_updates(self._own.plan(args).updates_per_epoch, extra_ratio(args) or 0.0)

    def _extra_batches(self, args: Any, first: int) -> Iterator[HostBatch]:
        """Yield the extra batches of all epochs without end, from the one of this number."""
        rows = self._own.rows_of_update(args)
        number, skip = divmod(first, self._extra.updates(args, rows))
        for later in itertools.count(number):
            yield from self._extra.of_pass(args, later, skip if later == number else 0, rows)

    def _extra_widths(self, args: Any, numbers: range) -> list[int]:
        per_pass = self._extra.updates(args, None)
        passes = range(numbers.start // per_pass, -(-numbers.stop // per_pass))
        widths = [width for number in passes for width in self._extra.widths(args, number)]
        begin = passes.start * per_pass
        return widths[numbers.start - begin : numbers.stop - begin]


def with_length(windows: Windows, length: int) -> Windows:
    """Return windows padded to `length` tokens.

    Raises:
        ValueError: they are rows of arrays that are padded on the left.
    """
    if windows.padded_length == length:
        return windows
    if isinstance(windows, LazyWindows):
        return windows.padded_to(length)
    if not isinstance(windows, Features) or windows.is_left_padded:
        raise ValueError(
            f"train_dataset and extra_train_dataset have windows of {windows.padded_length} and "
            f"{length} tokens; prepare both with the same max_seq_length"
        )
    missing = (0, length - windows.padded_length)
    fill = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "offsets": -1}
    arrays = {name: getattr(windows, name) for name in fill}
    padded = {
        name: np.pad(array, ((0, 0), missing, (0, 0))[: array.ndim], constant_values=fill[name])
        for name, array in arrays.items()
        if array is not None
    }
    return dataclasses.replace(windows, **padded)


def check_same_columns(own: Windows, extra: Windows) -> None:
    """Refuse sets whose batches would have other arrays.

    Raises:
        ValueError: names the columns that one of them lacks.
    """
    columns = []
    for windows in (own, extra):
        extras = windows.extras if isinstance(windows, Features) else None
        names = {*windows.inputs(slice(0, 0), 1), *(extras or {})}
        labels = (name for name in LABELS if getattr(windows, name) is not None)
        columns.append({*names, *labels, *(ALL_LABELS if windows.spans else ())})
    missing = [
        f"{name} has no column {', '.join(sorted(other - found))}"
        for name, found, other in (
            ("train_dataset", columns[0], columns[1]),
            ("extra_train_dataset", columns[1], columns[0]),
        )
        if other - found
    ]
    if missing:
        raise ValueError(f"{'; '.join(missing)}: prepare both in the same way")
