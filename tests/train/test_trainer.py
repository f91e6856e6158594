"""The Trainer contract on eight cores: train, evaluate, predict, files, callbacks."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny
from flax import nnx
from tiny_trainers import WINDOW, arguments, compute_metrics, post_process
from transformers import TrainerCallback
from transformers.trainer_utils import PredictionOutput, TrainOutput

from qa_flax import (
    AutoModelForQuestionAnswering,
    EarlyStoppingCallback,
    LoraConfig,
    QuestionAnsweringTrainer,
    Trainer,
    get_peft_model,
    prepare_train_features,
    prepare_validation_features,
)
from qa_flax.answers.postprocess import postprocess_qa_predictions
from qa_flax.answers.spans import PADDING_LOGIT
from qa_flax.data.windows import Features
from qa_flax.device import parallel
from qa_flax.device.step import weights_of
from qa_flax.models.qa import span_losses
from qa_flax.train.plan import optimizer_bytes
from qa_flax.train.trainer import _require_model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


@pytest.fixture(scope="module")
def train_windows(examples, tokenizer):
    return prepare_train_features(examples, tokenizer, **WINDOW)


@pytest.fixture(scope="module")
def eval_windows(examples, tokenizer):
    return prepare_validation_features(examples, tokenizer, **WINDOW)


def qa_trainer(tmp_path, train_windows, eval_windows, examples, tokenizer, **changes):
    settings = {
        "model": tiny.model(),
        "train_dataset": train_windows,
        "eval_dataset": eval_windows,
        "eval_examples": examples,
        "processing_class": tokenizer,
        "post_process_function": post_process,
        "compute_metrics": compute_metrics,
    } | changes
    args = settings.pop("args", arguments(tmp_path))
    return QuestionAnsweringTrainer(args=args, **settings)


# ---- logits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows_alone(eval_windows):
    """The logits of each window, computed in a batch of one row."""
    forward, features = jax.jit(tiny.model()), Features.from_dataset(eval_windows)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return [
        forward(**{name: getattr(features, name)[n : n + 1] for name in inputs})
        for n in range(len(features.input_ids))
    ]


@pytest.mark.parametrize("per_core", [1, 3])
@pytest.mark.parametrize("rows", [1, 7, 8, 19])
def test_logits_are_in_the_order_of_the_windows(tmp_path, eval_windows, rows_alone, rows, per_core):
    order = [n % len(eval_windows) for n in range(rows)]
    windows = eval_windows.select(order)
    trainer = Trainer(tiny.model(), arguments(tmp_path, per_device_eval_batch_size=per_core))
    start, end = trainer.predict(windows).predictions
    assert start.dtype == end.dtype == np.float32
    assert start.shape == end.shape == (rows, 64)
    attention_mask = Features.from_dataset(windows).attention_mask
    for n in range(rows):
        real, expected = attention_mask[n] > 0, rows_alone[order[n]]
        np.testing.assert_allclose(start[n, real], expected.start[0, real], rtol=0, atol=2e-5)
        np.testing.assert_allclose(end[n, real], expected.end[0, real], rtol=0, atol=2e-5)
        assert (start[n, ~real] == PADDING_LOGIT).all()


def test_answers_do_not_depend_on_padding_or_batch_size(tmp_path, examples, tokenizer):
    answers = []
    for length, per_core in [(64, 1), (64, 5), (128, 2)]:
        windows = prepare_validation_features(examples.select(range(8)), tokenizer, 64, 16)
        features = Features.from_dataset(windows)
        padded = {
            name: np.pad(getattr(features, name), ((0, 0), (0, length - 64)))
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        offsets = np.pad(features.offsets, ((0, 0), (0, length - 64), (0, 0)), constant_values=-1)
        features = Features(features.example_ids, **padded, offsets=offsets)
        trainer = Trainer(tiny.model(), arguments(tmp_path, per_device_eval_batch_size=per_core))
        logits = trainer.predict(features).predictions
        answers.append(postprocess_qa_predictions(examples.select(range(8)), features, logits))
    assert answers[0] == answers[1] == answers[2]
    assert any(answers[0].values())


# ---- training ------------------------------------------------------------------------------------


def test_training_overfits_a_few_questions(
    tmp_path, train_windows, eval_windows, examples, tokenizer
):
    trainer = qa_trainer(
        tmp_path,
        train_windows,
        eval_windows,
        examples,
        tokenizer,
        model=tiny.model(initializer_range=0.05),
        args=arguments(tmp_path, num_train_epochs=40, learning_rate=3e-3),
    )
    before = trainer.evaluate()
    output = trainer.train()
    after = trainer.evaluate()
    assert isinstance(output, TrainOutput)
    assert output.global_step == trainer.state.global_step == 40 * -(-len(train_windows) // 8)
    assert before["eval_exact_match"] < 50
    assert after["eval_exact_match"] == 100
    assert after["eval_f1"] == 100


def test_one_core_trains_and_predicts_like_eight(tmp_path, monkeypatch):
    """With the same global batch of 8 windows."""
    few, many = tmp_path / "few.npz", tmp_path / "many.npz"
    train_and_predict(many, per_core=1)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "cores", lambda: (jax.devices()[0],))
        for count in ("core_count", "process_core_count"):
            patch.setattr(parallel, count, lambda: 1)
        train_and_predict(few, per_core=8)
    assert_same_run(few, many, cores=1)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_fewer_cores_train_and_predict_like_eight(tmp_path, cores):
    """Like the test above, but in a new process that has only these cores."""
    few, many = tmp_path / "few.npz", tmp_path / "many.npz"
    command = [sys.executable, __file__, str(few), str(8 // cores)]
    subprocess.run(command, env=processes.environment(cores), check=True)
    train_and_predict(many, per_core=1)
    assert_same_run(few, many, cores)


def assert_same_run(few, many, cores):
    few, many = np.load(few), np.load(many)
    assert (few["cores"], many["cores"]) == (cores, 8)
    np.testing.assert_allclose(few["losses"], many["losses"], rtol=1e-5)
    for name in ("start", "end"):
        scale = np.abs(many[name][many[name] != PADDING_LOGIT]).max()
        np.testing.assert_allclose(few[name], many[name], rtol=0, atol=2e-5 * scale)


def train_and_predict(path, per_core):
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **WINDOW)
    trainer = Trainer(
        tiny.model(),
        arguments(
            path.parent,
            per_device_train_batch_size=per_core,
            per_device_eval_batch_size=per_core,
            logging_steps=1,
            learning_rate=1e-3,
            adam_epsilon=1e-4,
        ),
        train_dataset=windows,
    )
    trainer.train()
    start, end = trainer.predict(windows).predictions
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    np.savez(path, start=start, end=end, losses=losses, cores=parallel.core_count())


def test_a_nonfinite_loss_stops_training_and_the_error_names_the_step(tmp_path, train_windows):
    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, learning_rate=1e30, num_train_epochs=9, max_grad_norm=0.0),
        train_dataset=train_windows,
    )
    with pytest.raises(FloatingPointError, match=r"step \d+: loss"):
        trainer.train()


def test_the_dropout_rate_of_the_config_is_used(tmp_path, train_windows):
    losses = []
    for rate in (0.0, 0.2):
        model = tiny.model()
        model.config.hidden_dropout_prob = rate
        args = arguments(tmp_path, max_steps=1, adam_epsilon=1e-4)
        trainer = Trainer(model, args, train_dataset=train_windows)
        losses.append(trainer.train().training_loss)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_bf16_computes_in_bfloat16_with_float32_parameters(tmp_path, train_windows):
    args = arguments(tmp_path, bf16=True, max_steps=2)
    trainer = Trainer(tiny.model(), args, train_dataset=train_windows)
    trainer.train()
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.split(trainer.model)[1])} == {
        np.dtype(np.float32)
    }
    low = trainer.predict(train_windows).predictions
    full = Trainer(trainer.model, arguments(tmp_path)).predict(train_windows).predictions
    real = full[0] != PADDING_LOGIT
    difference = np.abs(low[0] - full[0])[real].max() / np.abs(full[0])[real].max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize(
    "rates", [pytest.param({}, marks=pytest.mark.slow), {"hidden_dropout_prob": 0.2}]
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_gradient_checkpointing_gives_the_same_updates(tmp_path, train_windows, rates):
    trainers = []
    for is_recomputed in (False, True):
        settings = {"max_steps": 2, "learning_rate": 1e-3, "adam_epsilon": 1e-4}
        args = arguments(tmp_path, gradient_checkpointing=is_recomputed, **settings)
        trainer = Trainer(tiny.model(**rates), args, train_dataset=train_windows)
        trainer.train()
        trainers.append(trainer)
    plain, recomputing = trainers
    assert plain._train_graphdef != recomputing._train_graphdef
    weights = (jax.tree.leaves(weights_of(trainer.model)) for trainer in trainers)
    for expected, actual in zip(*weights, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_only_the_adapters_are_trained(tmp_path, train_windows):
    base = tiny.model(initializer_range=0.05, hidden_dropout_prob=0.1)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    model = get_peft_model(base, config)
    before = jax.tree.map(np.asarray, weights_of(model))
    args = arguments(tmp_path, num_train_epochs=8, learning_rate=3e-2, weight_decay=0.1)
    trainer = Trainer(model, args, train_dataset=train_windows)
    loss = trainer.evaluate(train_windows)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(train_windows)["eval_loss"] < loss / 2
    after = weights_of(model)
    jax.tree.map(np.testing.assert_array_equal, after.fixed, before.fixed)
    trained = 0
    for old, new in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert (old != new).any()
        trained += old.size
    assert trained == model.num_parameters(only_trainable=True) < model.num_parameters() / 3
    # Adam has two moments of each parameter and one count, 4 bytes each.
    assert optimizer_bytes(args, model) == 4 * (2 * trained + 1)
    assert optimizer_bytes(args, base) == 4 * (2 * base.num_parameters() + 1)


# ---- evaluate and predict ------------------------------------------------------------------------


@pytest.fixture
def trainer(tmp_path, train_windows, eval_windows, examples, tokenizer):
    return qa_trainer(tmp_path, train_windows, eval_windows, examples, tokenizer)


MEASURED = {"loss", "runtime", "samples_per_second", "steps_per_second"}


def test_evaluate_returns_scores_and_speed(trainer, eval_windows):
    columns, events = list(eval_windows.column_names), []

    class Recorder(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            events.append(("log", set(logs)))

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            events.append(("evaluate", set(metrics)))

    trainer.add_callback(Recorder)
    metrics = trainer.evaluate(metric_key_prefix="dev")
    names = {"exact_match", "f1", "post_processing_time", "examples_per_second"} | MEASURED
    assert metrics.keys() == {f"dev_{n}" for n in names} | {"epoch"}
    assert [name for name, _ in events] == ["log", "evaluate"]
    assert events[0][1] >= {"dev_f1", "epoch"}
    assert trainer.state.log_history[-1] == metrics | {"step": 0}
    assert eval_windows.column_names == columns
    assert trainer.compute_metrics is compute_metrics


@pytest.mark.parametrize("missing", ["compute_metrics", "post_process_function"])
def test_without_either_function_only_loss_and_speed_are_reported(
    trainer, eval_windows, examples, missing
):
    setattr(trainer, missing, None)
    assert trainer.evaluate().keys() == {f"eval_{name}" for name in MEASURED} | {"epoch"}
    output = trainer.predict(eval_windows, examples)
    assert output.metrics.keys() == {f"test_{name}" for name in MEASURED}
    assert output.predictions[0].shape == (len(eval_windows), 64)


def test_predict_accepts_the_new_and_the_old_argument_names(trainer, eval_windows, examples):
    new = trainer.predict(predict_dataset=eval_windows, predict_examples=examples)
    old = trainer.predict(test_dataset=eval_windows, test_examples=examples)
    assert isinstance(new, PredictionOutput)
    assert new.predictions == old.predictions
    assert [p["id"] for p in new.predictions] == examples["id"]
    assert new.label_ids[0]["answers"] == examples[0]["answers"]
    names = {"exact_match", "f1", "post_processing_time", "examples_per_second"} | MEASURED
    assert new.metrics.keys() == {f"test_{name}" for name in names}


def test_only_predict_passes_the_stage_and_only_as_a_fourth_argument(
    trainer, eval_windows, examples
):
    stages = []

    def with_stage(examples, windows, logits, stage="eval"):
        stages.append(stage)
        return post_process(examples, windows, logits)

    trainer.post_process_function = with_stage
    trainer.evaluate()
    trainer.predict(eval_windows, examples)
    assert stages == ["eval", "predict"]


def test_the_loss_is_reported_if_windows_have_labels(trainer, train_windows):
    metrics = trainer.evaluate(train_windows)
    features = Features.from_dataset(train_windows)
    inputs = (features.input_ids, features.attention_mask, features.token_type_ids)
    logits = jax.jit(trainer.model.span_logits)(*inputs)
    # The trainer excludes padding tokens, too.
    real = features.attention_mask > 0
    logits = type(logits)(*(np.where(real, x, PADDING_LOGIT) for x in logits))
    labels = (features.start_positions, features.end_positions)
    expected = span_losses(*jax.tree.map(jnp.asarray, (logits, *labels))).mean()
    np.testing.assert_allclose(metrics["eval_loss"], expected, rtol=1e-5)


def test_trainer_passes_logits_and_labels_to_compute_metrics(tmp_path, train_windows):
    def first_logit(scored):
        starts, _ = scored.predictions
        return {"first": float(starts[0, 0]), "labels": len(scored.label_ids[0])}

    trainer = Trainer(tiny.model(), arguments(tmp_path), compute_metrics=first_logit)
    metrics = trainer.evaluate(train_windows)
    assert metrics["eval_labels"] == len(train_windows)
    assert metrics["eval_first"] == pytest.approx(
        float(trainer.predict(train_windows).predictions[0][0, 0])
    )
    assert "eval_loss" in metrics


# ---- callbacks, files, errors --------------------------------------------------------------------


def test_early_stopping_ends_the_training(
    tmp_path, train_windows, eval_windows, examples, tokenizer
):
    trainer = qa_trainer(
        tmp_path,
        train_windows,
        eval_windows,
        examples,
        tokenizer,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        args=arguments(
            tmp_path,
            num_train_epochs=9,
            learning_rate=0.0,
            eval_strategy="epoch",
            metric_for_best_model="f1",
            load_best_model_at_end=False,
        ),
    )
    # At a learning rate of 0 no later evaluation is better: the first is the best, then two more.
    assert trainer.train().global_step == 3 * -(-len(train_windows) // 8)


def test_an_unknown_best_metric_is_an_error_that_lists_the_metrics(
    tmp_path, train_windows, eval_windows, examples, tokenizer
):
    args = arguments(tmp_path, eval_strategy="epoch", metric_for_best_model="bleu")
    trainer = qa_trainer(tmp_path, train_windows, eval_windows, examples, tokenizer, args=args)
    with pytest.raises(
        ValueError, match=r"no eval_bleu; it returned: epoch, eval_exact_match, .*eval_f1"
    ):
        trainer.train()


def test_files_have_the_names_and_contents_of_transformers(trainer, tmp_path):
    trainer.log({"loss": 1.0})
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", {"train_loss": 1.5})
    trainer.save_metrics("eval", {"eval_f1": 50.0})
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    modes = {(tmp_path / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1, "only the owner can read files that safetensors creates itself"
    assert json.loads((tmp_path / "all_results.json").read_text()) == {
        "train_loss": 1.5,
        "eval_f1": 50.0,
    }
    assert (
        json.loads((tmp_path / "trainer_state.json").read_text())["log_history"][0]["loss"] == 1.0
    )
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, nnx.split(loaded)[1], nnx.split(trainer.model)[1])


def test_unsupported_arguments_are_named_in_the_error(tmp_path):
    args = arguments(tmp_path, fsdp="full_shard", auto_find_batch_size=True)
    with pytest.raises(ValueError, match="does not support these training arguments") as error:
        Trainer(tiny.model(), args)
    assert "auto_find_batch_size=True" in str(error.value)
    assert "fsdp='full_shard'" in str(error.value)
    with pytest.raises(ValueError, match=r"optim='adamw_bnb_8bit' \(allowed: adamw_torch"):
        qa_trainer(
            tmp_path, None, None, None, None, args=arguments(tmp_path, optim="adamw_bnb_8bit")
        )


def test_missing_data_is_named_in_the_error(tmp_path, eval_windows, examples):
    with pytest.raises(ValueError, match="AutoModelForQuestionAnswering"):
        _require_model(
            object()
        )  # directly: Trainer(object()) would fail the type check of the tests
    trainer = QuestionAnsweringTrainer(
        tiny.model(),
        arguments(tmp_path),
        train_dataset=eval_windows.remove_columns(["start_positions", "end_positions"]),
        compute_metrics=compute_metrics,
        post_process_function=post_process,
    )
    with pytest.raises(ValueError, match="start_positions"):
        trainer.train()
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="eval_examples"):
        trainer.evaluate(eval_windows)
    with pytest.raises(ValueError, match="predict_dataset"):
        trainer.predict(predict_examples=examples)
    with pytest.raises(ValueError, match="train_dataset"):
        Trainer(tiny.model(), arguments(tmp_path)).train()


if __name__ == "__main__":
    train_and_predict(Path(sys.argv[1]), int(sys.argv[2]))
