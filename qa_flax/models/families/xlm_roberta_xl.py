"""Stage 4 of 7: XLM-RoBERTa-XL (Goyal et al. 2021): RoBERTa with pre-norm blocks (device, JAX)."""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from qa_flax.models.blocks import BLOCK_NAMES, OTHER_TASKS, POSITION_LAST_NAMES, PreNormBlock
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family


@dataclass(frozen=True)
class XLMRobertaXLConfig(EncoderConfig):
    """The fields of its config.json that affect the result, with HF's names."""

    pad_token_id: int


class XLMRobertaXLEncoder(PositionsAfterPadding):
    """Embeddings without a norm, pre-norm blocks without dropout after the mlp, a final norm."""

    def __init__(self, config: XLMRobertaXLConfig, *, dtype: jnp.dtype):
        block = partial(PreNormBlock, drop_mlp=False)
        super().__init__(config, dtype=dtype, block=block, last_norm=True, normalised=False)


WEIGHT_NAMES = (
    POSITION_LAST_NAMES
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
