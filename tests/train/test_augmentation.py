"""Trainings on texts that change in each epoch: resuming, shapes, and features without texts."""

import json

import numpy as np
import pytest
import tiny
from tiny_trainers import (
    RUN,
    WINDOW,
    arguments,
    assert_same_run,
    copy_until,
    training_set_of,
    values,
)

from qa_flax import QuestionAnsweringTrainer, Trainer, load_examples, prepare_train_features

AUGMENT = "shuffle:1,distract:0.5,noise:0.1,question_dropout:0.2"
PACKED = {"packing": True, "per_device_train_batch_size": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


def trainer_of(folder, examples, tokenizer, windows=None, **changes):
    windows = prepare_train_features(examples, tokenizer, **WINDOW) if windows is None else windows
    return QuestionAnsweringTrainer(
        tiny.model(hidden_dropout_prob=0.2),
        arguments(folder, **RUN | changes),
        train_dataset=windows,
        train_examples=examples,
        processing_class=tokenizer,
    )


def batches_of(trainer, epoch):
    return list(training_set_of(trainer).batches(trainer.args, epoch, 0))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, examples, tokenizer):
    changes = {"augment": AUGMENT, "paraphrases": {"q0": ["By whom is it?"]}, "save_steps": 3}
    whole = trainer_of(tmp_path / "whole", examples, tokenizer, **changes)
    whole.train()
    plain = trainer_of(tmp_path / "plain", examples, tokenizer, save_strategy="no")
    plain.train()
    assert whole.state.max_steps == plain.state.max_steps
    weights = [values(trainer.model) for trainer in (whole, plain)]
    assert any((weights[0][path] != weights[1][path]).any() for path in weights[0])
    step = 3  # in the second epoch
    copy_until(tmp_path / "whole", tmp_path / "stopped", step)
    resumed = trainer_of(tmp_path / "stopped", examples, tokenizer, **changes)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    other = trainer_of(tmp_path / "stopped", examples, tokenizer, augment="noise")
    with pytest.raises(ValueError, match=r"(?s)augment\.kinds: 'shuffle:1.*' in the check.*"):
        other.train(resume_from_checkpoint=str(tmp_path / "stopped/checkpoint-3"))


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.slow), PACKED],
    ids=["a row", "packed"],
)
def test_all_epochs_have_the_updates_and_the_shapes_of_the_first(tmp_path, tokenizer, changes):
    examples = tiny.repeated_examples(5)
    windows = prepare_train_features(examples, tokenizer, max_seq_length=128, doc_stride=16)
    trainer = trainer_of(tmp_path, examples, tokenizer, windows, augment=AUGMENT, **changes)
    plain = trainer_of(tmp_path, examples, tokenizer, trainer.train_dataset, **changes)
    assert training_set_of(trainer).packed_as(trainer.args) == ("rows" if changes else None)
    updates = training_set_of(plain).plan(plain.args).updates_per_epoch
    data = training_set_of(trainer)
    announced = {str(shapes) for shapes in data.shapes(trainer.args, 0, range(updates))}
    ids = set()
    for epoch in range(3):
        batches = list(data.batches(trainer.args, epoch, 0))
        assert len(batches) == updates
        assert sum(batch.windows for batch in batches) == len(trainer.train_dataset)
        shapes = {(b.arrays["input_ids"].shape, b.arrays["start_positions"].shape) for b in batches}
        assert len(shapes) <= len(announced)
        ids.add(b"".join(batch.arrays["input_ids"].tobytes() for batch in batches))
    assert len(ids) == 3


@pytest.mark.parametrize("stride", [0, 16, 40])
def test_features_of_ones_own_are_made_anew_with_their_own_length_and_overlap(
    tmp_path, examples, tokenizer, stride
):
    windows = prepare_train_features(examples, tokenizer, 80, stride, pad_to_max_length=False)
    trainer = trainer_of(tmp_path, examples, tokenizer, windows, augment="question_dropout:0.001")
    plain = trainer_of(tmp_path, examples, tokenizer, windows)
    epochs = [batches_of(t, 0) for t in (trainer, plain)]
    for ours, theirs in zip(*epochs, strict=True):  # hardly a word is left out
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[name], array)


def test_all_answers_are_labels_of_changed_texts_too(tmp_path, tokenizer):
    rows = [dict(row) for row in tiny.rows()]
    rows[0]["answers"] = {"text": ["Ada Lovelace", "Ada"], "answer_start": [0, 0]}
    examples = load_examples(rows)
    windows = prepare_train_features(examples, tokenizer, **WINDOW, answers="all")
    trainer = trainer_of(tmp_path, examples, tokenizer, windows, augment="shuffle:1")
    for batch in batches_of(trainer, 1):
        assert batch.arrays["start_positions_all"].shape[-1] == 2


def test_without_texts_it_is_refused(tmp_path, examples, tokenizer):
    windows = prepare_train_features(examples, tokenizer, **WINDOW)
    args = arguments(tmp_path, augment="noise")
    alone = Trainer(tiny.model(), args, train_dataset=windows, processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"augment changes texts, but .* pass train_examples"):
        alone.train()
    trainer = trainer_of(tmp_path, None, tokenizer, windows, paraphrases={"q0": ["x"]})
    with pytest.raises(ValueError, match=r"paraphrases changes texts, but .* pass train_examples"):
        trainer.train()
    for others in (windows.select(range(3)), windows.shuffle(seed=0)):
        trainer = trainer_of(tmp_path, examples, tokenizer, others, augment="noise")
        with pytest.raises(ValueError, match=r"does not have the windows that .*prepare_tr"):
            trainer.train()
    windows.set_transform(lambda batch: batch)
    trainer = trainer_of(tmp_path, examples, tokenizer, windows, augment="noise")
    with pytest.raises(ValueError, match=r"augment cannot be used, because the data set .* makes"):
        trainer.train()


def test_the_training_says_what_it_does(tmp_path, examples, tokenizer):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"Who wrote the first program?": ["By whom?"]}))
    changes = {"augment": "noise:0.05", "paraphrases": str(table)}
    trainer = trainer_of(tmp_path, examples, tokenizer, **changes)
    assert training_set_of(trainer).describe(trainer.args) == [
        "Augmentation: each epoch has the 11 training questions with new texts (noise 0.05, "
        "paraphrases of 1 questions), in as many windows and updates as without"
    ]
