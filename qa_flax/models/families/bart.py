"""Stage 4 of 7: BART (Lewis et al. 2019), an encoder-decoder; the base of mBART (device, JAX).

The encoder reads a row. The decoder reads the same row shifted right by one token and attends to
the encoder's hidden states. The span head takes the decoder's hidden states.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import make_attention_mask, make_causal_mask
from qa_flax.models.blocks import OTHER_TASKS, SelfAttention, Stack
from qa_flax.models.configs import SharedConfig
from qa_flax.models.dropout import dropout
from qa_flax.models.family import Family
from qa_flax.models.layers import embedding, layer_norm, linear, look_up, positions_from_0


@dataclass(frozen=True)
class BartBaseConfig(SharedConfig):
    """The fields of a BART or mBART config.json that affect the result; `NAMES` has HF's names."""

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
        """1e-5 in every BART and mBART; config.json has no such field."""
        return 1e-5

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "BartBaseConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        for name in {"pad_token_id", "decoder_start_token_id"} & {f.name for f in fields(cls)}:
            if values[name] is None:
                raise ValueError(
                    f"{name}=None is not supported for {values['model_type']}; "
                    "set it to the id of a token"
                )
        config = super().from_hf(values)
        # `super().from_hf` has checked the encoder's heads.
        if config.hidden_size % config.decoder_attention_heads:
            raise ValueError(
                f"d_model={config.hidden_size} is not a multiple of "
                f"decoder_attention_heads={config.decoder_attention_heads}"
            )
        return config

    def for_decoder(self) -> "BartBaseConfig":
        """This config with the decoder's layers, heads and mlp in place of the encoder's."""
        return replace(
            self,
            num_hidden_layers=self.decoder_layers,
            num_attention_heads=self.decoder_attention_heads,
            intermediate_size=self.decoder_ffn_dim,
        )


@dataclass(frozen=True)
class BartConfig(BartBaseConfig):
    """The fields of a BART config.json that affect the result, with the decoder's first token."""

    decoder_start_token_id: int


# Position 0 is row 2 of the position tables, as in HF; rows 0 and 1 are unused.
OFFSET = 2


class BartBlock(nnx.Module):
    """A layer of the encoder or, with `cross_attention`, of the decoder.

    Its sublayers are post-norm; with `norm_first` they are pre-norm.
    """

    def __init__(
        self, config: BartBaseConfig, *, dtype: jnp.dtype, cross_attention: bool, norm_first: bool
    ):
        h, f = config.hidden_size, config.intermediate_size
        self.norm_first = norm_first
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob
        self.activation_dropout_rate = config.activation_dropout
        self.attention = SelfAttention(config, dtype=dtype)
        self.attention_norm = layer_norm(h, config.layer_norm_eps, dtype)
        if cross_attention:
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
        """Return the new hidden states.

        A decoder layer also gets `encoded`, the encoder's hidden states, and attends to them where
        `encoded_mask` allows.
        """
        hidden = self._add(self.attention_norm, self.attention, hidden, mask, rngs=rngs)
        if encoded is not None:
            norm, attention = self.cross_attention_norm, self.cross_attention
            hidden = self._add(norm, attention, hidden, encoded_mask, None, encoded, rngs=rngs)
        return self._add(self.mlp_norm, self._mlp, hidden, rngs=rngs)

    def _add(
        self, norm: nnx.LayerNorm, sublayer: Any, hidden: Array, *args: Any, rngs: nnx.Rngs | None
    ) -> Array:
        """Add the output of `sublayer(..., *args)` to `hidden`, with the norm before or after."""
        inputs = norm(hidden) if self.norm_first else hidden
        hidden = hidden + dropout(sublayer(inputs, *args, rngs=rngs), self.dropout_rate, rngs)
        return hidden if self.norm_first else norm(hidden)

    def _mlp(self, hidden: Array, *, rngs: nnx.Rngs | None) -> Array:
        inner = ACTIVATIONS[self.activation](self.up(hidden, rngs=rngs))
        return self.down(dropout(inner, self.activation_dropout_rate, rngs), rngs=rngs)


class BartStack(nnx.Module):
    """The encoder or, with `cross_attention`, the decoder: position embeddings and blocks.

    With `norm_first` the blocks are pre-norm, and a final norm follows the last block.
    """

    beside_layers: ClassVar = {"norm": -1}

    def __init__(
        self, config: BartBaseConfig, *, dtype: jnp.dtype, cross_attention: bool, norm_first: bool
    ):
        h = config.hidden_size
        self.dropout_rate = config.hidden_dropout_prob
        self.position = embedding(config.max_position_embeddings + OFFSET, h)
        self.embedding_norm = layer_norm(h, config.layer_norm_eps, dtype)
        self.layers = Stack(
            BartBlock(config, dtype=dtype, cross_attention=cross_attention, norm_first=norm_first)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = layer_norm(h, config.layer_norm_eps, dtype) if norm_first else None

    def __call__(
        self,
        embedded: Float[Array, "b l h"],
        positions: Int[Array, "#b l"],
        *layer_args: Any,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Hidden states of the tokens' vectors `embedded`; every block gets `layer_args`."""
        hidden = self.embedding_norm(embedded + self.position(positions + OFFSET))
        hidden = self.layers(dropout(hidden, self.dropout_rate, rngs), *layer_args, rngs=rngs)
        return hidden if self.norm is None else self.norm(hidden)


class BartBaseModel(nnx.Module):
    """Encoder and decoder with a shared token embedding table.

    A subclass defines `first_tokens`, the decoder's first input token.
    """

    run_order: ClassVar = ("encoder", "decoder")

    def __init__(self, config: BartBaseConfig, *, dtype: jnp.dtype, norm_first: bool):
        self.position_limit = config.max_position_embeddings
        self.padding = config.pad_token_id
        self.word_scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
        self.word = embedding(config.vocab_size, config.hidden_size)
        options: dict[str, Any] = {"dtype": dtype, "norm_first": norm_first}
        self.encoder = BartStack(config, cross_attention=False, **options)
        self.decoder = BartStack(config.for_decoder(), cross_attention=True, **options)

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
        """The decoder's hidden states, called as `encoder.Encoder`; token types are ignored."""
        window_positions = positions_from_0(input_ids, None, segment_ids, self.position_limit)
        positions = window_positions if position_ids is None else position_ids
        mask = make_attention_mask(attention_mask, segment_ids)
        encoded = self.encoder(self._embed(input_ids), positions, mask, rngs=rngs)

        first = self.first_tokens(input_ids, window_positions, segment_ids)
        decoder_ids = jnp.where(window_positions == 0, first, jnp.roll(input_ids, 1, axis=1))
        causal = make_causal_mask(input_ids, segment_ids)
        return self.decoder(self._embed(decoder_ids), positions, causal, encoded, mask, rngs=rngs)

    def first_tokens(
        self,
        input_ids: Int[Array, "b l"],
        window_positions: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b #l"]:
        """The decoder's first input token in the window of each token.

        `window_positions` are the tokens' positions in their windows, counted from 0.
        """
        raise NotImplementedError

    def _embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l h"]:
        return look_up(self.word, ids, self.padding) * self.word_scale


class BartModel(BartBaseModel):
    """Post-norm blocks, and a decoder whose first token is the same in every window."""

    def __init__(self, config: BartConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, norm_first=False)
        self.first_token = config.decoder_start_token_id

    def first_tokens(
        self,
        input_ids: Int[Array, "b l"],
        window_positions: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b #l"]:
        """`decoder_start_token_id` for every token."""
        return jnp.full((1, 1), self.first_token, input_ids.dtype)


_STACK = r"(encoder|decoder)"
_LAYER = _STACK + r"\.layers\.(\d+)\."
WEIGHT_NAMES = {
    r"word": r"shared",
    _STACK + r"\.position": r"\1.embed_positions",
    # HF shortens query, key and value to their first letters: q_proj, k_proj, v_proj.
    _LAYER + r"attention\.(k|v|q|out)\w*": r"\1.layers.\2.self_attn.\3_proj",
    _LAYER + r"attention_norm": r"\1.layers.\2.self_attn_layer_norm",
    _LAYER + r"cross_attention\.(k|v|q|out)\w*": r"\1.layers.\2.encoder_attn.\3_proj",
    _LAYER + r"cross_attention_norm": r"\1.layers.\2.encoder_attn_layer_norm",
    _LAYER + r"up": r"\1.layers.\2.fc1",
    _LAYER + r"down": r"\1.layers.\2.fc2",
    _LAYER + r"mlp_norm": r"\1.layers.\2.final_layer_norm",
    _STACK + r"\.embedding_norm": r"\1.layernorm_embedding",
}
# Other names of the shared embedding table: a file that stores it once may use any of these.
TIED_NAMES: dict[str, str] = dict.fromkeys(
    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"
)
OTHER_NAMES: dict[str, str] = TIED_NAMES | {"lm_head.weight": "shared.weight"}
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
    positional_inputs=(),
    unused_weights=UNUSED_WEIGHTS,
    tied_names=TIED_NAMES,
    other_names=OTHER_NAMES,
)
