"""Stage 4 of 7: LUKE (Yamada et al. 2020) without entities, a RoBERTa encoder (device, JAX).

PyTorch's model also has embeddings of entities and queries from and to them. Rows without entities
never reach them, so they are kept as they are: loaded and saved, but neither used nor trained.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from qa_flax.models import layers
from qa_flax.models.blocks import (
    BLOCK_NAMES,
    EMBEDDING_NAMES,
    OTHER_TASKS,
    PostNormBlock,
    SelfAttention,
)
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family
from qa_flax.models.layers import Fixed, FixedTable, ParamPath, ones, zeros


@dataclass(frozen=True)
class LukeConfig(EncoderConfig):
    """The fields of a LUKE config.json that affect the result, with HF's names."""

    pad_token_id: int
    entity_vocab_size: int
    entity_emb_size: int
    use_entity_aware_attention: bool

    REQUIRED: ClassVar = {}


class FixedLinear(nnx.Module):
    """The weights of a dense layer that is neither used nor trained."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True):
        self.kernel = Fixed(zeros(None, (n_in, n_out)))
        self.bias = Fixed(zeros(None, (n_out,))) if bias else None


class FixedNorm(nnx.Module):
    """The weights of a LayerNorm that is neither used nor trained."""

    def __init__(self, size: int):
        self.scale = Fixed(ones(None, (size,)))
        self.bias = Fixed(zeros(None, (size,)))


class EntityEmbeddings(nnx.Module):
    """The weights of the entities' embeddings."""

    def __init__(self, config: LukeConfig):
        size, hidden = config.entity_emb_size, config.hidden_size
        self.entity = FixedTable(config.entity_vocab_size, size)
        self.project = FixedLinear(size, hidden, bias=False) if size != hidden else None
        self.position = FixedTable(config.max_position_embeddings, hidden)
        self.token_type = FixedTable(config.type_vocab_size, hidden)
        self.norm = FixedNorm(hidden)


class LukeAttention(SelfAttention):
    """Self-attention among tokens, beside the weights of queries from and to entities."""

    def __init__(self, config: LukeConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype)
        if config.use_entity_aware_attention:
            h = config.hidden_size
            self.w2e_query = FixedLinear(h, h)
            self.e2w_query = FixedLinear(h, h)
            self.e2e_query = FixedLinear(h, h)


class LukeEncoder(PositionsAfterPadding):
    """RoBERTa's embeddings and post-norm blocks, beside the weights for entities."""

    def __init__(self, config: LukeConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=_block)
        self.entities = EntityEmbeddings(config)


def _block(config: LukeConfig, *, dtype: jnp.dtype) -> PostNormBlock:
    return PostNormBlock(config, LukeAttention(config, dtype=dtype), dtype=dtype)


def initial_array(path: ParamPath, shape: tuple[int, ...], config: Any, random: Any) -> np.ndarray:
    """As `layers.initial_array`; the vector of the first entity, which is padding, is 0."""
    array = layers.initial_array(path, shape, config, random)
    if path[-2:] == ("entity", "embedding"):
        array[0] = 0.0
    return array


WEIGHT_NAMES = (
    EMBEDDING_NAMES
    | {
        r"entities\.entity": r"entity_embeddings.entity_embeddings",
        r"entities\.project": r"entity_embeddings.entity_embedding_dense",
        r"entities\.(position|token_type)": r"entity_embeddings.\1_embeddings",
        r"entities\.norm": r"entity_embeddings.LayerNorm",
    }
    | {
        r"layers\.(\d+)\.attention\.(query|key|value|w2e_query|e2w_query|e2e_query)": (
            r"encoder.layer.\1.attention.self.\2"
        )
    }
    | BLOCK_NAMES
)
UNUSED_WEIGHTS = (*OTHER_TASKS, r"(lm_head|entity_predictions)\..*")

FAMILY = Family(
    "luke",
    LukeConfig.from_hf,
    LukeEncoder,
    WEIGHT_NAMES,
    prefix="luke.",
    architecture="LukeForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
    initial_array=initial_array,
)
