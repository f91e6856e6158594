"""Stage 3 of 7: windows -> batches of fixed shapes (host, NumPy).

Arrays are `[D, B, L]` in evaluation and `[D, A, B, L]` in training. D is the number of this
process's cores, A the number of gradient accumulation steps, B the rows per core and L the tokens
per row. An epoch uses every window exactly once, unless `drop_last` is set. Its order depends only
on the arguments of `epoch_order`, so it is the same in every process and in a resumed run. `valid`
is False for padding rows. A batch is as wide as its longest window, rounded up to one of the few
widths of `train_widths` or `eval_width_steps`: compiling a program for another width can take
minutes. A window with a label on its padding counts as long enough to contain the label.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from qa_flax.data.gold_spans import ALL_LABELS
from qa_flax.data.labels import required_lengths
from qa_flax.data.windows import Features, Windows

WIDTH_STEP = 64
"""Batch widths, except the widest, are multiples of this many tokens."""
EVAL_POOL = 2048
"""How many windows of an evaluation are sorted by length together."""


def train_widths(padded_length: int) -> list[int]:
    """Return the widths in tokens that batches of training windows may have, at most 2.

    They are the padded length and about half of it.

    Args:
        padded_length: the tokens of the longest window that is possible, `max_seq_length`.

    Example:
        >>> train_widths(384)
        [192, 384]
    """
    return _width_steps(padded_length, (1, 2))


def eval_width_steps(padded_length: int) -> list[int]:
    """Return the widths in tokens that batches of an evaluation may have, at most 3.

    They are the padded length and about two thirds and half of it: windows of questions are seldom
    shorter. On SQuAD-like data 6% more positions are computed than with all multiples of 64.

    Args:
        padded_length: as in `train_widths`.

    Example:
        >>> eval_width_steps(384)
        [192, 256, 384]
    """
    return _width_steps(padded_length, (1, 2), (2, 3))


def _width_steps(padded_length: int, *fractions: tuple[int, int]) -> list[int]:
    parts = {-(-padded_length * up // (down * WIDTH_STEP)) * WIDTH_STEP for up, down in fractions}
    return sorted({width for width in parts if width < padded_length} | {padded_length})


class HostBatch(NamedTuple):
    """One process's rows of a batch, in host memory.

    Arrays are [D, B, ...] in evaluation and [D, A, B, ...] in training. Where several windows are
    packed into a row (`packing.py`), `rows`, `valid` and the labels have an axis of the row's
    places in addition.
    """

    rows: Int[np.ndarray, "*shape"]  # index of each row's window
    valid: Bool[np.ndarray, "*shape"]  # False for padding rows
    arrays: dict[str, np.ndarray]  # inputs of the training or evaluation step
    columns: slice  # which of the windows' L columns the batch holds
    windows: int  # of all processes in training, of this process in evaluation
    tokens: int  # tokens of these windows, without padding
    positions: int  # tokens of the rows of these windows, with padding
    begins: Int[np.ndarray, "*shape"] | None = None  # packed: first column of each window
    is_extra: bool = False  # whether it is of the training set beside the own one


def epoch_order(
    lengths: Int[np.ndarray, " n"], batch_size: int, seed: int, epoch: int, strategy: str = "random"
) -> Int[np.ndarray, " n"]:
    """Return the order of an epoch's windows, as indices.

    Args:
        lengths: tokens of each window, without padding.
        batch_size: windows per update.
        seed: seed of the order; each (seed, epoch) has its own order.
        epoch: number of the epoch, from 0.
        strategy: transformers' `train_sampling_strategy`. "random" shuffles the windows.
            "sequential" keeps the order of the data. "group_by_length" shuffles the windows, sorts
            them by length inside groups of 50 batches (or of a quarter of the data, if that is
            less), then shuffles the batches: the rows of a batch have similar lengths, and long
            batches do not all come first.
    """
    rng = np.random.default_rng([seed, epoch])
    n = len(lengths)
    if strategy == "sequential":
        return np.arange(n)
    order = rng.permutation(n)
    if strategy == "random":
        return order
    group_size = batch_size * max(1, min(50, n // (4 * batch_size)))
    order = np.concatenate(
        [
            group[np.argsort(-lengths[group], kind="stable")]
            for group in (order[i : i + group_size] for i in range(0, n, group_size))
        ]
    )
    batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]
    # Only full batches are shuffled: a partial one in the middle would shift all later batches.
    full_count = len(batches) - (n % batch_size > 0)
    shuffled = [batches[i] for i in rng.permutation(full_count)]
    return np.concatenate(shuffled + batches[full_count:])


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
    """Yield an epoch's batches with labels, one batch [D, A, B, ...] for each update.

    Each process holds all windows and computes the same epoch order, but builds only the rows of
    its local cores.

    Args:
        windows: the full training set, with labels.
        cores: number of cores of all processes.
        per_core: rows of a microbatch on each core (B).
        seed: seed of the epoch order.
        epoch: number of the epoch, from 0.
        strategy: order of the windows, see `epoch_order`.
        accumulation: microbatches in an update (A).
        drop_last: drop the last windows of the epoch if they do not fill a microbatch of
            `cores * per_core` rows. In either case padding rows complete the last batch.
        skip: updates of this epoch that a resumed run has already done.
        local_cores: which of the `cores` belong to this process; all by default.
    """
    lengths, required = windows.lengths, required_lengths(windows)
    widths = train_widths(windows.padded_length)
    microbatch = cores * per_core
    order = epoch_order(lengths, microbatch * accumulation, seed, epoch, strategy)
    if drop_last:
        order = order[: len(order) // microbatch * microbatch]
    shape = (cores, accumulation, per_core)
    # Microbatches are consecutive in the order, and each is split over the cores.
    position = np.arange(math.prod(shape)).reshape(accumulation, cores, per_core).swapaxes(0, 1)
    local_position = position[local_cores]
    for first in range(skip * position.size, len(order), position.size):
        rows = order[first : first + position.size]
        width, tokens = width_for(widths, int(required[rows].max())), int(lengths[rows].sum())
        padded, valid = _pad_rows(rows, position.size)
        counts = len(rows), tokens, len(rows) * width
        yield _batch(windows, padded[local_position], valid[local_position], width, counts, True)


def update_widths(
    windows: Windows, batch_size: int, seed: int, epoch: int, strategy: str = "random"
) -> Int[np.ndarray, " u"]:
    """Return the width in tokens of the batch of each update of `train_batches`.

    Args:
        windows: the full training set, with labels.
        batch_size: windows of an update.
        seed, epoch, strategy: of the order, see `epoch_order`.
    """
    required = required_lengths(windows)[
        epoch_order(windows.lengths, batch_size, seed, epoch, strategy)
    ]
    longest = np.maximum.reduceat(required, np.arange(0, len(required), batch_size))
    widths = np.array(train_widths(windows.padded_length))
    return widths[np.searchsorted(widths, longest)]


def eval_batches(
    windows: Windows,
    cores: int,
    per_core: int,
    null_positions: Int[np.ndarray, " n"] | int | None = None,
    widths: Sequence[int] | None = None,
) -> Iterator[HostBatch]:
    """Yield batches [D, B, ...] that hold every window once.

    Windows are sorted by length in pools of about `EVAL_POOL`, which gives the rows of a batch
    similar lengths; `scatter` restores the order of the data. The first questions are complete
    after the first pools. The arrays include the labels if the windows have any.

    Args:
        windows: the windows of this process; there may be none.
        cores: number of local cores (D).
        per_core: rows on each core (B).
        null_positions: int [N], or one for all windows: the token whose logits score "no answer".
            If given, the arrays include it as a column of the batch. It is below 0 or beyond the
            batch's last column if that token was removed together with the padding.
        widths: tokens per row of each batch; by default `eval_widths`. Several processes must run
            steps of the same shapes, so all of them pass the same list: for each batch the largest
            width that any process needs. Batches beyond this process's windows have only padding
            rows.
    """
    lengths = windows.lengths
    order = _eval_order(windows, cores * per_core)
    labels = windows.start_positions is not None and windows.end_positions is not None
    shape = (cores, per_core)
    for i, width in enumerate(eval_widths(windows, cores, per_core) if widths is None else widths):
        rows = order[i * cores * per_core : (i + 1) * cores * per_core]
        counts = len(rows), int(lengths[rows].sum()), len(rows) * width
        padded, valid = _pad_rows(rows, cores * per_core)
        batch = _batch(windows, padded.reshape(shape), valid.reshape(shape), width, counts, labels)
        if null_positions is not None:
            positions = np.broadcast_to(np.int32(null_positions), max(1, len(windows)))[batch.rows]
            batch.arrays["null_positions"] = positions - np.int32(batch.columns.start)
        yield batch


def eval_widths(windows: Windows, cores: int, per_core: int) -> list[int]:
    """Return the width in tokens of each batch that `eval_batches` yields for these windows."""
    size = cores * per_core
    longest = required_lengths(windows)[_eval_order(windows, size)][::size]
    widths = eval_width_steps(windows.padded_length)
    return [width_for(widths, length) for length in longest.tolist()]


def _eval_order(windows: Windows, batch_size: int) -> Int[np.ndarray, " n"]:
    """The order of an evaluation: pools of windows in the order of the data, each longest first."""
    lengths = required_lengths(windows)
    pool = max(1, EVAL_POOL // batch_size) * batch_size  # only the last batch may be partial
    parts = [
        first + np.argsort(-lengths[first : first + pool], kind="stable")
        for first in range(0, len(lengths), pool)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.intp)


def scatter(batch: HostBatch, values: np.ndarray, into: np.ndarray, fill: float) -> None:
    """Write a batch's values to the rows of its windows.

    Args:
        batch: a batch of `eval_batches` or `packed_eval_batches`.
        values: [D, B, l], one value for each token of the batch.
        into: [N, L], changed in place. Columns that the batch does not hold are left unchanged.
        fill: the value for the padding tokens that the batch holds; packed rows hold none.
    """
    mask = batch.arrays["attention_mask"]
    if batch.begins is None:
        rows, is_token = batch.rows[batch.valid], mask[batch.valid] > 0
        into[rows, batch.columns] = np.where(is_token, values[batch.valid], fill)
        return
    core, row, column = np.nonzero((batch.arrays["segment_ids"] > 0) & (mask > 0))
    place = batch.arrays["segment_ids"][core, row, column] - 1
    into[batch.rows[core, row, place], column - batch.begins[core, row, place]] = values[
        core, row, column
    ]


def width_for(widths: Sequence[int], length: int) -> int:
    """Return the least of the ascending `widths` that is enough for `length` tokens."""
    return widths[bisect.bisect_left(widths, length)]


def _pad_rows(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad `rows` to `size`, and return which rows are valid."""
    # Padding rows repeat a real window: an all-zero attention mask would give NaN.
    padding = np.full(size - len(rows), rows[0] if len(rows) else 0, rows.dtype)
    return np.concatenate([rows, padding]), np.arange(size) < len(rows)


def _batch(
    windows: Windows,
    rows: np.ndarray,
    valid: np.ndarray,
    width: int,
    counts: tuple[int, int, int],
    labels: bool,
) -> HostBatch:
    """Build the batch of rows of any shape; `counts` are its windows, tokens and positions."""
    columns, shape = windows.columns(width), rows.shape
    if len(windows):
        arrays = windows.inputs(rows.reshape(-1), width)
    else:  # Only padding rows. They hold one token: an all-zero attention mask would give NaN.
        names = windows.inputs(slice(0), width)
        arrays = {name: np.zeros((rows.size, width), np.int32) for name in names}
        arrays["attention_mask"][:, 0] = 1
    for name in ("start_positions", "end_positions") if labels else ():
        positions = getattr(windows, name) if len(windows) else np.zeros(1, np.int32)
        arrays[name] = positions[rows.reshape(-1)] - np.int32(columns.start)
    for name in ALL_LABELS if labels and windows.spans else ():
        spans = getattr(windows, name) if len(windows) else np.zeros((1, windows.spans), np.int32)
        arrays[name] = spans[rows.reshape(-1)] - np.int32(columns.start)
    extras = (windows.extras or {}) if isinstance(windows, Features) else {}
    arrays |= {name: array[rows.reshape(-1)] for name, array in extras.items()}
    arrays = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
    return HostBatch(rows, valid, arrays | {"valid": valid}, columns, *counts)
