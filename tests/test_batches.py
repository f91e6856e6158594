"""Batches: every row once, in an order that only (seed, epoch) decides, as wide as needed."""

import numpy as np
import pytest

from qa_flax.batches import (
    WIDTH_STEP,
    batch_count,
    epoch_order,
    eval_batches,
    scatter,
    train_batches,
)
from qa_flax.windows import Features


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
@pytest.mark.parametrize("n", [1, 7, 32, 129])
def test_every_window_is_trained_on_once_with_its_own_label(rng, n, strategy, left):
    windows = features(rng, n, left=left)
    seen = []
    batches = list(train_batches(windows, 4, 2, seed=3, epoch=0, strategy=strategy))
    assert len(batches) == batch_count(n, 4, 2)
    for batch in batches:
        assert batch.arrays["input_ids"].shape[:2] == (4, 2)
        width = batch.arrays["input_ids"].shape[2]
        assert width % WIDTH_STEP == 0
        for d, b in np.argwhere(batch.valid):
            row, arrays = batch.rows[d, b], batch.arrays
            seen.append(row)
            assert arrays["attention_mask"][d, b].sum() == windows.attention_mask[row].sum()
            assert arrays["input_ids"][d, b].max() == row + 1
            at = arrays["start_positions"][d, b]
            assert arrays["input_ids"][d, b, at] == row + 1
            assert at == (width - 1 if left else windows.attention_mask[row].sum() - 1)
    assert sorted(seen) == list(range(n))


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
    assert len(batches) == batch_count(n, cores, per_core)
    for batch in batches:
        names = {"input_ids", "attention_mask", "start_positions", "end_positions", "valid"}
        assert set(batch.arrays) == names | {"null_positions"}
        scatter(batch, batch.arrays["input_ids"] * 10, into, fill=-1.0)
        at = batch.arrays["null_positions"] + batch.columns.start
        np.testing.assert_array_equal(at, batch.rows)
    # What no batch was wide enough to hold is padding, too; the trainer fills it beforehand.
    expected = np.where(windows.attention_mask > 0, windows.input_ids * 10, -1)
    np.testing.assert_array_equal(np.nan_to_num(into, nan=-1), expected)
