"""Stage 4 of 7: sliding-window attention in linear memory (device, JAX).

A token attends to tokens at most `window` positions away. Long rows are split into blocks of
`window` tokens. The queries of a block attend to the keys of their own block and of its two
neighbours, which takes `3 * window` scores per token instead of one per token of the row. Short
rows are not split.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from qa_flax.models.attention import attention, in_blocks, make_attention_mask, with_neighbours


def make_local_mask(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None, window: int
) -> Bool[Array, "n 1 q k"]:
    """True where a query token may attend to a key token, in the blocks of `local_attention`.

    `n` is the number of blocks of all rows, `q` the tokens of a block, and `k` the tokens of a
    block and its neighbours. Arguments as in `make_attention_mask`.
    """
    block = block_size(attention_mask.shape[1], window)
    segments = None if segment_ids is None else _key_blocks(segment_ids, block)
    mask = make_attention_mask(_key_blocks(attention_mask, block), segments)
    key_positions = jnp.arange(mask.shape[-1])
    query_positions = key_positions if block is None else key_positions[block:-block]
    if block is not None and segments is not None:
        mask = mask[:, :, block:-block]
    near = jnp.abs(query_positions[:, None] - key_positions[None, :]) <= window
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
    """Attention of each token to the tokens at most `window` positions away.

    As in PyTorch, a token whose keys are all masked (padding far from every real token) gets zeros.

    Args:
        query, key, value: in the compute dtype.
        mask: the result of `make_local_mask` for the same rows and `window`.
        window: the largest distance between a query token and a key token.
        dropout_rate: probability of dropping an attention probability.
        rngs: its `dropout` stream draws the dropout mask; None means no dropout.
    """
    b, l, *head_axes = query.shape
    block = block_size(l, window)
    mixed = attention(
        _query_blocks(query, block),
        _key_blocks(key, block),
        _key_blocks(value, block),
        mask,
        dropout_rate=dropout_rate,
        rngs=rngs,
    )
    has_keys = mask.any(axis=-1)[:, 0, :, None, None]
    return jnp.where(has_keys, mixed, 0.0).reshape(b, -1, *head_axes)[:, :l]


def block_size(length: int, window: int) -> int | None:
    """The number of tokens of a block; None if rows of `length` tokens are too short to split."""
    return max(window, 1) if length > 4 * window else None


def _query_blocks(x: Shaped[Array, "b l *rest"], block: int | None) -> Shaped[Array, "n q *rest"]:
    """The blocks of all rows; the rows themselves if `block` is None."""
    return x if block is None else _all_rows(in_blocks(x, block))


def _key_blocks(x: Shaped[Array, "b l *rest"], block: int | None) -> Shaped[Array, "n k *rest"]:
    """The blocks of all rows, each with its two neighbours; the rows if `block` is None."""
    return x if block is None else _all_rows(with_neighbours(x, block))


def _all_rows(x: Shaped[Array, "b n k *rest"]) -> Shaped[Array, "b*n k *rest"]:
    return x.reshape(-1, *x.shape[2:])
