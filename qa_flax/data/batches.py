"""Stage 3 of 7: windows -> batches of fixed shapes, `[D, B, L]` or `[D, A, B, L]` (host, NumPy).

The order of an epoch is a pure function of (seed, epoch). Every row is used exactly once; rows
that only fill a batch up say so in `valid`. A batch is as wide as its longest window needs,
rounded up to one of a few widths, so that the step is compiled a few times and little is spent on
padding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from qa_flax.data.windows import Windows

WIDTH_STEP = 64
"""Batches are a multiple of this many tokens wide: 6 compiled shapes at 384."""


class HostBatch(NamedTuple):
    """This host's part of a batch: which windows, and the arrays [D, B, ...] of its D cores.

    To train, [D, A, B, ...]. What fills up is not `valid`.
    """

    rows: Int[np.ndarray, "*shape"]
    valid: Bool[np.ndarray, "*shape"]
    arrays: dict[str, np.ndarray]
    columns: slice  # of the windows' L
    windows: int  # of the whole batch, on all hosts; to evaluate, on this one
    tokens: int  # real ones, of these windows


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
    local_cores: slice = slice(None),
) -> Iterator[HostBatch]:
    """An epoch's batches, with labels: one for each update, of `accumulation` parts [D, A, B, ...].

    Every process has all windows and computes the same order, but builds only the rows of its own
    cores, `local_cores` of all `cores`. The last batch may hold fewer valid rows; with `drop_last`
    it is left out unless its rows fill `per_core` on every core. `skip` is the number of updates
    that a resumed run has already done.
    """
    lengths = windows.lengths
    part = cores * per_core
    order = epoch_order(lengths, part * accumulation, seed, epoch, strategy)
    if drop_last:
        order = order[: len(order) // part * part]
    shape = (cores, accumulation, per_core)
    # The parts follow one another in the order, each divided over the cores.
    place = np.arange(math.prod(shape)).reshape(accumulation, cores, per_core).swapaxes(0, 1)
    for first in range(skip * place.size, len(order), place.size):
        rows = order[first : first + place.size]
        width, tokens = _width(windows, lengths[rows]), int(lengths[rows].sum())
        chosen, valid = _pad_rows(rows, place.size)
        local_places = place[local_cores]
        yield _batch(
            windows, chosen[local_places], valid[local_places], width, (len(rows), tokens), True
        )


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
    widths: Sequence[int] | None = None,
) -> Iterator[HostBatch]:
    """Every window once, longest first, so that a batch's rows are of like length.

    `rows` says where each row belongs: `scatter` by it and the order of the data is restored.
    Labels are in the arrays where the windows have some; `null_positions`, if given, are in them as
    columns of the batch, below 0 or beyond where the token was cut off as padding.

    `widths` are what all hosts have agreed on, if there are several: this one's own `eval_widths`
    or more, for hosts compute the same shapes equally often. Where its windows have come to an end
    (or it has none) nothing in a batch is valid.
    """
    lengths = windows.lengths
    order = np.argsort(-lengths, kind="stable")
    labels = windows.start_positions is not None and windows.end_positions is not None
    shape = (cores, per_core)
    for i, width in enumerate(eval_widths(windows, cores, per_core) if widths is None else widths):
        rows = order[i * cores * per_core : (i + 1) * cores * per_core]
        counted = len(rows), int(lengths[rows].sum())
        chosen, valid = _pad_rows(rows, cores * per_core)
        batch = _batch(windows, chosen.reshape(shape), valid.reshape(shape), width, counted, labels)
        if null_positions is not None:
            at = np.broadcast_to(np.int32(null_positions), max(1, len(windows)))[batch.rows]
            batch.arrays["null_positions"] = at - np.int32(batch.columns.start)
        yield batch


def eval_widths(windows: Windows, cores: int, per_core: int) -> list[int]:
    """How wide the batches are that `eval_batches` makes of these windows."""
    lengths = np.sort(windows.lengths)[::-1]
    longest = lengths[:: cores * per_core]
    return [_width(windows, longest[i : i + 1]) for i in range(len(longest))]


def scatter(batch: HostBatch, values: np.ndarray, into: np.ndarray, fill: float) -> None:
    """Put a batch's `values` [D, B, l] in their places in `into` [N, L]; padding gets `fill`."""
    rows = batch.rows[batch.valid]
    real = batch.arrays["attention_mask"][batch.valid] > 0
    into[rows, batch.columns] = np.where(real, values[batch.valid], fill)


def _width(windows: Windows, lengths: Int[np.ndarray, " m"]) -> int:
    return min(windows.padded_length, -(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP)


def _pad_rows(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`size` rows, and which of them are valid.

    Rows that fill up repeat the first one: real tokens, no NaN from an empty attention row.
    """
    filler = np.full(size - len(rows), rows[0] if len(rows) else 0, rows.dtype)
    return np.concatenate([rows, filler]), np.arange(size) < len(rows)


def _batch(
    windows: Windows,
    rows: np.ndarray,
    valid: np.ndarray,
    width: int,
    counted: tuple[int, int],
    labels: bool,
) -> HostBatch:
    columns, shape = windows.columns(width), rows.shape
    if len(windows):
        arrays = windows.inputs(rows.reshape(-1), width)
    else:  # one token in every row, of which nobody asks
        names = windows.inputs(slice(0), width)
        arrays = {name: np.zeros((rows.size, width), np.int32) for name in names}
        arrays["attention_mask"][:, 0] = 1
    for name in ("start_positions", "end_positions") if labels else ():
        given = getattr(windows, name) if len(windows) else np.zeros(1, np.int32)
        arrays[name] = given[rows.reshape(-1)] - np.int32(columns.start)
    arrays = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
    return HostBatch(rows, valid, arrays | {"valid": valid}, columns, *counted)
