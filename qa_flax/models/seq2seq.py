"""Stage 4 of 7: what BART and mBART are made of: an encoder, and a decoder of the same row."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.configs import read_config
from qa_flax.models.layers import (
    ACTIVATIONS,
    Stack,
    attention,
    attention_pairs,
    check_length,
    dropout,
    embedding,
    layer_norm,
    linear,
    look_up,
)


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The fields of a BART config.json that change the result; its names are in `NAMES`."""

    vocab_size: int
    hidden_size: int
    encoder_layers: int
    decoder_layers: int
    num_attention_heads: int
    decoder_attention_heads: int
    intermediate_size: int
    decoder_ffn_dim: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    activation_dropout: float
    max_position_embeddings: int
    scale_embedding: bool
    initializer_range: float
    pad_token_id: int

    @property
    def layer_norm_eps(self) -> float:
        """Not in the config: the same in all of them."""
        return 1e-5

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "Seq2SeqConfig":
        """Read config.json's values; `ValueError` for what these encoders cannot compute."""
        if values["d_model"] % values["decoder_attention_heads"]:
            raise ValueError(
                f"d_model={values['d_model']} is not a multiple of "
                f"decoder_attention_heads={values['decoder_attention_heads']}"
            )
        return read_config(cls, values, names=NAMES, required=REQUIRED)


NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "hidden_act": "activation_function",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_std",
}
REQUIRED = {
    "is_encoder_decoder": True,
    "is_decoder": False,
    "tie_word_embeddings": True,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
POSITION_OFFSET = 2  # the first rows of the position tables belong to no position


class Attention(nnx.Module):
    """Multi-head attention of a row's states to its own or to the encoder's."""

    def __init__(self, config: Seq2SeqConfig, heads: int, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = linear(h, h, dtype)
        self.key = linear(h, h, dtype)
        self.value = linear(h, h, dtype)
        self.out = linear(h, h, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        seen: Float[Array, "b l h"],
        pairs: Bool[Array, "#b 1 #l l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """`hidden` looks at `seen` where `pairs` allows."""
        b, l, h = hidden.shape
        query, key, value = (
            project(states).reshape(b, l, self.heads, h // self.heads)
            for project, states in ((self.query, hidden), (self.key, seen), (self.value, seen))
        )
        mixed = attention(query, key, value, pairs, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, h))


class Block(nnx.Module):
    """One layer: self-attention, in a decoder attention to the encoder's states, an mlp.

    `pre_norm`: each sublayer reads normalised states; else the sum after each is normalised.
    """

    def __init__(
        self,
        config: Seq2SeqConfig,
        heads: int,
        mlp_size: int,
        *,
        decodes: bool,
        pre_norm: bool,
        dtype: jnp.dtype,
    ):
        h = config.hidden_size
        self.pre_norm = pre_norm
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob
        self.inner_dropout_rate = config.activation_dropout
        self.attention = Attention(config, heads, dtype=dtype)
        self.attention_norm = layer_norm(h, config.layer_norm_eps, dtype)
        self.cross = Attention(config, heads, dtype=dtype) if decodes else None
        self.cross_norm = layer_norm(h, config.layer_norm_eps, dtype) if decodes else None
        self.up = linear(h, mlp_size, dtype)
        self.down = linear(mlp_size, h, dtype)
        self.mlp_norm = layer_norm(h, config.layer_norm_eps, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        pairs: Bool[Array, "#b 1 #l l"],
        memory: Float[Array, "b l h"] | None = None,
        memory_pairs: Bool[Array, "b 1 #l l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """`memory` is what a decoder's layer looks at: the encoder's states."""

        def mlp(states: Array) -> Array:
            inner = ACTIVATIONS[self.activation](self.up(states))
            return self.down(dropout(inner, self.inner_dropout_rate, rngs))

        def add(norm: Any, sublayer: Callable[[Array], Array], states: Array) -> Array:
            result = sublayer(norm(states) if self.pre_norm else states)
            total = states + dropout(result, self.dropout_rate, rngs)
            return total if self.pre_norm else norm(total)

        hidden = add(self.attention_norm, lambda x: self.attention(x, x, pairs, rngs=rngs), hidden)
        cross = self.cross
        if cross is not None:
            hidden = add(
                self.cross_norm, lambda x: cross(x, memory, memory_pairs, rngs=rngs), hidden
            )
        return add(self.mlp_norm, mlp, hidden)


class Tower(nnx.Module):
    """An encoder or a decoder: word vectors + positions, normalised, and layers."""

    def __init__(self, config: Seq2SeqConfig, *, decodes: bool, pre_norm: bool, dtype: jnp.dtype):
        h, eps = config.hidden_size, config.layer_norm_eps
        layers = config.decoder_layers if decodes else config.encoder_layers
        heads = config.decoder_attention_heads if decodes else config.num_attention_heads
        mlp_size = config.decoder_ffn_dim if decodes else config.intermediate_size
        self.dropout_rate = config.hidden_dropout_prob
        self.position = embedding(config.max_position_embeddings + POSITION_OFFSET, h)
        self.embedding_norm = layer_norm(h, eps, dtype)
        self.layers = Stack(
            Block(config, heads, mlp_size, decodes=decodes, pre_norm=pre_norm, dtype=dtype)
            for _ in range(layers)
        )
        self.final_norm = layer_norm(h, eps, dtype) if pre_norm else None

    def __call__(
        self,
        words: Float[Array, "b l h"],
        position_ids: Int[Array, "#b l"],
        *where: Any,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """`where` goes to the layers: `pairs` and, in a decoder, the encoder's states and pairs."""
        hidden = self.embedding_norm(words + self.position(position_ids + POSITION_OFFSET))
        hidden = dropout(hidden, self.dropout_rate, rngs)
        hidden = self.layers(hidden, *where, rngs=rngs)
        return hidden if self.final_norm is None else self.final_norm(hidden)


class Seq2SeqEncoder(nnx.Module):
    """The row through the encoder, the row shifted right through the decoder that looks at it.

    `shift(input_ids)` gives what the decoder reads, int32 `[b, l]`.
    """

    def __init__(
        self,
        config: Seq2SeqConfig,
        shift: Callable[[Int[Array, "b l"]], Int[Array, "b l"]],
        *,
        pre_norm: bool,
        dtype: jnp.dtype,
    ):
        self.positions = config.max_position_embeddings
        self.padding = config.pad_token_id
        self.shift = shift
        self.scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.word = embedding(config.vocab_size, config.hidden_size)
        self.encoder = Tower(config, decodes=False, pre_norm=pre_norm, dtype=dtype)
        self.decoder = Tower(config, decodes=True, pre_norm=pre_norm, dtype=dtype)

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None = None,
        position_ids: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """The decoder's hidden states, else as `bert.BertEncoder`; token types are not looked at.

        `ValueError` for packed rows: what the decoder reads first belongs to the whole row.
        """
        if segment_ids is not None:
            raise ValueError(
                "the decoder reads the row as a whole, so that several windows in a row are not "
                "possible; give each a row of its own"
            )
        length = input_ids.shape[1]
        check_length(length, self.positions)
        positions = jnp.arange(length)[None, :]
        own = positions if position_ids is None else position_ids
        pairs = attention_pairs(attention_mask)
        memory = self.encoder(self._words(input_ids), own, pairs, rngs=rngs)
        causal = (positions[0][:, None] >= positions)[None, None]
        words = self._words(self.shift(input_ids))
        return self.decoder(words, positions, causal, memory, pairs, rngs=rngs)

    def _words(self, ids: Int[Array, "b l"]) -> Float[Array, "b l h"]:
        return look_up(self.word, ids, self.padding) * self.scale


WEIGHT_NAMES = {
    r"word": r"shared",
    r"(encoder|decoder)\.position": r"\1.embed_positions",
    r"(encoder|decoder)\.embedding_norm": r"\1.layernorm_embedding",
    r"(encoder|decoder)\.final_norm": r"\1.layer_norm",
    r"(encoder|decoder)\.layers\.(\d+)\.attention\.(q|k|v)(uery|ey|alue)": (
        r"\1.layers.\2.self_attn.\3_proj"
    ),
    r"(encoder|decoder)\.layers\.(\d+)\.attention\.out": r"\1.layers.\2.self_attn.out_proj",
    r"(encoder|decoder)\.layers\.(\d+)\.attention_norm": r"\1.layers.\2.self_attn_layer_norm",
    r"decoder\.layers\.(\d+)\.cross\.(q|k|v)(uery|ey|alue)": (
        r"decoder.layers.\1.encoder_attn.\2_proj"
    ),
    r"decoder\.layers\.(\d+)\.cross\.out": r"decoder.layers.\1.encoder_attn.out_proj",
    r"decoder\.layers\.(\d+)\.cross_norm": r"decoder.layers.\1.encoder_attn_layer_norm",
    r"(encoder|decoder)\.layers\.(\d+)\.up": r"\1.layers.\2.fc1",
    r"(encoder|decoder)\.layers\.(\d+)\.down": r"\1.layers.\2.fc2",
    r"(encoder|decoder)\.layers\.(\d+)\.mlp_norm": r"\1.layers.\2.final_layer_norm",
}
UNUSED_WEIGHTS = (
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"final_logits_bias",
    r"(lm_head|classification_head)\..*",
)
