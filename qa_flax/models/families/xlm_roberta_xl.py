"""Stage 4 of 7: XLM-RoBERTa-XL (Goyal et al. 2021): RoBERTa normalised before sublayers only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.attention import attention_pairs
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS, PreNormBlock, Stack
from qa_flax.models.configs import read_config
from qa_flax.models.family import Family
from qa_flax.models.layers import Embeddings, layer_norm, positions_after_padding


@dataclass(frozen=True)
class XLMRobertaXLConfig:
    """The fields of its config.json that change the result, by Hugging Face's names."""

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
    pad_token_id: int

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "XLMRobertaXLConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        return read_config(cls, values, required=REQUIRED)


REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class XLMRobertaXLEncoder(nnx.Module):
    """Embeddings without a norm, pre-norm blocks without a dropout behind the mlp, a last norm."""

    def __init__(self, config: XLMRobertaXLConfig, *, dtype: jnp.dtype):
        self.positions = config.max_position_embeddings
        self.padding = config.pad_token_id
        self.embeddings = Embeddings(
            config,
            dtype=dtype,
            size=config.hidden_size,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
            padding_position=config.pad_token_id,
            normalised=False,
        )
        self.layers = Stack(
            PreNormBlock(config, dtype=dtype, drop_mlp=False)
            for _ in range(config.num_hidden_layers)
        )
        self.last_norm = layer_norm(config.hidden_size, config.layer_norm_eps, dtype)

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
        """As `roberta.RobertaEncoder`."""
        positions = positions_after_padding(
            input_ids, position_ids, segment_ids, self.padding, self.positions
        )
        hidden = self.embeddings(input_ids, token_type_ids, positions, rngs=rngs)
        hidden = self.layers(hidden, attention_pairs(attention_mask, segment_ids), rngs=rngs)
        return self.last_norm(hidden)


WEIGHT_NAMES = (
    EMBEDDING_NAMES
    | BLOCK_NAMES
    | {
        r"layers\.(\d+)\.attention_norm": r"encoder.layer.\1.attention.self_attn_layer_norm",
        r"layers\.(\d+)\.mlp_norm": r"encoder.layer.\1.LayerNorm",
        r"last_norm": r"encoder.LayerNorm",
    }
)
UNUSED_WEIGHTS = (*OTHER_TASKS, r"lm_head\..*")

FAMILY = Family(
    "xlm-roberta-xl",
    XLMRobertaXLConfig.from_hf,
    XLMRobertaXLEncoder,
    WEIGHT_NAMES,
    prefix="roberta.",
    architecture="XLMRobertaXLForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
)
