"""Stage 4 of 7: BERT (Devlin et al. 2018): config, encoder and weight names (device, JAX)."""

from dataclasses import dataclass

from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The fields of a BERT config.json that affect the result, with HF's names."""


class BertEncoder(Encoder):
    """Embeddings and `num_hidden_layers` post-norm blocks."""


WEIGHT_NAMES = EMBEDDING_NAMES | BLOCK_NAMES

FAMILY = Family(
    "bert",
    BertConfig.from_hf,
    BertEncoder,
    WEIGHT_NAMES,
    prefix="bert.",
    architecture="BertForQuestionAnswering",
)
