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
from jaxtyping import Array, Bool, Float, Int, PyTree

from qa_flax.models.blocks import Stack
from qa_flax.models.layers import Table
from qa_flax.models.qa import SpanLogits, span_losses
from qa_flax.models.sharding import (
    CORES,
    all_gather,
    global_norm,
    has_shards,
    is_shard,
    sum_gradients,
)

Batch = dict[str, Array]
"""int32 `[b, l]`: `input_ids`, `attention_mask`, perhaps `token_type_ids`; int32 `[b]`, to train:
`start_positions`, `end_positions`; bool `[b]`: `valid`, False in rows that only fill up. A train
step takes several: `[a, b, ...]`."""


class Weights(NamedTuple):
    """What a model holds, float32: what is trained, and what is not and has no optimizer state."""

    params: PyTree
    fixed: PyTree


class TrainState(NamedTuple):
    """What a step works on: the update count, the weights, the state of the params' optimizer."""

    step: Int[Array, ""]
    params: PyTree
    fixed: PyTree  # comes out of a step as it went in
    opt_state: PyTree

    @property
    def weights(self) -> Weights:
        """The model's part."""
        return Weights(self.params, self.fixed)


class Measurements(NamedTuple):
    """What a step reports, the same on every core: float32 scalars."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def weights_of(model: nnx.Module) -> Weights:
    """A model's variables: every `nnx.Param` is trained, nothing else is."""
    return Weights(*nnx.split(model, nnx.Param, ...)[1:])


def model_inputs(batch: Batch) -> Batch:
    """The entries of a batch that the encoder reads."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name] for name in names if name in batch}


def _model(graphdef: nnx.GraphDef, weights: Weights) -> Any:
    """The model. Of shards all is put together but tables and the layers of stacks.

    Those see to it themselves, when they are read or run.

    Made inside a function that is differentiated, as NNX lets that change only what is its own.
    """
    model = nnx.merge(graphdef, *weights)
    if not has_shards(weights):
        return model
    modules = nnx.iter_modules(model)
    later = [path for path, module in modules if isinstance(module, (Stack, Table))]

    def together(path: tuple[Any, ...], node: Any) -> Any:
        names = tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        return node if any(names[: len(module)] == module for module in later) else all_gather(node)

    parts = (jax.tree_util.tree_map_with_path(together, w, is_leaf=is_shard) for w in weights)
    return nnx.merge(graphdef, *parts)


def make_loss(graphdef: nnx.GraphDef, label_smoothing: float = 0.0) -> Callable[..., Array]:
    """`loss(params, fixed, batch, rows, key=None)`: the sum of this core's losses over `rows`.

    With `rows` the number of valid rows of all cores, the sum over the cores is the mean: 1 core
    and 8 cores, and any number of rows that only fill up have the same loss and the same gradients.
    `key` is of the dropout masks; None: no dropout.

    The batch's padding tokens compete as answers, as in Hugging Face, so that the same batches give
    the same steps.
    """

    def loss(
        params: PyTree, fixed: PyTree, batch: Batch, rows: Float[Array, ""], key: Any = None
    ) -> Float[Array, ""]:
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = _model(graphdef, Weights(params, fixed))(**model_inputs(batch), rngs=rngs)
        losses = span_losses(
            logits,
            batch["start_positions"],
            batch["end_positions"],
            smoothing=label_smoothing,
            smoothed_over=batch["attention_mask"],
        )
        return jnp.sum(jnp.where(batch["valid"], losses, 0.0)) / rows

    return loss


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    label_smoothing: float = 0.0,
) -> Callable[..., tuple[TrainState, Measurements]]:
    """`train_step(state, batch, learning_rate, key) -> (state, measurements)`: one update.

    The batch's arrays are `[a, b, ...]`: `a` batches one after the other, whose gradients are added
    up, so that memory holds the activations of one. The gradient is the mean over all valid rows,
    however they are divided into batches and cores.

    `optimizer` gives directions: it is `optim.make_optimizer`'s. The key of the dropout masks is
    folded from (run's key, step, core, batch): nothing is carried from step to step, so a resumed
    run draws what the uninterrupted one would have drawn.
    """
    loss_and_gradient = jax.value_and_grad(make_loss(graphdef, label_smoothing))

    def train_step(
        state: TrainState, batch: Batch, learning_rate: Float[Array, ""], key: Any
    ) -> tuple[TrainState, Measurements]:
        weights = state.weights
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), lax.axis_index(CORES))
        rows = lax.psum(jnp.sum(batch["valid"].astype(jnp.float32)), CORES)
        count = batch["valid"].shape[0]
        if count == 1:
            only = jax.tree.map(lambda x: x[0], batch)
            loss, grads = loss_and_gradient(*weights, only, rows, key)
        else:

            def add(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, None]:
                one, number = part
                found = loss_and_gradient(*weights, one, rows, jax.random.fold_in(key, number))
                return jax.tree.map(jnp.add, total, found), None

            nothing = jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params)
            (loss, grads), _ = lax.scan(add, nothing, (batch, jnp.arange(count)))
        loss, grads = lax.psum(loss, CORES), sum_gradients(grads)
        direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        measurements = Measurements(loss, global_norm(grads))
        return TrainState(state.step + 1, params, state.fixed, opt_state), measurements

    return train_step


class BestTokens(NamedTuple):
    """The `c` best starts and ends of each row, best first, and the null's two logits."""

    starts: Int[Array, "b c"]
    start_logits: Float[Array, "b c"]
    ends: Int[Array, "b c"]
    end_logits: Float[Array, "b c"]
    null_starts: Float[Array, " b"]
    null_ends: Float[Array, " b"]


class EvalOutput(NamedTuple):
    """What an evaluation step gives: each row's logits or best tokens; its loss, where labelled."""

    logits: SpanLogits | BestTokens
    losses: Float[Array, " b"] | None
    are_finite: Bool[Array, " b"]  # all logits of the row's real tokens


class Reduction(NamedTuple):
    """How logits are reduced to best tokens before they leave the core."""

    candidates: int
    padding: float  # the logit that a padding token counts with
    finite: bool  # whether NaN counts as `padding`, and infinities as +-`padding`


def make_eval_step(
    graphdef: nnx.GraphDef, reduction: Reduction | None = None
) -> Callable[[Weights, Batch], EvalOutput]:
    """`eval_step(weights, batch) -> EvalOutput`: this core's rows, float32, no dropout.

    With a `reduction` the batch holds `null_positions`, int32 `[b]`, too.
    """

    def eval_step(weights: Weights, batch: Batch) -> EvalOutput:
        logits = _model(graphdef, weights)(**model_inputs(batch))
        losses = None
        if "start_positions" in batch:
            labels = (batch["start_positions"], batch["end_positions"])
            losses = span_losses(logits, *labels, batch["attention_mask"])
        are_finite = jnp.isfinite(logits.start) & jnp.isfinite(logits.end)
        are_finite = jnp.all(are_finite | (batch["attention_mask"] == 0), axis=1)
        given = logits if reduction is None else reduce(logits, batch, reduction)
        return EvalOutput(given, losses, are_finite)

    return eval_step


def reduce(logits: SpanLogits, batch: Batch, how: Reduction) -> BestTokens:
    """The best tokens of each row, padding counted as `how` says; equal logits left to right.

    A null position outside the batch's columns is that of a padding token which was cut off.
    """
    known = [_known(x, batch["attention_mask"], how) for x in logits]
    (start_logits, starts), (end_logits, ends) = (_top(x, how.candidates) for x in known)
    at = batch["null_positions"][:, None]
    column = jax.lax.broadcasted_iota(at.dtype, logits.start.shape, 1)
    nulls = [
        jnp.where(
            (at[:, 0] >= 0) & (at[:, 0] < x.shape[1]),
            jnp.sum(jnp.where(column == at, x, 0.0), axis=1),
            how.padding,
        )
        for x in known
    ]
    return BestTokens(starts, start_logits, ends, end_logits, *nulls)


def _known(logits: Float[Array, "b l"], mask: Int[Array, "b l"], how: Reduction) -> Array:
    if how.finite:
        logits = jnp.nan_to_num(logits, nan=how.padding, posinf=-how.padding, neginf=how.padding)
    logits = jnp.where(logits == 0.0, 0.0, logits)  # top_k puts -0.0 below 0.0
    return jnp.where(mask > 0, logits, how.padding)


def _top(logits: Float[Array, "b l"], count: int) -> tuple[Array, Array]:
    """Values and positions of the largest, the positions in two bytes where they fit."""
    length = logits.shape[1]
    values, positions = lax.top_k(logits, min(count, length))
    return values, positions.astype(jnp.uint16 if length <= 1 << 16 else jnp.int32)
