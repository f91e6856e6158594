"""The fingerprint of a model's parameters: what changes it, and what does not."""

import jax
import numpy as np
import pytest
import tiny
from tiny_trainers import arguments

from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    Trainer,
    average_models,
    get_peft_model,
    prepare_train_features,
)
from qa_flax.models import fingerprint as module
from qa_flax.models.fingerprint import fingerprint
from qa_flax.models.weights import parameters

LORA = LoraConfig(r=2, target_modules=["query", "dense"])


def trained(model, tmp_path, **changes):
    """Train the model for one step."""
    windows = prepare_train_features(
        tiny.examples(answerable=True).select(range(8)),
        tiny.tokenizer(),
        max_seq_length=64,
        doc_stride=16,
    )
    settings = {"max_steps": 1, "learning_rate": 1e-3} | changes
    Trainer(model=model, args=arguments(tmp_path, **settings), train_dataset=windows).train()
    return model


def test_it_is_that_of_the_parameters_and_of_nothing_else(tmp_path):
    model = tiny.model()
    text = fingerprint(model)
    assert text == fingerprint(tiny.model()), "the same seed"
    assert text == fingerprint(model.with_dtype("bfloat16"))
    assert text != fingerprint(tiny.model(seed=1))
    model.save_pretrained(tmp_path)
    assert text == fingerprint(AutoModelForQuestionAnswering.from_pretrained(tmp_path))
    bfloat16 = AutoModelForQuestionAnswering.from_pretrained(tmp_path, dtype="bfloat16")
    assert text == fingerprint(bfloat16)
    model.save_pretrained(tmp_path / "files", max_shard_size=20_000)
    assert text == fingerprint(AutoModelForQuestionAnswering.from_pretrained(tmp_path / "files"))
    other = tiny.model()
    device = jax.devices()[-1]
    for _, parameter in parameters(other):
        parameter.set_value(jax.device_put(parameter.get_raw_value(), device))
    assert text == fingerprint(other), "on another device"


def test_any_parameter_and_any_value_counts(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 8)
    model = tiny.model()
    texts = {fingerprint(model)}
    count = 1
    for _, parameter in parameters(model):
        values = np.array(parameter[...])
        for index in {0, values.size // 3, values.size - 1}:
            changed = values.copy()
            changed.flat[index] = np.nextafter(changed.flat[index], np.float32(9))
            parameter.set_value(jax.numpy.array(changed))
            texts.add(fingerprint(model))
            count += 1
        parameter.set_value(jax.numpy.array(values))
    assert len(texts) == count
    assert fingerprint(model) in texts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"freeze_layers": "0", "freeze_embeddings": True}, marks=pytest.mark.slow),
        pytest.param({"learning_rate": 1e-6, "weight_decay": 0.0}, marks=pytest.mark.slow),
    ],
    ids=["all", "head only", "hardly"],
)
def test_a_training_step_changes_it(tmp_path, changes):
    model = tiny.model()
    before = fingerprint(model)
    trained(model, tmp_path, **changes)
    assert fingerprint(model) != before


def test_adapters_and_their_base_count(tmp_path):
    base = tiny.model()
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LORA, seed=3)
    text = fingerprint(model)
    assert text not in {fingerprint(base), fingerprint(get_peft_model(base, LORA, seed=4))}
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "adapter")
    assert fingerprint(loaded) == text
    # The same adapters on another base.
    tiny.model(seed=5).save_pretrained(tmp_path / "base")
    moved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "adapter")
    assert fingerprint(moved) != text


@pytest.mark.slow
def test_a_training_step_of_adapters_changes_it(tmp_path):
    model = get_peft_model(tiny.model(), LORA)
    before = fingerprint(model)
    assert fingerprint(trained(model, tmp_path)) != before


@pytest.mark.slow
def test_averages_have_their_own():
    models = [tiny.model(seed) for seed in range(2)]
    text = fingerprint(average_models(models))
    assert text == fingerprint(average_models(models))
    assert text != fingerprint(average_models(models[:1]))
    assert text != fingerprint(average_models([models[0], tiny.model(seed=2)]))
