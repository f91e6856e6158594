"""Stage 5 of 7: what one core does in a training and in an evaluation step (device, JAX).

Pure functions of one core's share of a batch. They name the axis of the cores but never wrap
themselves: `parallel.over_cores` does, and a test may use `jax.vmap(axis_name=CORES)` instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from qa_flax.models.layers import SpanLogits
from qa_flax.models.qa import span_losses

CORES = "cores"

Batch = dict[str, Array]
"""int32 `[b, l]`: `input_ids`, `attention_mask`, perhaps `token_type_ids`; int32 `[b]`, to train:
`start_positions`, `end_positions`; bool `[b]`: `valid`, False in rows that only fill up."""


class TrainState(NamedTuple):
    """All that a step changes: the update count, the float32 parameters, the optimizer's state."""

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


class Measurements(NamedTuple):
    """What a step reports, the same on every core: float32 scalars."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def model_inputs(batch: Batch) -> Batch:
    """The entries of a batch that the encoder reads."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name] for name in names if name in batch}


def make_loss(graphdef: nnx.GraphDef) -> Callable[..., Float[Array, ""]]:
    """`loss(params, batch, key=None)`: this core's part of the mean over all cores' valid rows.

    Summing it over the cores gives the mean: 1 core and 8 cores, any number of rows that only fill
    up, and any width of the padding have the same loss and the same gradients. `key` is of the
    dropout masks; None: no dropout.
    """

    def loss(params: PyTree, batch: Batch, key: Any = None) -> Float[Array, ""]:
        # Made here, as NNX lets the function that is differentiated change only what is its own.
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = nnx.merge(graphdef, params)(**model_inputs(batch), rngs=rngs)
        labels = (batch["start_positions"], batch["end_positions"])
        losses = span_losses(logits, *labels, batch["attention_mask"])
        rows = lax.psum(jnp.sum(batch["valid"].astype(jnp.float32)), CORES)
        return jnp.sum(jnp.where(batch["valid"], losses, 0.0)) / rows

    return loss


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Measurements]]:
    """`train_step(state, batch, key) -> (state, measurements)`, one update of the parameters.

    The key of the dropout masks is folded from (run's key, step, core): nothing is carried from
    step to step, so a resumed run draws what the uninterrupted one would have drawn.
    """
    loss_of = make_loss(graphdef)

    def train_step(state: TrainState, batch: Batch, key: Any) -> tuple[TrainState, Measurements]:
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), lax.axis_index(CORES))
        loss, grads = jax.value_and_grad(loss_of)(state.params, batch, key)
        loss, grads = lax.psum((loss, grads), CORES)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        measurements = Measurements(loss, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state), measurements

    return train_step


def make_eval_step(graphdef: nnx.GraphDef) -> Callable[[PyTree, Batch], SpanLogits]:
    """`eval_step(params, batch) -> SpanLogits`: this core's rows, float32 `[b, l]`, no dropout."""

    def eval_step(params: PyTree, batch: Batch) -> SpanLogits:
        return nnx.merge(graphdef, params)(**model_inputs(batch))

    return eval_step
