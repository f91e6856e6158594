"""Stage 4 of 7: ELECTRA (Clark et al. 2020): BERT with its own embedding size (device, JAX)."""

from dataclasses import dataclass

import jax.numpy as jnp

from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family


@dataclass(frozen=True)
class ElectraConfig(EncoderConfig):
    """The fields of an ELECTRA config.json that affect the result, with HF's names."""

    embedding_size: int


class ElectraEncoder(Encoder):
    """Embeddings, projected to the hidden size if their size differs, and post-norm blocks."""

    def __init__(self, config: ElectraConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, size=config.embedding_size)


WEIGHT_NAMES = EMBEDDING_NAMES | {r"project": r"embeddings_project"} | BLOCK_NAMES
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
