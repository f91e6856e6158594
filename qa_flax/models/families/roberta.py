"""Stage 4 of 7: RoBERTa (Liu et al. 2019) and the families with its encoder (device, JAX)."""

from dataclasses import dataclass, replace

from qa_flax.models.blocks import BLOCK_NAMES, OTHER_TASKS, POSITION_LAST_NAMES
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family


@dataclass(frozen=True)
class RobertaConfig(EncoderConfig):
    """The fields of a RoBERTa config.json that affect the result, with HF's names."""

    pad_token_id: int


class RobertaEncoder(PositionsAfterPadding):
    """Embeddings whose positions start at the padding token's id + 1, and post-norm blocks."""


WEIGHT_NAMES = POSITION_LAST_NAMES | BLOCK_NAMES
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
    replace(
        _ROBERTA,
        model_type="xlm-roberta",
        architecture="XLMRobertaForQuestionAnswering",
        head_first=True,
    ),
    replace(
        _ROBERTA,
        model_type="camembert",
        architecture="CamembertForQuestionAnswering",
        head_first=True,
    ),
    replace(
        _ROBERTA,
        model_type="data2vec-text",
        prefix="data2vec_text.",
        architecture="Data2VecTextForQuestionAnswering",
    ),
)
