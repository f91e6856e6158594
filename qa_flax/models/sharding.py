"""Arrays divided over the cores, put together where they are used (device, JAX).

As in ZeRO, stage 3 (Rajbhandari et al. 2020), and fully sharded data parallelism: every core holds
a piece of each parameter, of its gradient and of its optimizer's state. An array is put together by
an all-gather, whose transpose is a reduce-scatter: a gradient comes back as the pieces of the sum
over all cores.

Pieces are whole rows where that wastes next to nothing: a TPU lays out matrices in tiles, so that
one put together from flat pieces is there twice while it is laid out anew, and its gradient, too.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

CORES = "cores"
"""The axis of the cores."""


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Shard:
    """A core's piece of an array: its rows, zeros behind them, cut into D pieces."""

    data: Any
    """`[k, ...]`: k is the array's rows / D, rounded up; `[k]`, of single numbers, if rows are few.

    `shard_shape` says which. On the host and around the step: `[D, k, ...]`.
    """
    shape: tuple[int, ...]
    """The whole array's."""


def is_shard(node: Any) -> bool:
    """Whether a node of a tree is one; for `is_leaf`."""
    return isinstance(node, Shard)


def has_shards(tree: PyTree) -> bool:
    """Whether any array of the tree is divided."""
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


# ---- inside the step -----------------------------------------------------------------------------


def all_gather(tree: PyTree) -> PyTree:
    """Every `Shard` put together from all cores' pieces; other arrays as they are."""

    def gathered(node: Any) -> Any:
        if not is_shard(node):
            return node
        return _without_padding(lax.all_gather(node.data, CORES, tiled=True), node.shape)

    return jax.tree.map(gathered, tree, is_leaf=is_shard)


def rows_of(table: Shard, ids: Int[Array, "*rows"]) -> Float[Array, "*rows size"]:
    """The rows `ids` of a table `[n, size]`; NaN where there is no such row, as `nnx.Embed` has it.

    Where the cores ask for fewer rows than the table has, it is not put together: every core looks
    for all cores' ids among its own rows, and what was found is sent to those that asked.
    """
    cores, here = lax.axis_size(CORES), table.data.shape[0]
    if table.data.ndim != len(table.shape) or cores * ids.size >= table.shape[0]:
        return jnp.take(all_gather(table), ids, axis=0)
    at = lax.all_gather(ids, CORES) - lax.axis_index(CORES) * here
    is_here = ((at >= 0) & (at < here))[..., None]
    found = jnp.where(is_here, table.data[jnp.clip(at, 0, here - 1)], 0.0)
    exists = ((ids >= 0) & (ids < table.shape[0]))[..., None]
    return jnp.where(exists, lax.psum_scatter(found, CORES), jnp.nan)


def sum_gradients(grads: PyTree) -> PyTree:
    """Gradients of all cores added up: those of a `Shard` are already."""
    add = lambda node: node if is_shard(node) else lax.psum(node, CORES)  # noqa: E731
    return jax.tree.map(add, grads, is_leaf=is_shard)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The norm of all arrays of the tree as one vector, the same on every core."""
    nodes = jax.tree.leaves(tree, is_leaf=is_shard)
    pieces = [node.data for node in nodes if is_shard(node)]
    if not pieces:
        return optax.tree.norm(tree)
    squares = lax.psum(optax.tree.norm(pieces, squared=True), CORES)
    return (squares + optax.tree.norm([n for n in nodes if not is_shard(n)], squared=True)) ** 0.5


# ---- on the host ---------------------------------------------------------------------------------


def shard_shape(shape: tuple[int, ...], cores: int) -> tuple[int, ...]:
    """A piece's shape: whole rows if that wastes less than a hundredth, else single numbers."""
    rows = shape[0] if shape else 0
    if 100 * (-rows % cores) < rows:
        return (-(-rows // cores), *shape[1:])
    return (-(-math.prod(shape) // cores),)


def abstract_shards(tree: PyTree, cores: int) -> PyTree:
    """What one of `cores` holds of a tree of arrays, all divided: shapes and dtypes alone."""

    def piece(array: Any) -> Shard:
        found = shard_shape(tuple(array.shape), cores)
        return Shard(jax.ShapeDtypeStruct(found, array.dtype), tuple(array.shape))

    return jax.tree.map(piece, tree)


def to_shards(array: np.ndarray, cores: int) -> np.ndarray:
    """The pieces of an array, `[D, *shard_shape]`."""
    each, *rest = shard_shape(array.shape, cores)
    rows = array.reshape(-1, *rest)
    padded = np.zeros((cores * each, *rest), array.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(cores, each, *rest)


def from_shards(pieces: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array of some pieces, `[D, *shard_shape]`."""
    return _without_padding(pieces.reshape(-1, *pieces.shape[2:]), shape)


def _without_padding(rows: Any, shape: tuple[int, ...]) -> Any:
    return rows[: shape[0] if rows.ndim == len(shape) else math.prod(shape)].reshape(shape)


def bytes_of(tree: PyTree) -> int:
    """The bytes of all arrays of a tree, or of their shapes and dtypes."""
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(tree))
