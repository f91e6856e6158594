"""Batches: every window is used once, in an order that depends only on (seed, epoch)."""

import numpy as np
import pytest

from qa_flax.data.batches import (
    epoch_order,
    eval_batches,
    eval_width_steps,
    scatter,
    train_batches,
    train_widths,
)
from qa_flax.data.windows import Features


def features(rng, n, tokens=192, left=False):
    lengths = rng.integers(5, tokens + 1, n)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int32)
    ids = np.arange(1, n + 1, dtype=np.int32)[:, None] * mask
    # The label is the window's last token: the test fails if a batch is too narrow.
    labels = (lengths - 1).astype(np.int32)
    if left:
        ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
        labels = np.full(n, tokens - 1, np.int32)
    return Features([f"q{i}" for i in range(n)], ids, mask, None, None, labels, labels)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize(
    ("n", "accumulation"), [(1, 1), (7, 1), (32, 1), (129, 1), (7, 2), (129, 3)]
)
def test_every_window_is_trained_on_once_with_its_own_label(rng, n, accumulation, strategy, left):
    windows = features(rng, n, left=left)
    trained = []
    settings = {"seed": 3, "epoch": 0, "strategy": strategy, "accumulation": accumulation}
    batches = list(train_batches(windows, 4, 2, **settings))
    assert len(batches) == -(-n // (8 * accumulation))
    for batch in batches:
        assert batch.arrays["input_ids"].shape[:3] == (4, accumulation, 2)
        width = batch.arrays["input_ids"].shape[3]
        assert width in train_widths(192)
        for index in map(tuple, np.argwhere(batch.valid)):
            row, arrays = batch.rows[index], batch.arrays
            trained.append(row)
            assert arrays["attention_mask"][index].sum() == windows.attention_mask[row].sum()
            assert arrays["input_ids"][index].max() == row + 1
            label = arrays["start_positions"][index]
            assert arrays["input_ids"][index][label] == row + 1
            assert label == (width - 1 if left else windows.attention_mask[row].sum() - 1)
    assert sorted(trained) == list(range(n))


@pytest.mark.parametrize("tokens", [1, 24, 64, 70, 100, 128, 192, 320, 384, 500, 512, 4096])
def test_few_widths_serve_windows_of_any_length(rng, tokens):
    """At most 2 in training and 3 in evaluation; the widest holds the longest window."""
    for widths, most in ((train_widths(tokens), 2), (eval_width_steps(tokens), 3)):
        assert 1 <= len(widths) <= most
        assert widths == sorted(set(widths))
        assert widths[-1] == tokens
        assert all(width % 64 == 0 for width in widths[:-1])
    windows = features(rng, 40, tokens=max(6, tokens))
    used = {batch.arrays["input_ids"].shape[-1] for batch in train_batches(windows, 1, 1, 0, 0)}
    assert used <= set(train_widths(windows.padded_length))
    used = {batch.arrays["input_ids"].shape[-1] for batch in eval_batches(windows, 1, 1)}
    assert used <= set(eval_width_steps(windows.padded_length))
    assert len(used) == 3 or tokens < 256


def test_the_widths_of_squad():
    assert train_widths(384) == [192, 384]
    assert eval_width_steps(384) == [192, 256, 384]
    assert eval_width_steps(512) == [256, 384, 512]
    assert train_widths(64) == [64]


def test_skip_omits_the_first_updates_of_the_epoch(rng):
    windows = features(rng, 50)
    full_epoch = list(train_batches(windows, 2, 3, seed=1, epoch=4, accumulation=2))
    for skip in (0, 1, 4, len(full_epoch)):
        resumed = list(train_batches(windows, 2, 3, seed=1, epoch=4, accumulation=2, skip=skip))
        assert len(resumed) == len(full_epoch) - skip
        for actual, expected in zip(resumed, full_epoch[skip:], strict=True):
            for name, array in actual.arrays.items():
                np.testing.assert_array_equal(array, expected.arrays[name])


def test_the_microbatches_of_an_update_are_consecutive_in_the_order(rng):
    """The first microbatch contains the first rows of the order, over all cores."""
    windows = features(rng, 24)
    settings = {"seed": 0, "epoch": 0, "strategy": "sequential"}
    (batch,) = train_batches(windows, 2, 4, accumulation=3, **settings)
    assert batch.rows.swapaxes(0, 1).reshape(-1).tolist() == list(range(24))


def test_drop_last_drops_the_windows_that_do_not_fill_a_microbatch(rng):
    windows = features(rng, 45)
    batches = list(train_batches(windows, 2, 4, 0, 0, accumulation=2, drop_last=True))
    assert [int(batch.valid.sum()) for batch in batches] == [16, 16, 8]


def test_the_order_depends_only_on_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    for strategy in ("random", "group_by_length"):
        order = epoch_order(lengths, 16, 1, 2, strategy)
        np.testing.assert_array_equal(order, epoch_order(lengths, 16, 1, 2, strategy))
        assert (order != epoch_order(lengths, 16, 1, 3, strategy)).any()
        assert (order != epoch_order(lengths, 16, 2, 2, strategy)).any()
    np.testing.assert_array_equal(epoch_order(lengths, 16, 1, 2, "sequential"), np.arange(500))


def test_grouping_by_length_reduces_padding(rng):
    lengths = rng.integers(20, 384, 2000)

    def padded_tokens(strategy):
        order = epoch_order(lengths, 16, 0, 0, strategy)
        return sum(lengths[order[i : i + 16]].max() * 16 for i in range(0, 2000, 16))

    assert padded_tokens("group_by_length") < 1.15 * lengths.sum() < 1.5 * lengths.sum()
    assert padded_tokens("random") > 1.5 * lengths.sum()


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
        null_positions = batch.arrays["null_positions"] + batch.columns.start
        np.testing.assert_array_equal(null_positions, batch.rows)
    # `scatter` does not write the columns beyond a batch's width; the trainer fills them before.
    expected = np.where(windows.attention_mask > 0, windows.input_ids * 10, -1)
    np.testing.assert_array_equal(np.nan_to_num(into, nan=-1), expected)
