"""Stage 4 of 7: BERT (Devlin et al. 2018), its config, encoder and weight names (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.attention import attention_pairs
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, PostNormBlock, Stack
from qa_flax.models.configs import read_config
from qa_flax.models.family import Family
from qa_flax.models.layers import Embeddings, positions_from_0


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
        return read_config(cls, values, required=REQUIRED)


REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class BertEncoder(nnx.Module):
    """Embeddings and `num_hidden_layers` post-norm blocks."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype):
        self.positions = config.max_position_embeddings
        self.embeddings = Embeddings(
            config,
            dtype=dtype,
            size=config.hidden_size,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
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
        """Hidden states in the compute dtype; `rngs=None` means no dropout.

        Token types default to 0; positions count from 0, again in every segment.
        """
        positions = positions_from_0(input_ids, position_ids, segment_ids, self.positions)
        hidden = self.embeddings(input_ids, token_type_ids, positions, rngs=rngs)
        return self.layers(hidden, attention_pairs(attention_mask, segment_ids), rngs=rngs)


WEIGHT_NAMES = EMBEDDING_NAMES | BLOCK_NAMES

FAMILY = Family(
    "bert",
    BertConfig.from_hf,
    BertEncoder,
    WEIGHT_NAMES,
    prefix="bert.",
    architecture="BertForQuestionAnswering",
)
