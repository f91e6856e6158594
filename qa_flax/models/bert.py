"""Stage 4 of 7: BERT (Devlin et al. 2018), its config, encoder and weight names (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.layers import (
    PostNormBlock,
    attention_pairs,
    dropout,
    embedding,
    known_activation,
    layer_norm,
    restarting_positions,
)


@dataclass(frozen=True)
class BertConfig:
    """The fields of a BERT config.json that change the result, by Hugging Face's names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    pad_token_id: int | None

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "BertConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        for name, allowed in REQUIRED.items():
            if values.get(name, allowed) != allowed:
                raise ValueError(
                    f"{name}={values[name]!r} is not supported for a BERT encoder; "
                    f"known: {allowed!r}"
                )
        known_activation(values["hidden_act"])
        if values["hidden_size"] % values["num_attention_heads"]:
            raise ValueError(
                f"hidden_size={values['hidden_size']} is not a multiple of "
                f"num_attention_heads={values['num_attention_heads']}"
            )
        # JSON may write a float as an integer: `"hidden_dropout_prob": 0`.
        own: dict[str, Any] = {
            field.name: float(values[field.name]) if field.type is float else values[field.name]
            for field in fields(cls)
        }
        return cls(**own)


# Settings that would need another encoder, with the only value this one computes.
REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class BertEmbeddings(nnx.Module):
    """Word + token type + position vectors, normalised: `[b, l] -> [b, l, h]`."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype):
        self.dropout_rate = config.hidden_dropout_prob
        self.pad_token_id = config.pad_token_id
        self.word = embedding(config.vocab_size, config)
        self.position = embedding(config.max_position_embeddings, config)
        self.token_type = embedding(config.type_vocab_size, config)
        self.norm = layer_norm(config, dtype)

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"],
        position_ids: Int[Array, "#b l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Sum in HF's order, so that float32 rounds as there; the padding word is never trained."""
        words = self.word(input_ids)
        if self.pad_token_id is not None:
            padding = (input_ids == self.pad_token_id)[..., None]
            words = jnp.where(padding, jax.lax.stop_gradient(words), words)
        summed = words + self.token_type(token_type_ids) + self.position(position_ids)
        return dropout(self.norm(summed), self.dropout_rate, rngs)


class BertEncoder(nnx.Module):
    """Embeddings and `num_hidden_layers` post-norm blocks."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype):
        self.max_length = config.max_position_embeddings
        self.embeddings = BertEmbeddings(config, dtype=dtype)
        self.layers = nnx.List(
            PostNormBlock(config, dtype=dtype) for _ in range(config.num_hidden_layers)
        )

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
        """Hidden states in the compute dtype; `rngs=None` means no dropout.

        Token types default to 0; positions count from 0, again in every segment.
        """
        length = input_ids.shape[1]
        if position_ids is None and segment_ids is not None:
            position_ids = restarting_positions(segment_ids)
        elif position_ids is None and length > self.max_length:
            raise ValueError(
                f"rows of {length} tokens, but this checkpoint has {self.max_length} positions "
                f"(max_position_embeddings); use max_seq_length <= {self.max_length}"
            )
        elif position_ids is None:
            position_ids = jnp.arange(length)[None, :]
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, rngs=rngs)
        pairs = attention_pairs(attention_mask, segment_ids)
        for layer in self.layers:
            hidden = layer(hidden, pairs, rngs=rngs)
        return hidden


# Module here -> its name in a Hugging Face checkpoint without the `bert.` prefix, a row each.
WEIGHT_NAMES = {
    r"embeddings\.word": r"embeddings.word_embeddings",
    r"embeddings\.position": r"embeddings.position_embeddings",
    r"embeddings\.token_type": r"embeddings.token_type_embeddings",
    r"embeddings\.norm": r"embeddings.LayerNorm",
    r"layers\.(\d+)\.attention\.query": r"encoder.layer.\1.attention.self.query",
    r"layers\.(\d+)\.attention\.key": r"encoder.layer.\1.attention.self.key",
    r"layers\.(\d+)\.attention\.value": r"encoder.layer.\1.attention.self.value",
    r"layers\.(\d+)\.attention\.out": r"encoder.layer.\1.attention.output.dense",
    r"layers\.(\d+)\.attention_norm": r"encoder.layer.\1.attention.output.LayerNorm",
    r"layers\.(\d+)\.up": r"encoder.layer.\1.intermediate.dense",
    r"layers\.(\d+)\.down": r"encoder.layer.\1.output.dense",
    r"layers\.(\d+)\.mlp_norm": r"encoder.layer.\1.output.LayerNorm",
}

# Tensors of other tasks, and buffers older versions wrote, that question answering does not use.
UNUSED_WEIGHTS = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"pooler\..*",
    r"cls\..*",
    r"classifier\..*",
)
