"""Embedding tables with rows of zeros at their end, as TPUs need them (device, JAX).

A TPU stores an array in tiles of 8 rows. A step over several cores gets each core's table as
`[1, n, size]`. If n is no multiple of 8, the TPU's compiler chooses a layout of one row a tile for
it, and copies the table, its gradient and its optimizer state into another layout and back in every
step (`docs/performance.md`). On TPUs the cores therefore hold such tables as `PaddedTable`s.
`parallel.put_state` adds the rows and `parallel.gather_state` removes them, so neither models nor
files have them. Their gradients are zero, and an optimizer that works on each element by itself
leaves them zero.
"""

import dataclasses
from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from qa_flax.models.sharding import TILE_ROWS, is_shard


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class PaddedTable:
    """A table whose number of rows is rounded up to a multiple of `TILE_ROWS`."""

    data: Any
    """`[m, size]`, m >= n; rows from n on are zero. Outside the mapped step `[D, m, size]`."""
    shape: tuple[int, int]
    """The shape of the table itself, `(n, size)`."""


def is_padded(node: Any) -> bool:
    """Whether a node of a tree is a `PaddedTable`."""
    return isinstance(node, PaddedTable)


def is_wrapped(node: Any) -> bool:
    """Whether a node of a tree holds an array in another form: a `Shard` or a `PaddedTable`.

    For the `is_leaf` argument of `jax.tree` functions. `node.shape` is the shape of the array.
    """
    return is_shard(node) or is_padded(node)


# ---- inside the step -----------------------------------------------------------------------------


def padded_rows_of(table: PaddedTable, ids: Int[Array, "*rows"]) -> Float[Array, "*rows size"]:
    """Look up rows; as in `nnx.Embed`, NaN for ids out of range, those of the padding included."""
    rows = jnp.take(table.data, ids, axis=0, mode="clip")
    exists = ((ids >= 0) & (ids < table.shape[0]))[..., None]
    return jnp.where(exists, rows, jnp.float32(jnp.nan))


def without_padding(node: Any) -> Any:
    """Return the table of a `PaddedTable`, a JAX or NumPy array; any other node as it is."""
    return node.data[: node.shape[0]] if is_padded(node) else node


# ---- on the host ---------------------------------------------------------------------------------


def abstract_padded(tree: PyTree, tables: Collection[tuple[Any, ...]]) -> PyTree:
    """Replace the arrays of tables by `PaddedTable`s where they need padding.

    Args:
        tree: a state of a model's variables, as shapes and dtypes.
        tables: the paths of the model's tables.
    """

    def padded(path: tuple[Any, ...], array: Any) -> Any:
        names = tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        if not any(names[: len(table)] == table for table in tables):
            return array
        n, size = array.shape
        # A table of fewer rows than a tile, such as that of token types, has a tile to itself.
        if n < TILE_ROWS or n % TILE_ROWS == 0:
            return array
        rows = -(-n // TILE_ROWS) * TILE_ROWS
        return PaddedTable(jax.ShapeDtypeStruct((rows, size), array.dtype), (n, size))

    return jax.tree_util.tree_map_with_path(padded, tree)


def to_padded(array: np.ndarray, rows: int) -> np.ndarray:
    """Add rows of zeros up to `rows` rows."""
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
