"""Options of evaluation: several data sets, inputs, losses, bfloat16, a device report."""

import logging
import re

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments
from transformers import TrainerCallback
from transformers.trainer_utils import EvalPrediction

from qa_flax import (
    QuestionAnsweringTrainer,
    Trainer,
    postprocess_qa_predictions,
    prepare_train_features,
    prepare_validation_features,
    squad_metric,
)
from qa_flax.train.best import MetricError
from qa_flax.train.evaluation import with_prefix

WINDOW = {"max_seq_length": 64, "doc_stride": 16}


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


@pytest.fixture(scope="module")
def windows(examples):
    return prepare_train_features(examples, tiny.tokenizer(), **WINDOW)


def first_logit(scored):
    return {"first": float(scored.predictions[0][0, 0])}


def test_each_of_several_data_sets_has_its_own_metrics(tmp_path, windows):
    sets = {"few": windows.select(range(3)), "more": windows.select(range(2, 20))}
    names = []

    class Recorder(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            names.append(sorted(metrics))

    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, eval_strategy="epoch", metric_for_best_model="more_first"),
        train_dataset=windows.select(range(8)),
        eval_dataset=sets,
        compute_metrics=first_logit,
        callbacks=[Recorder],
    )
    metrics = trainer.evaluate()
    assert {f"eval_{s}_{n}" for s in sets for n in ("loss", "first", "runtime")} <= set(metrics)
    for name, dataset in sets.items():
        expected = trainer.evaluate(dataset, metric_key_prefix=f"eval_{name}")
        for key in (f"eval_{name}_loss", f"eval_{name}_first"):
            assert metrics[key] == expected[key]
    assert metrics["eval_few_first"] != metrics["eval_more_first"]
    names.clear()
    trainer.train()
    assert [any("few" in key for key in keys) for keys in names] == [True, False]
    assert trainer.state.best_metric == trainer.evaluate()["eval_more_first"]


def test_several_data_sets_with_examples(tmp_path, examples):
    halves = {"first": examples.select(range(5)), "second": examples.select(range(5, 11))}
    windows = {
        name: prepare_validation_features(rows, tiny.tokenizer(), **WINDOW)
        for name, rows in halves.items()
    }

    def post_process(examples, windows, logits):
        answers = postprocess_qa_predictions(examples, windows, logits)
        return EvalPrediction(
            predictions=[{"id": k, "prediction_text": v} for k, v in answers.items()],
            label_ids=[{"id": row["id"], "answers": row["answers"]} for row in examples],
        )

    trainer = QuestionAnsweringTrainer(
        tiny.model(),
        arguments(tmp_path),
        eval_dataset=windows,
        eval_examples=halves,
        post_process_function=post_process,
        compute_metrics=lambda scored: squad_metric(*scored),
    )
    metrics = trainer.evaluate()
    for name in halves:
        expected = trainer.evaluate(windows[name], halves[name])
        assert metrics[f"eval_{name}_f1"] == expected["eval_f1"]


def test_include_for_metrics_passes_inputs_and_losses_to_compute_metrics(tmp_path, windows):
    few = windows.select(range(9))
    calls = []

    def compute_metrics(prediction):
        calls.append(prediction)
        return {}

    args = arguments(tmp_path, include_for_metrics=["inputs", "loss"])
    trainer = Trainer(tiny.model(), args, eval_dataset=few, compute_metrics=compute_metrics)
    loss = trainer.evaluate()["eval_loss"]
    np.testing.assert_array_equal(calls[0].inputs, few["input_ids"])
    assert calls[0].losses.shape == (9,)
    assert float(np.mean(calls[0].losses, dtype=np.float64)) == loss


def with_labels(windows, **columns):
    """Replace columns of labels."""
    for name, values in columns.items():
        windows = windows.remove_columns(name).add_column(name, values)
    return windows


def test_labels_outside_take_no_part_in_the_loss_and_are_logged_once(tmp_path, windows, caplog):
    few, outside = windows.select(range(9)), [64] * 9
    starts, ends = list(few["start_positions"]), list(few["end_positions"])
    starts[:4], ends[2] = [64, 512, 2**40, 64], 10**6
    some = with_labels(few, start_positions=starts, end_positions=ends)
    losses = []

    def compute_metrics(prediction):
        losses.append(prediction.losses)
        return {}

    args = arguments(tmp_path, include_for_metrics=["loss"], eval_strategy="steps", eval_steps=1)
    trainer = Trainer(
        tiny.model(), args, train_dataset=some, eval_dataset=some, compute_metrics=compute_metrics
    )
    loss = trainer.evaluate()["eval_loss"]
    trainer.evaluate(with_labels(few, end_positions=outside))
    trainer.evaluate(with_labels(few, start_positions=outside))
    starts, ends = losses[1] * 2, losses[2] * 2
    assert min(starts.min(), ends.min()) > 0
    starts[:4], ends[2] = 0, 0
    assert loss == pytest.approx((starts.sum() / 5 + ends.sum() / 8) / 2, rel=1e-6)
    np.testing.assert_allclose(losses[0], (starts + ends) / 2, rtol=1e-6)
    assert (
        trainer.evaluate(with_labels(few, start_positions=outside, end_positions=outside))[
            "eval_loss"
        ]
        == 0
    )
    caplog.clear()
    trainer.train()
    line = (
        "4 start and 1 end labels of 9 windows are at position 64 or later, outside their windows, "
        'and take no part in the loss: examples "q0", "q1", "q2"'
    )
    assert [r.getMessage() for r in caplog.records if "labels" in r.getMessage()] == [
        f"training: {line}"
    ]


def test_prediction_loss_only_does_not_call_compute_metrics(tmp_path, windows):
    args = arguments(tmp_path, prediction_loss_only=True)
    trainer = Trainer(
        tiny.model(), args, eval_dataset=windows, compute_metrics=lambda scored: 1 / 0
    )
    assert set(trainer.evaluate()) == {
        *("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
    }


def test_an_error_in_compute_metrics_does_not_change_the_trainer(tmp_path, windows):
    def failing(scored):
        raise KeyError("no such metric")

    trainer = Trainer(tiny.model(), arguments(tmp_path), eval_dataset=windows)
    trainer.compute_metrics = failing
    with pytest.raises(KeyError, match="no such metric"):
        trainer.evaluate()
    assert trainer.compute_metrics is failing
    assert trainer.state.log_history == []


def test_bf16_full_eval_evaluates_in_bfloat16(tmp_path, windows, caplog):
    logits = {}
    runs = {
        "f32": {},
        "bf16": {"bf16_full_eval": True},
        # Scripts for GPUs ask for float16; bfloat16 takes its place, and a warning says so.
        "fp16": {"fp16": True},
        "fp16_full_eval": {"fp16_full_eval": True},
    }
    for name, settings in runs.items():
        trainer = Trainer(tiny.model(), arguments(tmp_path, **settings))
        logits[name] = trainer.predict(windows.select(range(8))).predictions[0]
        assert logits[name].dtype == np.float32
    for name in ("fp16", "fp16_full_eval"):
        np.testing.assert_array_equal(logits[name], logits["bf16"])
        assert caplog.text.count(f"{name}=True: the model computes in bfloat16 instead") == 1
    difference = np.abs(logits["f32"] - logits["bf16"]).max()
    assert 1e-4 < difference < 0.1 * np.abs(logits["f32"]).max()


@pytest.mark.slow
def test_tpu_metrics_debug_prints_a_device_report(tmp_path, windows, capsys):
    args = arguments(
        tmp_path, debug=["tpu_metrics_debug"], eval_strategy="epoch", max_steps=3, seed=17
    )
    trainer = Trainer(
        tiny.model(hidden_dropout_prob=0.17),  # no other test compiles this step
        args,
        train_dataset=windows.select(range(20)),
        eval_dataset=windows.select(range(10)),
    )
    trainer.train()
    text = capsys.readouterr().err
    evaluation, training = re.findall(r"Device, (.*):\n((?:  .*\n)+)", text)
    assert evaluation[0] == "eval of 10 windows"
    assert training[0] == "training"
    size = re.search(r"to the host: ([\d,]+) bytes", evaluation[1])[1].replace(",", "")
    assert "steps: 1, " in evaluation[1]
    assert int(size) >= 10 * 2 * 64 * 4  # two float32 logits a token
    assert "steps: 3, " in training[1]
    assert "to the host: 24 bytes" in training[1]
    assert int(re.search(r"compiled: (\d+) times", training[1])[1]) >= 1


@pytest.fixture
def levels():
    """The current log levels, as a function; they are restored after the test."""
    loggers = [logging.getLogger(name) for name in ("transformers", "qa_flax")]
    before = [logger.level for logger in loggers]
    yield lambda: [logger.level for logger in loggers]
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def test_the_log_level_is_set_from_the_arguments(tmp_path, levels):
    before = levels()
    Trainer(tiny.model(), arguments(tmp_path))
    assert levels() == before
    Trainer(tiny.model(), arguments(tmp_path, log_level="error"))
    assert levels() == [logging.ERROR] * 2


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "compute_metrics returned None (does it end with a return statement?)"),
        (np.zeros(3), "compute_metrics returned a ndarray of shape (3,); it must return a dict"),
        (0.5, "compute_metrics returned a float; it must return a dict of names and numbers"),
        ((1.0, 2.0), "compute_metrics returned a tuple"),
        ({"f1": np.zeros(3)}, "compute_metrics returned a ndarray of shape (3,) as 'f1'"),
        ({"f1": {"a": {1, 2}}}, "compute_metrics returned a dict as 'f1', which cannot be written"),
        ({1: 0.5}, "compute_metrics returned a dict with the key 1"),
    ],
)
def test_what_compute_metrics_returns_must_be_metrics(returned, message):
    with pytest.raises(MetricError, match=re.escape(message)):
        with_prefix(returned, "eval")


@pytest.mark.parametrize("cls", [Trainer, QuestionAnsweringTrainer])
def test_a_trainer_says_what_compute_metrics_returned(tmp_path, windows, examples, cls):
    more = {}
    if cls is QuestionAnsweringTrainer:
        more = {
            "eval_examples": examples,
            "post_process_function": lambda *args: EvalPrediction([], []),
        }
    trainer = cls(
        tiny.model(),
        arguments(tmp_path),
        eval_dataset=windows,
        compute_metrics=lambda scored: None,
        **more,
    )
    with pytest.raises(ValueError, match="compute_metrics returned None"):
        trainer.evaluate()


def test_metrics_of_any_scalar_type_are_numbers():
    metrics = {"a": np.float32(0.5), "eval_b": np.array([2]), "c": {"d": np.int64(3)}, "e": "text"}
    expected = {"eval_a": 0.5, "eval_b": 2, "eval_c": {"d": 3}, "eval_e": "text"}
    assert with_prefix(metrics, "eval") == expected
