"""Stage 4 of 7: RoBERTa (Liu et al. 2019), XLM-RoBERTa, CamemBERT (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.attention import attention_pairs
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock, Stack
from qa_flax.models.configs import read_config
from qa_flax.models.family import Family
from qa_flax.models.layers import Embeddings, positions_after_padding


@dataclass(frozen=True)
class RobertaConfig:
    """The fields of a RoBERTa config.json that change the result, by Hugging Face's names."""

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
    def from_hf(cls, values: Mapping[str, Any]) -> "RobertaConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        return read_config(cls, values, required=REQUIRED)


REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class RobertaEncoder(nnx.Module):
    """Embeddings whose positions begin after the padding word's id, and post-norm blocks."""

    def __init__(self, config: RobertaConfig, *, dtype: jnp.dtype):
        self.positions = config.max_position_embeddings
        self.padding = config.pad_token_id
        self.embeddings = Embeddings(
            config,
            dtype=dtype,
            size=config.hidden_size,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
            padding_position=config.pad_token_id,
        )
        self.layers = Stack(
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
        """As `bert.BertEncoder`, but for the positions."""
        positions = positions_after_padding(
            input_ids, position_ids, segment_ids, self.padding, self.positions
        )
        hidden = self.embeddings(input_ids, token_type_ids, positions, rngs=rngs)
        return self.layers(hidden, attention_pairs(attention_mask, segment_ids), rngs=rngs)


WEIGHT_NAMES = EMBEDDING_NAMES | BLOCK_NAMES
UNUSED_WEIGHTS = (*OTHER_TASKS, r"lm_head\..*")

_ROBERTA = Family(
    "roberta",
    RobertaConfig.from_hf,
    RobertaEncoder,
    WEIGHT_NAMES,
    prefix="roberta.",
    architecture="RobertaForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
)
FAMILY = (
    _ROBERTA,
    replace(_ROBERTA, model_type="xlm-roberta", architecture="XLMRobertaForQuestionAnswering"),
    replace(_ROBERTA, model_type="camembert", architecture="CamembertForQuestionAnswering"),
)
