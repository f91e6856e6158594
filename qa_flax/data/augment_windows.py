"""Stage 2 of 7: windows of examples that are augmented anew in each epoch (host, NumPy).

Each epoch has as many windows of each example as the plain set, and as many that hold an answer, so
that it has as many updates. A context that has become longer may have more windows: some of them
are drawn. Where it has fewer, some are there twice. If no window holds the answer any more, the
example has its plain windows in this epoch. No window is longer than the widest batch of the plain
set, so that no step is compiled for another shape.
"""

import dataclasses
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, cast

import datasets
import numpy as np
from jaxtyping import Bool, Int

from qa_flax.data.augment import Augmenter
from qa_flax.data.batches import train_widths, width_for
from qa_flax.data.labels import holds_answer, required_lengths
from qa_flax.data.windows import LazyWindows

MakeWindows = Callable[[datasets.Dataset, int, int], LazyWindows]
"""(examples, max_seq_length, doc_stride) -> their windows with labels."""
Numbers = Int[np.ndarray, "_"]


class EpochWindows:
    """The windows of each epoch; those of the next one are made ahead, in a thread.

    Args:
        augmenter: makes the examples of each epoch.
        plain: the windows of the examples as they are, in their order.
        make: see `MakeWindows`. It is called in another thread, so it must have a tokenizer of its
            own.
        doc_stride: that of the plain windows.
    """

    def __init__(
        self, augmenter: Augmenter, plain: LazyWindows, make: MakeWindows, doc_stride: int
    ):
        self.augmenter, self._make = augmenter, make
        self.plain = cast(LazyWindows, plain.with_span_room(augmenter.most_answers))
        self._counts = np.bincount(plain.slices.example, minlength=len(augmenter))
        self._held = _held(plain)
        self._length = plain.padded_length
        if (self._counts <= 1).all():  # then any overlap gives the plain windows
            longest = int(required_lengths(plain).max(initial=1))
            self._length = width_for(train_widths(plain.padded_length), longest)
            doc_stride = min(doc_stride, self._length // 4)
        self._doc_stride = doc_stride
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="qa_flax augmentation")
        self._made: dict[tuple[int, float], Future[LazyWindows]] = {}

    def pad_to(self, length: int, spans: int) -> None:
        """Pad all windows to `length` tokens, and to as many gold spans, if they have all spans."""
        self.plain = cast(LazyWindows, self.plain.padded_to(length).with_span_room(spans))

    def windows(self, epoch: int, share: float = 1.0) -> LazyWindows:
        """Return the windows of an epoch, in the order of the plain ones.

        Args:
            epoch: its number, from 0.
            share: the share of the examples that are changed; the others are drawn.
        """
        if share <= 0:
            return self.plain
        made = self._begin(epoch, share)
        for other in [key for key in self._made if key[0] not in (epoch, epoch + 1)]:
            self._made.pop(other, None)
        return made.result()

    def begin(self, epoch: int) -> None:
        """Begin to make the windows of an epoch."""
        self._begin(epoch, 1.0)

    def _begin(self, epoch: int, share: float) -> "Future[LazyWindows]":
        key = epoch, share
        if key not in self._made:
            self._made[key] = self._threads.submit(self._windows, epoch, share)
        return self._made[key]

    def _windows(self, epoch: int, share: float) -> LazyWindows:
        plain = self.plain
        examples = self.augmenter.examples(epoch, self._unchanged(epoch, share))
        new = self._make(examples, self._length, self._doc_stride)
        new = new.padded_to(plain.padded_length)
        both = plain.joined([windows.to_arrays() for windows in (plain, new)])
        return both.select(self._rows(new, epoch))

    def _unchanged(self, epoch: int, share: float) -> Collection[int]:
        if share >= 1:
            return ()
        numbers = range(len(self.augmenter))
        return {n for n in numbers if self.augmenter.random(epoch, n, "share").random() >= share}

    def _rows(self, new: LazyWindows, epoch: int) -> Numbers:
        """Choose the windows of each example: among the plain ones, or the new ones after these."""
        counts = np.bincount(new.slices.example, minlength=len(self.augmenter))
        held = _held(new)
        ends = np.cumsum(self._counts), np.cumsum(counts)
        chosen = []
        for number, (count, end, of_new, new_end) in enumerate(
            zip(self._counts, ends[0], counts, ends[1], strict=True)
        ):
            plain, rows = np.arange(end - count, end), np.arange(new_end - of_new, new_end)
            wanted = int(self._held[plain].sum())
            if count == of_new and wanted == int(held[rows].sum()):
                chosen.append(len(self.plain) + rows)
            elif wanted and not held[rows].any():
                chosen.append(plain)
            else:
                rng = self.augmenter.random(epoch, number, "windows")
                picked = _pick(rows[held[rows]], rows[~held[rows]], wanted, int(count), rng)
                chosen.append(len(self.plain) + picked)
        return np.concatenate(chosen)


def _held(windows: LazyWindows) -> Bool[np.ndarray, " n"]:
    """Return whether each window holds an answer: the first, or any if all are labels."""
    starts, ends = windows.start_positions_all, windows.end_positions_all
    if starts is not None and ends is not None:
        changes = {"start_positions": starts[:, 0], "end_positions": ends[:, 0]}
        windows = dataclasses.replace(windows, **changes)
    held = holds_answer(windows)
    if held is None:
        raise ValueError("the windows have no labels")
    return held


def _pick(held: Numbers, free: Numbers, wanted: int, count: int, rng: Random) -> Numbers:
    """Draw `count` windows, `wanted` of them among those that hold an answer."""
    if not len(free):
        wanted = count
    elif not len(held):
        wanted = 0
    return np.sort(np.concatenate([_draw(held, wanted, rng), _draw(free, count - wanted, rng)]))


def _draw(rows: Numbers, count: int, rng: Random) -> Numbers:
    """Draw rows; each is drawn once before any is drawn twice."""
    drawn: list[Any] = []
    while len(drawn) < count:
        drawn += rng.sample(rows.tolist(), min(len(rows), count - len(drawn)))
    return np.array(drawn, np.int64)


def stride_of(windows: LazyWindows) -> int:
    """Return how many tokens neighbouring windows of a context share; 0 if none has several."""
    slices = windows.slices
    is_next = slices.example[1:] == slices.example[:-1]
    if not is_next.any():
        return 0
    first = int(np.flatnonzero(is_next)[0])
    starts, ends = slices.start, slices.start + slices.count
    lower, upper = sorted((first, first + 1), key=lambda n: (starts[n], ends[n]))
    return int(ends[lower] - starts[upper])
