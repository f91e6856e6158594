"""Trainings of which a share of the batches is of another data set."""

import numpy as np
import pytest
import tiny
from tiny_trainers import RUN, WINDOW, arguments, assert_same_run, copy_until, training_set_of

from qa_flax import QuestionAnsweringTrainer, Trainer, prepare_train_features
from qa_flax.train.extra_data import extra_before, extra_updates

PACKED = {"packing": True, "per_device_train_batch_size": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.repeated_examples(2)


def features(examples, tokenizer, **changes):
    return prepare_train_features(examples, tokenizer, **WINDOW | changes)


@pytest.fixture(scope="module")
def own(examples, tokenizer):
    return features(examples, tokenizer)


@pytest.fixture(scope="module")
def extra(tokenizer):
    return features(tiny.repeated_examples(7), tokenizer)


def trainer_of(folder, own, extra, ratio=0.25, **changes):
    return QuestionAnsweringTrainer(
        tiny.model(hidden_dropout_prob=0.2),
        arguments(folder, **RUN | {"extra_train_ratio": ratio} | changes),
        train_dataset=own,
        extra_train_dataset=extra,
    )


def epochs_of(trainer, count):
    """The windows of each batch of some epochs, and which batches are extra ones."""
    data = training_set_of(trainer)
    epochs = []
    for epoch in range(count):
        batches = list(data.batches(trainer.args, epoch, 0))
        epochs.append([(batch.is_extra, batch.rows[batch.valid].tolist()) for batch in batches])
    return epochs


@pytest.mark.parametrize(
    ("own", "ratio", "extra"), [(90, 0.1, 10), (3, 0.5, 3), (10, 0.75, 30), (3, 0.01, 1), (7, 0, 0)]
)
def test_an_epoch_gets_longer_by_the_share(own, ratio, extra):
    assert extra_updates(own, ratio) == extra
    before = [extra_before(n, extra, own + extra) for n in range(own + extra + 1)]
    assert (before[0], before[-1]) == (0, extra)
    steps = np.diff(before)
    assert set(steps) <= {0, 1}
    gaps = np.diff(np.flatnonzero(steps))
    assert not len(gaps) or gaps.max() - gaps.min() <= 1, "spread evenly"


@pytest.mark.parametrize("changes", [{}, PACKED], ids=["a row", "packed"])
def test_each_epoch_has_another_part_until_all_was_used(tmp_path, own, extra, changes):
    trainer = trainer_of(tmp_path, own, extra, **changes)
    data = training_set_of(trainer)
    assert data.packed_as(trainer.args) == ("rows" if changes else None)
    plan, alone = (
        data.plan(trainer.args),
        training_set_of(trainer_of(tmp_path, own, None, None, **changes)),
    )
    updates = alone.plan(trainer.args).updates_per_epoch
    assert plan.updates_per_epoch == updates + extra_updates(updates, 0.25)
    epochs = epochs_of(trainer, 12)
    for epoch in epochs:
        ours = [row for is_extra, rows in epoch for row in rows if not is_extra]
        assert sorted(ours) == list(range(len(own)))
    others = [row for epoch in epochs for is_extra, rows in epoch for row in rows if is_extra]
    assert len(others) > len(extra)
    assert sorted(others[: len(extra)]) == list(range(len(extra)))
    assert others[: len(extra)] != others[len(extra) :][: len(extra)]
    assert epochs_of(trainer_of(tmp_path, own, extra, **changes), 12) == epochs
    seeded = trainer_of(tmp_path, own, extra, data_seed=3, **changes)
    assert epochs_of(seeded, 12) != epochs


@pytest.mark.parametrize("changes", [{}, PACKED], ids=["a row", "packed"])
def test_the_extra_batches_have_the_shapes_of_the_own_ones(tmp_path, own, tokenizer, changes):
    """The extra windows are much shorter, and of a shorter set."""
    short = tiny.repeated_examples(7).filter(lambda row: len(row["context"]) < 50)
    extra = features(short, tokenizer, pad_to_max_length=False)
    trainer = trainer_of(tmp_path, own, extra, **changes)
    batches = list(training_set_of(trainer).batches(trainer.args, 0, 0))
    shapes = [
        {str({name: array.shape for name, array in b.arrays.items()}) for b in part}
        for part in (
            [b for b in batches if b.is_extra],
            [b for b in batches if not b.is_extra],
        )
    ]
    assert shapes[0] <= shapes[1]


@pytest.mark.slow
def test_a_small_extra_set_is_repeated_and_the_training_counts_and_says_so(
    tmp_path, own, tokenizer, capsys
):
    small = features(tiny.examples(answerable=True).select([0, 10]), tokenizer)
    changes = {"num_train_epochs": 1, "disable_tqdm": False, "save_strategy": "no"}
    trainer = trainer_of(tmp_path, own, small, 0.5, **changes)
    output = trainer.train()
    updates = -(-len(own) // 8)
    assert output.global_step == 2 * updates
    assert output.metrics["train_extra_batches"] == updates
    line = (
        f"Extra training data: {updates} of {2 * updates} updates of each epoch come from its "
        f"{len(small)} windows, each of which comes {updates:.1f} times in an epoch"
    )
    assert line in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "noise:0.1,distract"},
        pytest.param({"augment": "noise:0.1,distract", **PACKED}, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
    ],
    ids=["augmented", "augmented and packed", "accumulation"],
)
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, extra, tokenizer, changes):
    examples = tiny.examples(answerable=True).select(range(9))
    own = features(examples, tokenizer)

    def trainer_in(folder):
        trainer = trainer_of(folder, own, extra, 0.4, save_steps=2, **changes)
        trainer.train_examples = examples
        trainer.processing_class = tokenizer
        return trainer

    whole = trainer_in(tmp_path / "whole")
    whole.train()
    copy_until(tmp_path / "whole", tmp_path / "stopped", whole.state.max_steps // 2 + 1)
    resumed = trainer_in(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    for trainer in (whole, resumed):  # a resumed run counts its own updates, as of `train_fill`
        for logs in trainer.state.log_history:
            for name in ("train_extra_batches", "train_fill"):
                logs.pop(name, None)
    assert_same_run(whole, resumed)


def test_a_ratio_of_0_is_the_plain_training(tmp_path, own, extra):
    plain = epochs_of(trainer_of(tmp_path, own, None, None), 2)
    assert epochs_of(trainer_of(tmp_path, own, extra, 0.0), 2) == plain


def test_what_cannot_be_mixed_is_refused(tmp_path, own, extra, tokenizer):
    def message(*args, **changes):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            trainer_of(tmp_path, *args, **changes).train()
        return str(error.value)

    assert "extra_train_ratio=0.25 is the share" in message(own, None)
    assert "extra_train_dataset needs extra_train_ratio" in message(own, extra, None)
    with pytest.raises(ValueError, match=r"extra_train_ratio=1.0: it must be at least 0"):
        arguments(tmp_path, extra_train_ratio=1.0)
    without = extra.remove_columns("token_type_ids")
    assert "extra_train_dataset has no column token_type_ids" in message(own, without)
    no_labels = extra.remove_columns(["start_positions", "end_positions"])
    assert "extra_train_dataset has no column end_positions, start_positions" in message(
        own, no_labels
    )
    all_spans = features(tiny.repeated_examples(2), tokenizer, answers="all")
    assert "train_dataset has no column end_positions_all" in message(own, all_spans)
    assert "extra_train_dataset has no windows" in message(own, extra.select([]))
    stream = extra.to_iterable_dataset()
    assert "extra_train_dataset (IterableDataset) is a stream" in message(own, stream)
    rows = message(own.to_iterable_dataset(), extra, max_steps=2)
    assert "extra_train_ratio cannot be used, because" in rows
    base = Trainer(tiny.model(), arguments(tmp_path, extra_train_ratio=0.1), train_dataset=own)
    with pytest.raises(ValueError, match="as extra_train_dataset to QuestionAnsweringTrainer"):
        base.train()


def test_validation_questions_about_its_contexts_are_named(tmp_path, own, extra, caplog):
    trainer = trainer_of(tmp_path, own, extra)
    trainer.train_dataset = own.select([0])
    trainer.eval_dataset = extra.select(range(20, 30))
    trainer.evaluate()
    lines = [r.getMessage() for r in caplog.records if "contexts that are in" in r.getMessage()]
    assert any(line.startswith("extra_train_dataset: ") for line in lines)
