"""Arrays that are sharded over the cores and all-gathered where they are used (device, JAX).

As in ZeRO stage 3 (Rajbhandari et al. 2020) and fully sharded data parallelism, every core holds a
shard of each parameter, of its gradient and of its optimizer state. The full array is restored by
an all-gather. The transpose of an all-gather is a reduce-scatter, so each core gets its shard of
the gradient summed over all cores.

Shards are whole rows if that needs little padding. TPUs store matrices in tiles: an array gathered
from flat shards would have to be copied into tiles, so two copies of it would be in memory for a
moment, and two of its gradient.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from qa_flax.models.tracing import trace_settings

CORES = "cores"
"""Name of the mapped axis over the cores."""


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Shard:
    """One core's shard of an array, which is padded with zeros and split into D equal shards."""

    data: Any
    """`[k, ...]`, k rows, or `[k]`, k elements of the flattened array; see `shard_shape`.

    On the host and outside the mapped step: all shards, `[D, k, ...]`.
    """
    shape: tuple[int, ...]
    """The shape of the full array."""


def is_shard(node: Any) -> bool:
    """Whether a node of a tree is a `Shard`; for the `is_leaf` argument of `jax.tree` functions."""
    return isinstance(node, Shard)


def has_shards(tree: PyTree) -> bool:
    """Whether any array of the tree is sharded."""
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


# ---- inside the step -----------------------------------------------------------------------------


def _in_bf16(reduce: Callable[[Array], Array], gradient: Array) -> Array:
    if lax.axis_size(CORES) == 1:
        return reduce(gradient)
    # XLA may leave out a conversion to bfloat16 and back, but not this rounding.
    rounded = lax.reduce_precision(gradient, exponent_bits=8, mantissa_bits=7)
    return reduce(rounded.astype(jnp.bfloat16)).astype(gradient.dtype)


def _all_gather(shard: Array) -> Array:
    return lax.all_gather(shard, CORES, tiled=True)


@jax.custom_vjp
def _all_gather_bf16(shard: Array) -> Array:
    """An all-gather whose transpose, the reduce-scatter of the gradient, is in bfloat16."""
    return _all_gather(shard)


def _gather_forward(shard: Array) -> tuple[Array, None]:
    return _all_gather(shard), None


def _scatter_backward(_: None, gradient: Array) -> tuple[Array]:
    return (_in_bf16(lambda g: lax.psum_scatter(g, CORES, tiled=True), gradient),)


_all_gather_bf16.defvjp(_gather_forward, _scatter_backward)


def all_gather(tree: PyTree) -> PyTree:
    """Replace every `Shard` by its full array, gathered from all cores; keep other arrays."""

    def gathered(node: Any) -> Any:
        if not is_shard(node):
            return node
        gather = _all_gather_bf16 if trace_settings().sums_in_bf16 else _all_gather
        return _without_padding(gather(node.data), node.shape)

    return jax.tree.map(gathered, tree, is_leaf=is_shard)


def rows_of(table: Shard, ids: Int[Array, "*rows"]) -> Float[Array, "*rows size"]:
    """Look up rows of a sharded table `[n, size]`; as in `nnx.Embed`, NaN for ids out of range."""
    cores, rows_per_core = lax.axis_size(CORES), table.data.shape[0]
    if table.data.ndim != len(table.shape) or cores * ids.size >= table.shape[0]:
        return jnp.take(all_gather(table), ids, axis=0)
    # Fewer rows are needed than the table has, so sending rows is cheaper than sending the table.
    # Each core looks up the ids of all cores in its own rows, with zeros for other ids. The sum
    # over the cores then holds each row once.
    local_ids = lax.all_gather(ids, CORES) - lax.axis_index(CORES) * rows_per_core
    is_local = ((local_ids >= 0) & (local_ids < rows_per_core))[..., None]
    local_rows = table.data[jnp.clip(local_ids, 0, rows_per_core - 1)]
    local_rows = jnp.where(is_local, local_rows, 0.0)
    exists = ((ids >= 0) & (ids < table.shape[0]))[..., None]
    return jnp.where(exists, lax.psum_scatter(local_rows, CORES), jnp.nan)


def sum_gradients(grads: PyTree) -> PyTree:
    """Sum the gradients over all cores; those of a `Shard` are already summed by `all_gather`."""

    def add(node: Any) -> Any:
        if is_shard(node):
            return node
        over_cores = lambda gradient: lax.psum(gradient, CORES)  # noqa: E731
        return _in_bf16(over_cores, node) if trace_settings().sums_in_bf16 else over_cores(node)

    return jax.tree.map(add, grads, is_leaf=is_shard)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The L2 norm of all arrays of the tree together, the same on every core."""
    nodes = jax.tree.leaves(tree, is_leaf=is_shard)
    shards = [node.data for node in nodes if is_shard(node)]
    if not shards:
        return optax.tree.norm(tree)
    squares = lax.psum(optax.tree.norm(shards, squared=True), CORES)
    return (squares + optax.tree.norm([n for n in nodes if not is_shard(n)], squared=True)) ** 0.5


# ---- on the host ---------------------------------------------------------------------------------


TILE_ROWS = 8
"""The rows of a tile of float32 elements, in which a TPU stores an array; see `padded.py`."""


def shard_shape(shape: tuple[int, ...], cores: int) -> tuple[int, ...]:
    """The shape of a shard: whole rows if the padding is below 1%, else flat elements.

    The rows fill whole tiles if the padding then is still below 1%.
    """
    rows = shape[0] if shape else 0
    for multiple in (cores * TILE_ROWS, cores):
        if 100 * (-rows % multiple) < rows:
            return ((rows + -rows % multiple) // cores, *shape[1:])
    return (-(-math.prod(shape) // cores),)


def abstract_shards(tree: PyTree, cores: int) -> PyTree:
    """The shapes and dtypes of one core's shards if all arrays of the tree are sharded."""

    def abstract_shard(array: Any) -> Shard:
        shape = tuple(array.shape)
        return Shard(jax.ShapeDtypeStruct(shard_shape(shape, cores), array.dtype), shape)

    return jax.tree.map(abstract_shard, tree)


def to_shards(array: np.ndarray, cores: int) -> np.ndarray:
    """Split an array into shards, `[D, *shard_shape]`."""
    length, *row_shape = shard_shape(array.shape, cores)
    rows = array.reshape(-1, *row_shape)
    padded = np.zeros((cores * length, *row_shape), array.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(cores, length, *row_shape)


def from_shards(shards: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array of this shape whose shards are `[D, *shard_shape]`."""
    return _without_padding(shards.reshape(-1, *shards.shape[2:]), shape)


def _without_padding(rows: Any, shape: tuple[int, ...]) -> Any:
    return rows[: shape[0] if rows.ndim == len(shape) else math.prod(shape)].reshape(shape)


def bytes_of(tree: PyTree) -> int:
    """The size in bytes of all arrays of a tree, which may be `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(tree))
