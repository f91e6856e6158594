"""Stage 4 of 7: the pieces every encoder is built from (device, JAX).

Axis letters: `b` rows, `l` tokens (`q` asking, `k` asked), `h` hidden, `a` heads, `d` head size,
`f` mlp.
Parameters are float32. `dtype` is the compute dtype of the matrix products; attention's softmax,
LayerNorm's statistics and the span logits are float32 whatever it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

# Where a parameter is in a model: attribute names and, in a list, indexes.
ParamPath = tuple[Any, ...]


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


# ---- activations ---------------------------------------------------------------------------------

# Hugging Face's "gelu" is the exact one (erf); the tanh forms differ from it by up to 5e-4.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def known_activation(name: object) -> str:
    """`name` if the table above has it; a `ValueError` with the known names if not."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act={name!r} is not known here; known: {', '.join(sorted(ACTIVATIONS))}"
        )
    return str(name)


# ---- dropout -------------------------------------------------------------------------------------


def dropout(x: Float[Array, "..."], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "..."]:
    """Zero each element with probability `rate` and scale the rest by `1 / (1 - rate)`.

    `rngs=None` (or `rate=0`) returns `x` as it is. Draws one key from the `dropout` stream.
    """
    if rngs is None or rate == 0.0:
        return x
    # The last word below which an element is kept; the scale uses the probability it really gives.
    limit = min(round((1.0 - rate) * 2**32), 2**32 - 1)
    keep = random_words(rngs.dropout(), x.shape) < np.uint32(limit)
    return jnp.where(keep, x * (2**32 / limit if limit else 0.0), jnp.zeros((), x.dtype))


def random_words(key: Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random 32-bit words of `shape`, cheap enough to be free beside an elementwise product.

    Each element's index is mixed twice, each time with 32 fresh bits of `key`, by the "lowbias32"
    integer hash (C. Wellons, hash-prospector). XLA fuses this into the consumer, where
    `jax.random.bits` is a pass of its own: for the attention of 8 windows of 384 tokens on two CPU
    cores that pass took ten times as long as the masking itself.
    For dropout masks only, not for anything that needs JAX's own streams.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    return _mix(_mix(index ^ first) ^ second).reshape(shape)


def _mix(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


# ---- attention -----------------------------------------------------------------------------------


def attention_pairs(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None = None
) -> Bool[Array, "b 1 #l l"]:
    """Which token (second-last axis, or 1 for all alike) may look at which token (last axis).

    Real tokens have `attention_mask` 1. With `segment_ids` several windows share a row and see only
    themselves; segment 0 is padding. The one place where attention masks are made.
    """
    pairs = (attention_mask > 0)[:, None, None, :]
    if segment_ids is None:
        return pairs
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return pairs & same & (segment_ids > 0)[:, None, None, :]


def restarting_positions(segment_ids: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """Position of each token in its own segment, counted from 0 where a new segment begins."""
    index = jax.lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def attention(
    query: Float[Array, "b q a d"],
    key: Float[Array, "b k a d"],
    value: Float[Array, "b k a d"],
    pairs: Bool[Array, "b 1 #q k"],
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b q a d"]:
    """Scaled dot-product attention, float32 softmax; dropout falls on the probabilities, as in HF.

    A token that may look at nothing (padding between segments) gets a plain mean, never NaN.
    """
    scores = jnp.einsum("bqad,bkad->baqk", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(pairs, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, rngs)
    return jnp.einsum("baqk,bkad->bqad", probabilities.astype(value.dtype), value)


# ---- modules -------------------------------------------------------------------------------------


@runtime_checkable
class BlockConfig(Protocol):
    """What the modules below read from a family's config; the names are Hugging Face's."""

    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def intermediate_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_act(self) -> str: ...  # noqa: D102
    @property
    def hidden_dropout_prob(self) -> float: ...  # noqa: D102
    @property
    def attention_probs_dropout_prob(self) -> float: ...  # noqa: D102
    @property
    def initializer_range(self) -> float: ...  # noqa: D102
    @property
    def layer_norm_eps(self) -> float: ...  # noqa: D102
    @property
    def pad_token_id(self) -> int | None: ...  # noqa: D102


# Parameters begin as zeros and `hf.py` fills them, from a checkpoint or with `initial_array`; NNX
# wants a source of random numbers all the same.


def linear(n_in: int, n_out: int, dtype: jnp.dtype) -> nnx.Linear:
    """A dense layer with bias, kernel `[n_in, n_out]`, multiplying in `dtype`."""
    zeros = nnx.initializers.zeros
    return nnx.Linear(n_in, n_out, dtype=dtype, kernel_init=zeros, rngs=nnx.Rngs(0))


def layer_norm(config: BlockConfig, dtype: jnp.dtype) -> nnx.LayerNorm:
    """LayerNorm over the hidden axis with the checkpoint's epsilon and float32 statistics."""
    # The fast variance, E[x^2] - E[x]^2, loses digits when the mean is large.
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        dtype=dtype,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )


def embedding(n: int, config: BlockConfig) -> nnx.Embed:
    """`n` vectors of the hidden size, looked up in float32."""
    zeros = nnx.initializers.zeros
    return nnx.Embed(n, config.hidden_size, embedding_init=zeros, rngs=nnx.Rngs(0))


def initial_array(
    path: ParamPath, shape: tuple[int, ...], config: BlockConfig, random: np.random.Generator
) -> np.ndarray:
    """How HF's BERT-shaped models begin: float32 normal(0, `initializer_range`) weights, scales 1,
    biases 0, and zeros for the padding word.
    """
    if path[-1] in ("scale", "bias"):
        return np.full(shape, path[-1] == "scale", np.float32)
    array = random.standard_normal(shape, np.float32) * np.float32(config.initializer_range)
    if path[-2:] == ("word", "embedding") and config.pad_token_id is not None:
        array[config.pad_token_id] = 0.0
    return array


class SelfAttention(nnx.Module):
    """Multi-head attention of a row's tokens to each other: `[b, l, h] -> [b, l, h]`."""

    def __init__(self, config: BlockConfig, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = linear(h, h, dtype)
        self.key = linear(h, h, dtype)
        self.value = linear(h, h, dtype)
        self.out = linear(h, h, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        pairs: Bool[Array, "b 1 #l l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `pairs` allows."""
        b, l, h = hidden.shape
        by_head = (b, l, self.heads, h // self.heads)
        query, key, value = (
            project(hidden).reshape(by_head) for project in (self.query, self.key, self.value)
        )
        mixed = attention(query, key, value, pairs, self.dropout_rate, rngs)
        return self.out(mixed.reshape(b, l, h))


class PostNormBlock(nnx.Module):
    """One encoder layer of the BERT-shaped families: each sublayer is added, then normalised."""

    def __init__(self, config: BlockConfig, *, dtype: jnp.dtype):
        h, f = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob
        self.attention = SelfAttention(config, dtype=dtype)
        self.attention_norm = layer_norm(config, dtype)
        self.up = linear(h, f, dtype)
        self.down = linear(f, h, dtype)
        self.mlp_norm = layer_norm(config, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        pairs: Bool[Array, "b 1 #l l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attention, then the mlp; `rngs` turns both dropouts on."""
        attended = dropout(self.attention(hidden, pairs, rngs=rngs), self.dropout_rate, rngs)
        hidden = self.attention_norm(hidden + attended)
        inner = ACTIVATIONS[self.activation](self.up(hidden))
        return self.mlp_norm(hidden + dropout(self.down(inner), self.dropout_rate, rngs))
