"""The batches of the epochs of a training, built and copied to the cores ahead (host)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Self

from qa_flax.data.batches import HostBatch
from qa_flax.device.prefetch import Ready, prefetched

MakeBatches = Callable[[int, int], Iterator[HostBatch]]
"""(epoch, updates to skip) -> the batches of its remaining updates."""


class Epochs:
    """The batches of a training, epoch by epoch. The next epoch begins while one ends.

    It is a context manager, which ends its thread.

    Args:
        make_batches: see `MakeBatches`.
        prepare: starts to copy a batch to the cores.
        count: the number of epochs.
        is_ahead: whether batches are made in a thread of their own, ahead of their use. Those of a
            script's own loader are not: its code may not expect other threads, and a stream may
            wait for its next element.
    """

    def __init__(
        self,
        make_batches: MakeBatches,
        prepare: Callable[[HostBatch], Ready],
        count: int,
        *,
        is_ahead: bool,
    ):
        self._make_batches, self._prepare = make_batches, prepare
        self._count, self._is_ahead = count, is_ahead
        self._stack = ExitStack()
        self._next: tuple[int, int] | None = None  # with what `_entries` goes on
        self._entries: Iterator[Ready | None] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def batches(self, epoch: int, skip: int) -> Iterator[Ready]:
        """Yield the batches of an epoch, after the first `skip` updates."""
        if self._next != (epoch, skip):
            self._stack.close()
            entries = self._from(epoch, skip)
            if self._is_ahead:
                entries = self._stack.enter_context(prefetched(entries))
            self._entries = entries
        self._next = None  # until the epoch has been used up
        for entry in self._entries:
            if entry is None:
                self._next = (epoch + 1, 0)
                return
            yield entry

    def _from(self, epoch: int, skip: int) -> Iterator[Ready | None]:
        """Yield the batches of an epoch and of those after it, and None after each epoch."""
        for number in range(epoch, max(epoch + 1, self._count)):
            for batch in self._make_batches(number, skip if number == epoch else 0):
                yield self._prepare(batch)
            yield None
