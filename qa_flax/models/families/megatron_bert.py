"""Stage 4 of 7: Megatron-BERT (Shoeybi et al. 2019): BERT with pre-norm blocks (device, JAX)."""

from dataclasses import dataclass

import jax.numpy as jnp

from qa_flax.models.blocks import PreNormBlock
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family


@dataclass(frozen=True)
class MegatronBertConfig(EncoderConfig):
    """The fields of its config.json that affect the result, with HF's names."""


class MegatronBertEncoder(Encoder):
    """Embeddings without a norm, pre-norm blocks, and a final norm."""

    def __init__(self, config: MegatronBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=PreNormBlock, last_norm=True, normalised=False)


WEIGHT_NAMES = {
    r"embeddings\.(word|position|token_type)": r"embeddings.\1_embeddings",
    r"layers\.(\d+)\.attention_norm": r"encoder.layer.\1.attention.ln",
    r"layers\.(\d+)\.attention\.(query|key|value)": r"encoder.layer.\1.attention.self.\2",
    r"layers\.(\d+)\.attention\.out": r"encoder.layer.\1.attention.output.dense",
    r"layers\.(\d+)\.mlp_norm": r"encoder.layer.\1.ln",
    r"layers\.(\d+)\.up": r"encoder.layer.\1.intermediate.dense",
    r"layers\.(\d+)\.down": r"encoder.layer.\1.output.dense",
    r"last_norm": r"encoder.ln",
}

FAMILY = Family(
    "megatron-bert",
    MegatronBertConfig.from_hf,
    MegatronBertEncoder,
    WEIGHT_NAMES,
    prefix="bert.",
    architecture="MegatronBertForQuestionAnswering",
)
