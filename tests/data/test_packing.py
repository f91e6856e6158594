"""Packed rows hold every window once, in little space, and depend on seed and epoch alone."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
import tiny

from qa_flax.data.batches import eval_batches, scatter, train_batches
from qa_flax.data.features import make_windows
from qa_flax.data.labels import required_lengths
from qa_flax.data.packing import (
    NONE,
    Packing,
    describe_obstacle,
    pack,
    packed_epoch,
    packed_eval_batches,
    packed_eval_rows,
    packed_train_batches,
    packing_of,
    row_counts,
)


def windows(stride=16, side="right"):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    lengths = {"max_seq_length": 96, "doc_stride": stride}
    return make_windows(tiny.examples(), tokenizer, labels=True, disable_tqdm=True, **lengths)


def squad_lengths(rng, count):
    """Lengths as of SQuAD's windows of 384 tokens: a mean of about 190, some full ones."""
    return np.minimum(384, rng.lognormal(5.15, 0.4, count)).astype(np.int64)


@pytest.mark.parametrize("places", [1, 2, 4, 16])
def test_every_window_is_in_one_row_that_it_fits_into(rng, places):
    lengths = rng.integers(1, 385, 2345)
    order = rng.permutation(2345)[:2100]
    rows = pack(lengths, order, Packing(384, places))
    of_rows = [row[row != NONE] for row in rows]
    assert sorted(itertools.chain.from_iterable(of_rows)) == sorted(order)
    assert all(lengths[row].sum() <= 384 for row in of_rows)
    # The places of a row are filled from the first one on.
    assert ((rows[:, 1:] == NONE) | (rows[:, :-1] != NONE)).all()
    if places == 1:
        assert len(rows) == 2100


def test_rows_are_those_of_best_fit_decreasing(rng):
    lengths = rng.integers(20, 200, 300)
    rows: list[list[int]] = []
    for window in np.argsort(-lengths, kind="stable").tolist():
        rooms = [200 - lengths[row].sum() for row in rows]
        fitting = [(room, n) for n, room in enumerate(rooms) if room >= lengths[window]]
        if fitting:
            rows[min(fitting)[1]].append(window)
        else:
            rows.append([window])
    packed = pack(lengths, np.arange(300), Packing(200, 99))
    assert len(packed) == len(rows)
    # Of rows with equal room any may be taken, so only the amounts of room are compared.
    rooms = sorted(int(200 - lengths[row[row != NONE]].sum()) for row in packed)
    assert rooms == sorted(int(200 - lengths[row].sum()) for row in rows)


def test_a_hundred_thousand_windows_are_packed_in_half_a_second(rng):
    lengths = squad_lengths(rng, 100_000)
    order = rng.permutation(100_000)
    times = []
    for _ in range(3):
        began = time.thread_time()
        rows = pack(lengths, order, Packing(384, 4))
        times.append(time.thread_time() - began)
    assert min(times) < 0.5
    assert lengths.sum() / rows.shape[0] / 384 > 0.93


def test_few_updates_all_have_the_same_number_of_rows():
    """A second shape would be compiled for them."""

    def rows_of(rows, updates, per_update):
        counts = row_counts(rows, updates, per_update)
        return [counts.rows(update) for update in range(updates)]

    assert rows_of(68, 8, 1) == [9] * 8
    assert rows_of(64, 8, 1) == [8] * 8
    assert sorted(rows_of(136, 16, 1)) == [8] * 8 + [9] * 8
    assert rows_of(17, 4, 2) == [2, 2, 2, 3]  # a row more would be a third more


@pytest.mark.parametrize(
    ("rows", "updates", "per_update"), [(85, 20, 2), (80, 20, 2), (540, 62, 1), (79, 40, 1)]
)
def test_updates_have_one_of_two_numbers_of_rows(rows, updates, per_update):
    counts = row_counts(rows, updates, per_update)
    each = [counts.rows(update) for update in range(updates)]
    assert max(each) - min(each) <= 1
    assert rows <= sum(each) * per_update < rows + per_update
    # Larger batches are not all in one part of the epoch.
    ends = np.cumsum(each) - np.arange(1, updates + 1) * np.mean(each)
    assert np.abs(ends).max() <= 1


@pytest.mark.parametrize("per_core", [2, 3, 8])
@pytest.mark.parametrize(("cores", "accumulation"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_window_once_in_as_many_updates(
    per_core, cores, accumulation, drop_last
):
    part = windows()
    packing = packing_of(part)
    unpacked = list(
        train_batches(part, cores, per_core, 7, 3, accumulation=accumulation, drop_last=drop_last)
    )
    packed = packed_epoch(
        part, packing, cores, per_core, 7, 3, accumulation=accumulation, drop_last=drop_last
    )
    batches = list(packed_train_batches(part, packing, packed, cores, accumulation))
    assert len(batches) == len(unpacked)
    assert all(batch.valid.any() for batch in batches)
    seen = np.concatenate([batch.rows[batch.valid] for batch in batches])
    assert sorted(seen) == sorted(np.concatenate([b.rows[b.valid] for b in unpacked]))
    assert sum(batch.windows for batch in batches) == len(seen)
    assert sum(batch.tokens for batch in batches) == part.lengths[seen].sum()
    shapes = {batch.arrays["input_ids"].shape for batch in batches}
    assert len(shapes) <= 2
    assert all(shape[:2] == (cores, accumulation) for shape in shapes)


def test_batches_are_those_of_seed_and_epoch_also_after_a_resume_and_in_each_process():
    part = windows()
    packing = packing_of(part)

    def batches(seed, epoch, **options):
        packed = packed_epoch(part, packing, 4, 2, seed, epoch)
        return list(packed_train_batches(part, packing, packed, 4, **options))

    whole = batches(1, 0)
    for first, second in zip(whole, batches(1, 0), strict=True):
        np.testing.assert_array_equal(first.rows, second.rows)
    assert any(
        a.rows.shape != b.rows.shape or (a.rows != b.rows).any()
        for a, b in zip(whole, batches(1, 1), strict=True)
    )
    for resumed, batch in zip(batches(1, 0, skip=2), whole[2:], strict=True):
        np.testing.assert_array_equal(resumed.arrays["input_ids"], batch.arrays["input_ids"])
    for half, batch in zip(batches(1, 0, local_cores=slice(2, 4)), whole, strict=True):
        for name, array in half.arrays.items():
            np.testing.assert_array_equal(array, batch.arrays[name][2:])
        assert (half.windows, half.tokens) == (batch.windows, batch.tokens)


def test_rows_hold_the_windows_tokens_numbers_and_labels():
    part = windows()
    packing = packing_of(part)
    packed = packed_epoch(part, packing, 1, 4, 0, 0)
    whole = part.features()
    seen = 0
    for batch in packed_train_batches(part, packing, packed, 1):
        arrays, begins = batch.arrays, batch.begins
        for place in zip(*np.nonzero(batch.valid), strict=True):
            window, begin, row = batch.rows[place], begins[place], place[:-1]
            length = part.lengths[window]
            segment = arrays["segment_ids"][row] == place[-1] + 1
            assert np.flatnonzero(segment).tolist() == list(range(begin, begin + length))
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                expected = getattr(whole, name)[window, :length]
                np.testing.assert_array_equal(arrays[name][row][segment], expected)
            for name in ("start_positions", "end_positions"):
                assert arrays[name][place] - begin == getattr(part, name)[window]
            seen += 1
        unused = arrays["segment_ids"] == 0
        assert not arrays["attention_mask"][unused].any()
        assert (arrays["start_positions"][~batch.valid] == packing.width).all()
    assert seen == len(part)


def test_labels_outside_and_on_padding_are_where_they_are_without_packing():
    part = windows().features()
    starts, ends = part.start_positions.copy(), part.end_positions.copy()
    starts[:4], ends[:4] = [-3, 96, 2000, part.lengths[3] + 5], [-1, 500, 3, part.lengths[3] + 8]
    part = dataclasses.replace(part, start_positions=starts, end_positions=ends)
    assert required_lengths(part)[3] == part.lengths[3] + 9
    packing = packing_of(part)
    (batch,) = packed_eval_batches(part, packing, packed_eval_rows(part, packing), 1, 99, 1)
    at = {int(batch.rows[place]): place for place in zip(*np.nonzero(batch.valid), strict=True)}
    arrays, begin = batch.arrays, {window: batch.begins[at[window]] for window in range(4)}
    labels = [
        (arrays["start_positions"][at[n]] - begin[n], arrays["end_positions"][at[n]] - begin[n])
        for n in range(4)
    ]
    assert labels[0] == (0, 0)
    assert [arrays["start_positions"][at[n]] for n in (1, 2)] == [packing.width] * 2
    assert labels[2][1] == 3
    assert labels[3] == (part.lengths[3] + 5, part.lengths[3] + 8)


def test_scatter_puts_values_back_where_the_windows_have_them(rng):
    part = windows()
    packing = packing_of(part)
    rows = packed_eval_rows(part, packing)
    values = rng.normal(size=(len(part), part.padded_length)).astype(np.float32)
    result = np.full_like(values, -9)
    for batch in packed_eval_batches(part, packing, rows, 2, 3, -(-len(rows) // 6)):
        of_rows = np.zeros(batch.arrays["input_ids"].shape, np.float32)
        for place in zip(*np.nonzero(batch.valid), strict=True):
            begin, length = batch.begins[place], part.lengths[batch.rows[place]]
            of_rows[place[:-1]][begin : begin + length] = values[batch.rows[place], :length]
        scatter(batch, of_rows, result, -9)
    is_token = np.arange(part.padded_length) < part.lengths[:, None]
    np.testing.assert_array_equal(result, np.where(is_token, values, -9))
    assert sum(batch.windows for batch in eval_batches(part, 2, 3)) == len(part)


def test_left_padded_windows_are_not_packed():
    assert describe_obstacle(windows()) is None
    assert "padded on the left" in describe_obstacle(windows(side="left"))
