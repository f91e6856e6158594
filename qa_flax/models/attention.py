"""Stage 4 of 7: scaled dot-product attention and its masks (device, JAX).

Axis letters as in `layers`. The softmax is computed in float32, whatever the compute dtype.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from qa_flax.models.dropout import (
    drop,
    drop_by_bytes,
    dropout,
    random_bits,
    random_bytes,
    words_at,
)
from qa_flax.models.tracing import trace_settings


def make_attention_mask(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None = None
) -> Bool[Array, "b 1 #l l"]:
    """True where a query token (second-last axis) may attend to a key token (last axis).

    Every attention mask of the package is built by this function or with it.

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


def make_causal_mask(
    input_ids: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None = None
) -> Bool[Array, "#b 1 l l"]:
    """The mask of a decoder's self-attention: no token may attend to a later one.

    As in PyTorch, padding is not masked: it comes after all real tokens, which therefore do not
    attend to it. With `segment_ids`, a token attends to tokens of its own window only.
    """
    index = jnp.arange(input_ids.shape[1])
    causal = (index[:, None] >= index[None, :])[None, None]
    return causal & make_attention_mask(jnp.ones_like(input_ids), segment_ids)


SCORES_AT_ONCE = 1 << 20
"""From how many scores on, a CPU computes one head after the other: 4 MiB of them."""


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

    The form depends on the processor (`tracing.py`) and on the shape. A CPU computes one head
    after the other if all scores together do not fit into its caches, and computes them again for
    the gradient. TPUs and GPUs compute all heads at once. The result is the same, up to rounding,
    with the same dropout masks, unless these are made of hardware bits.

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
    b, q, a, d = query.shape
    factor: float = d**-0.5 if scale is None else scale
    if dropout_rate == 0.0:
        rngs = None
    if trace_settings().is_for_cpu and a > 1 and b * a * q * key.shape[1] >= SCORES_AT_ONCE:
        return _by_heads(query, key, value, mask, bias, factor, dropout_rate, rngs)
    # JAX's own attention is used where it can be: it does not support dropout.
    if rngs is None:
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=factor)
    scores = jnp.einsum("bqad,bkad->baqk", query, key, preferred_element_type=jnp.float32) * factor
    probabilities = _softmax(scores if bias is None else scores + bias, mask)
    probabilities = dropout(probabilities, dropout_rate, rngs, is_scores=True).astype(value.dtype)
    return jnp.einsum("baqk,bkad->bqad", probabilities, value)


def _softmax(
    scores: Float[Array, "*b q k"], mask: Bool[Array, "*#b #q k"]
) -> Float[Array, "*b q k"]:
    """The softmax of float32 scores over the tokens that `mask` allows."""
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)


def _by_heads(
    query: Float[Array, "b q a d"],
    key: Float[Array, "b k a d"],
    value: Float[Array, "b k a d"],
    mask: Bool[Array, "#b 1 #q k"],
    bias: Float[Array, "#b #a q k"] | None,
    scale: float,
    dropout_rate: float,
    rngs: nnx.Rngs | None,
) -> Float[Array, "b q a d"]:
    """One head after the other; `rngs` is None without dropout."""
    b, q, a, _ = query.shape
    shape = (b, q, key.shape[1])
    dropout_key = None if rngs is None else rngs.dropout()
    bits = None
    if dropout_key is not None and not trace_settings().has_hardware_bits:
        bits = random_bits(dropout_key)
    has_own_bias = bias is not None and bias.shape[1] == a
    mask, shared_bias = mask[:, 0], None if bias is None or has_own_bias else bias[:, 0]

    # The scores of a head are computed again for the gradient, so that they are never in memory.
    @jax.checkpoint
    def mix(query: Array, key: Array, value: Array, own_bias: Array | None, head: Array) -> Array:
        scores = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32) * scale
        bias = shared_bias if own_bias is None else own_bias
        probabilities = _softmax(scores if bias is None else scores + bias, mask)
        if bits is not None:
            # The element's index among all heads' scores: the words do not depend on the form.
            row, i, j = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
            index = ((row * np.uint32(a) + head) * np.uint32(q) + i) * np.uint32(shape[2]) + j
            probabilities = drop(probabilities, dropout_rate, words_at(bits, index))
        elif dropout_key is not None:
            values = random_bytes(jax.random.fold_in(dropout_key, head), shape)
            probabilities = drop_by_bytes(probabilities, dropout_rate, values)
        return jnp.einsum("bqk,bkd->bqd", probabilities.astype(value.dtype), value)

    own_bias = jnp.moveaxis(bias, 1, 0) if bias is not None and has_own_bias else None
    heads = [jnp.moveaxis(x, 2, 0) for x in (query, key, value)]
    numbers = jnp.arange(a, dtype=jnp.uint32)
    _, mixed = jax.lax.scan(lambda _, head: (None, mix(*head)), None, (*heads, own_bias, numbers))
    return jnp.moveaxis(mixed, 0, 2)


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
