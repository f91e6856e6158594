"""`eval_train_samples`: metrics of training questions beside those of the evaluation set."""

import dataclasses

import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments, compute_metrics, post_process
from transformers import TrainerCallback, TrainerState

from qa_flax import QuestionAnsweringTrainer, Trainer, prepare_train_features
from qa_flax.answers.spans import SearchSettings
from qa_flax.data.features import make_windows
from qa_flax.train.evaluation import count_hits
from qa_flax.train.train_sample import choose_questions

ACCURACIES = ("accuracy_start", "accuracy_end")


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


@pytest.fixture(scope="module")
def windows(examples):
    return prepare_train_features(examples, tiny.tokenizer(), **WINDOW)


def trainer_of(folder, examples, windows, count, cls=QuestionAnsweringTrainer, **changes):
    settings = {
        "model": tiny.model(),
        "args": arguments(folder, eval_train_samples=count),
        "train_dataset": windows,
        "eval_dataset": windows.select(range(9)),
        "eval_examples": examples,
        "train_examples": examples,
        "post_process_function": post_process,
        "compute_metrics": compute_metrics,
    } | changes
    return cls(**settings)


def accuracies_of(trainer, windows):
    """The accuracies from all logits, computed anew."""
    logits = trainer.predict(windows).predictions
    labels = [np.array(windows[name]) for name in ("start_positions", "end_positions")]
    cls = np.array(windows["cls_index"]) if "cls_index" in windows.column_names else 0
    holds = (labels[0] != cls) | (labels[1] != cls)
    return [100 * np.mean((x.argmax(1) == y)[holds]) for x, y in zip(logits, labels, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [pytest.param(None, marks=pytest.mark.slow), SearchSettings(False, 20, 30)],
    ids=["logits", "candidates"],
)
def test_the_metrics_are_those_of_an_evaluation_of_these_questions(
    tmp_path, examples, windows, settings
):
    trainer = trainer_of(tmp_path, examples, windows, 4, search_settings=settings)
    metrics = trainer.evaluate()
    sample = choose_questions(windows, 4, trainer.args.seed)
    chosen = windows.filter(lambda row: row["example_id"] in sample.ids)
    assert len(set(chosen["example_id"])) == 4
    plain = Trainer(trainer.model, arguments(tmp_path))
    for prefix, rows in (("train", chosen), ("eval", windows.select(range(9)))):
        expected = accuracies_of(plain, rows)
        assert [metrics[f"{prefix}_{name}"] for name in ACCURACIES] == pytest.approx(expected)
    of_chosen = examples.filter(lambda row: row["id"] in sample.ids)
    expected = trainer.evaluate(chosen, of_chosen, metric_key_prefix="x")
    for name in ("exact_match", "f1", *ACCURACIES):
        assert metrics[f"train_{name}"] == expected[f"x_{name}"], name
    assert not any(
        name.endswith(("_loss", "_time", "_second")) for name in metrics if "train" in name
    )


def as_list(windows):
    return [dict(row) for row in windows]


class Rows:
    """A data set like PyTorch's, of which only rows can be read."""

    def __init__(self, windows):
        self._rows = as_list(windows)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]


def test_every_kind_of_training_set_gives_whole_questions(examples, windows):
    lazy = make_windows(examples, tiny.tokenizer(), labels=True, **WINDOW)
    sets = [windows, as_list(windows), lazy, lazy.features()]
    samples = [choose_questions(dataset, 6, 3) for dataset in sets]
    all_ids = windows["example_id"]
    assert len(samples[0].ids) == 6
    assert max(map(all_ids.count, samples[0].ids)) > 1
    rows = [n for n, id_ in enumerate(all_ids) if id_ in samples[0].ids]
    for sample in samples:
        assert sample.ids == samples[0].ids
        assert not sample.missing_columns
    np.testing.assert_array_equal(samples[0].dataset["input_ids"], windows[rows]["input_ids"])
    for sample in samples[2:]:
        features = sample.dataset.features()
        np.testing.assert_array_equal(features.input_ids, windows[rows]["input_ids"])
        np.testing.assert_array_equal(features.offsets, windows[rows]["offset_mapping"])
        np.testing.assert_array_equal(features.end_positions, windows[rows]["end_positions"])
        assert features.example_ids == windows[rows]["example_id"]
    assert choose_questions(windows, 6, 4).ids != samples[0].ids
    assert choose_questions(windows, 99, 4).ids == list(dict.fromkeys(all_ids))
    by_row = choose_questions(Rows(windows), 5, 3)
    assert (len(by_row.dataset), by_row.ids) == (5, None)
    assert by_row.dataset.__getitems__([0, 4])[1] == by_row.dataset[4]


def test_accuracies_count_only_windows_that_hold_an_answer(windows):
    features = make_windows(tiny.examples(), tiny.tokenizer(), labels=True, **WINDOW).features()
    starts, ends = features.start_positions.copy(), features.end_positions.copy()
    count = len(starts)
    starts[0], ends[1], starts[2] = 64, 512, -1  # outside, outside; inside, but never the best
    ends[2] = 5
    labelled = dataclasses.replace(features, start_positions=starts, end_positions=ends)
    holds = (starts > 0) | (ends > 0)
    holds[:2] = False
    logits = np.zeros((2, count, 64), np.float32)
    logits[0, np.arange(count), np.clip(starts, 0, 63)] = 1
    assert count_hits(labelled, tuple(logits)) == [
        holds.sum(),
        holds.sum() - 1,
        1 * (ends[holds] == 0).sum(),
    ]
    cls_last = dataclasses.replace(labelled, cls_index=np.full(count, 7, np.int32))
    starts[5] = ends[5] = 7
    assert count_hits(cls_last, tuple(logits))[0] == count - 3
    assert count_hits(dataclasses.replace(features, start_positions=None), tuple(logits)) == []


@pytest.mark.slow
def test_training_logs_both_sets_in_one_entry(tmp_path, examples, windows):
    """Also with a post-processing that takes no stage and writes files: they are the eval set's."""
    calls, loaders = [], []

    def recorded(rows, features, logits):
        calls.append(len(rows))
        return post_process(rows, features, logits)

    class Recorder(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, eval_dataloader, **kwargs):
            loaders.append(len(eval_dataloader.dataset))

    changes = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "logging_steps": 2}
    args = arguments(tmp_path, eval_train_samples=3, **changes)
    settings = {"args": args, "post_process_function": recorded, "callbacks": [Recorder]}
    trainer = trainer_of(tmp_path, examples, windows, 3, **settings)
    trainer.train()
    trainer.save_state()
    history = TrainerState.load_from_json(tmp_path / "trainer_state.json").log_history
    entries = [entry for entry in history if "eval_loss" in entry]
    names = {f"{p}_{n}" for p in ("train", "eval") for n in ("exact_match", "f1", *ACCURACIES)}
    assert [entry["step"] for entry in entries] == [2, 4]
    assert all(names <= entry.keys() and "train_runtime" not in entry for entry in entries)
    assert entries[0] != entries[1]
    assert calls == [3, len(examples)] * 2
    assert loaders == [9, 9]
    # Another data set has no training questions beside it; several have them once.
    assert not any("train" in name for name in trainer.evaluate(windows.select(range(4)), examples))
    trainer.eval_dataset = {"a": windows.select(range(3)), "b": windows.select(range(5))}
    trainer.eval_examples = {"a": examples, "b": examples}
    before = len(trainer.state.log_history)
    metrics = trainer.evaluate()
    assert {"train_f1", "eval_a_accuracy_end", "eval_b_f1"} <= metrics.keys()
    logged = trainer.state.log_history[before:]
    assert ["train_f1" in entry for entry in logged] == [True, False, False]
    trainer.args.eval_train_samples = 0
    assert not any("train" in name or "accuracy" in name for name in trainer.evaluate())


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["examples", "columns", "rows"])
def test_without_what_answers_need_there_are_accuracies_and_one_warning(
    tmp_path, examples, windows, lacks, caplog
):
    changes = {
        "examples": {"train_examples": None},
        "columns": {"train_dataset": windows.remove_columns(["offset_mapping", "example_id"])},
        "rows": {"train_dataset": Rows(windows)},
    }[lacks]
    trainer = trainer_of(tmp_path, examples, windows, 5, **changes)
    metrics = [trainer.evaluate() for _ in range(2)][1]
    names = {name for name in metrics if name.startswith("train")}
    assert names == {f"train_{name}" for name in ACCURACIES}
    (message,) = [r.getMessage() for r in caplog.records if "only the accuracies" in r.getMessage()]
    word = "pass train_examples" if lacks == "examples" else "example_id and offset_mapping"
    assert word in message


def test_what_cannot_be_chosen_from_is_refused_or_reported(tmp_path, examples, windows, caplog):
    stream = windows.to_iterable_dataset()
    args = arguments(tmp_path, eval_train_samples=5, max_steps=2)
    with pytest.raises(ValueError, match=r"eval_train_samples=5 .* a stream .* eval_dataset"):
        trainer_of(tmp_path, examples, windows, 5, args=args, train_dataset=stream)
    trainer = trainer_of(tmp_path, examples, windows, 5, train_dataset=None)
    for _ in range(2):
        assert {n for n in trainer.evaluate() if "accuracy" in n} == {
            f"eval_{name}" for name in ACCURACIES
        }
    assert caplog.text.count("no train_dataset") == 1
    trainer = trainer_of(tmp_path, examples, windows, 5, train_examples=examples.select([0, 1]))
    with pytest.raises(ValueError, match="train_examples: no example has the ids of") as error:
        trainer.evaluate()
    assert "eval_train_samples=5" in error.value.__notes__[0]


def test_the_plain_trainer_has_its_own_metrics_of_the_training_questions(tmp_path, windows):
    def metrics_of_logits(prediction):
        return {"windows": len(prediction.predictions[0])}

    args = arguments(tmp_path, eval_train_samples=99)
    few = windows.select(range(7))
    trainer = Trainer(
        tiny.model(),
        args,
        train_dataset=windows,
        eval_dataset=few,
        compute_metrics=metrics_of_logits,
    )
    metrics = trainer.evaluate()
    assert (metrics["train_windows"], metrics["eval_windows"]) == (len(windows), 7)
    assert metrics["train_accuracy_end"] == pytest.approx(accuracies_of(trainer, windows)[1])
