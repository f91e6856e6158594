"""Training and evaluation with the labels of all answers, `answers="all"`."""

import datasets
import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments, trainer_in

from qa_flax import (
    Trainer,
    load_examples,
    prepare_train_features,
    prepare_validation_features,
)
from qa_flax.data.features import make_windows
from qa_flax.data.gold_spans import ALL_LABELS, NO_SPAN
from qa_flax.train.checkpoints import ResumeError

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def with_several_answers():
    """The tiny examples, each with a second and a third answer: other parts of its context."""
    rows = []
    for row in tiny.examples(answerable=True):
        context, answers = row["context"], row["answers"]
        words = context.split()
        texts = [*answers["text"], words[0], " ".join(words[-3:-1])]
        starts = [*answers["answer_start"], 0, context.index(texts[-1])]
        rows.append({**row, "answers": {"text": texts, "answer_start": starts}})
    return load_examples(datasets.Dataset.from_list(rows))


def features(examples, answers, prepare=prepare_train_features):
    return prepare(examples, tiny.tokenizer(), disable_tqdm=True, answers=answers, **WINDOW)


def logged_losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def losses_of(tmp_path, windows, **changes):
    settings = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2} | changes
    model = tiny.model(initializer_range=0.3, **QUIET)
    trainer = Trainer(model, arguments(tmp_path, **settings), train_dataset=windows)
    trainer.train()
    return logged_losses(trainer)


def mean_loss(windows, logits):
    """By a float64 loop over the rows' lists."""
    losses = []
    for row, *pair in zip(windows, *logits, strict=True):
        mask = np.array(row["attention_mask"]) > 0
        chances = []
        for values in pair:
            values = np.where(mask, np.exp(np.float64(values - values[mask].max())), 0.0)
            chances.append(values / values.sum())
        spans = set(zip(row[ALL_LABELS[0]], row[ALL_LABELS[1]], strict=True))
        losses.append(-np.log(sum(chances[0][s] * chances[1][e] for s, e in spans)) / 2)
    return np.mean(losses)


def test_the_loss_of_an_evaluation_is_that_of_all_answers(tmp_path):
    examples = with_several_answers()
    windows = features(examples, "all", prepare_validation_features)
    assert max(map(len, windows[ALL_LABELS[0]])) > 1
    for packing in (False, True):
        settings = arguments(tmp_path, packing=packing)
        trainer = Trainer(tiny.model(initializer_range=0.3), settings)
        output = trainer.predict(windows)
        expected = mean_loss(windows, output.predictions)
        assert output.metrics["test_loss"] == pytest.approx(expected, rel=2e-6)
        usual = trainer.predict(features(examples, "first", prepare_validation_features))
        assert usual.metrics["test_loss"] > output.metrics["test_loss"]


def test_examples_with_one_answer_are_trained_as_usual(tmp_path):
    examples = tiny.examples(answerable=True)
    usual, ours = (losses_of(tmp_path, features(examples, name)) for name in ("first", "all"))
    np.testing.assert_allclose(ours, usual, rtol=2e-6)


def test_packed_rows_are_trained_on_all_answers(tmp_path):
    """The softmax of a packed window is over its own tokens, as in evaluation."""
    rows = [{**row, "id": f"{n} {row['id']}"} for n in range(6) for row in with_several_answers()]
    examples = load_examples(datasets.Dataset.from_list(rows))
    windows = prepare_train_features(
        examples, tiny.tokenizer(), 128, 16, answers="all", disable_tqdm=True
    )
    trainer = Trainer(tiny.model(initializer_range=0.3, **QUIET), arguments(tmp_path))
    expected = mean_loss(windows, trainer.predict(windows).predictions)
    # One update for the whole epoch, so that the order of the windows does not matter.
    batch = -(-len(windows) // 8)
    settings = {"packing": True, "per_device_train_batch_size": batch, "max_steps": 1}
    assert losses_of(tmp_path, windows, **settings) == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.slow
def test_rows_of_a_list_are_trained_as_those_of_a_data_set(tmp_path):
    windows = features(with_several_answers(), "all")
    rows = [dict(row) for row in windows.remove_columns(["offset_mapping", "example_id"])]
    settings = {"train_sampling_strategy": "sequential", "packing": False}
    usual, ours = (losses_of(tmp_path, data, **settings) for data in (windows, rows))
    np.testing.assert_allclose(ours, usual, rtol=1e-6)


def test_other_answers_as_labels_are_other_data_for_a_resumed_run(tmp_path):
    examples = with_several_answers()
    trainer = trainer_in(tmp_path, examples, tiny.tokenizer(), max_steps=1)
    trainer.train()
    trainer.args.max_steps = 2
    trainer.train_dataset = features(examples, "all")
    with pytest.raises(ResumeError, match="windows_digest"):
        trainer.train(resume_from_checkpoint=True)


def test_windows_of_several_processes_are_joined_whatever_their_spans():
    examples = with_several_answers()
    parts = [examples.select(range(2)), tiny.examples(answerable=True).select(range(2))]
    settings = {"labels": True, "answers": "all", "disable_tqdm": True, **WINDOW}
    windows = [make_windows(part, tiny.tokenizer(), **settings) for part in parts]
    assert windows[0].spans > windows[1].spans == 1
    joined = windows[0].joined([part.to_arrays() for part in windows])
    assert joined.spans == windows[0].spans
    last = joined.start_positions_all[len(windows[0]) :]
    np.testing.assert_array_equal(last[:, 0], windows[1].start_positions)
    assert (last[:, 1:] == NO_SPAN).all()


def test_a_loss_function_of_a_script_gets_all_spans(tmp_path):
    shapes = []

    def loss(logits, batch):
        shapes.append(batch[ALL_LABELS[0]].shape)
        return logits.start[:, 0] ** 2

    windows = features(with_several_answers(), "all")
    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, max_steps=1),
        train_dataset=windows,
        compute_loss_func=loss,
    )
    trainer.train()
    assert shapes[0][1] == max(map(len, windows[ALL_LABELS[0]]))
