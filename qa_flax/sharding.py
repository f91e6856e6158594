"""Arrays divided over the cores, put together where they are used (device, JAX).

As in ZeRO, stage 3 (Rajbhandari et al. 2020), and fully sharded data parallelism: every core holds
a piece of each parameter, of its gradient and of its optimizer's state. An array is put together by
an all-gather, whose transpose is a reduce-scatter: a gradient comes back as the pieces of the sum
over all cores.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

CORES = "cores"
"""The axis of the cores."""


@partial(jax.tree_util.register_dataclass, data_fields=["part"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Shard:
    """A core's piece of an array: the array in one row, zeros behind it, cut into D pieces."""

    part: Any
    """`[k]`, with k the array's size / D, rounded up; on the host and around the step `[D, k]`."""
    shape: tuple[int, ...]
    """The whole array's."""


def is_shard(node: Any) -> bool:
    """Whether a node of a tree is one; for `is_leaf`."""
    return isinstance(node, Shard)


def has_shards(tree: PyTree) -> bool:
    """Whether any array of the tree is divided."""
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


# ---- inside the step -----------------------------------------------------------------------------


def whole(tree: PyTree) -> PyTree:
    """Every `Shard` put together from all cores' pieces; other arrays as they are."""

    def gathered(node: Any) -> Any:
        if not is_shard(node):
            return node
        row = lax.all_gather(node.part, CORES, tiled=True)
        return row[: math.prod(node.shape)].reshape(node.shape)

    return jax.tree.map(gathered, tree, is_leaf=is_shard)


def added_up(grads: PyTree) -> PyTree:
    """Gradients of all cores added up: those of a `Shard` are already."""
    add = lambda node: node if is_shard(node) else lax.psum(node, CORES)  # noqa: E731
    return jax.tree.map(add, grads, is_leaf=is_shard)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The norm of all arrays of the tree as one vector, the same on every core."""
    nodes = jax.tree.leaves(tree, is_leaf=is_shard)
    pieces = [node.part for node in nodes if is_shard(node)]
    if not pieces:
        return optax.tree.norm(tree)
    squares = lax.psum(optax.tree.norm(pieces, squared=True), CORES)
    return (squares + optax.tree.norm([n for n in nodes if not is_shard(n)], squared=True)) ** 0.5


# ---- on the host ---------------------------------------------------------------------------------


def pattern(tree: PyTree, cores: int) -> PyTree:
    """What one of `cores` holds of a tree of arrays, all divided: shapes and dtypes alone."""

    def piece(array: Any) -> Shard:
        row = (-(-math.prod(array.shape) // cores),)
        return Shard(jax.ShapeDtypeStruct(row, array.dtype), tuple(array.shape))

    return jax.tree.map(piece, tree)


def divided(array: np.ndarray, cores: int) -> np.ndarray:
    """The pieces of an array, `[D, k]`."""
    row = np.zeros(cores * -(-array.size // cores), array.dtype)
    row[: array.size] = array.reshape(-1)
    return row.reshape(cores, -1)


def joined(pieces: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array of some pieces `[D, k]`."""
    return pieces.reshape(-1)[: math.prod(shape)].reshape(shape)


def bytes_of(tree: PyTree) -> int:
    """The bytes of all arrays of a tree, or of their shapes and dtypes."""
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(tree))
