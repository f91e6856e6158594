"""Stage 4 of 7: RoBERTa-PreLayerNorm (Ott et al. 2019): RoBERTa with pre-norm blocks."""

from dataclasses import dataclass

import jax.numpy as jnp

from qa_flax.models.blocks import OTHER_TASKS, POSITION_LAST_NAMES, PreNormBlock
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family


@dataclass(frozen=True)
class RobertaPreLayerNormConfig(EncoderConfig):
    """The fields of its config.json that affect the result, with HF's names."""

    pad_token_id: int


class RobertaPreLayerNormEncoder(PositionsAfterPadding):
    """RoBERTa's embeddings, pre-norm blocks, and a final norm."""

    def __init__(self, config: RobertaPreLayerNormConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=PreNormBlock, last_norm=True)


WEIGHT_NAMES = POSITION_LAST_NAMES | {
    r"layers\.(\d+)\.attention\.(query|key|value)": r"encoder.layer.\1.attention.self.\2",
    r"layers\.(\d+)\.attention\.out": r"encoder.layer.\1.attention.output.dense",
    r"layers\.(\d+)\.attention_norm": r"encoder.layer.\1.attention.LayerNorm",
    r"layers\.(\d+)\.mlp_norm": r"encoder.layer.\1.intermediate.LayerNorm",
    r"layers\.(\d+)\.up": r"encoder.layer.\1.intermediate.dense",
    r"layers\.(\d+)\.down": r"encoder.layer.\1.output.dense",
    r"last_norm": r"LayerNorm",
}
UNUSED_WEIGHTS = (*OTHER_TASKS, r"lm_head\..*")

FAMILY = Family(
    "roberta-prelayernorm",
    RobertaPreLayerNormConfig.from_hf,
    RobertaPreLayerNormEncoder,
    WEIGHT_NAMES,
    prefix="roberta_prelayernorm.",
    architecture="RobertaPreLayerNormForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
)
