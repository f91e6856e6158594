"""Dense layers in groups, compared with one matrix product for each group."""

import jax.numpy as jnp
import numpy as np
import pytest
from loud import loud_model
from loud_adapters import adapted

from qa_flax.models.grouped import GroupedDense, LoraConvolution, PointwiseConvolution

FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_group_of_outputs_reads_its_group_of_inputs(groups, rng):
    x, bias = rng.normal(size=(2, 3, 8)), rng.normal(size=12)
    weights = rng.normal(size=(groups, 12 // groups, 8 // groups))  # of each group, [out, in]
    expected = np.concatenate(
        [part @ w.T for part, w in zip(np.split(x, groups, -1), weights, strict=True)], axis=-1
    )
    dense = GroupedDense(8, 12, groups, FLOAT32)
    dense.kernel.set_value(jnp.asarray(weights.transpose(1, 2, 0), jnp.float32))
    convolution = PointwiseConvolution(8, 12, groups, FLOAT32)
    rows = weights.reshape(12, -1)  # PyTorch's [out, in / groups]
    convolution.kernel.set_value(jnp.asarray(rows.T[None], jnp.float32))
    for layer in (dense, convolution):
        layer.bias.set_value(jnp.asarray(bias, jnp.float32))
        output = layer(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(output, expected + bias, rtol=1e-4, atol=1e-5)


def test_the_rank_of_an_adapter_is_a_multiple_of_the_groups():
    base = PointwiseConvolution(8, 8, 4, FLOAT32)
    with pytest.raises(ValueError, match=r"r=6 is not a multiple of the 4 groups of layer\.query"):
        LoraConvolution(base, 6, 1.0, 0.0, "layer.query")
    assert LoraConvolution(base, 8, 1.0, 0.0, "layer.query").lora_b.shape == (1, 2, 8)


@pytest.mark.slow
def test_an_adapter_of_one_group_can_be_merged():
    ones = {f"{name}_groups": 1 for name in ("q", "k", "v", "intermediate", "output")}
    model = adapted("squeezebert", loud_model(3, family="squeezebert", **ones))
    batch = {"input_ids": np.arange(24).reshape(2, 12)}
    merged = model.merge_and_unload().span_logits(**batch)
    np.testing.assert_allclose(merged.start, model.span_logits(**batch).start, rtol=1e-4, atol=1e-3)
