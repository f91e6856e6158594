"""Rows, loaders and collators: batches of any data set, and what is refused."""

import random

import datasets
import numpy as np
import pytest
import tiny
from transformers import DataCollatorWithPadding, DefaultDataCollator, default_data_collator

from qa_flax import prepare_train_features
from qa_flax.data.loaders import (
    Loader,
    UpdateBatches,
    as_windows,
    is_known_collator,
    loader_windows,
    seeded_batches,
)
from qa_flax.data.rows import OUTSIDE_WINDOW, batch_arrays, check_dataset, seeded, stack_rows


def rows(count, seed=0):
    """Rows of different lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(3, 20))
        ids = rng.integers(5, 200, length).tolist()
        start, end = sorted(rng.integers(0, length, 2).tolist())
        made.append(
            {"input_ids": ids, "attention_mask": [1] * length}
            | {"start_positions": start, "end_positions": end}
        )
    return made


def numpy_collator(batch):
    return stack_rows(batch)


class MapStyle:
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


def test_every_kind_of_data_set_gives_the_same_windows():
    data = rows(7)
    kinds = [
        data,
        tuple(data),
        datasets.Dataset.from_list(data),
        datasets.Dataset.from_list(data).with_format("numpy"),
        datasets.Dataset.from_list(data).with_transform(lambda batch: batch),
        MapStyle(data),
        datasets.Dataset.from_list(data).to_iterable_dataset(),
        iter,
    ]
    expected = as_windows(datasets.Dataset.from_list(data))
    for kind in kinds:
        loader = Loader((row for row in data) if kind is iter else kind, 3)
        windows = loader.windows()
        if windows is None:
            (windows,) = loader_windows(loader, seed=0)
        for name in ("input_ids", "attention_mask", "start_positions", "end_positions"):
            np.testing.assert_array_equal(getattr(windows, name), getattr(expected, name))


def test_known_collators_are_recognised():
    tokenizer = tiny.tokenizer()

    class Own(DataCollatorWithPadding):
        def __call__(self, features):
            return super().__call__(features)

    class Named(DefaultDataCollator):
        pass

    known = [None, default_data_collator, DefaultDataCollator(), Named()]
    known.append(DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8))
    assert all(map(is_known_collator, known))
    assert not any(map(is_known_collator, [Own(tokenizer), numpy_collator, lambda rows: {}]))


def test_a_loader_has_what_scripts_read_of_a_data_loader():
    data = rows(8)
    loader = Loader(data, 3, order=lambda epoch: np.roll(np.arange(8), epoch))
    assert (len(loader), loader.batch_size, loader.dataset) == (3, 3, data)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        starts = np.concatenate([batch["start_positions"] for batch in loader])
        expected = np.roll([row["start_positions"] for row in data], epoch)
        np.testing.assert_array_equal(starts, expected)
    assert len(Loader(data, 3, drop_last=True)) == 2
    assert len(list(Loader(data, 3, drop_last=True))) == 2
    with pytest.raises(TypeError, match="has no length"):
        len(Loader(iter(data), 3))


def test_a_collator_gets_only_columns_that_models_read_unless_told_otherwise():
    data = [row | {"example_id": str(n), "weight": 2.0} for n, row in enumerate(rows(2))]
    seen = []
    for only_used in (True, False):
        list(Loader(data, 2, lambda batch: seen.append(set(batch[0])), only_used=only_used))
    assert seen[1] - seen[0] == {"example_id", "weight"}


def test_rows_of_different_lengths_are_padded_with_the_padding_token():
    data = rows(5)
    for dataset in (data, datasets.Dataset.from_list(data), MapStyle(data)):
        loader = Loader(dataset, 5, pad_token_id=1)
        (windows,) = [loader.windows()] if loader.windows() else loader_windows(loader, 0)
        padding = windows.attention_mask == 0
        assert padding.any()
        assert (windows.input_ids[padding] == 1).all()
        assert (windows.input_ids[~padding] > 1).all()


def test_windows_can_be_collated():
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), 64, 16)
    (batch,) = list(Loader(windows, len(windows), numpy_collator))
    np.testing.assert_array_equal(batch["input_ids"], windows["input_ids"])
    np.testing.assert_array_equal(batch["end_positions"], windows["end_positions"])


def test_what_a_collator_draws_depends_on_seed_epoch_and_batch_only():
    torch = pytest.importorskip("torch")

    def draw(batch):
        made = stack_rows(batch)
        numbers = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
        return made | {"numbers": np.array([numbers] * len(batch))}

    def drawn(seed, epoch, skip=0, data=None):
        loader = Loader(rows(8) if data is None else data, 2, draw)
        return [batch["numbers"][0].tolist() for batch in seeded_batches(loader, seed, epoch, skip)]

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    whole = drawn(1, 0)
    assert len({tuple(numbers) for numbers in whole}) == 4
    assert drawn(1, 0, skip=2) == whole[2:]
    stream = datasets.Dataset.from_list(rows(8)).to_iterable_dataset()
    assert drawn(1, 0, skip=2, data=stream) == whole[2:]
    assert not {tuple(n) for n in drawn(1, 1) + drawn(2, 0)} & {tuple(n) for n in whole}
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_generators_are_restored_after_an_error():
    state = random.getstate()
    with pytest.raises(KeyError), seeded(1, 2):
        raise KeyError
    assert random.getstate() == state


def test_batches_of_updates_hold_every_row_once():
    data = rows(11)
    updates = list(UpdateBatches(Loader(data, 4), 2, 2, 2, seed=0).epoch(0, 0))
    assert [batch.windows for batch in updates] == [8, 3]
    for batch in updates:
        assert batch.arrays["input_ids"].shape == (2, 2, 2, 64)
    found = np.concatenate(
        [b.arrays["start_positions"].swapaxes(0, 1)[b.valid.swapaxes(0, 1)] for b in updates]
    )
    np.testing.assert_array_equal(found, [row["start_positions"] for row in data])
    assert sum(batch.tokens for batch in updates) == sum(len(row["input_ids"]) for row in data)
    padding = updates[1].arrays["attention_mask"][~updates[1].valid]
    assert (padding.sum(axis=-1) > 0).all()
    skipped = list(UpdateBatches(Loader(data, 4), 2, 2, 2, seed=0).epoch(0, 1))
    np.testing.assert_array_equal(skipped[0].arrays["input_ids"], updates[1].arrays["input_ids"])


def test_a_batch_is_padded_with_the_padding_token_but_not_beyond_the_model():
    data = [{"input_ids": [7] * 70, "start_positions": 70, "end_positions": 3}] * 2
    for limit, width in ((None, 128), (100, 100), (64, 70)):
        updates = UpdateBatches(Loader(data, 2), 1, 2, 1, 0, pad_token_id=9, limit=limit)
        (batch,) = updates.epoch(0, 0)
        assert batch.arrays["input_ids"].shape[-1] == width
        assert (batch.arrays["input_ids"][..., 70:] == 9).all()
        assert (batch.arrays["attention_mask"].sum(axis=-1) == 70).all()
        # The label was beyond the row, so it is not a padding token of the wider row.
        assert (batch.arrays["start_positions"] == OUTSIDE_WINDOW).all()


def test_more_rows_than_expected_take_more_rows_on_each_core():
    (batch,) = UpdateBatches(Loader(rows(10), 10), 4, 1, 1, seed=0).epoch(0, 0)
    assert batch.arrays["input_ids"].shape[:3] == (4, 1, 3)
    assert batch.windows == 10


GOOD = {"input_ids": [[1, 2]], "start_positions": [0], "end_positions": [1]}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "gives a list; it must be a dict"),
        ({"ids": [[1]]}, "gives no input_ids; it gives: ids"),
        (GOOD | {"labels": [1]}, "gives labels, which these models do not take"),
        (GOOD | {"input_ids": [1, 2]}, r"shape \(2,\); it must be \[rows, tokens\]"),
        (GOOD | {"input_ids": [[1.5, 2.0]]}, "must be integers"),
        (GOOD | {"input_ids": [[1], [1, 2]]}, "in rows of equal length"),
        (GOOD | {"attention_mask": [[1, 1, 1]]}, r"attention_mask of shape \(1, 3\)"),
        (GOOD | {"start_positions": [0, 1]}, "there are 1 rows"),
        ({"input_ids": [[1, 2]]}, "no start_positions and no end_positions, which training"),
        ({"input_ids": [[1, 2]], "start_positions": [0]}, "gives no end_positions"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused(batch, message):
    with pytest.raises(ValueError, match=message) as error:
        batch_arrays(batch, "data_collator (f)", needs_labels=True, takes_extras=False)
    assert str(error.value).startswith(("data_collator (f)", "input_ids of data_collator (f)"))


def test_the_transposed_lists_of_pytorchs_default_collate_are_refused():
    torch = pytest.importorskip("torch")
    batch = next(iter(torch.utils.data.DataLoader([GOOD["input_ids"][0]] * 2, batch_size=2)))
    with pytest.raises(ValueError, match=r"pass collate_fn=trainer.data_collator"):
        batch_arrays(GOOD | {"input_ids": batch}, "it", needs_labels=False, takes_extras=False)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list(rows(1))), 'such as data."train"'),
        ({"input_ids": [[1]]}, "is a dict with the keys input_ids; pass rows"),
        ("train.json", "is a str; it must be"),
        (3, "is a int; it must be"),
        ([[1, 2]], "is a list of lists; its rows must be dicts"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset, message):
    with pytest.raises(ValueError, match=f"^train_dataset .*{message}"):
        check_dataset(dataset, "train_dataset")


def test_rows_that_cannot_be_stacked_are_refused():
    for bad, message in (
        ([(1, 2)], "is a tuple; it must be a dict"),
        ([{"ids": [1]}], "has no input_ids; it has: ids"),
        ([{"input_ids": ["a"]}], "must be integers"),
        ([GOOD | {"input_ids": [1]}, {"input_ids": [1]}], "some rows .* have start_positions"),
    ):
        with pytest.raises(ValueError, match=message):
            stack_rows(bad)
