"""Gradient checkpointing in stacks of layers, and the norms of pre-norm and post-norm blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import (
    TESTED,
    assert_same_gradients,
    batch_of,
    derived_families_slow,
    loud_config,
    loud_model,
    torch_gradients,
)

from qa_flax.models.blocks import PostNormBlock, PreNormBlock, Stack
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.qa import span_losses


def loss_of_params(family, remat):
    """A loss function with dropout, and the parameters to call it with."""
    model, batch = loud_model(0, family=family).with_remat(remat), batch_of(family)
    graph, params, fixed = nnx.split(model, nnx.Param, ...)

    def loss(params):
        logits = nnx.merge(graph, params, fixed).span_logits(**batch, rngs=nnx.Rngs(dropout=0))
        return span_losses(logits, jnp.array([3, 0, 1]), jnp.array([5, 1, 1])).mean()

    return loss, params


@pytest.mark.parametrize("family", derived_families_slow(TESTED))
def test_with_remat_the_backward_pass_recomputes_every_layer(family):
    modules = [module for _, module in nnx.iter_modules(loud_model(0, family=family))]
    layers = sum(len(module) for module in modules if isinstance(module, Stack))
    loss, params = loss_of_params(family, remat=True)
    # In the jaxpr of the forward pass, a `remat` equation marks what the backward pass recomputes.
    assert str(jax.make_jaxpr(loss)(params)).count("= remat") >= layers > 0


# Slow, because `test_gradient_checkpointing_gives_the_same_updates` covers it in a training.
@pytest.mark.slow
def test_remat_does_not_change_the_gradients():
    """The recomputed layers must draw the same dropout masks."""
    (plain, params), (remat, _) = (loss_of_params("bert", remat) for remat in (False, True))
    assert "= remat" not in str(jax.make_jaxpr(plain)(params))
    expected, actual = (jax.jit(jax.grad(loss))(params) for loss in (plain, remat))
    assert_same_gradients(torch_gradients(actual, "bert"), torch_gradients(expected, "bert"))


class Halved(nnx.Module):
    """Replaces attention; its output is half of its input."""

    def __call__(self, hidden, *attention_args, rngs=None):
        return 0.5 * hidden


def test_a_block_normalises_before_or_after_the_residual_addition():
    """The MLP's kernels are zeros, so only the attention adds something."""
    config = EncoderConfig.from_hf(loud_config("bert").to_dict())
    hidden = jnp.asarray(np.random.default_rng(0).normal(3, 2, (1, 5, 16)), jnp.float32)

    def normal(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    def run(kind):
        return kind(config, Halved(), dtype=jnp.dtype("float32"))(hidden)

    outputs = {
        PostNormBlock: normal(normal(1.5 * hidden)),
        PreNormBlock: hidden + normal(hidden) / 2,
    }
    for kind, expected in outputs.items():
        np.testing.assert_allclose(run(kind), expected, rtol=1e-4, atol=1e-4)
