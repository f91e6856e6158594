"""Stage 5 of 7: the training step and the evaluation step of one core (device, JAX).

The steps are pure functions of one core's rows of a batch. Their collectives use the axis `CORES`;
`parallel.over_cores` maps them over it. Tests may use `jax.vmap(axis_name=CORES)` instead.
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
from qa_flax.models.qa import Labels, SpanLogits, span_terms, term_scales
from qa_flax.models.sharding import (
    CORES,
    all_gather,
    global_norm,
    has_shards,
    is_shard,
    sum_gradients,
)
from qa_flax.models.tracing import trace_settings, traced_with

Batch = dict[str, Array]
"""The rows of one core: b rows of l tokens. The arrays, by name:

- `input_ids`, `attention_mask`, optionally `token_type_ids`: int32 `[b, l]`
- `start_positions`, `end_positions`: int32 `[b]`, if the rows have labels
- `start_positions_all`, `end_positions_all`: int32 `[b, g]`, if the labels include all answers
- `valid`: bool `[b]`, False in padding rows
- `null_positions`: int32 `[b]`, if logits are reduced to the best tokens
- `segment_ids`: int32 `[b, l]`, if several windows are packed into each row. Labels, `valid` and
  `null_positions` are `[b, s]` then, for the windows 1 to s of each row.

A training step takes `a` microbatches (gradient accumulation) as stacked arrays `[a, b, ...]`.
"""


LossFunction = Callable[[SpanLogits, Batch], Array]
"""Start and end logits `[b, l]` and their batch -> one loss for each row, `[b]`."""


class Weights(NamedTuple):
    """A model's arrays, float32: `params` are trained, `fixed` have no optimizer state."""

    params: PyTree
    fixed: PyTree


class TrainState(NamedTuple):
    """The training state: number of updates done, weights, and optimizer state of `params`."""

    step: Int[Array, ""]
    params: PyTree
    fixed: PyTree  # returned unchanged by a step
    opt_state: PyTree
    average: PyTree = None
    """The moving average of `params` (`ema_decay`), of the same structure; None: there is none."""

    @property
    def weights(self) -> Weights:
        """The weights that are trained: `params` and `fixed`."""
        return Weights(self.params, self.fixed)

    @property
    def evaluation_weights(self) -> Weights:
        """The weights that are evaluated and saved: `average`, or without one `params`; `fixed`."""
        return Weights(self.params if self.average is None else self.average, self.fixed)


class Measurements(NamedTuple):
    """Loss and gradient norm of a training step: float32 scalars, the same on every core."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def weights_of(model: nnx.Module) -> Weights:
    """Return a model's weights: every `nnx.Param` is trained, all other variables are fixed.

    Parameters whose paths are in `model.frozen`, if it has that attribute, are fixed, too. The
    arrays that a step differentiates are its `params`, so it computes no gradient for the others.
    """
    frozen = getattr(model, "frozen", frozenset())
    trained: Any = nnx.Param
    if frozen:
        trained = nnx.All(nnx.Param, lambda path, _: tuple(path) not in frozen)
    return Weights(*nnx.split(model, trained, ...)[1:])


def model_inputs(batch: Batch) -> Batch:
    """Return the arrays of a batch that are the model's inputs."""
    names = ("input_ids", "attention_mask", "token_type_ids", "segment_ids")
    return {name: batch[name] for name in names if name in batch}


def _labels(batch: Batch) -> tuple[Array, Array]:
    """The start and end labels of a batch: of all answers, if it has them, else of the first."""
    suffix = "_all" if "start_positions_all" in batch else ""
    return batch[f"start_positions{suffix}"], batch[f"end_positions{suffix}"]


class _Windows(NamedTuple):
    """The logits, masks and labels of w windows: a batch's rows or, packed, the places of its rows.

    A packed window has all columns of its row, but the mask of its own tokens.
    """

    logits: SpanLogits  # [w, l]
    mask: Int[Array, "w l"]
    labels: tuple[Labels, Labels] | None  # start and end, if there are any


def _windows_of(logits: SpanLogits, batch: Batch) -> _Windows:
    mask = batch["attention_mask"]
    labels = None
    if "start_positions" in batch:
        starts, ends = (x.reshape(-1, *x.shape[batch["valid"].ndim :]) for x in _labels(batch))
        labels = starts, ends
    if "segment_ids" not in batch:
        return _Windows(logits, mask, labels)
    b, l = mask.shape
    places = batch["valid"].shape[1]
    numbers = jnp.arange(1, places + 1, dtype=jnp.int32)[None, :, None]
    own = (batch["segment_ids"][:, None, :] == numbers) & (mask > 0)[:, None, :]
    spread = [jnp.broadcast_to(x[:, None, :], (b, places, l)).reshape(-1, l) for x in logits]
    return _Windows(SpanLogits(*spread), own.astype(mask.dtype).reshape(-1, l), labels)


def _model(graphdef: nnx.GraphDef, weights: Weights) -> Any:
    """Rebuild the model from its weights.

    Sharded arrays are all-gathered here, except embedding tables and `Stack` layers, which gather
    their own shards when used.
    """
    # The model is built inside the function that JAX differentiates, because NNX does not allow
    # that function to change variables created outside it.
    model = nnx.merge(graphdef, *weights)
    if not has_shards(weights):
        return model
    modules = nnx.iter_modules(model)
    deferred = [path for path, module in modules if isinstance(module, (Stack, Table))]

    def gather(path: tuple[Any, ...], node: Any) -> Any:
        names = tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        is_deferred = any(names[: len(module)] == module for module in deferred)
        return node if is_deferred else all_gather(node)

    gathered = (jax.tree_util.tree_map_with_path(gather, w, is_leaf=is_shard) for w in weights)
    return nnx.merge(graphdef, *gathered)


def _row_losses(function: LossFunction, logits: SpanLogits, batch: Batch) -> Float[Array, " b"]:
    """Call a script's own loss function, and check the shape of what it returns."""
    losses = jnp.asarray(function(logits, batch), jnp.float32)
    if losses.shape != batch["valid"].shape:
        raise ValueError(
            f"compute_loss_func returned an array of shape {losses.shape}; it must return one loss "
            f"for each of the {batch['valid'].shape[0]} windows of the batch, without a mean"
        )
    return losses


def make_loss(
    graphdef: nnx.GraphDef, label_smoothing: float = 0.0, loss_function: LossFunction | None = None
) -> Callable[..., Array]:
    """Build the loss function of one core: its valid rows' part of the mean loss.

    Args:
        graphdef: the model's graph definition, with the compute dtype.
        label_smoothing: as in `span_terms`.
        loss_function: replaces the loss of spans.

    Returns:
        `loss(params, fixed, batch, counts, key=None)`. `counts` are the sums of `_counts` over all
        microbatches on all cores, so the losses of all of these add up to the mean loss: half the
        mean over all start labels inside their rows, plus half the mean over all such end labels;
        the mean over all rows with a `loss_function`. Apart from dropout, that mean and its
        gradient depend neither on the number of cores nor on padding rows. `key` is for dropout;
        None: no dropout.
    """

    def loss(
        params: PyTree, fixed: PyTree, batch: Batch, counts: Float[Array, "3"], key: Any = None
    ) -> Float[Array, ""]:
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = _model(graphdef, Weights(params, fixed)).span_logits(
            **model_inputs(batch), rngs=rngs
        )
        if loss_function is not None:
            losses = _row_losses(loss_function, logits, batch)
        else:
            windows = _windows_of(logits, batch)
            assert windows.labels is not None
            # Padding tokens are in the softmax, as when Hugging Face trains. In packed rows the
            # tokens after a window are of another one.
            start, end = span_terms(
                windows.logits,
                *windows.labels,
                windows.mask if "segment_ids" in batch else None,
                smoothing=label_smoothing,
                smoothed_over=windows.mask,
            )
            scales = term_scales(counts)
            losses = ((scales[0] * start + scales[1] * end) / 2).reshape(batch["valid"].shape)
        return jnp.sum(jnp.where(batch["valid"], losses, 0.0)) / counts[0]

    return loss


def _counts(batch: Batch) -> Float[Array, "3"]:
    """Count the valid rows, their start labels inside the rows, and such end labels.

    With all answers as labels, both are the rows of which a span is inside the row.
    """
    valid, width = batch["valid"], batch["input_ids"].shape[-1]
    inside = [labels < width for labels in _labels(batch)]
    if inside[0].ndim > valid.ndim:
        inside = [jnp.any(inside[0] & inside[1], axis=-1)] * 2
    return jnp.stack([jnp.sum(valid & counted, dtype=jnp.float32) for counted in (valid, *inside)])


TOKENS_AT_ONCE = {"cpu": 768, "tpu": 8 * 384}
"""How many tokens a core works through at once: with more, each row takes longer, because what is
computed of them does not fit into the caches of a CPU or the on-chip memory of a TPU. A GPU works
through all rows at once."""


def _rows_at_once(rows: int, width: int) -> int:
    """Into how many rows of `width` tokens to divide a batch of `rows` rows."""
    at_most = max(1, TOKENS_AT_ONCE.get(trace_settings().platform, rows * width) // width)
    divisors = [n for n in range(1, rows + 1) if rows % n == 0 and n <= at_most]
    # Many small parts would take longer than a large one: in training, the gradient of all
    # parameters is added up after each.
    return divisors[-1] if 2 * divisors[-1] >= min(at_most, rows) else rows


def _in_parts(batch: Batch) -> Batch:
    """Divide microbatches `[a, b, ...]` into `[a * n, b / n, ...]` where that is faster."""
    a, b, width = batch["input_ids"].shape
    rows = _rows_at_once(b, width)
    return {name: x.reshape(a * (b // rows), rows, *x.shape[2:]) for name, x in batch.items()}


def _updated_average(state: TrainState, params: PyTree, decay: float) -> PyTree:
    """The average after an update from `state` to `params`: a * average + (1 - a) * params.

    a is `decay` or, in update t = 1, 2, ..., (1 + t) / (10 + t), whichever is less. Without that a
    short run would end with an average of mostly its initial weights. None: there is no average.
    """
    if state.average is None:
        return None
    # 1 - a, so that it is exact for a decay close to 1.
    weight = jnp.maximum(jnp.float32(1.0 - decay), 9.0 / (11.0 + state.step.astype(jnp.float32)))
    return optax.incremental_update(params, state.average, weight)


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    label_smoothing: float = 0.0,
    loss_function: LossFunction | None = None,
    ema_decay: float = 0.0,
    bf16_gradients: bool = False,
    dropout_bits: str = "hash",
) -> Callable[..., tuple[TrainState, Measurements]]:
    """Build the training step of one core: one update from `a` microbatches.

    The gradient is that of the mean loss over the valid rows of all microbatches and cores; labels
    outside their rows take no part in the mean.

    Args:
        graphdef: the model's graph definition, with the compute dtype.
        optimizer: from `optim.make_optimizer`. It returns the direction of an update, which the
            step multiplies by the learning rate.
        label_smoothing: as in `span_terms`.
        loss_function: replaces the loss of spans.
        ema_decay: of the average of the parameters, if the state has one.
        bf16_gradients: whether the cores exchange gradients in bfloat16.
        dropout_bits: where dropout takes its random bits from, one of `tracing.DROPOUT_BITS`.

    Returns:
        `train_step(state, batch, learning_rate, key) -> (state, measurements)`. The batch's arrays
        are `[a, b, ...]`, and the learning rate is a float32 scalar. The key is the same in every
        step of a run and on every core; see `parallel.run_key`.
    """
    loss_and_gradient = jax.value_and_grad(make_loss(graphdef, label_smoothing, loss_function))

    def train_step(
        state: TrainState, batch: Batch, learning_rate: Float[Array, ""], key: Any
    ) -> tuple[TrainState, Measurements]:
        weights = state.weights
        # The dropout key depends only on the run, step, core and microbatch, so that a resumed run
        # draws the same masks as an uninterrupted one.
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), lax.axis_index(CORES))
        counts = lax.psum(_counts(batch), CORES)
        batch = _in_parts(batch)
        count = batch["valid"].shape[0]
        if count == 1:
            microbatch = jax.tree.map(lambda x: x[0], batch)
            loss, grads = loss_and_gradient(*weights, microbatch, counts, key)
        else:
            # A scan, so that memory holds the activations of only one microbatch at a time.
            def add(total: PyTree, numbered: tuple[Batch, Array]) -> tuple[PyTree, None]:
                microbatch, number = numbered
                microbatch_key = jax.random.fold_in(key, number)
                outputs = loss_and_gradient(*weights, microbatch, counts, microbatch_key)
                return jax.tree.map(jnp.add, total, outputs), None

            zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params)
            (loss, grads), _ = lax.scan(add, zeros, (batch, jnp.arange(count)))
        loss, grads = lax.psum(loss, CORES), sum_gradients(grads)
        direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        measurements = Measurements(loss, global_norm(grads))
        average = _updated_average(state, params, ema_decay)
        state = TrainState(state.step + 1, params, state.fixed, opt_state, average)
        return state, measurements

    def traced(*inputs: Any) -> tuple[TrainState, Measurements]:
        with traced_with(sums_in_bf16=bf16_gradients, dropout_bits=dropout_bits):
            return train_step(*inputs)

    return traced


class BestTokens(NamedTuple):
    """The `c` best start and end tokens of each window, best first, and the logits of "no answer".

    Of packed windows the arrays are `[b, s, ...]`, and the tokens are counted from the row's first.
    """

    starts: Int[Array, "b c"]
    start_logits: Float[Array, "b c"]
    ends: Int[Array, "b c"]
    end_logits: Float[Array, "b c"]
    null_starts: Float[Array, " b"]
    null_ends: Float[Array, " b"]


class EvalOutput(NamedTuple):
    """The result of an evaluation step, by row; of packed windows by row and place `[b, s, ...]`.

    Logits, if they are not reduced, are those of the rows in either case.
    """

    logits: SpanLogits | BestTokens
    losses: Float[Array, "b t"] | None
    """The terms whose mean is a row's loss: of the start and the end label (0 for a label outside),
    or the one of a script's own loss function. None for rows without labels."""
    are_finite: Bool[Array, " b"]  # whether the logits of all tokens except padding are finite


class Reduction(NamedTuple):
    """How logits are reduced to the best tokens before they are copied to the host."""

    candidates: int  # number of start tokens, and of end tokens, to return for each row
    padding: float  # replaces the logits of padding tokens
    finite: bool  # whether to replace NaN and -inf by `padding`, and +inf by `-padding`


def make_eval_step(
    graphdef: nnx.GraphDef,
    reduction: Reduction | None = None,
    loss_function: LossFunction | None = None,
) -> Callable[[Weights, Batch], EvalOutput]:
    """Build the evaluation step of one core: float32 logits of its rows, without dropout.

    Args:
        graphdef: the model's graph definition, with the compute dtype.
        reduction: how logits are reduced to the best tokens; None: all logits are returned.
        loss_function: replaces the loss of spans.

    Returns:
        `eval_step(weights, batch) -> EvalOutput`. With a `reduction` the batch needs
        `null_positions`.
    """

    def eval_step(weights: Weights, batch: Batch) -> EvalOutput:
        logits = _logits(graphdef, weights, model_inputs(batch))
        windows, losses = _windows_of(logits, batch), None
        if windows.labels is not None and loss_function is not None:
            losses = _row_losses(loss_function, logits, batch)[:, None]
        elif windows.labels is not None:
            losses = jnp.stack(span_terms(windows.logits, *windows.labels, windows.mask), axis=-1)
        are_finite = jnp.isfinite(windows.logits.start) & jnp.isfinite(windows.logits.end)
        are_finite = jnp.all(are_finite | (windows.mask == 0), axis=1)
        reduced: SpanLogits | BestTokens = logits
        if reduction is not None:
            nulls = batch["null_positions"].reshape(-1)
            reduced = reduce(windows.logits, windows.mask, nulls, reduction)
        output = EvalOutput(reduced, losses, are_finite)
        return _by_place(output, batch["valid"].shape) if "segment_ids" in batch else output

    return eval_step


def _logits(graphdef: nnx.GraphDef, weights: Weights, inputs: Batch) -> SpanLogits:
    """Compute logits without dropout, a few rows at a time where that is faster."""
    b, width = inputs["input_ids"].shape
    rows = _rows_at_once(b, width)
    model = _model(graphdef, weights)
    if rows == b:
        return model.span_logits(**inputs)
    parts = {name: x.reshape(b // rows, rows, width) for name, x in inputs.items()}
    logits = lax.map(lambda part: model.span_logits(**part), parts)
    return jax.tree.map(lambda x: x.reshape(b, width), logits)


LogitsLoop = Callable[[Weights, Batch, Array], tuple[Array, Array]]


def make_logits_loop(graphdef: nnx.GraphDef) -> LogitsLoop:
    """Build a step of one core that computes small batches one after the other, in one call.

    A CPU computes batches fast that its caches hold, but each call from the host takes time. Only
    as many batches are computed as are asked for, so one program serves any number of them.

    Args:
        graphdef: the model's graph definition, with the compute dtype.

    Returns:
        `loop(weights, batches, count) -> (start, end)`. The inputs are [m, b, l]; `count`, an int32
        scalar, says how many of the m batches to compute. The logits are float32 [m, b, l], 0 where
        none were computed.
    """

    def loop(weights: Weights, batches: Batch, count: Array) -> tuple[Array, Array]:
        def compute(number: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
            batch = {
                name: lax.dynamic_index_in_dim(array, number, keepdims=False)
                for name, array in batches.items()
            }
            logits = _model(graphdef, weights).span_logits(**model_inputs(batch))
            update = lax.dynamic_update_index_in_dim
            return update(done[0], logits.start, number, 0), update(done[1], logits.end, number, 0)

        empty = jnp.zeros(batches["input_ids"].shape, jnp.float32)
        return lax.fori_loop(0, count, compute, (empty, empty))

    return loop


def _by_place(output: EvalOutput, shape: tuple[int, ...]) -> EvalOutput:
    """Give the results of `b * s` packed windows the axes `[b, s]`; logits keep their rows."""
    kept = output.logits if isinstance(output.logits, SpanLogits) else None
    windows = output._replace(logits=None) if kept is not None else output
    split: EvalOutput = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), windows)
    return split if kept is None else split._replace(logits=kept)


def reduce(
    logits: SpanLogits,
    mask: Int[Array, "w l"],
    null_positions: Int[Array, " w"],
    reduction: Reduction,
) -> BestTokens:
    """Return the best start and end tokens of each window; of equal logits the leftmost is first.

    A null position outside the batch's columns gets the logit of padding, because only columns of
    padding are removed from a batch.
    """
    masked = [_mask_padding(x, mask, reduction) for x in logits]
    (start_logits, starts), (end_logits, ends) = (_top_k(x, reduction.candidates) for x in masked)
    positions = null_positions[:, None]
    columns = jax.lax.broadcasted_iota(positions.dtype, logits.start.shape, 1)
    nulls = [
        jnp.where(
            (positions[:, 0] >= 0) & (positions[:, 0] < x.shape[1]),
            jnp.sum(jnp.where(columns == positions, x, 0.0), axis=1),
            reduction.padding,
        )
        for x in masked
    ]
    return BestTokens(starts, start_logits, ends, end_logits, *nulls)


def _mask_padding(
    logits: Float[Array, "b l"], mask: Int[Array, "b l"], reduction: Reduction
) -> Array:
    padding = reduction.padding
    if reduction.finite:
        logits = jnp.nan_to_num(logits, nan=padding, posinf=-padding, neginf=padding)
    logits = jnp.where(logits == 0.0, 0.0, logits)  # top_k ranks -0.0 below 0.0
    return jnp.where(mask > 0, logits, padding)


def _top_k(logits: Float[Array, "b l"], count: int) -> tuple[Array, Array]:
    """Return the largest logits and their positions, which are uint16 if that suffices."""
    length = logits.shape[1]
    values, positions = lax.top_k(logits, min(count, length))
    return values, positions.astype(jnp.uint16 if length <= 1 << 16 else jnp.int32)
