"""Stage 4 of 7: BART (Lewis et al. 2019): a row encoded, then decoded from itself moved by one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import make_attention_mask
from qa_flax.models.blocks import OTHER_TASKS, SelfAttention, Stack
from qa_flax.models.configs import SharedConfig
from qa_flax.models.dropout import dropout
from qa_flax.models.family import Family
from qa_flax.models.layers import embedding, layer_norm, linear, look_up, positions_from_0


@dataclass(frozen=True)
class SharedFields(SharedConfig):
    """The fields of a config.json of BART and its kin that change the result; names in `NAMES`."""

    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    activation_dropout: float
    scale_embedding: bool
    pad_token_id: int

    NAMES: ClassVar = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
        "hidden_act": "activation_function",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "init_std",
    }
    REQUIRED: ClassVar = {
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "tie_word_embeddings": True,
    }

    @property
    def layer_norm_eps(self) -> float:
        """Not in the config: the same in all of them."""
        return 1e-5

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "SharedFields":
        """Read config.json's values; `ValueError` for what this model cannot compute."""
        for name in {"pad_token_id", "decoder_start_token_id"} & {f.name for f in fields(cls)}:
            if values[name] is None:
                raise ValueError(
                    f"{name}=None is not supported for {values['model_type']}; "
                    "known: any id of the vocabulary"
                )
        config = super().from_hf(values)
        # It has seen to the encoder's heads.
        if config.hidden_size % config.decoder_attention_heads:
            raise ValueError(
                f"d_model={config.hidden_size} is not a multiple of "
                f"decoder_attention_heads={config.decoder_attention_heads}"
            )
        return config

    def of_decoder(self) -> "SharedFields":
        """The same with the decoder's layers in place of the encoder's."""
        return replace(
            self,
            num_hidden_layers=self.decoder_layers,
            num_attention_heads=self.decoder_attention_heads,
            intermediate_size=self.decoder_ffn_dim,
        )


@dataclass(frozen=True)
class BartConfig(SharedFields):
    """And the word that the decoder reads first."""

    decoder_start_token_id: int


# The position tables begin with two rows that are never looked up.
OFFSET = 2


class BartBlock(nnx.Module):
    """A layer of the encoder or, `crossed`, of the decoder, which looks at the encoder's too.

    Each sublayer is added, then normalised; with `norm_first` normalised, then added.
    """

    def __init__(self, config: SharedFields, *, dtype: jnp.dtype, crossed: bool, norm_first: bool):
        h, f = config.hidden_size, config.intermediate_size
        self.norm_first = norm_first
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob
        self.activation_dropout_rate = config.activation_dropout
        self.attention = SelfAttention(config, dtype=dtype)
        self.attention_norm = layer_norm(h, config.layer_norm_eps, dtype)
        if crossed:
            self.cross_attention = SelfAttention(config, dtype=dtype)
            self.cross_attention_norm = layer_norm(h, config.layer_norm_eps, dtype)
        self.up = linear(h, f, dtype)
        self.down = linear(f, h, dtype)
        self.mlp_norm = layer_norm(h, config.layer_norm_eps, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l l"],
        encoded: Float[Array, "b k h"] | None = None,
        encoded_mask: Bool[Array, "b 1 #l k"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """`encoded`, the decoder's only: the encoder's hidden states, seen as its mask allows."""
        hidden = self._add(self.attention_norm, self.attention, hidden, mask, rngs=rngs)
        if encoded is not None:
            seen = (encoded_mask, None, encoded)
            norm, attention = self.cross_attention_norm, self.cross_attention
            hidden = self._add(norm, attention, hidden, *seen, rngs=rngs)
        return self._add(self.mlp_norm, self._mlp, hidden, rngs=rngs)

    def _add(
        self, norm: nnx.LayerNorm, sublayer: Any, hidden: Array, *where: Any, rngs: nnx.Rngs | None
    ) -> Array:
        seen = norm(hidden) if self.norm_first else hidden
        hidden = hidden + dropout(sublayer(seen, *where, rngs=rngs), self.dropout_rate, rngs)
        return hidden if self.norm_first else norm(hidden)

    def _mlp(self, hidden: Array, *, rngs: nnx.Rngs | None) -> Array:
        inner = ACTIVATIONS[self.activation](self.up(hidden, rngs=rngs))
        return self.down(dropout(inner, self.activation_dropout_rate, rngs), rngs=rngs)


class BartHalf(nnx.Module):
    """The encoder or, `crossed`, the decoder: positions of its own and `num_hidden_layers` blocks.

    `norm_first` is for the blocks; what the last one gives is then normalised too.
    """

    def __init__(self, config: SharedFields, *, dtype: jnp.dtype, crossed: bool, norm_first: bool):
        h = config.hidden_size
        self.dropout_rate = config.hidden_dropout_prob
        self.position = embedding(config.max_position_embeddings + OFFSET, h)
        self.embedding_norm = layer_norm(h, config.layer_norm_eps, dtype)
        self.layers = Stack(
            BartBlock(config, dtype=dtype, crossed=crossed, norm_first=norm_first)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = layer_norm(h, config.layer_norm_eps, dtype) if norm_first else None

    def __call__(
        self,
        words: Float[Array, "b l h"],
        positions: Int[Array, "#b l"],
        *where: Any,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Hidden states of the words' vectors; `where` goes to every block."""
        hidden = self.embedding_norm(words + self.position(positions + OFFSET))
        hidden = self.layers(dropout(hidden, self.dropout_rate, rngs), *where, rngs=rngs)
        return hidden if self.norm is None else self.norm(hidden)


class SharedModel(nnx.Module):
    """Encoder and decoder with one table of words; a family says what the decoder reads first."""

    def __init__(self, config: SharedFields, *, dtype: jnp.dtype, norm_first: bool):
        self.positions = config.max_position_embeddings
        self.padding = config.pad_token_id
        self.word_scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
        self.word = embedding(config.vocab_size, config.hidden_size)
        self.encoder = BartHalf(config, dtype=dtype, crossed=False, norm_first=norm_first)
        self.decoder = BartHalf(
            config.of_decoder(), dtype=dtype, crossed=True, norm_first=norm_first
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
        """The decoder's hidden states, as `encoder.Encoder`; token types are not looked at."""
        places = positions_from_0(input_ids, None, segment_ids, self.positions)
        positions = places if position_ids is None else position_ids
        mask = make_attention_mask(attention_mask, segment_ids)
        encoded = self.encoder(self._vectors(input_ids), positions, mask, rngs=rngs)

        first = self.first_words(input_ids, places, segment_ids)
        moved = jnp.where(places == 0, first, jnp.roll(input_ids, 1, axis=1))
        # As in PyTorch nothing hides padding here: it is behind the words that matter.
        index = jnp.arange(input_ids.shape[1])
        earlier = (index[:, None] >= index[None, :])[None, None]
        earlier = earlier & make_attention_mask(jnp.ones_like(input_ids), segment_ids)
        return self.decoder(self._vectors(moved), positions, earlier, encoded, mask, rngs=rngs)

    def first_words(
        self,
        input_ids: Int[Array, "b l"],
        places: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b #l"]:
        """What the decoder reads first in the window of each token; `places` count from 0 in it."""
        raise NotImplementedError

    def _vectors(self, ids: Int[Array, "b l"]) -> Float[Array, "b l h"]:
        return look_up(self.word, ids, self.padding) * self.word_scale


class BartModel(SharedModel):
    """Post-norm blocks, and a decoder that begins with the same word everywhere."""

    def __init__(self, config: BartConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, norm_first=False)
        self.first_word = config.decoder_start_token_id

    def first_words(
        self,
        input_ids: Int[Array, "b l"],
        places: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b #l"]:
        """`decoder_start_token_id`."""
        return jnp.full((1, 1), self.first_word, input_ids.dtype)


WEIGHT_NAMES = {
    r"word": r"shared",
    r"(..coder)\.position": r"\1.embed_positions",
    r"(..coder)\.embedding_norm": r"\1.layernorm_embedding",
    # PyTorch has the first letters of query, key and value.
    r"(..coder)\.layers\.(\d+)\.attention\.(q|k|v|out)\w*": r"\1.layers.\2.self_attn.\3_proj",
    r"(..coder)\.layers\.(\d+)\.attention_norm": r"\1.layers.\2.self_attn_layer_norm",
    r"(..coder)\.layers\.(\d+)\.cross_attention\.(q|k|v|out)\w*": (
        r"\1.layers.\2.encoder_attn.\3_proj"
    ),
    r"(..coder)\.layers\.(\d+)\.cross_attention_norm": r"\1.layers.\2.encoder_attn_layer_norm",
    r"(..coder)\.layers\.(\d+)\.up": r"\1.layers.\2.fc1",
    r"(..coder)\.layers\.(\d+)\.down": r"\1.layers.\2.fc2",
    r"(..coder)\.layers\.(\d+)\.mlp_norm": r"\1.layers.\2.final_layer_norm",
}
# The one table of words; a file that holds shared tensors once may hold it by any of its names.
OTHER_NAMES: dict[str, str] = dict.fromkeys(
    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    "shared.weight",
)
UNUSED_WEIGHTS = (
    *OTHER_TASKS,
    *map(re.escape, OTHER_NAMES),
    r"..coder\.version",
    r"final_logits_bias",
    r"classification_heads?\..*",
)

FAMILY = Family(
    "bart",
    BartConfig.from_hf,
    BartModel,
    WEIGHT_NAMES,
    prefix="model.",
    architecture="BartForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
    other_names=OTHER_NAMES,
)
