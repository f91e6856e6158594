"""Stage 3 of 7: windows -> batches of fixed shapes, `[D, B, L]` or `[D, A, B, L]` (host, NumPy).

The order of an epoch is a pure function of (seed, epoch). Every row is used exactly once; rows
that only fill a batch up say so in `valid`. A batch is as wide as its longest window needs,
rounded up to one of a few widths, so that the step is compiled a few times and little is spent on
padding.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from qa_flax.windows import Windows

WIDTH_STEP = 64
"""Batches are a multiple of this many tokens wide: 6 compiled shapes at 384."""


class HostBatch(NamedTuple):
    """One global batch: which `rows` and `columns` of the windows, and the `arrays` [D, B, ...].

    To train, [D, A, B, ...].
    """

    rows: Int[np.ndarray, "*shape"]
    valid: Bool[np.ndarray, "*shape"]
    arrays: dict[str, np.ndarray]
    columns: slice


def epoch_order(
    lengths: Int[np.ndarray, " n"], batch_size: int, seed: int, epoch: int, strategy: str = "random"
) -> Int[np.ndarray, " n"]:
    """The order of an epoch's windows; `lengths` are their real tokens.

    `random` is a permutation, `sequential` the order of the data. `group_by_length` sorts a
    permutation by length inside large groups of batches (50 batches, or a quarter of the data),
    then shuffles the batches: rows of one batch are of like length, and long batches do not come
    first.
    """
    rng = np.random.default_rng([seed, epoch])
    n = len(lengths)
    if strategy == "sequential":
        return np.arange(n)
    order = rng.permutation(n)
    if strategy == "random":
        return order
    group = batch_size * max(1, min(50, n // (4 * batch_size)))
    order = np.concatenate(
        [
            part[np.argsort(-lengths[part], kind="stable")]
            for part in (order[i : i + group] for i in range(0, n, group))
        ]
    )
    batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]
    # Only whole batches change place: a short one in the middle would shift all that follow.
    whole = len(batches) - (n % batch_size > 0)
    return np.concatenate([batches[i] for i in rng.permutation(whole)] + batches[whole:])


def train_batches(
    windows: Windows,
    cores: int,
    per_core: int,
    seed: int,
    epoch: int,
    strategy: str = "random",
    *,
    accumulation: int = 1,
    drop_last: bool = False,
    skip: int = 0,
) -> Iterator[HostBatch]:
    """An epoch's batches, with labels: one for each update, of `accumulation` parts [D, A, B, ...].

    The last one may hold fewer valid rows; with `drop_last` the rows that do not fill all cores'
    `per_core` are left out. `skip` leaves out the first updates, of which a resumed run knows.
    """
    lengths = windows.counts
    part = cores * per_core
    order = epoch_order(lengths, part * accumulation, seed, epoch, strategy)
    if drop_last:
        order = order[: len(order) // part * part]
    order = order[skip * part * accumulation :]
    yield from _in_order(windows, order, lengths, (cores, accumulation, per_core), labels=True)


class Loader:
    """What callbacks know as a data loader: can be gone through again, and has a length."""

    def __init__(self, batches: Callable[[], Iterable[HostBatch]], count: int):
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (batch.arrays for batch in self._batches())


def eval_batches(
    windows: Windows,
    cores: int,
    per_core: int,
    null_positions: Int[np.ndarray, " n"] | int | None = None,
) -> Iterator[HostBatch]:
    """Every window once, longest first, so that a batch's rows are of like length.

    `rows` says where each row belongs: `scatter` by it and the order of the data is restored.
    Labels are in the arrays where the windows have some; `null_positions`, if given, are in them as
    columns of the batch, below 0 or beyond where the token was cut off as padding.
    """
    lengths = windows.counts
    order = np.argsort(-lengths, kind="stable")
    labels = windows.start_positions is not None and windows.end_positions is not None
    for batch in _in_order(windows, order, lengths, (cores, per_core), labels):
        if null_positions is not None:
            at = np.broadcast_to(np.int32(null_positions), len(windows))[batch.rows]
            batch.arrays["null_positions"] = at - np.int32(batch.columns.start)
        yield batch


def batch_count(windows: int, cores: int, per_core: int) -> int:
    """How many batches `eval_batches` yields."""
    return -(-windows // (cores * per_core))


def scatter(batch: HostBatch, values: np.ndarray, into: np.ndarray, fill: float) -> None:
    """Put a batch's `values` [D, B, l] in their places in `into` [N, L]; padding gets `fill`."""
    rows = batch.rows[batch.valid]
    real = batch.arrays["attention_mask"][batch.valid] > 0
    into[rows, batch.columns] = np.where(real, values[batch.valid], fill)


def _in_order(
    windows: Windows,
    order: Int[np.ndarray, " m"],
    lengths: Int[np.ndarray, " n"],
    shape: tuple[int, ...],
    labels: bool,
) -> Iterator[HostBatch]:
    """Batches of `shape`, [D, B] or [D, A, B]; of the latter the parts A follow one another."""
    size = math.prod(shape)
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        width = min(windows.length, -(-int(lengths[rows].max()) // WIDTH_STEP) * WIDTH_STEP)
        columns = windows.columns(width)
        # Rows that fill up repeat the first one: real tokens, no NaN from an empty attention row.
        valid = np.arange(size) < len(rows)
        rows = np.concatenate([rows, np.full(size - len(rows), rows[0])])
        if len(shape) == 3:
            cores, parts, per_core = shape
            place = np.arange(size).reshape(parts, cores, per_core).swapaxes(0, 1).reshape(-1)
            rows, valid = rows[place], valid[place]
        arrays = windows.inputs(rows, width)
        for name in ("start_positions", "end_positions") if labels else ():
            arrays[name] = getattr(windows, name)[rows] - columns.start
        arrays |= {"rows": rows, "valid": valid}
        arrays = {n: a.reshape(*shape, *a.shape[1:]) for n, a in arrays.items()}
        yield HostBatch(arrays.pop("rows"), arrays["valid"], arrays, columns)
