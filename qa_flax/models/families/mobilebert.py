"""Stage 4 of 7: MobileBERT (Sun et al. 2020): BERT with bottlenecks in its layers (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import attention
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.dropout import dropout
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import (
    Idle,
    embedding,
    layer_norm,
    linear,
    look_up,
    ones,
    zeros,
)

# The epsilon of those LayerNorms for which HF's model does not read config.json.
DEFAULT_EPSILON = 1e-5


@dataclass(frozen=True)
class MobileBertConfig(EncoderConfig):
    """The fields of a MobileBERT config.json that affect the result, with HF's names."""

    embedding_size: int
    trigram_input: bool
    use_bottleneck: bool
    intra_bottleneck_size: int
    use_bottleneck_attention: bool
    key_query_shared_bottleneck: bool
    num_feedforward_networks: int
    normalization_type: str
    true_hidden_size: int

    REQUIRED: ClassVar = {
        "position_embedding_type": "absolute",
        "normalization_type": ("no_norm", "layer_norm"),
    }

    @property
    def inner_size(self) -> int:
        """The size of the hidden states inside a layer."""
        return self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "MobileBertConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        config = super().from_hf(values)
        size = config.inner_size
        if config.true_hidden_size != size:
            raise ValueError(
                f"true_hidden_size={config.true_hidden_size} is not supported; with "
                f"use_bottleneck={config.use_bottleneck} it must be {size}"
            )
        if size % config.num_attention_heads:
            raise ValueError(
                f"intra_bottleneck_size={size} is not a multiple of "
                f"num_attention_heads={config.num_attention_heads}"
            )
        shares = config.use_bottleneck_attention or config.key_query_shared_bottleneck
        if size != config.hidden_size and not shares:
            raise ValueError(
                f"intra_bottleneck_size={size} with hidden_size={config.hidden_size} needs "
                "key_query_shared_bottleneck or use_bottleneck_attention; both are false"
            )
        return config


class NoNorm(nnx.Module):
    """A scale and a bias for each element, in place of a LayerNorm."""

    def __init__(self, size: int, dtype: jnp.dtype):
        self.dtype = dtype
        self.bias = nnx.Param(zeros(None, (size,)))
        self.gain = nnx.Param(ones(None, (size,)))

    def __call__(self, x: Float[Array, "b l n"]) -> Float[Array, "b l n"]:
        """Scale and shift, in float32; returns the compute dtype."""
        gain, bias = self.gain[...], self.bias[...]
        return (x * gain[None, None] + bias[None, None]).astype(self.dtype)


def norm(config: MobileBertConfig, size: int, epsilon: float, dtype: jnp.dtype) -> nnx.Module:
    """The norm of the config's `normalization_type`; `epsilon` is that of a LayerNorm."""
    if config.normalization_type == "no_norm":
        return NoNorm(size, dtype)
    return layer_norm(size, epsilon, dtype)


# ---- embeddings ----------------------------------------------------------------------------------


class MobileBertEmbeddings(nnx.Module):
    """Token vectors, of three neighbours with `trigram_input`; then position, type and norm."""

    def __init__(self, config: MobileBertConfig, *, dtype: jnp.dtype):
        size, h = config.embedding_size, config.hidden_size
        self.padding, self.dropout_rate = config.pad_token_id, config.hidden_dropout_prob
        self.trigram = config.trigram_input
        self.word = embedding(config.vocab_size, size)
        self.position = embedding(config.max_position_embeddings, h)
        self.token_type = embedding(config.type_vocab_size, h)
        width = 3 * size if self.trigram else size
        self.is_transformed = self.trigram or size != h
        self.transform: Any = (
            linear(width, h, dtype) if self.is_transformed else Idle(kernel=(width, h), bias=(h,))
        )
        self.norm: Any = norm(config, h, DEFAULT_EPSILON, dtype)

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        position_ids: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """The hidden states before the first layer. Token types default to 0."""
        vectors = look_up(self.word, input_ids, self.padding)
        if self.trigram:
            vectors = jnp.concatenate(self.neighbours(vectors, segment_ids), axis=-1)
        if self.is_transformed:
            vectors = self.transform(vectors, rngs=rngs)
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        summed = vectors + self.position(position_ids) + self.token_type(types)
        return dropout(self.norm(summed), self.dropout_rate, rngs)

    def neighbours(
        self, vectors: Float[Array, "b l e"], segment_ids: Int[Array, "b l"] | None
    ) -> tuple[Float[Array, "b l e"], ...]:
        """The vectors of the next token, of each token itself, and of the token before.

        Outside the row they are zero. A packed window ends as one that padding follows: the next
        token of its last one is the padding token.
        """
        following = jnp.pad(vectors[:, 1:], [(0, 0), (0, 1), (0, 0)])
        before = jnp.pad(vectors[:, :-1], [(0, 0), (1, 0), (0, 0)])
        if segment_ids is not None:
            ends = jnp.diff(segment_ids, axis=1, append=0)[..., None] != 0
            begins = jnp.diff(segment_ids, axis=1, prepend=0)[..., None] != 0
            following = jnp.where(ends, self.padding_vector(), following)
            before = jnp.where(begins, 0.0, before)
        return following, vectors, before

    def padding_vector(self) -> Float[Array, "1 1 e"] | Float[Array, ""]:
        """The vector of the padding token, which is not trained; 0 if there is no such token."""
        if self.padding is None:
            return jnp.zeros(())
        return look_up(self.word, jnp.full((1, 1), self.padding), self.padding)


# ---- layers --------------------------------------------------------------------------------------


class MobileBertAttention(nnx.Module):
    """Self-attention whose values may be of another size than queries and keys."""

    def __init__(self, config: MobileBertConfig, *, dtype: jnp.dtype):
        size = config.inner_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query, self.key = linear(size, size, dtype), linear(size, size, dtype)
        values = size if config.use_bottleneck_attention else config.hidden_size
        self.value = linear(values, size, dtype)
        self.out = linear(size, size, dtype)

    def __call__(
        self,
        source: Float[Array, "b l n"],
        values: Float[Array, "b l v"],
        mask: Bool[Array, "b 1 #l l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l n"]:
        """Attend where `mask` allows, with queries and keys of `source`."""
        b, l, _ = source.shape
        query, key, value = (
            x.reshape(b, l, self.heads, -1)
            for x in (
                self.query(source, rngs=rngs),
                self.key(source, rngs=rngs),
                self.value(values, rngs=rngs),
            )
        )
        mixed = attention(query, key, value, mask, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, -1), rngs=rngs)


class Projection(nnx.Module):
    """A dense layer and a norm, to or from the size of the bottleneck."""

    def __init__(self, config: MobileBertConfig, n_in: int, n_out: int, *, dtype: jnp.dtype):
        self.dense = linear(n_in, n_out, dtype)
        self.norm: Any = norm(config, n_out, config.layer_norm_eps, dtype)

    def __call__(
        self,
        x: Float[Array, "b l i"],
        residual: Float[Array, "b l o"] | None = None,
        *,
        rate: float = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l o"]:
        """Project, apply dropout at `rate`, add `residual` and apply the norm."""
        projected = dropout(self.dense(x, rngs=rngs), rate, rngs)
        return self.norm(projected if residual is None else projected + residual)


class FeedForward(nnx.Module):
    """An MLP, a residual addition and a norm."""

    def __init__(
        self,
        config: MobileBertConfig,
        epsilon: float,
        *,
        dtype: jnp.dtype,
        dropout_rate: float = 0.0,
    ):
        size, f = config.inner_size, config.intermediate_size
        self.activation, self.dropout_rate = config.hidden_act, dropout_rate
        self.up, self.down = linear(size, f, dtype), linear(f, size, dtype)
        self.norm: Any = norm(config, size, epsilon, dtype)

    def __call__(
        self, hidden: Float[Array, "b l n"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l n"]:
        """Apply the MLP to every token."""
        inner = self.down(ACTIVATIONS[self.activation](self.up(hidden, rngs=rngs)), rngs=rngs)
        return self.norm(dropout(inner, self.dropout_rate, rngs) + hidden)


class IdleProjection(nnx.Module):
    """The arrays of a `Projection` that computes nothing."""

    def __init__(self, config: MobileBertConfig, n_in: int, n_out: int):
        self.dense = Idle(kernel=(n_in, n_out), bias=(n_out,))
        scale = "gain" if config.normalization_type == "no_norm" else "scale"
        self.norm = Idle(**{scale: (n_out,), "bias": (n_out,)})


class MobileBertBlock(nnx.Module):
    """Attention and MLPs of the bottleneck's size, between projections to it and from it.

    Without `use_bottleneck` there are no projections. HF's model has the one that queries and keys
    share even if `use_bottleneck_attention` leaves it unused.
    """

    def __init__(self, config: MobileBertConfig, *, dtype: jnp.dtype):
        h, size, epsilon = config.hidden_size, config.inner_size, config.layer_norm_eps
        has_bottleneck = config.use_bottleneck
        self.dropout_rate = config.hidden_dropout_prob
        self.attended_dropout_rate = 0.0 if has_bottleneck else self.dropout_rate
        self.attention = MobileBertAttention(config, dtype=dtype)
        self.attention_norm: Any = norm(config, size, epsilon, dtype)
        self.mlps = nnx.List(
            FeedForward(config, epsilon, dtype=dtype)
            for _ in range(config.num_feedforward_networks - 1)
        )
        rate = self.attended_dropout_rate
        self.last_mlp = FeedForward(config, DEFAULT_EPSILON, dtype=dtype, dropout_rate=rate)
        self.is_narrow = has_bottleneck and config.use_bottleneck_attention
        self.is_shared = config.key_query_shared_bottleneck and not self.is_narrow
        self.narrow = Projection(config, h, size, dtype=dtype) if has_bottleneck else None
        self.widen = Projection(config, size, h, dtype=dtype) if has_bottleneck else None
        if not (has_bottleneck and config.key_query_shared_bottleneck):
            self.shared: Any = None
        elif self.is_shared:
            self.shared = Projection(config, h, size, dtype=dtype)
        else:
            self.shared = IdleProjection(config, h, size)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Apply the attention, then the MLPs; `rngs=None` means no dropout."""
        inner = hidden if self.narrow is None else self.narrow(hidden, rngs=rngs)
        values = inner if self.is_narrow else hidden
        source = values
        if self.narrow is not None and self.is_shared:
            source = self.shared(hidden, rngs=rngs)
        attended = self.attention(source, values, mask, rngs=rngs)
        inner = self.attention_norm(dropout(attended, self.attended_dropout_rate, rngs) + inner)
        for mlp in (*self.mlps, self.last_mlp):
            inner = mlp(inner, rngs=rngs)
        if self.widen is None:
            return inner
        return self.widen(inner, hidden, rate=self.dropout_rate, rngs=rngs)


class MobileBertEncoder(Encoder):
    """MobileBERT's embeddings and blocks.

    With `trigram_input`, the last token of a row reads the token after it: the padding token, or
    nothing if the row has no padding. So padding changes a row's logits slightly, as in PyTorch.
    """

    def __init__(self, config: MobileBertConfig, *, dtype: jnp.dtype):
        embeddings = MobileBertEmbeddings(config, dtype=dtype)
        super().__init__(config, dtype=dtype, block=MobileBertBlock, embeddings=embeddings)

    def embed(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
        *,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "b l h"]:
        """The hidden states before the first layer."""
        return self.embeddings(input_ids, token_type_ids, positions, segment_ids, rngs=rngs)


_LAYER, _NAME = r"layers\.(\d+)\.", r"encoder.layer.\1."
WEIGHT_NAMES = {
    r"embeddings\.(word|position|token_type)": r"embeddings.\1_embeddings",
    r"embeddings\.transform": r"embeddings.embedding_transformation",
    r"embeddings\.norm": r"embeddings.LayerNorm",
    _LAYER + r"attention\.(query|key|value)": _NAME + r"attention.self.\2",
    _LAYER + r"attention\.out": _NAME + r"attention.output.dense",
    _LAYER + r"attention_norm": _NAME + r"attention.output.LayerNorm",
    _LAYER + r"last_mlp\.up": _NAME + r"intermediate.dense",
    _LAYER + r"last_mlp\.down": _NAME + r"output.dense",
    _LAYER + r"last_mlp\.norm": _NAME + r"output.LayerNorm",
    _LAYER + r"widen\.dense": _NAME + r"output.bottleneck.dense",
    _LAYER + r"widen\.norm": _NAME + r"output.bottleneck.LayerNorm",
    _LAYER + r"narrow\.dense": _NAME + r"bottleneck.input.dense",
    _LAYER + r"narrow\.norm": _NAME + r"bottleneck.input.LayerNorm",
    _LAYER + r"shared\.dense": _NAME + r"bottleneck.attention.dense",
    _LAYER + r"shared\.norm": _NAME + r"bottleneck.attention.LayerNorm",
    _LAYER + r"mlps\.(\d+)\.up": _NAME + r"ffn.\2.intermediate.dense",
    _LAYER + r"mlps\.(\d+)\.down": _NAME + r"ffn.\2.output.dense",
    _LAYER + r"mlps\.(\d+)\.norm": _NAME + r"ffn.\2.output.LayerNorm",
}

FAMILY = Family(
    "mobilebert",
    MobileBertConfig.from_hf,
    MobileBertEncoder,
    WEIGHT_NAMES,
    prefix="mobilebert.",
    architecture="MobileBertForQuestionAnswering",
)
