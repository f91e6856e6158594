"""What a training step takes of a core's memory, told before the first one (host)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qa_flax.device import parallel
from qa_flax.device.step import TrainState, weights_of
from qa_flax.models.sharding import abstract_shards, bytes_of

GIB = 1 << 30


class MemoryPlan(NamedTuple):
    """Bytes on each core. A step holds them all at once, and no more."""

    parameters: int
    """Trained or not, float32."""
    optimizer: int
    gradients: int
    activations: int
    """What XLA keeps beside: activations, layers put together, the batch, and scratch."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    def text(self, limit: int | None, batch: str) -> str:
        """One line; `limit` is a core's memory in bytes, None where it is not known."""
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in self._asdict().items())
        fits = "a core's memory is not known here"
        if limit is not None:
            fits = f"fits in {_gib(limit)}: {'yes' if self.total <= limit else 'NO'}"
        return f"Memory on each core, {batch}: {parts}; {_gib(self.total)} in all; {fits}"


HELP = (
    "Lower per_device_train_batch_size (and raise gradient_accumulation_steps), or give "
    "--gradient_checkpointing, --shard_params, --bf16 or --lora_r"
)


def abstract_state(model: Any, optimizer: Any, is_sharded: bool, cores: int = 0) -> TrainState:
    """What a core holds while the model is trained: shapes and dtypes, `Shard`s if it is divided.

    `cores`: how many there are, by default those of all hosts.
    """
    params, fixed = jax.eval_shape(lambda: weights_of(model))
    if is_sharded:
        count = cores or parallel.core_count()
        params, fixed = abstract_shards(params, count), abstract_shards(fixed, count)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, fixed, jax.eval_shape(optimizer.init, params))


def memory_plan(state: TrainState, compiled: Any) -> MemoryPlan:
    """The plan of a compiled step whose state on one core is `state` (or its shapes).

    XLA tells how much the step needs beside its arguments: gradients, which are of the parameters'
    size, and the rest.
    """
    found = compiled.memory_analysis()
    gradients = bytes_of(state.params)
    held = bytes_of(state)
    # What comes out in memory of its own, and what went in with the batch.
    more = found.output_size_in_bytes - found.alias_size_in_bytes
    more += max(0, found.argument_size_in_bytes - held)
    beside = found.temp_size_in_bytes + max(0, more)
    return MemoryPlan(
        parameters=bytes_of(state.params) + bytes_of(state.fixed),
        optimizer=bytes_of(state.opt_state),
        gradients=min(gradients, beside),
        activations=max(0, beside - gradients),
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.2f} MiB"
