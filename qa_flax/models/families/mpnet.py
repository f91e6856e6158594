"""Stage 4 of 7: MPNet (Song et al. 2020): RoBERTa with a shared relative position bias."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from qa_flax.models.attention import along_diagonals, make_attention_mask
from qa_flax.models.blocks import EMBEDDING_NAMES, OTHER_TASKS
from qa_flax.models.configs import SharedConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family
from qa_flax.models.layers import embedding

# The number of relative position buckets and the padding token's id. HF's MPNet uses these values
# whatever config.json says; relative_attention_num_buckets only sets the size of the bias table.
BUCKETS = 32
PADDING = 1


@dataclass(frozen=True)
class MPNetConfig(SharedConfig):
    """The fields of an MPNet config.json that affect the result, with HF's names."""

    relative_attention_num_buckets: int
    layer_norm_eps: float

    @property
    def pad_token_id(self) -> int:
        """The padding token's id, the same in every MPNet."""
        return PADDING

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "MPNetConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        config = super().from_hf(values)
        if config.relative_attention_num_buckets < BUCKETS:
            raise ValueError(
                f"relative_attention_num_buckets={config.relative_attention_num_buckets!r} is not "
                f"supported for mpnet; supported: {BUCKETS} or more"
            )
        return config


class MPNetEncoder(PositionsAfterPadding):
    """Embeddings without token types, and post-norm blocks with a relative position bias.

    Relative positions are counted in tokens of the row, whatever `position_ids` are.
    """

    def __init__(self, config: MPNetConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, types=0)
        self.distance_bias = embedding(
            config.relative_attention_num_buckets, config.num_attention_heads
        )

    def layer_args(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The attention mask, and the relative position bias of every head."""
        length = input_ids.shape[1]
        buckets = relative_position_buckets(np.arange(1 - length, length))
        biases = self.distance_bias(jnp.asarray(buckets)).T
        rows = jnp.broadcast_to(biases[:, None], (biases.shape[0], length, biases.shape[1]))
        return make_attention_mask(attention_mask, segment_ids), along_diagonals(rows)[None]


def relative_position_buckets(relative: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The bucket, 0 to 31, of each relative position (the key's position minus the query's).

    Positive ones have buckets 16 to 31. Distances below 8 have a bucket each, larger ones two
    buckets for every doubling; all distances from 91 on share the last one.
    """
    distance = np.abs(relative)
    logarithmic = 8 + np.floor(2 * np.log2(np.maximum(distance, 8) / 8)).astype(int)
    return np.where(distance < 8, distance, np.minimum(logarithmic, 15)) + 16 * (relative > 0)


WEIGHT_NAMES = EMBEDDING_NAMES | {
    r"layers\.(\d+)\.attention\.query": r"encoder.layer.\1.attention.attn.q",
    r"layers\.(\d+)\.attention\.key": r"encoder.layer.\1.attention.attn.k",
    r"layers\.(\d+)\.attention\.value": r"encoder.layer.\1.attention.attn.v",
    r"layers\.(\d+)\.attention\.out": r"encoder.layer.\1.attention.attn.o",
    r"layers\.(\d+)\.attention_norm": r"encoder.layer.\1.attention.LayerNorm",
    r"layers\.(\d+)\.up": r"encoder.layer.\1.intermediate.dense",
    r"layers\.(\d+)\.down": r"encoder.layer.\1.output.dense",
    r"layers\.(\d+)\.mlp_norm": r"encoder.layer.\1.output.LayerNorm",
    r"distance_bias": r"encoder.relative_attention_bias",
}
UNUSED_WEIGHTS = (*OTHER_TASKS, r"lm_head\..*")

FAMILY = Family(
    "mpnet",
    MPNetConfig.from_hf,
    MPNetEncoder,
    WEIGHT_NAMES,
    prefix="mpnet.",
    architecture="MPNetForQuestionAnswering",
    positional_inputs=("position_ids",),
    unused_weights=UNUSED_WEIGHTS,
)
