"""Layers one after the other: computed again in the backward pass, with the same dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import (
    TESTED,
    assert_same_gradients,
    batch_of,
    loud_config,
    loud_model,
    others_slow,
    torch_gradients,
)

from qa_flax.models.blocks import PostNormBlock, PreNormBlock, Stack
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.qa import span_losses


def loss_of_params(family, remat):
    """With dropout; and the parameters."""
    model, batch = loud_model(0, family=family).with_remat(remat), batch_of(family)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        logits = nnx.merge(graph, params, rest)(**batch, rngs=nnx.Rngs(dropout=0))
        return span_losses(logits, jnp.array([3, 0, 1]), jnp.array([5, 1, 1])).mean()

    return loss, params


@pytest.mark.parametrize("family", others_slow(TESTED))
def test_with_remat_every_layer_is_computed_again_in_the_backward_pass(family):
    modules = [module for _, module in nnx.iter_modules(loud_model(0, family=family))]
    layers = sum(len(module) for module in modules if isinstance(module, Stack))
    loss, params = loss_of_params(family, remat=True)
    # JAX writes where the backward pass begins anew into the forward pass.
    assert str(jax.make_jaxpr(loss)(params)).count("= remat") >= layers > 0


# A training has the same by default: `test_gradient_checkpointing_gives_the_same_updates`.
@pytest.mark.slow
def test_computing_again_in_the_backward_pass_changes_no_gradient():
    """Dropout's masks must be drawn again."""
    (plain, params), (saving, _) = (loss_of_params("bert", remat) for remat in (False, True))
    assert "= remat" not in str(jax.make_jaxpr(plain)(params))
    kept, again = (jax.jit(jax.grad(loss))(params) for loss in (plain, saving))
    assert_same_gradients(torch_gradients(again, "bert"), torch_gradients(kept, "bert"))


class Halved(nnx.Module):
    """In place of attention."""

    def __call__(self, hidden, *where, rngs=None):
        return 0.5 * hidden


def test_a_block_normalises_before_or_after_it_adds():
    """The mlp's kernels are zeros, so that only attention adds something."""
    config = EncoderConfig.from_hf(loud_config("bert").to_dict())
    hidden = jnp.asarray(np.random.default_rng(0).normal(3, 2, (1, 5, 16)), jnp.float32)

    def normal(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    def run(kind):
        return kind(config, Halved(), dtype=jnp.dtype("float32"))(hidden)

    wanted = {
        PostNormBlock: normal(normal(1.5 * hidden)),
        PreNormBlock: hidden + normal(hidden) / 2,
    }
    for kind, expected in wanted.items():
        np.testing.assert_allclose(run(kind), expected, rtol=1e-4, atol=1e-4)
