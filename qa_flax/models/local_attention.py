"""Stage 4 of 7: attention to the tokens nearby, in memory that grows with the row (device, JAX).

A token looks at those at most `window` tokens away. A long row is cut into blocks of `window`
tokens, each of which asks its own block and the two beside it: `3 * window` scores a token instead
of one for every token of the row. Short rows are not cut.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from qa_flax.models.attention import attention, in_blocks, make_attention_mask, with_neighbours


def make_local_mask(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None, window: int
) -> Bool[Array, "n 1 q k"]:
    """Which token may look at which of those at most `window` away, cut as `local_attention` cuts.

    `n` is the number of all rows' blocks, `q` the tokens of a block, `k` those it is shown.
    """
    block = block_size(attention_mask.shape[1], window)
    segments = None if segment_ids is None else _cut_wide(segment_ids, block)
    mask = make_attention_mask(_cut_wide(attention_mask, block), segments)
    asked = jnp.arange(mask.shape[-1])
    asking = asked if block is None else asked[block:-block]
    if block is not None and segments is not None:
        mask = mask[:, :, block:-block]
    near = jnp.abs(asking[:, None] - asked[None, :]) <= window
    return mask & near[None, None]


def local_attention(
    query: Float[Array, "b l a d"],
    key: Float[Array, "b l a d"],
    value: Float[Array, "b l a d"],
    mask: Bool[Array, "n 1 q k"],
    window: int,
    *,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b l a d"]:
    """Attention of each token to those at most `window` away; `mask` is `make_local_mask`'s.

    A token that may look at nothing (padding far from every real token) gets zeros, in PyTorch too.
    """
    b, l, *rest = query.shape
    block = block_size(l, window)
    mixed = attention(
        _cut(query, block),
        _cut_wide(key, block),
        _cut_wide(value, block),
        mask,
        dropout_rate=dropout_rate,
        rngs=rngs,
    )
    sees = mask.any(axis=-1)[:, 0, :, None, None]
    return jnp.where(sees, mixed, 0.0).reshape(b, -1, *rest)[:, :l]


def block_size(length: int, window: int) -> int | None:
    """Tokens of a block, or None where a row is too short to gain from being cut."""
    return max(window, 1) if length > 4 * window else None


def _cut(x: Shaped[Array, "b l *rest"], block: int | None) -> Shaped[Array, "n q *rest"]:
    """All rows' blocks; None: the rows as they are."""
    return x if block is None else _all_rows(in_blocks(x, block))


def _cut_wide(x: Shaped[Array, "b l *rest"], block: int | None) -> Shaped[Array, "n k *rest"]:
    """All rows' blocks, each between its neighbours; None: the rows as they are."""
    return x if block is None else _all_rows(with_neighbours(x, block))


def _all_rows(x: Shaped[Array, "b n k *rest"]) -> Shaped[Array, "b*n k *rest"]:
    return x.reshape(-1, *x.shape[2:])
