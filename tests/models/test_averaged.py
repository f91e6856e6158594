"""The average of several models' probabilities, as a model of its own."""

import json

import jax
import numpy as np
import pytest
import tiny

from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    QuestionAnsweringTrainer,
    TrainingArguments,
    average_models,
    get_peft_model,
    prepare_train_features,
)
from qa_flax.device import parallel
from qa_flax.models.averaged import AveragedModel


def inputs_and_mask():
    batch = tiny.random_batch(np.random.default_rng(0), rows=5)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name] for name in names}, batch["attention_mask"] > 0


def mean_log_probabilities(logits, mask):
    """By hand, in float64, over the tokens that are no padding."""
    total = np.zeros(mask.shape)
    for array in logits:
        array = np.asarray(array, np.float64)
        divisors = [np.exp(row[inside]).sum() for row, inside in zip(array, mask, strict=True)]
        total += np.exp(array) / np.array(divisors)[:, None]
    return np.log(total / len(logits))


@pytest.mark.slow
def test_the_logits_are_the_logarithms_of_the_mean_probabilities():
    models = [tiny.model(seed) for seed in range(3)]
    average, (inputs, mask) = average_models(models), inputs_and_mask()
    assert average.model_count == 3
    output, outputs = average(**inputs), [model(**inputs) for model in models]
    for name in ("start_logits", "end_logits"):
        expected = mean_log_probabilities([o[name] for o in outputs], mask)
        assert np.ptp([np.asarray(o[name]) for o in outputs], axis=0).max() > 1
        np.testing.assert_allclose(output[name], expected, rtol=1e-5, atol=1e-5)
    wide = {name: np.pad(array, ((0, 0), (0, 7))) for name, array in inputs.items()}
    width = mask.shape[1]
    np.testing.assert_allclose(
        np.where(mask, average(**wide).start_logits[:, :width], 0),
        np.where(mask, output.start_logits, 0),
        atol=1e-5,
    )


def test_what_would_change_the_models_is_refused_by_name(tmp_path):
    models = [tiny.model(seed) for seed in range(2)]
    average = average_models(models)
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), 64, 16)
    arguments = TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True)
    trainer = QuestionAnsweringTrainer(average, arguments, train_dataset=windows)
    lora = LoraConfig(r=2, target_modules=["query"])
    for action, word in [
        (trainer.train, "trained"),
        (trainer.save_model, "saved"),
        (lambda: average.save_pretrained(tmp_path), "saved"),
        (lambda: average.resize_token_embeddings(300), "resized"),
        (lambda: get_peft_model(average, lora), "given other adapters"),
        (lambda: average_models([average, average]), "averaged again"),
    ]:
        with pytest.raises(ValueError, match=f"average of 2 models cannot be {word}.*OUTPUT_DIR"):
            action()
    inputs, _ = inputs_and_mask()
    with pytest.raises(ValueError, match="packed rows"):
        average(**inputs, segment_ids=inputs["attention_mask"])


def test_models_that_differ_in_more_than_weights_are_refused():
    for other, message in [
        (tiny.model(num_hidden_layers=2), "num_hidden_layers is 1 and 2"),
        (tiny.model(vocab_size=250), "vocab_size is 240 and 250"),
        (get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["query"])), "LoRA is null"),
    ]:
        with pytest.raises(ValueError, match=f"same architecture.*{message}"):
            average_models([tiny.model(), other])
    with pytest.raises(ValueError, match=r"needs a list of models.*got \[\]"):
        average_models([])


@pytest.mark.parametrize("with_adapters", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_with_folds_is_loaded_as_their_average(tmp_path, with_adapters):
    models = [tiny.model(seed) for seed in (1, 2)]
    if with_adapters:
        models[0].save_pretrained(tmp_path / "base")
        base = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
        lora = LoraConfig(r=2, target_modules=["query"])
        models = [get_peft_model(base, lora, seed) for seed in (1, 2)]
        for seed, model in enumerate(models):
            noise = np.random.default_rng(seed).normal(size=(32, 2))
            model.head.outputs.kernel[...] = noise.astype(np.float32)
    for n, model in enumerate(models, 1):
        model.save_pretrained(tmp_path / f"fold-{n}")
    folds = [{"fold": 1}, {"fold": 2}]
    (tmp_path / "folds.json").write_text(json.dumps({"folds": folds, "mean": {}, "std": {}}))
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert isinstance(loaded, AveragedModel)
    inputs, _ = inputs_and_mask()
    expected = average_models(models)(**inputs).start_logits
    np.testing.assert_array_equal(loaded(**inputs).start_logits, expected)
    (tmp_path / "fold-2").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="lists fold-2, missing"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_trainer_evaluates_the_average_on_all_cores(tmp_path, sharded):
    models = [tiny.model(seed, num_hidden_layers=2) for seed in range(2)]
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), 64, 16)
    arguments = TrainingArguments(
        str(tmp_path),
        report_to="none",
        disable_tqdm=True,
        per_device_eval_batch_size=2,
        shard_params=sharded,
    )
    average = average_models(models)
    trainer = QuestionAnsweringTrainer(average, arguments, eval_dataset=windows)
    start, end = trainer.predict(windows).predictions
    arrays = windows.with_format("numpy")[:]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: arrays[name] for name in names}
    mask = arrays["attention_mask"] > 0
    expected = average(**inputs)
    for logits, name in ((start, "start_logits"), (end, "end_logits")):
        np.testing.assert_allclose(logits[mask], np.asarray(expected[name])[mask], atol=1e-4)
    labels = arrays["start_positions"], arrays["end_positions"]
    losses = [-x[np.arange(len(x)), y] for x, y in zip((start, end), labels, strict=True)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert parallel.core_count() == jax.device_count()
