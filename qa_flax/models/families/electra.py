"""Stage 4 of 7: ELECTRA (Clark et al. 2020): BERT, embeddings of another size (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.attention import attention_pairs
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock, Stack
from qa_flax.models.configs import read_config
from qa_flax.models.family import Family
from qa_flax.models.layers import Embeddings, linear, positions_from_0


@dataclass(frozen=True)
class ElectraConfig:
    """The fields of an ELECTRA config.json that change the result, by Hugging Face's names."""

    vocab_size: int
    embedding_size: int
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
    def from_hf(cls, values: Mapping[str, Any]) -> "ElectraConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        return read_config(cls, values, required=REQUIRED)


REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class ElectraEncoder(nnx.Module):
    """Embeddings, projected to the hidden size where theirs is another, and post-norm blocks."""

    def __init__(self, config: ElectraConfig, *, dtype: jnp.dtype):
        size, hidden = config.embedding_size, config.hidden_size
        self.positions = config.max_position_embeddings
        self.embeddings = Embeddings(
            config,
            dtype=dtype,
            size=size,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
        )
        self.project = linear(size, hidden, dtype) if size != hidden else None
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
        """As `bert.BertEncoder`."""
        positions = positions_from_0(input_ids, position_ids, segment_ids, self.positions)
        hidden = self.embeddings(input_ids, token_type_ids, positions, rngs=rngs)
        if self.project is not None:
            hidden = self.project(hidden)
        return self.layers(hidden, attention_pairs(attention_mask, segment_ids), rngs=rngs)


WEIGHT_NAMES = {r"project": r"embeddings_project"} | EMBEDDING_NAMES | BLOCK_NAMES
UNUSED_WEIGHTS = (
    *OTHER_TASKS,
    r"(discriminator_predictions|generator_predictions|generator_lm_head|sequence_summary)\..*",
)

FAMILY = Family(
    "electra",
    ElectraConfig.from_hf,
    ElectraEncoder,
    WEIGHT_NAMES,
    prefix="electra.",
    architecture="ElectraForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
)
