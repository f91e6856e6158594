"""Stage 4 of 7: hidden states -> span logits, and the loss over them (device, JAX)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.dropout import dropout
from qa_flax.models.layers import BlockConfig, linear

# Some families' heads subtract this from the logits of tokens that cannot be part of an answer.
BANNED = 1e6


class SpanLogits(NamedTuple):
    """The output of a question answering model: logits of each token as the answer's start and end.

    Both fields are float32 `[b, l]`. They are available by Hugging Face's names, too.
    """

    start: Float[Array, "b l"]
    end: Float[Array, "b l"]

    @property
    def start_logits(self) -> Float[Array, "b l"]:
        """`start`, by Hugging Face's name."""
        return self.start

    @property
    def end_logits(self) -> Float[Array, "b l"]:
        """`end`, by Hugging Face's name."""
        return self.end


class SpanHead(nnx.Module):
    """Dropout, then one dense layer with two outputs, start and end: `[b, l, h] -> SpanLogits`."""

    def __init__(self, config: BlockConfig, *, dtype: jnp.dtype, dropout_rate: float = 0.0):
        self.dropout_rate = dropout_rate
        # Always float32, whatever the encoder's compute dtype.
        self.outputs = linear(config.hidden_size, 2, jnp.dtype(jnp.float32))

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """Compute float32 logits of every token, including padding.

        `input_ids`, `attention_mask` and `segment_ids`, as of the encoder, are for heads that
        depend on them; this one ignores them.
        """
        logits = self.outputs(dropout(hidden, self.dropout_rate, rngs))
        return SpanLogits(logits[..., 0], logits[..., 1])


# Like WEIGHT_NAMES of the families, for the head, whose names have no prefix.
HEAD_WEIGHT_NAMES = {r"outputs": r"qa_outputs"}


Labels = Int[Array, " b"] | Int[Array, "b g"]
"""Token positions: one of each row, or those of g gold spans of each row."""


class SpanTerms(NamedTuple):
    """The cross entropies of each row's start and end label, float32; 0 for a label outside."""

    start: Float[Array, " b"]
    end: Float[Array, " b"]


def span_losses(
    logits: SpanLogits,
    start_positions: Labels,
    end_positions: Labels,
    attention_mask: Int[Array, "b l"] | None = None,
    *,
    smoothing: float = 0.0,
    smoothed_over: Int[Array, "b l"] | None = None,
) -> Float[Array, " b"]:
    """The loss of each row: the mean of the two terms of `span_terms`, float32."""
    terms = span_terms(
        logits,
        start_positions,
        end_positions,
        attention_mask,
        smoothing=smoothing,
        smoothed_over=smoothed_over,
    )
    return (terms.start + terms.end) / 2


def span_terms(
    logits: SpanLogits,
    start_positions: Labels,
    end_positions: Labels,
    attention_mask: Int[Array, "b l"] | None = None,
    *,
    smoothing: float = 0.0,
    smoothed_over: Int[Array, "b l"] | None = None,
) -> SpanTerms:
    """The cross entropies of each row's start and end label, float32.

    Positions are treated as in Hugging Face: negative ones count as 0, and the term of a position
    beyond the row (>= l) is 0. Hugging Face's loss is the mean over the start terms inside their
    rows and the mean over the end terms inside their rows, divided by 2; `term_scales` turns sums
    over rows into these means.

    With several gold spans of a row, both terms are half of minus the logarithm of their joint
    probability, the sum of p(start) p(end) over the spans, as in the marginal likelihood of Clark
    and Gardner (2018, arXiv 1710.10723). Spans with a position beyond the row take no part; the
    terms are 0 if none is left. With one span, the mean of both terms is that of the usual terms.

    Args:
        logits: the model's output, `[b, l]` each.
        start_positions, end_positions: token indexes of the answers, those of different spans.
        attention_mask: 1 for tokens that the softmax includes, beside the label's own. With the
            tokenizer's mask a row's loss does not depend on its padding. None: all `l` tokens, as
            in Hugging Face.
        smoothing: label smoothing (Szegedy et al. 2016). The true token has the weight
            `1 - smoothing`; the rest is distributed evenly over the tokens of `smoothed_over`.
        smoothed_over: 1 for the tokens that take part in label smoothing. Tokens that the head
            excludes as answers (`BANNED`) never do. None: no smoothing.
    """
    if start_positions.ndim == 2:
        spans = start_positions, end_positions
        term = _marginal_term(logits, spans, attention_mask, smoothing, smoothed_over)
        return SpanTerms(term, term)
    return SpanTerms(
        *(
            _cross_entropy(x, positions, attention_mask, smoothing, smoothed_over)
            for x, positions in zip(logits, (start_positions, end_positions), strict=True)
        )
    )


def term_scales(counts: Float[Array, "3"]) -> Float[Array, "2"]:
    """Return the factors of start and end terms that make a mean over rows one over terms.

    They are 1.0 if all labels are inside their rows. If none is, all terms are 0, and so is the
    mean.

    Args:
        counts: the number of rows, of start labels inside their rows, and of such end labels.
    """
    return counts[0] / jnp.maximum(counts[1:], 1.0)


# Finite, so that logits of masked tokens give no NaN, not even where no token is left.
_MASKED = -1e9


class _Logits(NamedTuple):
    """Logits relative to the largest of each row, and what a cross entropy takes from them."""

    values: Float[Array, "b l"]  # `_MASKED` where the softmax does not include a token
    log_sum: Float[Array, " b"]  # of their exponentials
    mean: Float[Array, " b"] | None  # over the tokens of label smoothing; None without it


def _relative(
    logits: Float[Array, "b l"],
    is_label: Bool[Array, "b l"],
    attention_mask: Int[Array, "b l"] | None,
    smoothing: float,
    smoothed_over: Int[Array, "b l"] | None,
) -> _Logits:
    is_included = True if attention_mask is None else (attention_mask > 0) | is_label
    # As PyTorch's log_softmax: relative to the largest logit, before anything is summed. The
    # difference of a log-sum-exp and a logit loses the loss of large logits, down to 0.
    largest = jnp.max(jnp.where(is_included, logits, -jnp.inf), axis=-1, keepdims=True)
    logits -= jax.lax.stop_gradient(largest)
    logits = jnp.where(is_included, logits, _MASKED)
    mean = None
    if smoothing and smoothed_over is not None:
        inside = (smoothed_over > 0) & is_included & (logits > -BANNED / 2)
        count = jnp.maximum(jnp.sum(inside, axis=-1), 1)
        mean = jnp.sum(jnp.where(inside, logits, 0.0), axis=-1) / count.astype(jnp.float32)
    return _Logits(logits, jax.nn.logsumexp(logits, axis=-1), mean)


def _is_label(positions: Labels, length: int) -> Bool[Array, "... l"]:
    """Compare positions `[...]` with all l columns, negative ones as 0."""
    # A comparison instead of a gather: its gradient is elementwise, which is much faster on TPUs.
    shape = (*positions.shape, length)
    index = jax.lax.broadcasted_iota(positions.dtype, shape, positions.ndim)
    return index == jnp.maximum(positions, 0)[..., None]


def _cross_entropy(
    logits: Float[Array, "b l"],
    positions: Int[Array, " b"],
    attention_mask: Int[Array, "b l"] | None,
    smoothing: float,
    smoothed_over: Int[Array, "b l"] | None,
) -> Float[Array, " b"]:
    is_label = _is_label(positions, logits.shape[1])
    values, log_sum, mean = _relative(
        logits.astype(jnp.float32), is_label, attention_mask, smoothing, smoothed_over
    )
    target = jnp.sum(jnp.where(is_label, values, 0.0), axis=-1)
    if mean is not None:
        target = (1.0 - smoothing) * target + smoothing * mean
    return jnp.where(positions < logits.shape[1], log_sum - target, 0.0)


def _marginal_term(
    logits: SpanLogits,
    spans: tuple[Int[Array, "b g"], Int[Array, "b g"]],
    attention_mask: Int[Array, "b l"] | None,
    smoothing: float,
    smoothed_over: Int[Array, "b l"] | None,
) -> Float[Array, " b"]:
    """Half of minus the logarithm of the spans' probability; 0 if no span is inside the row."""
    length = logits.start.shape[1]
    inside = (spans[0] < length) & (spans[1] < length)
    log_sum, targets, means = 0.0, 0.0, 0.0
    smoothed = smoothing, smoothed_over
    for array, positions in zip(logits, spans, strict=True):
        is_label = _is_label(positions, length) & inside[..., None]
        values, of_all, mean = _relative(
            array.astype(jnp.float32), is_label.any(axis=1), attention_mask, *smoothed
        )
        log_sum += of_all
        targets += jnp.sum(jnp.where(is_label, values[:, None], 0.0), axis=-1)
        means += 0.0 if mean is None else mean
    target = jax.nn.logsumexp(jnp.where(inside, targets, _MASKED), axis=-1)
    if smoothing and smoothed_over is not None:
        target = (1.0 - smoothing) * target + smoothing * means
    return jnp.where(inside.any(axis=1), (log_sum - target) / 2, 0.0)
