"""What scripts for PyTorch models call on the model object."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_trainers import arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.models.blocks import Stack


def test_methods_that_scripts_chain_return_the_model():
    model = tiny.model()
    assert model.eval() is model
    assert not model.training
    assert model.train() is model
    assert model.training
    assert model.train(False) is model
    assert not model.training
    assert model.to("cuda").cpu().cuda(0).to(device="cpu") is model
    assert model.zero_grad() is None
    assert (model.device, model.device.type, model.num_labels) == ("cpu", "cpu", 2)
    assert model.name_or_path == model.config.name_or_path


def test_the_mode_does_not_change_the_result(rng):
    model = tiny.model(hidden_dropout_prob=0.5)
    inputs = {"input_ids": rng.integers(5, 50, (2, 9))}
    expected = model.eval()(**inputs).start_logits
    np.testing.assert_array_equal(model.train()(**inputs).start_logits, expected)


def test_the_compute_dtype_can_be_changed(rng):
    model = tiny.model()
    inputs = {"input_ids": rng.integers(5, 50, (2, 9))}
    expected = np.array(model(**inputs).start_logits)
    assert model.bfloat16() is model
    assert model.dtype == jnp.bfloat16
    assert model.head.outputs.kernel[...].dtype == jnp.float32
    difference = np.abs(np.array(model(**inputs).start_logits) - expected).max()
    assert 0 < difference < 0.1 * np.abs(expected).max()
    assert model.half().dtype == jnp.bfloat16
    assert model.float().dtype == jnp.float32
    np.testing.assert_array_equal(model(**inputs).start_logits, expected)
    assert model.to(jnp.bfloat16).to(np.dtype("float32")).dtype == jnp.float32
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    assert model.to(torch.device("cpu")).to(torch.bfloat16).dtype == jnp.bfloat16


@pytest.mark.slow
def test_what_is_set_after_the_trainer_is_built_is_used(tmp_path):
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), max_seq_length=64, doc_stride=16
    )
    model = tiny.model()
    trainer = Trainer(model, arguments(tmp_path, max_steps=1), train_dataset=windows)
    exact = trainer.predict(windows).predictions[0]
    model.bfloat16()
    rounded = trainer.predict(windows).predictions[0]
    assert np.abs(rounded - exact).max() > 0
    trainer.args.bf16_full_eval = True
    np.testing.assert_array_equal(trainer.predict(windows).predictions[0], rounded)
    model.float()
    np.testing.assert_array_equal(trainer.predict(windows).predictions[0], rounded)

    def remat(graphdef):
        from flax import nnx

        merged = nnx.merge(graphdef, nnx.state(model))
        return any(m.remat for _, m in nnx.iter_modules(merged) if isinstance(m, Stack))

    assert not remat(trainer._train_graphdef)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    trainer.train()
    assert remat(trainer._train_graphdef)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
