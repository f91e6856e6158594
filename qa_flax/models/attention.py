"""Stage 4 of 7: scaled dot-product attention and its masks (device, JAX).

Axis letters as in `layers`. The softmax is computed in float32, whatever the compute dtype.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from qa_flax.models.dropout import dropout


def make_attention_mask(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None = None
) -> Bool[Array, "b 1 #l l"]:
    """True where a query token (second-last axis) may attend to a key token (last axis).

    Every attention mask of the package is built by this function.

    Args:
        attention_mask: 1 for real tokens, 0 for padding.
        segment_ids: the window of each token if several windows are packed into one row, 0 for
            padding. A token attends to tokens of its own window only.

    Returns:
        `[b, 1, 1, l]`, equal for all query tokens; with `segment_ids` `[b, 1, l, l]`.
    """
    mask = (attention_mask > 0)[:, None, None, :]
    if segment_ids is None:
        return mask
    same_window = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return mask & same_window & (segment_ids > 0)[:, None, None, :]


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
    """Scaled dot-product attention; as in HF, dropout is applied to the probabilities.

    A query token whose keys are all masked (padding between segments) gets the mean of all values,
    never NaN.

    Args:
        query, key, value: in the compute dtype.
        mask: True where a query token may attend to a key token.
        bias: float32, added to the scaled scores.
        scale: factor of the scores; `d ** -0.5` by default.
        dropout_rate: probability of dropping an attention probability.
        rngs: its `dropout` stream draws the dropout mask; None means no dropout.

    Returns:
        The mixed values in the compute dtype.
    """
    # JAX's own attention is used where it can be: it does not support dropout.
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
    """The values weighted by the softmax of float32 `scores` over the tokens that `mask` allows."""
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, rngs)
    return jnp.einsum("baqk,bkad->bqad", probabilities.astype(value.dtype), value)


# ---- layouts -------------------------------------------------------------------------------------


def along_diagonals(
    scores: Float[Array, "*axes l relative"],
) -> Float[Array, "*axes l l"]:
    """Scores by relative position -> scores by key: `out[i, j] = scores[i, j - i + l - 1]`.

    Column `n` of the `2 l - 1` columns of `scores` is for the relative position `n - l + 1`.
    """
    *axes, l, w = scores.shape
    # The "skewing" of Huang et al. 2018 (Music Transformer): in rows padded to `w + 1` elements and
    # read as rows of `w`, each row begins one column earlier than the row before. It needs only
    # reshapes and a slice. A gather of single elements and its gradient are slow loops on TPUs.
    padded = jnp.pad(scores, [(0, 0)] * (len(axes) + 1) + [(0, 1)])
    flat = padded.reshape(*axes, l * (w + 1))
    return flat[..., l - 1 : l - 1 + l * w].reshape(*axes, l, w)[..., :l]


def in_blocks(x: Shaped[Array, "b l *rest"], size: int) -> Shaped[Array, "b n {size} *rest"]:
    """Split rows into blocks of `size` tokens; zeros fill the last block."""
    b, l, *rest = x.shape
    padding = [(0, 0), (0, -l % size)] + [(0, 0)] * len(rest)
    return jnp.pad(x, padding).reshape(b, -1, size, *rest)


def with_neighbours(
    x: Shaped[Array, "b l *rest"], size: int
) -> Shaped[Array, "b n 3*{size} *rest"]:
    """Each block of `in_blocks` with the blocks before and after it; zeros outside the row."""
    _, l, *rest = x.shape
    padding = [(0, 0), (size, size + -l % size)] + [(0, 0)] * len(rest)
    blocks = in_blocks(jnp.pad(x, padding), size)
    # Concatenated slices, not a gather: TPUs copy slices but loop over the elements of a gather.
    return jnp.concatenate([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], axis=2)
