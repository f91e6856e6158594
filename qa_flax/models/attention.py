"""Stage 4 of 7: which token looks at which, and what it takes from there (device, JAX).

Axis letters as in `layers`. The softmax is float32 whatever the compute dtype.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from qa_flax.models.dropout import dropout


def make_attention_mask(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None = None
) -> Bool[Array, "b 1 #l l"]:
    """Which token (second-last axis, or 1 for all alike) may look at which token (last axis).

    Real tokens have `attention_mask` 1. With `segment_ids` several windows share a row and see only
    themselves; segment 0 is padding. The one place where attention masks are made.
    """
    mask = (attention_mask > 0)[:, None, None, :]
    if segment_ids is None:
        return mask
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return mask & same & (segment_ids > 0)[:, None, None, :]


def attention(
    query: Float[Array, "b q a d"],
    key: Float[Array, "b k a d"],
    value: Float[Array, "b k a d"],
    mask: Bool[Array, "#b 1 #q k"],
    bias: Float[Array, "#b #a q k"] | None = None,
    *,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b q a d"]:
    """Scaled dot-product attention, float32 softmax; dropout falls on the probabilities, as in HF.

    Without dropout it is JAX's own, which has none to offer.

    `bias`, float32, is added to the scaled scores; `scale` is `d ** -0.5` unless given. A token
    that may look at nothing (padding between segments) gets a plain mean, never NaN.
    """
    if rngs is None or dropout_rate == 0.0:
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=scale)
    scores = jnp.einsum("bqad,bkad->baqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    return attend(scores, value, mask, dropout_rate, rngs)


def attend(
    scores: Float[Array, "b a q k"],
    value: Float[Array, "b k a d"],
    mask: Bool[Array, "#b 1 #q k"],
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b q a d"]:
    """Values mixed by the softmax of float32 `scores` over the tokens that `mask` allows."""
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, rngs)
    return jnp.einsum("baqk,bkad->bqad", probabilities.astype(value.dtype), value)


# ---- layouts -------------------------------------------------------------------------------------


def along_diagonals(
    scores: Float[Array, "*axes l distances"],
) -> Float[Array, "*axes l l"]:
    """`out[..., i, j] = scores[..., i, j - i + l - 1]`: column `n` is of the distance `n - l + 1`.

    There are `2 l - 1` distances. A row one element longer than the last makes each begin one
    element earlier: two reshapes and a slice, where a gather of single elements, and its gradient,
    are slow loops on TPUs.
    """
    *axes, l, w = scores.shape
    longer = jnp.pad(scores, [(0, 0)] * (len(axes) + 1) + [(0, 1)])
    flat = longer.reshape(*axes, l * (w + 1))
    return flat[..., l - 1 : l - 1 + l * w].reshape(*axes, l, w)[..., :l]


def in_blocks(x: Shaped[Array, "b l *rest"], size: int) -> Shaped[Array, "b n {size} *rest"]:
    """Rows cut into blocks of `size` tokens, zeros after the last token."""
    b, l, *rest = x.shape
    padding = [(0, 0), (0, -l % size)] + [(0, 0)] * len(rest)
    return jnp.pad(x, padding).reshape(b, -1, size, *rest)


def with_neighbours(
    x: Shaped[Array, "b l *rest"], size: int
) -> Shaped[Array, "b n 3*{size} *rest"]:
    """Each block of `in_blocks` between the one before and the one after; zeros beyond the row."""
    _, l, *rest = x.shape
    padding = [(0, 0), (size, size + -l % size)] + [(0, 0)] * len(rest)
    blocks = in_blocks(jnp.pad(x, padding), size)
    # Slices side by side, not a gather: TPUs copy the one and loop over the other.
    return jnp.concatenate([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], axis=2)
