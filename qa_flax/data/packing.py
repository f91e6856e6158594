"""Stage 3 of 7: several windows in each row (host, NumPy).

Windows have very different lengths, so rows that hold one window each are about half padding. A
packed row holds several windows one after the other. Each is a segment of the row with a number, 1
to S, in `segment_ids`; padding has 0. Positions restart in every segment, and tokens attend to
their own segment only, so each window has the logits that it has in a row of its own.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from qa_flax.data.batches import WIDTH_STEP, HostBatch, epoch_order, update_widths
from qa_flax.data.gold_spans import ALL_LABELS
from qa_flax.data.labels import required_lengths
from qa_flax.data.windows import Features, Windows

POOL = 1000
"""How many windows are packed together: more would hardly leave less padding."""
FEW_UPDATES, MOST_PADDING = 16, 1.15
"""With fewer updates in an epoch, all have the same number of rows if that adds at most 15% of
padding: compiling a second shape would take longer than computing it."""
NONE = -1
"""The window of an unused place in a row."""

Members = Int[np.ndarray, "rows s"]
"""The windows of some rows, in the order of their segments; `NONE` after the last one."""


class Packing(NamedTuple):
    """How windows are packed: rows of `width` tokens with at most `places` windows each."""

    width: int
    places: int


def packing_of(windows: Windows) -> Packing:
    """Return the rows that suit these windows: as wide as the longest window may be.

    In wider rows there is less padding (6% become 1% in rows of 768 tokens), but the attention of
    each token takes longer.
    """
    width = -(-windows.padded_length // WIDTH_STEP) * WIDTH_STEP
    mean = max(1.0, float(required_lengths(windows).mean())) if len(windows) else width
    return Packing(width, max(4, 2 * math.ceil(width / mean)))


def describe_obstacle(windows: Windows) -> str | None:
    """Return why windows cannot be packed; None if they can."""
    if windows.is_left_padded:
        return "the windows are padded on the left, where a token's position depends on the padding"
    if isinstance(windows, Features) and windows.extras:
        return "the rows have further arrays, for a loss function of one's own"
    return None


def pack(lengths: Int[np.ndarray, " n"], order: Int[np.ndarray, " m"], packing: Packing) -> Members:
    """Pack windows into few rows by best fit decreasing, in pools of about `POOL` windows.

    In each pool the longest window comes first, and each goes into the row with the least room that
    it fits into (Johnson 1973, "Near-optimal bin packing algorithms").

    Args:
        lengths: of all windows, in tokens; none is longer than a row.
        order: which windows to pack, in the order in which the pools take them.
        packing: the rows.

    Example:
        >>> pack(np.array([5, 3, 6, 2]), np.arange(4), Packing(8, 4)).tolist()
        [[2, 3, -1, -1], [0, 1, -1, -1]]
    """
    pools = np.array_split(order, max(1, math.ceil(len(order) / POOL)))
    rows = [row for pool in pools for row in _packed_pool(pool, lengths[pool], packing)]
    members = np.full((len(rows), packing.places), NONE, np.int64)
    for number, row in enumerate(rows):
        members[number, : len(row)] = row
    return members


def _packed_pool(pool: np.ndarray, lengths: np.ndarray, packing: Packing) -> list[list[int]]:
    by_length = np.argsort(-lengths, kind="stable")
    rows: list[list[int]] = []
    # The rows with so much room, and a set of the amounts of room that some row has, as bits.
    with_room: list[list[list[int]]] = [[] for _ in range(packing.width + 1)]
    rooms = 0
    pairs = zip(pool[by_length].tolist(), lengths[by_length].tolist(), strict=True)
    for window, length in pairs:
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = packing.width, []
            rows.append(row)
        row.append(window)
        room -= length
        if room and len(row) < packing.places:
            with_room[room].append(row)
            rooms |= 1 << room
    return rows


# ---- batches -------------------------------------------------------------------------------------


class RowCounts(NamedTuple):
    """How many rows a core's microbatch has in each update of an epoch: `few` or one more.

    A batch has as many windows as one without packing on average, so that an epoch has as many
    updates.
    """

    few: int
    updates: int
    more: int
    """How many of the updates have one row more."""

    def rows(self, update: int) -> int:
        """Return the rows of update 0, 1, ...; larger batches are spread over the epoch."""
        begins = (update * self.more // self.updates, (update + 1) * self.more // self.updates)
        return self.few + (begins[1] > begins[0])

    def room(self, per_update: int) -> int:
        """Return the rows of all updates, each of `per_update` microbatches on all cores."""
        return (self.few * self.updates + self.more) * per_update


def row_counts(rows: int, updates: int, per_update: int) -> RowCounts:
    """Distribute the rows of an epoch over its updates.

    Args:
        rows: the rows of the epoch.
        updates: the updates of an epoch.
        per_update: microbatches in an update, on all cores together.

    Example:
        >>> counts = row_counts(rows=85, updates=20, per_update=2)
        >>> [counts.rows(update) for update in range(20)]  # on each of 2 cores
        [2, 2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 2, 3]
    """
    few = max(1, rows // (updates * per_update))
    more = max(0, math.ceil((rows - few * updates * per_update) / per_update))
    largest = (few + 1) * updates * per_update
    if more == updates or (more and updates < FEW_UPDATES and largest <= MOST_PADDING * rows):
        few, more = few + 1, 0
    return RowCounts(few, updates, more)


class PackedEpoch(NamedTuple):
    """An epoch's packed rows in the order in which they are trained."""

    members: Members
    counts: RowCounts


def packed_epoch(
    windows: Windows,
    packing: Packing,
    cores: int,
    per_core: int,
    seed: int,
    epoch: int,
    *,
    accumulation: int = 1,
    drop_last: bool = False,
    counts: RowCounts | None = None,
) -> PackedEpoch:
    """Pack an epoch's windows; the result depends on these arguments alone.

    Args:
        windows: the full training set.
        packing: the rows.
        cores: number of cores of all processes.
        per_core: windows of a microbatch on each core, on average.
        seed: seed of the order.
        epoch: number of the epoch, from 0.
        accumulation: microbatches in an update.
        drop_last: drop as many windows as without packing.
        counts: the rows of its updates, if they have room for the windows; None: as many as are
            needed in as many updates as without packing.
    """
    microbatch = cores * per_core
    order = epoch_order(windows.lengths, microbatch * accumulation, seed, epoch)
    if drop_last:
        order = order[: len(order) // microbatch * microbatch]
    updates = math.ceil(math.ceil(len(order) / microbatch) / accumulation)
    members = pack(required_lengths(windows), order, packing)
    per_update = cores * accumulation
    if counts is None or counts.room(per_update) < len(members):
        updates = updates if counts is None else counts.updates
        counts = row_counts(len(members), updates, per_update)
    # Rows of a pool begin with its longest windows, so they are shuffled.
    shuffle = np.random.default_rng([seed, epoch, 1]).permutation(len(members))
    return PackedEpoch(members[shuffle], counts)


def unpacked_positions(windows: Windows, batch_size: int, seed: int, epoch: int) -> int:
    """Return the tokens, with padding, of an epoch of `train_batches` in random order.

    Args:
        windows: the full training set.
        batch_size: windows of an update.
        seed: seed of the order.
        epoch: number of the epoch, from 0.
    """
    return int(update_widths(windows, batch_size, seed, epoch).sum()) * batch_size


def packed_train_batches(
    windows: Windows,
    packing: Packing,
    packed: PackedEpoch,
    cores: int,
    accumulation: int = 1,
    skip: int = 0,
    local_cores: slice = slice(None),
) -> Iterator[HostBatch]:
    """Yield an epoch's batches with labels, one batch [D, A, B, ...] for each update.

    Args:
        windows: the full training set, with labels.
        packing: the rows.
        packed: of this epoch.
        cores: number of cores of all processes.
        accumulation: microbatches in an update (A).
        skip: updates of this epoch that a resumed run has already done.
        local_cores: which of the `cores` belong to this process; all by default.
    """
    lengths = windows.lengths
    shapes = [(accumulation, cores, packed.counts.rows(u)) for u in range(packed.counts.updates)]
    room = np.cumsum([0, *map(math.prod, shapes)])
    # Rows that remain without windows are spread over the updates, so that none is all padding.
    first = room * len(packed.members) // room[-1]
    for update in range(skip, len(shapes)):
        shape = shapes[update]
        members = packed.members[first[update] : first[update + 1]]
        of_batch = members[members != NONE]
        counts = (len(of_batch), int(lengths[of_batch].sum()), len(members) * packing.width)
        places = _padded(members, math.prod(shape)).reshape(*shape, -1).swapaxes(0, 1)
        yield _packed_batch(windows, packing, places[local_cores], counts, labels=True)


def packed_eval_rows(windows: Windows, packing: Packing) -> Members:
    """Pack the windows of an evaluation, in the order of the data."""
    return pack(required_lengths(windows), np.arange(len(windows)), packing)


def packed_eval_batches(
    windows: Windows,
    packing: Packing,
    members: Members,
    cores: int,
    rows: int,
    batches: int,
    null_positions: Int[np.ndarray, " n"] | int | None = None,
) -> Iterator[HostBatch]:
    """Yield batches [D, B, ...] that hold every window once.

    Args:
        windows: the windows of this process; there may be none.
        packing: the rows.
        members: their rows.
        cores: number of local cores (D).
        rows: rows on each core (B).
        batches: how many batches to yield, the same in every process. Batches beyond this process's
            rows have only padding.
        null_positions: see `eval_batches`.
    """
    lengths = windows.lengths
    labels = windows.start_positions is not None and windows.end_positions is not None
    for number in range(batches):
        part = members[number * cores * rows : (number + 1) * cores * rows]
        of_batch = part[part != NONE]
        counts = (len(of_batch), int(lengths[of_batch].sum()), len(part) * packing.width)
        places = _padded(part, cores * rows).reshape(cores, rows, -1)
        batch = _packed_batch(windows, packing, places, counts, labels=labels)
        begins = batch.begins
        if null_positions is not None and begins is not None:
            nulls = np.zeros(batch.rows.shape, np.int32)
            each = np.broadcast_to(np.int32(null_positions), len(windows))
            nulls[batch.valid] = each[batch.rows[batch.valid]] + begins[batch.valid]
            batch.arrays["null_positions"] = nulls
        yield batch


def _padded(members: Members, rows: int) -> np.ndarray:
    """Add rows without windows."""
    padding = np.full((rows - len(members), members.shape[1]), NONE, members.dtype)
    return np.concatenate([members, padding])


def _packed_batch(
    windows: Windows,
    packing: Packing,
    places: Int[np.ndarray, "*axes s"],
    counts: tuple[int, int, int],
    *,
    labels: bool,
) -> HostBatch:
    """Build the batch of some rows; `counts` are its windows, their tokens and its positions."""
    width, valid = packing.width, places != NONE
    flat, is_window = places.reshape(-1, packing.places), valid.reshape(-1, packing.places)
    members = flat[is_window]
    required = required_lengths(windows.select(members))
    taken = np.zeros(flat.shape, np.int32)
    taken[is_window] = required
    begins = np.cumsum(taken, axis=1, dtype=np.int32) - taken
    longest = int(required.max(initial=1))
    arrays = {
        name: np.zeros((len(flat), width), np.int32)
        for name in windows.inputs(slice(0, 0), longest)
    }
    segments = arrays["segment_ids"] = np.zeros((len(flat), width), np.int32)
    inputs = windows.inputs(members, longest)
    rows, numbers = np.nonzero(is_window)
    where = zip(rows, numbers, begins[is_window].tolist(), required.tolist(), strict=True)
    for window, (row, number, begin, length) in enumerate(where):
        for name, values in inputs.items():
            arrays[name][row, begin : begin + length] = values[window, :length]
        segments[row, begin : begin + length] = number + 1
    arrays = {name: array.reshape(*places.shape[:-1], width) for name, array in arrays.items()}
    begins = begins.reshape(places.shape)
    for name in ("start_positions", "end_positions") if labels else ():
        # A label outside its window is outside the row, so that it takes no part in the loss.
        positions = np.full(places.shape, width, np.int32)
        own = getattr(windows, name)[members]
        positions[valid] = np.where(
            own < windows.padded_length, np.maximum(own, 0) + begins[valid], width
        )
        arrays[name] = positions
    for name in ALL_LABELS if labels and windows.spans else ():
        spans = np.full((*places.shape, windows.spans), width, np.int32)
        own = getattr(windows, name)[members]
        inside = np.maximum(own, 0) + begins[valid][:, None]
        spans[valid] = np.where(own < windows.padded_length, inside, width)
        arrays[name] = spans
    arrays["valid"] = valid
    return HostBatch(places, valid, arrays, slice(0, width), *counts, begins)
