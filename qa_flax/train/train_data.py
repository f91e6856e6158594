"""The training set as the training run sees it: a plan, and the batches of each epoch (host)."""

from collections.abc import Iterator
from typing import Any, Protocol

import transformers

from qa_flax.data.batches import HostBatch, train_batches
from qa_flax.data.labels import describe_labels_outside
from qa_flax.data.loaders import (
    Loader,
    UpdateBatches,
    describe,
    first_batch_rows,
    length_of,
    rows_of,
)
from qa_flax.data.rows import LABELS
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.distributed import processes
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train import checkpoints
from qa_flax.train.plan import Plan


class TrainData(Protocol):
    """A training set. The trainer's arguments may change until the training begins."""

    def plan(self, args: transformers.TrainingArguments) -> Plan:
        """Return the number of windows, batches and updates; ValueError if there are none."""
        ...

    def batches(
        self, args: transformers.TrainingArguments, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """Yield this process's rows of an epoch's batches, after the first `skip` updates."""
        ...

    def digest(self) -> str | None:
        """Return a hash of the windows; None if they are not known before they are used."""
        ...

    def describe_labels_outside(self) -> str | None:
        """Return a sentence that counts the labels outside their windows; None: none are known."""
        ...


class WindowData:
    """A training set whose batches are built from windows.

    Raises:
        ValueError: the windows have no labels.
    """

    def __init__(self, windows: Windows):
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

    def plan(self, args: transformers.TrainingArguments) -> Plan:
        """See `TrainData`."""
        return Plan.from_args(args, len(self._windows), parallel.core_count())

    def batches(
        self, args: transformers.TrainingArguments, epoch: int, skip: int
    ) -> Iterator[HostBatch]:
        """See `TrainData`."""
        return train_batches(
            self._windows,
            parallel.core_count(),
            args.per_device_train_batch_size,
            data_seed_of(args),
            epoch,
            args.train_sampling_strategy,
            accumulation=args.gradient_accumulation_steps,
            drop_last=args.dataloader_drop_last,
            skip=skip,
            local_cores=parallel.process_cores(),
        )

    def digest(self) -> str:
        """See `TrainData`."""
        return checkpoints.windows_digest(self._windows)

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

    def digest(self) -> None:
        """See `TrainData`."""

    def describe_labels_outside(self) -> None:
        """See `TrainData`; `UpdateBatches` counts them when it has made an epoch's batches."""


def train_data(loader: Any, model: AutoModelForQuestionAnswering, takes_extras: bool) -> TrainData:
    """Choose how the batches of a loader are built: from windows, if that gives the same.

    Raises:
        ValueError: there are no windows, they have no labels, or several processes cannot share
            the loader.
    """
    windows = loader.windows() if isinstance(loader, Loader) else None
    return LoaderData(loader, model, takes_extras) if windows is None else WindowData(windows)


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
