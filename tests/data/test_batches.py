"""Batches: every row once, in an order that only (seed, epoch) decides, as wide as needed."""

import numpy as np
import pytest

from qa_flax.data.batches import (
    WIDTH_STEP,
    epoch_order,
    eval_batches,
    scatter,
    train_batches,
)
from qa_flax.data.windows import Features


def features(rng, n, tokens=192, left=False):
    lengths = rng.integers(5, tokens + 1, n)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int32)
    ids = np.arange(1, n + 1, dtype=np.int32)[:, None] * mask
    # A label is the window's last real token, so that cutting too much off would show.
    labels = (lengths - 1).astype(np.int32)
    if left:
        ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
        labels = np.full(n, tokens - 1, np.int32)
    return Features([f"q{i}" for i in range(n)], ids, mask, None, None, labels, labels)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize(("n", "parts"), [(1, 1), (7, 1), (32, 1), (129, 1), (7, 2), (129, 3)])
def test_every_window_is_trained_on_once_with_its_own_label(rng, n, parts, strategy, left):
    windows = features(rng, n, left=left)
    seen = []
    settings = {"seed": 3, "epoch": 0, "strategy": strategy, "accumulation": parts}
    batches = list(train_batches(windows, 4, 2, **settings))
    assert len(batches) == -(-n // (8 * parts))
    for batch in batches:
        assert batch.arrays["input_ids"].shape[:3] == (4, parts, 2)
        width = batch.arrays["input_ids"].shape[3]
        assert width % WIDTH_STEP == 0
        for place in map(tuple, np.argwhere(batch.valid)):
            row, arrays = batch.rows[place], batch.arrays
            seen.append(row)
            assert arrays["attention_mask"][place].sum() == windows.attention_mask[row].sum()
            assert arrays["input_ids"][place].max() == row + 1
            at = arrays["start_positions"][place]
            assert arrays["input_ids"][place][at] == row + 1
            assert at == (width - 1 if left else windows.attention_mask[row].sum() - 1)
    assert sorted(seen) == list(range(n))


def test_skipped_updates_are_those_that_would_have_come_first(rng):
    windows = features(rng, 50)
    every = list(train_batches(windows, 2, 3, seed=1, epoch=4, accumulation=2))
    for skip in (0, 1, 4, len(every)):
        rest = list(train_batches(windows, 2, 3, seed=1, epoch=4, accumulation=2, skip=skip))
        assert len(rest) == len(every) - skip
        for one, other in zip(rest, every[skip:], strict=True):
            for name, array in one.arrays.items():
                np.testing.assert_array_equal(array, other.arrays[name])


def test_the_parts_of_an_update_follow_one_another(rng):
    """The first part holds the first rows of the order, over all cores."""
    windows = features(rng, 24)
    settings = {"seed": 0, "epoch": 0, "strategy": "sequential"}
    (batch,) = train_batches(windows, 2, 4, accumulation=3, **settings)
    assert batch.rows.swapaxes(0, 1).reshape(-1).tolist() == list(range(24))


def test_dropping_the_last_leaves_out_what_fills_no_batch_of_all_cores(rng):
    windows = features(rng, 45)
    batches = list(train_batches(windows, 2, 4, 0, 0, accumulation=2, drop_last=True))
    assert [int(batch.valid.sum()) for batch in batches] == [16, 16, 8]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    for strategy in ("random", "group_by_length"):
        order = epoch_order(lengths, 16, 1, 2, strategy)
        np.testing.assert_array_equal(order, epoch_order(lengths, 16, 1, 2, strategy))
        assert (order != epoch_order(lengths, 16, 1, 3, strategy)).any()
        assert (order != epoch_order(lengths, 16, 2, 2, strategy)).any()
    np.testing.assert_array_equal(epoch_order(lengths, 16, 1, 2, "sequential"), np.arange(500))


def test_grouping_by_length_spends_less_on_padding(rng):
    lengths = rng.integers(20, 384, 2000)

    def padded(strategy):
        order = epoch_order(lengths, 16, 0, 0, strategy)
        return sum(lengths[order[i : i + 16]].max() * 16 for i in range(0, 2000, 16))

    assert padded("group_by_length") < 1.15 * lengths.sum() < 1.5 * lengths.sum()
    assert padded("random") > 1.5 * lengths.sum()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("n", "cores", "per_core"), [(1, 8, 4), (13, 8, 1), (50, 2, 3), (64, 8, 8)]
)
def test_scatter_restores_the_order_of_the_data(rng, n, cores, per_core, left):
    windows = features(rng, n, left=left)
    into = np.full(windows.input_ids.shape, np.nan)
    batches = list(eval_batches(windows, cores, per_core, null_positions=np.arange(n)))
    assert len(batches) == -(-n // (cores * per_core))
    for batch in batches:
        names = {"input_ids", "attention_mask", "start_positions", "end_positions", "valid"}
        assert set(batch.arrays) == names | {"null_positions"}
        scatter(batch, batch.arrays["input_ids"] * 10, into, fill=-1.0)
        at = batch.arrays["null_positions"] + batch.columns.start
        np.testing.assert_array_equal(at, batch.rows)
    # What no batch was wide enough to hold is padding, too; the trainer fills it beforehand.
    expected = np.where(windows.attention_mask > 0, windows.input_ids * 10, -1)
    np.testing.assert_array_equal(np.nan_to_num(into, nan=-1), expected)
