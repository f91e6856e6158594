"""Labels on padding are kept by every batch; labels outside are counted."""

import datasets
import numpy as np
import pytest
import tiny

from qa_flax.data.batches import eval_batches, train_batches
from qa_flax.data.columns import int32_array
from qa_flax.data.features import make_windows
from qa_flax.data.labels import describe_labels_outside, labels_inside, required_lengths
from qa_flax.data.windows import Features

LENGTH = 200


def features(rng, n=30, left=False, **labels):
    """Windows of 5 to 100 tokens, padded to 200; by default the labels are on any column."""
    mask = (np.arange(LENGTH) < rng.integers(5, 101, n)[:, None]).astype(np.int32)
    mask = mask[:, ::-1].copy() if left else mask
    columns = np.arange(LENGTH, dtype=np.int32)[None].repeat(n, axis=0)
    labels = {
        name: rng.choice([-7, 0, 50, 99, 120, 199, 200, 512, 2**31 - 1], n).astype(np.int32)
        for name in ("start_positions", "end_positions")
    } | labels
    return Features([f"q{i}" for i in range(n)], columns, mask, **labels)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_every_label_inside_its_row_is_inside_its_batch_and_no_other(rng, training, left):
    windows = features(rng, left=left)
    batches = list(
        train_batches(windows, 2, 2, seed=0, epoch=0) if training else eval_batches(windows, 2, 2)
    )
    assert len({batch.arrays["input_ids"].shape[-1] for batch in batches}) > 1
    for batch in batches:
        for name in ("start_positions", "end_positions"):
            labels = getattr(windows, name)
            for index in map(tuple, np.argwhere(batch.valid)):
                label, column = labels[batch.rows[index]], batch.arrays[name][index]
                row = batch.arrays["input_ids"][index]  # the number of each column
                if label < LENGTH:
                    assert row[max(column, 0)] == max(label, 0)
                else:
                    assert column >= len(row)


def test_labels_on_tokens_require_no_more_than_the_tokens(rng):
    for padding_side in ("right", "left"):
        tokenizer = tiny.tokenizer()
        tokenizer.padding_side = padding_side
        windows = make_windows(
            tiny.examples(), tokenizer, max_seq_length=64, doc_stride=16, labels=True
        )
        np.testing.assert_array_equal(required_lengths(windows), windows.lengths)


def test_labels_outside_are_counted_with_the_first_examples(rng):
    starts = np.array([0, 200, 5, 2**31 - 1, 199, -1, 3, 300, 9], np.int32)
    ends = np.array([0, 200, 199, 7, 250, -1, 3, 300, 9], np.int32)
    windows = features(rng, 9, start_positions=starts, end_positions=ends)
    assert describe_labels_outside(windows) == (
        "3 start and 3 end labels of 9 windows are at position 200 or later, outside their "
        'windows, and take no part in the loss: examples "q1", "q3", "q4", "q7"'
    )
    assert [inside.sum() for inside in labels_inside(windows)] == [6, 6]
    inside = features(rng, 9, start_positions=starts % 200, end_positions=ends % 200)
    assert describe_labels_outside(inside) is None
    unlabelled = features(rng, 9, start_positions=None, end_positions=None)
    assert labels_inside(unlabelled) is describe_labels_outside(unlabelled) is None


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1, 2**40], [1, 2**31 - 1]),
        ([-(2**40), 7], [-(2**31), 7]),
        ([1.0, 1e30], [1, 2**31 - 1]),  # int(1e30) is the limit of tokenizers without one
        ([float("inf"), -1.0], [2**31 - 1, -1]),
        ([[3], [4]], [3, 4]),
    ],
)
def test_labels_of_any_size_are_read(numbers, expected):
    columns = {"input_ids": [[1, 2], [3, 4]], "start_positions": numbers, "end_positions": numbers}
    windows = Features.from_dataset(datasets.Dataset.from_dict(columns))
    assert windows.start_positions.tolist() == windows.end_positions.tolist() == expected
    assert windows.start_positions.dtype == np.int32


def test_python_integers_beyond_64_bits_are_clipped():
    """A list of labels may have int(1e30), the limit of a tokenizer without one."""
    clipped = int32_array(np.array([3, int(1e30), -int(1e30)]), clip=True)
    assert clipped.tolist() == [3, 2**31 - 1, -(2**31)]
    assert clipped.dtype == np.int32
    with pytest.raises(ValueError, match="numbers are required, got None"):
        int32_array(np.array([None, int(1e30)]), clip=True)


@pytest.mark.parametrize(
    ("column", "numbers", "message"),
    [
        (
            "start_positions",
            [1.5, 2.0],
            "column start_positions: whole numbers are required, got 1.5",
        ),
        ("end_positions", [float("nan"), 2.0], "column end_positions: whole numbers are required"),
        ("end_positions", ["1", "2"], "column end_positions: numbers are required, got '1'"),
        (
            "start_positions",
            [[1, 2], [3, 4]],
            "start_positions: every row needs exactly one number",
        ),
        ("start_positions", [[1], []], "start_positions: every row needs exactly one number"),
        ("input_ids", [[1, 2**32 + 5], [3, 4]], "column input_ids: 4294967301 does not fit"),
        ("cls_index", [0, -(2**31) - 1], "column cls_index: -2147483649 does not fit"),
    ],
)
def test_other_numbers_are_refused_by_column(column, numbers, message):
    columns = {"input_ids": [[1, 2], [3, 4]]} | {column: numbers}
    with pytest.raises(ValueError, match=message):
        Features.from_dataset(datasets.Dataset.from_dict(columns))
