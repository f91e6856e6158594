"""Stage 4 of 7: RemBERT (Chung et al. 2020): BERT with small input embeddings (device, JAX)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES
from qa_flax.models.configs import NO_DECODER, EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import linear


@dataclass(frozen=True)
class RemBertConfig(EncoderConfig):
    """The fields of a RemBERT config.json that affect the result; `NAMES` has HF's names."""

    embedding_size: int

    NAMES: ClassVar = {"embedding_size": "input_embedding_size"}
    REQUIRED: ClassVar = NO_DECODER


class RemBertEncoder(Encoder):
    """Embeddings, projected to the hidden size even if it is theirs, and post-norm blocks."""

    def __init__(self, config: RemBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, size=config.embedding_size)
        self.project = linear(config.embedding_size, config.hidden_size, dtype)


WEIGHT_NAMES = EMBEDDING_NAMES | {r"project": r"encoder.embedding_hidden_mapping_in"} | BLOCK_NAMES

FAMILY = Family(
    "rembert",
    RemBertConfig.from_hf,
    RemBertEncoder,
    WEIGHT_NAMES,
    prefix="rembert.",
    architecture="RemBertForQuestionAnswering",
)
