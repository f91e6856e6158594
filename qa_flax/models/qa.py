"""Stage 4 of 7: hidden states -> span logits, and the loss over them (device, JAX)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.dropout import dropout
from qa_flax.models.layers import BlockConfig, linear

# What a head takes off the logits of tokens that cannot be answers, where its family has such.
BANNED = 1e6


class SpanLogits(NamedTuple):
    """What a question answering model returns: a score per token to begin and to end the answer.

    Both fields are float32 `[b, l]`; `start_logits` and `end_logits` are Hugging Face's names.
    """

    start: Float[Array, "b l"]
    end: Float[Array, "b l"]

    @property
    def start_logits(self) -> Float[Array, "b l"]:
        """Hugging Face's name of `start`."""
        return self.start

    @property
    def end_logits(self) -> Float[Array, "b l"]:
        """Hugging Face's name of `end`."""
        return self.end


class SpanHead(nnx.Module):
    """Dropout, then one dense layer with two outputs, start and end: `[b, l, h] -> SpanLogits`."""

    def __init__(self, config: BlockConfig, *, dtype: jnp.dtype, dropout_rate: float = 0.0):
        self.dropout_rate = dropout_rate
        # float32 whatever the encoder computes in.
        self.outputs = linear(config.hidden_size, 2, jnp.dtype(jnp.float32))

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        input_ids: Int[Array, "b l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """Score every token, padding too, float32; the caller knows which are answers' tokens."""
        both = self.outputs(dropout(hidden, self.dropout_rate, rngs))
        return SpanLogits(both[..., 0], both[..., 1])


# As WEIGHT_NAMES of the families; the head is beside the encoder and never has its prefix.
HEAD_WEIGHT_NAMES = {r"outputs": r"qa_outputs"}


def span_losses(
    logits: SpanLogits,
    start_positions: Int[Array, " b"],
    end_positions: Int[Array, " b"],
    attention_mask: Int[Array, "b l"] | None = None,
    *,
    smoothing: float = 0.0,
    smoothed_over: Int[Array, "b l"] | None = None,
) -> Float[Array, " b"]:
    """Each row's mean of the start's and the end's cross entropy over its tokens, float32.

    With `attention_mask` padding takes no part, so a row's loss does not depend on how far it is
    padded; without, all `l` tokens compete, as in Hugging Face.

    Positions as in Hugging Face: below 0 count as 0, beyond the row (>= l) the term is 0. The
    caller weights the rows; HF divides each term by its own number of positions inside, which is
    the same when none is beyond its row.

    Label smoothing (Szegedy et al. 2016): the true token has the weight `1 - smoothing`, the rest
    is shared by all tokens of the row that `smoothed_over` marks and that the head did not ban.
    """
    start, end = logits
    if attention_mask is not None:
        start, end = (jnp.where(attention_mask > 0, x, _NEVER) for x in logits)
    terms = [
        _cross_entropy(x, positions, smoothing, smoothed_over)
        for x, positions in ((start, start_positions), (end, end_positions))
    ]
    return (terms[0] + terms[1]) / 2


_NEVER = -1e9  # finite, so that a label on padding gives a loss to see and no NaN


def _cross_entropy(
    logits: Float[Array, "b l"],
    positions: Int[Array, " b"],
    smoothing: float,
    smoothed_over: Int[Array, "b l"] | None,
) -> Float[Array, " b"]:
    logits = logits.astype(jnp.float32)
    # A comparison instead of a gather: its gradient is elementwise, which TPUs do much faster.
    index = jax.lax.broadcasted_iota(positions.dtype, logits.shape, 1)
    chosen = index == jnp.maximum(positions, 0)[:, None]
    aim = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    if smoothing and smoothed_over is not None:
        inside = (smoothed_over > 0) & (logits > -BANNED / 2)
        count = jnp.maximum(jnp.sum(inside, axis=-1), 1)
        mean = jnp.sum(jnp.where(inside, logits, 0.0), axis=-1) / count
        aim = (1.0 - smoothing) * aim + smoothing * mean
    loss = jax.nn.logsumexp(logits, axis=-1) - aim
    return jnp.where(positions < logits.shape[1], loss, 0.0)
