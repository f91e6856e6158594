"""Rows, batches, updates and epochs are counted as in transformers."""

import pytest
from tiny_trainers import arguments

from qa_flax.train.plan import Plan

CORES = 4


def plan(tmp_path, windows, rows, accumulation=1, epochs=3.0, max_steps=-1, drop_last=False):
    args = arguments(
        tmp_path,
        per_device_train_batch_size=rows // CORES,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps,
        dataloader_drop_last=drop_last,
    )
    return Plan.from_args(args, windows, CORES)


@pytest.mark.parametrize(
    ("settings", "per_epoch", "updates", "epochs"),
    [
        ({"windows": 2091, "rows": 16, "epochs": 2.0}, 131, 262, 2),
        ({"windows": 10, "rows": 4, "epochs": 1.5}, 3, 5, 2),
        ({"windows": 10, "rows": 4, "max_steps": 7}, 3, 7, 3),
        ({"windows": 10, "rows": 4, "accumulation": 2}, 2, 6, 3),
        ({"windows": 10, "rows": 4, "accumulation": 2, "drop_last": True}, 1, 3, 3),
        ({"windows": 5, "rows": 4, "drop_last": True}, 1, 3, 3),
    ],
)
def test_updates_are_counted_as_in_transformers(tmp_path, settings, per_epoch, updates, epochs):
    actual = plan(tmp_path, **settings)
    assert (actual.updates_per_epoch, actual.updates) == (per_epoch, updates)
    assert actual.epochs == epochs


def test_the_last_update_of_an_epoch_may_have_fewer_batches(tmp_path):
    five_batches = plan(tmp_path, windows=18, rows=4, accumulation=2)
    assert [five_batches.batches_of_update(done) for done in range(3)] == [2, 2, 1]
    assert [five_batches.epoch_after(1, done) for done in range(4)] == [1.0, 1.4, 1.8, 2.0]


def test_drop_last_that_leaves_no_batch_is_refused(tmp_path):
    message = "drop_last=True leaves no batch: there are 3 windows, but a batch has 4 rows"
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, windows=3, rows=4, drop_last=True)
