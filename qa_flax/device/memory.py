"""Compute how much of a core's memory a training step needs, before the first step (host)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qa_flax.device import parallel
from qa_flax.device.step import TrainState, Weights, weights_of
from qa_flax.models.layers import Table
from qa_flax.models.padded import abstract_padded
from qa_flax.models.sharding import abstract_shards, bytes_of

GIB = 1 << 30


class MemoryPlan(NamedTuple):
    """Bytes that a training step needs on each core, all at the same time."""

    parameters: int
    """Trained and fixed parameters and the average of trained ones, float32."""
    optimizer: int
    gradients: int
    activations: int
    """XLA's other buffers: activations, all-gathered layers, the batch, and scratch memory."""

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return sum(self)

    def text(self, limit: int | None, batch: str) -> str:
        """The plan in one line.

        Args:
            limit: a core's memory in bytes; None if it is unknown.
            batch: describes the batch on each core, such as `8 x 384 tokens`.
        """
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in self._asdict().items())
        fits = "the memory of a core is unknown"
        if limit is not None:
            fits = f"fits in {_gib(limit)}: {'yes' if self.total <= limit else 'NO'}"
        return f"Memory on each core, {batch}: {parts}; {_gib(self.total)} in all; {fits}"


HELP = (
    "Lower per_device_train_batch_size (and raise gradient_accumulation_steps), or use "
    "--gradient_checkpointing, --shard_params, --bf16 or --lora_r"
)


def abstract_weights(
    model: Any, is_sharded: bool, cores: int = 0, *, is_padded: bool = False
) -> Weights:
    """The weights on one core, as shapes and dtypes.

    Args:
        model: the model.
        is_sharded: whether they are sharded over the cores: they are `Shard`s.
        cores: how many cores they are sharded over; 0: those of all processes.
        is_padded: whether tables that are not sharded are padded where a TPU needs it: they are
            `PaddedTable`s.
    """
    weights = jax.eval_shape(lambda: weights_of(model))
    if is_sharded:
        return abstract_shards(weights, cores or parallel.core_count())
    if not is_padded:
        return weights
    tables = [path for path, module in nnx.iter_modules(model) if isinstance(module, Table)]
    return Weights(*(abstract_padded(tree, tables) for tree in weights))


def abstract_state(
    model: Any,
    optimizer: Any,
    is_sharded: bool,
    cores: int = 0,
    *,
    is_averaged: bool = False,
    is_padded: bool = False,
) -> TrainState:
    """The training state on one core, as shapes and dtypes.

    Args:
        model: the model to train.
        optimizer: an optax optimizer, `optim.make_optimizer`'s.
        is_sharded, cores, is_padded: as in `abstract_weights`, of the optimizer state, too.
        is_averaged: whether the state has an average of the parameters.
    """
    params, fixed = abstract_weights(model, is_sharded, cores, is_padded=is_padded)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    average = params if is_averaged else None
    return TrainState(step, params, fixed, jax.eval_shape(optimizer.init, params), average)


def memory_plan(state: TrainState, compiled: Any) -> MemoryPlan:
    """The memory plan of a compiled training step.

    Args:
        state: the training state on one core, or its shapes (`abstract_state`).
        compiled: the compiled step, as `jax.stages.Compiled`.
    """
    analysis = compiled.memory_analysis()
    gradients = bytes_of(state.params)
    # Outputs that do not reuse an input's memory, and the inputs beside the state: the batch.
    in_and_out = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    in_and_out += max(0, analysis.argument_size_in_bytes - bytes_of(state))
    # XLA does not report gradients separately; they are as large as the trained parameters.
    buffers = analysis.temp_size_in_bytes + max(0, in_and_out)
    return MemoryPlan(
        parameters=sum(map(bytes_of, (state.params, state.fixed, state.average))),
        optimizer=bytes_of(state.opt_state),
        gradients=min(gradients, buffers),
        activations=max(0, buffers - gradients),
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.2f} MiB"
