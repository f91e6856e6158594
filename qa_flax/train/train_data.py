"""The training set as the training run sees it: a plan, and the batches of each epoch (host)."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import transformers

from qa_flax.data.augment_windows import EpochWindows
from qa_flax.data.batches import HostBatch, train_batches, update_widths
from qa_flax.data.labels import describe_labels_outside
from qa_flax.data.loaders import (
    UpdateBatches,
    describe,
    first_batch_rows,
    length_of,
    rows_of,
)
from qa_flax.data.packing import (
    PackedEpoch,
    Packing,
    RowCounts,
    describe_obstacle,
    packed_epoch,
    packed_train_batches,
    packing_of,
    row_counts,
    unpacked_positions,
)
from qa_flax.data.rows import LABELS
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.device.packed_check import describe_packed_error
from qa_flax.device.programs import batch_shapes
from qa_flax.distributed import processes
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train import checkpoints
from qa_flax.train.plan import Plan

WORTH_PACKING = 0.9
"""Packed rows must have at most this share of the positions of one window a row. They are wide, so
that each position takes longer in attention."""
MORE_ROWS = 1.02
"""How many more rows than its first epoch needs a training has, whose texts change in each."""


class TrainData(Protocol):
    """A training set. The trainer's arguments may change until the training begins."""

    is_built_here: bool
    """Whether no code of a script makes its batches."""

    def plan(self, args: transformers.TrainingArguments) -> Plan:
        """Return the number of windows, batches and updates; ValueError if there are none."""
        ...

    def batches(
        self, args: transformers.TrainingArguments, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """Yield this process's rows of an epoch's batches, after the first `skip` updates."""
        ...

    def shapes(
        self, args: transformers.TrainingArguments, epoch: int, updates: range
    ) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Return the shapes of the batches of an epoch's updates, as far as they are known before.

        Each is returned once, in the order in which they come.
        """
        ...

    def digest(self) -> str | None:
        """Return a hash of the windows; None if they are not known before they are used."""
        ...

    def conditions(self, args: transformers.TrainingArguments) -> dict[str, Any]:
        """Return what else a resumed run must share, by the names of `conditions_of`."""
        ...

    def describe(self, args: transformers.TrainingArguments) -> list[str]:
        """Return sentences about what is done to the training set, to be printed."""
        ...

    def describe_labels_outside(self) -> str | None:
        """Return a sentence that counts the labels outside their windows; None: none are known."""
        ...

    def describe_packing(self, args: transformers.TrainingArguments) -> str | None:
        """Return a sentence about an argument that has no effect: `packing`, or one because of it.

        None: there is none.
        """
        ...

    def packed_as(self, args: transformers.TrainingArguments) -> str | None:
        """Return what `packing` changes: "rows" or "group_by_length"; None, as before it: nothing.

        A resumed run must share it.
        """
        ...


class WindowData:
    """A training set whose batches are built from windows.

    Args:
        windows: the windows.
        obstacle: why the training cannot have several windows in a row; None: it can.
        is_of_family: whether that is the model's family.
        packing: the packed rows; None: those that suit the windows.
        epochs: the windows of each epoch, if they are made anew; `windows` are the plain ones.

    Raises:
        ValueError: the windows have no labels.
    """

    is_built_here = True

    def __init__(
        self,
        windows: Windows,
        obstacle: str | None = None,
        is_of_family: bool = False,
        *,
        packing: Packing | None = None,
        epochs: EpochWindows | None = None,
    ):
        if not len(windows):
            raise ValueError(
                "train() needs a train_dataset with at least one window; pass one to the trainer"
            )
        if any(getattr(windows, name) is None for name in LABELS):
            raise ValueError(
                "the train_dataset has no start_positions and end_positions; create it with "
                "prepare_train_features(examples, tokenizer)"
            )
        self._windows = windows
        self._obstacle = obstacle or describe_obstacle(windows)
        self._is_of_family, self._epochs = is_of_family, epochs
        self.packing = packing or packing_of(windows)
        self._decisions: dict[Any, str | None] = {}
        self._counts: dict[Any, RowCounts] = {}
        self._few: dict[Any, int] = {}
        # It is asked for several times.
        self._latest: tuple[Any, Windows, PackedEpoch] | None = None

    def __len__(self) -> int:
        return len(self._windows)

    def plan(self, args: transformers.TrainingArguments) -> Plan:
        """See `TrainData`."""
        return Plan.from_args(args, len(self._windows), parallel.core_count())

    def batches(
        self, args: transformers.TrainingArguments, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """See `TrainData`."""
        is_packed = self.packed_as(args) == "rows"
        if is_packed:
            batches = self.packed_batches(args, *self._packed(args, epoch), skip)
        else:
            batches = self.unpacked_batches(args, self._windows_of(epoch), epoch, skip)
        if self._epochs is not None and epoch + 1 < self.plan(args).epochs:
            self._epochs.begin(epoch + 1)
        return batches

    def _windows_of(self, epoch: int, share: float = 1.0) -> Windows:
        return self._windows if self._epochs is None else self._epochs.windows(epoch, share)

    def unpacked_batches(
        self, args: Any, windows: Windows, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """Return this process's rows of batches with one window a row."""
        return train_batches(
            windows,
            parallel.core_count(),
            args.per_device_train_batch_size,
            data_seed_of(args),
            epoch,
            self._strategy(args),
            accumulation=args.gradient_accumulation_steps,
            drop_last=args.dataloader_drop_last,
            skip=skip,
            local_cores=parallel.process_cores(),
        )

    def packed_batches(
        self, args: Any, windows: Windows, packed: PackedEpoch, skip: int
    ) -> Iterator[HostBatch]:
        """Return this process's rows of batches of packed rows."""
        return packed_train_batches(
            windows,
            self.packing,
            packed,
            parallel.core_count(),
            args.gradient_accumulation_steps,
            skip,
            parallel.process_cores(),
        )

    def describe_packing(self, args: transformers.TrainingArguments) -> str | None:
        """See `TrainData`."""
        if not wants_packing(args):
            return None
        unpacked = self._describe_unpacked(args)
        if unpacked is None and args.train_sampling_strategy == "group_by_length":
            return (
                "train_sampling_strategy='group_by_length' has no effect with packing, which "
                "leaves no padding to save"
            )
        return unpacked

    def _describe_unpacked(self, args: transformers.TrainingArguments) -> str | None:
        """Return why windows are not packed although `packing` asks for it; None if they are.

        All epochs of a training are packed, or none is.
        """
        if self._obstacle is not None:
            grouped = self._is_of_family and args.train_sampling_strategy == "random"
            instead = "; batches have windows of similar lengths instead" if grouped else ""
            return f"packing has no effect, because {self._obstacle}{instead}"
        key = packing_key(args)
        if key not in self._decisions:
            self._decisions[key] = self._describe_small(args)
        return self._decisions[key]

    def packed_as(self, args: transformers.TrainingArguments) -> str | None:
        """See `TrainData`."""
        if wants_packing(args) and self._describe_unpacked(args) is None:
            return "rows"
        strategy = self._strategy(args)
        return None if strategy == args.train_sampling_strategy else strategy

    def rows_of_update(self, args: transformers.TrainingArguments) -> int | None:
        """Return the packed rows of a core's microbatch, or one less; None: they are not packed."""
        if self.packed_as(args) != "rows":
            return None
        key = packing_key(args)
        if key not in self._few:
            self._few[key] = self._packed(args, 0)[1].counts.few
        return self._few[key]

    def _describe_small(self, args: transformers.TrainingArguments) -> str | None:
        if args.train_sampling_strategy == "sequential":
            return "packing has no effect, because train_sampling_strategy is sequential"
        plan, (windows, packed) = self.plan(args), self._packed(args, 0)
        rows, per_update = len(packed.members), parallel.core_count() * plan.accumulation
        if rows < plan.updates_per_epoch * per_update:
            return (
                f"packing has no effect: {len(self._windows)} windows would fill {rows} rows, "
                f"fewer than one for each core in each of {plan.updates_per_epoch} updates"
            )
        apart = unpacked_positions(windows, plan.rows * plan.accumulation, data_seed_of(args), 0)
        if rows * self.packing.width > WORTH_PACKING * apart:
            return (
                "packing has no effect, because it would save less than a tenth of the positions "
                "with windows of these lengths"
            )
        return None

    def _packed(
        self, args: transformers.TrainingArguments, epoch: int
    ) -> tuple[Windows, PackedEpoch]:
        """Return the windows of an epoch and their rows."""
        key, latest = (packing_key(args), epoch), self._latest
        if latest is not None and latest[0] == key:
            return latest[1:]
        if self._epochs is None:
            windows, packed = self._windows, self.pack(args, self._windows, epoch, None)
        else:
            windows, packed = self._packed_anew(args, epoch)
        self._latest = key, windows, packed
        return windows, packed

    def _packed_anew(self, args: Any, epoch: int) -> tuple[Windows, PackedEpoch]:
        """Pack windows that are made anew in each epoch, in updates of the same shapes in all.

        An epoch whose windows need more rows than there are has fewer changed examples.
        """
        key = packing_key(args)
        if key not in self._counts:
            parts = [self.pack(args, self._windows_of(0, share), 0, None) for share in (0.0, 1.0)]
            rows = max(len(part.members) for part in parts)
            per_update = parallel.core_count() * args.gradient_accumulation_steps
            updates = parts[0].counts.updates
            self._counts[key] = row_counts(math.ceil(rows * MORE_ROWS), updates, per_update)
        counts = self._counts[key]
        for share in (1.0, 0.9, 0.7, 0.4, 0.0):
            windows = self._windows_of(epoch, share)
            packed = self.pack(args, windows, epoch, counts)
            if packed.counts == counts:
                break
        return windows, packed

    def pack(
        self, args: Any, windows: Windows, epoch: int, counts: RowCounts | None
    ) -> PackedEpoch:
        """Pack an epoch's windows; see `packed_epoch`."""
        return packed_epoch(
            windows,
            self.packing,
            parallel.core_count(),
            args.per_device_train_batch_size,
            data_seed_of(args),
            epoch,
            accumulation=args.gradient_accumulation_steps,
            drop_last=args.dataloader_drop_last,
            counts=counts,
        )

    def _strategy(self, args: transformers.TrainingArguments) -> str:
        strategy = args.train_sampling_strategy
        is_replaced = wants_packing(args) and self._is_of_family and strategy == "random"
        return "group_by_length" if is_replaced else strategy

    def shapes(
        self, args: transformers.TrainingArguments, epoch: int, updates: range
    ) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """See `TrainData`."""
        first = next(self.batches(args, epoch, updates.start), None) if updates else None
        if first is None:
            return []
        rows, width = first.arrays["input_ids"].shape[-2:]
        if self.packed_as(args) == "rows":
            counts = self._packed(args, epoch)[1].counts
            of_epoch = updates[: max(0, counts.updates - updates.start)]
            sizes = [(counts.rows(update), width) for update in of_epoch]
        else:
            widths = self.unpacked_widths(args, self._windows_of(epoch), epoch)
            sizes = [(rows, other) for other in widths[updates.start : updates.stop]]
        return [batch_shapes(first.arrays, *size) for size in dict.fromkeys(sizes)]

    def unpacked_widths(self, args: Any, windows: Windows, epoch: int) -> list[int]:
        """Return the width of each update of an epoch, with one window a row."""
        plan = self.plan(args)
        batch_size, seed = plan.rows * plan.accumulation, data_seed_of(args)
        return update_widths(windows, batch_size, seed, epoch, self._strategy(args)).tolist()

    def digest(self) -> str:
        """See `TrainData`."""
        return checkpoints.windows_digest(self._windows)

    def conditions(self, args: transformers.TrainingArguments) -> dict[str, Any]:
        """See `TrainData`."""
        epochs = self._epochs
        return {"augment": None if epochs is None else epochs.augmenter.conditions()}

    def describe(self, args: transformers.TrainingArguments) -> list[str]:
        """See `TrainData`."""
        return [] if self._epochs is None else [self._epochs.augmenter.describe()]

    def describe_labels_outside(self) -> str | None:
        """See `TrainData`."""
        return describe_labels_outside(self._windows)


class LoaderData:
    """A training set whose batches a collator, a transform or a script's own loader makes.

    Args:
        loader: yields the batches of one core's or all cores' rows.
        model: the model to train.
        takes_extras: whether the script's own loss function gets further arrays of the batches.

    Raises:
        ValueError: there are several processes.
    """

    is_built_here = False

    def __init__(self, loader: Any, model: AutoModelForQuestionAnswering, takes_extras: bool):
        refuse_several_processes(loader, "train()")
        self._loader, self._takes_extras = loader, takes_extras
        self._pad_token_id = getattr(model.config, "pad_token_id", None) or 0
        self._limit: int | None = model.encoder.position_limit
        self._updates: UpdateBatches | None = None

    def plan(self, args: transformers.TrainingArguments) -> Plan:
        """See `TrainData`."""
        rows = first_batch_rows(
            self._loader, args.per_device_train_batch_size * parallel.core_count()
        )
        return Plan.from_batches(args, length_of(self._loader), rows_of(self._loader), rows)

    def batches(
        self, args: transformers.TrainingArguments, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """See `TrainData`."""
        self._updates = self._updates or UpdateBatches(
            self._loader,
            parallel.core_count(),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            data_seed_of(args),
            pad_token_id=self._pad_token_id,
            limit=self._limit,
            takes_extras=self._takes_extras,
        )
        return self._updates.epoch(epoch, skip)

    def shapes(
        self, args: transformers.TrainingArguments, epoch: int, updates: range
    ) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """See `TrainData`."""
        return []

    def digest(self) -> None:
        """See `TrainData`."""

    def conditions(self, args: transformers.TrainingArguments) -> dict[str, Any]:
        """See `TrainData`."""
        return {}

    def describe(self, args: transformers.TrainingArguments) -> list[str]:
        """See `TrainData`."""
        return []

    def describe_packing(self, args: transformers.TrainingArguments) -> str | None:
        """See `TrainData`."""
        if not wants_packing(args):
            return None
        return f"packing has no effect, because {describe(self._loader)} makes the batches"

    def packed_as(self, args: transformers.TrainingArguments) -> None:
        """See `TrainData`."""

    def describe_labels_outside(self) -> None:
        """See `TrainData`; `UpdateBatches` counts them when it has made an epoch's batches."""


def wants_packing(args: Any) -> bool:
    """Whether `packing` is set; transformers' own TrainingArguments does not have it."""
    return bool(getattr(args, "packing", None))


def reports_fill(args: Any) -> bool:
    """Whether metrics have the share of positions that hold tokens: if `packing` was given."""
    return getattr(args, "packing", None) is not None


def packing_obstacle(args: Any, model: Any, has_own_loss: bool, dtype: str) -> str | None:
    """Return why rows cannot hold several windows, apart from the data; None if they can.

    Args:
        args: the trainer's arguments. Without `packing` nothing is looked at.
        model: the model.
        has_own_loss: whether the script has a loss function.
        dtype: the compute dtype, in which the device is checked.
    """
    if not wants_packing(args):
        return None
    if (obstacle := model.packing_obstacle) is not None:
        return f"{model.config.model_type} cannot have several windows in a row: {obstacle}"
    if has_own_loss:
        return "compute_loss_func expects one window in each row"
    return describe_packed_error(dtype)


def packing_key(args: Any) -> tuple[Any, ...]:
    """Return what packed rows depend on, apart from the windows and the epoch."""
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "dataloader_drop_last",
        "train_sampling_strategy",
    )
    return (data_seed_of(args), *(getattr(args, name) for name in names))


def refuse_several_processes(loader: Any, method: str) -> None:
    """Raise ValueError if several processes would have to share a loader that makes the batches."""
    if processes.count() > 1:
        raise ValueError(
            f"{method} with {processes.count()} processes cannot use {describe(loader)}, because "
            "each process needs its own rows of the same batches. Pass a datasets.Dataset of "
            "prepared windows, without a transform and without a data_collator of your own"
        )


def data_seed_of(args: Any) -> int:
    """The seed of the order of the training windows: `data_seed`, or `seed` if it is not set."""
    return args.seed if args.data_seed is None else args.data_seed
