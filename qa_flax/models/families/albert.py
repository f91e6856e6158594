"""Stage 4 of 7: ALBERT (Lan et al. 2019): BERT whose layers share parameters (device, JAX)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qa_flax.models.blocks import EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock, Stack
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import linear


@dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    """The fields of an ALBERT config.json that affect the result, with HF's names."""

    embedding_size: int
    num_hidden_groups: int
    inner_group_num: int

    REQUIRED: ClassVar = {"position_embedding_type": "absolute"}


class AlbertEncoder(Encoder):
    """Embeddings, projected to the hidden size, and groups of post-norm blocks.

    A group is `inner_group_num` blocks. It runs `num_hidden_layers / num_hidden_groups` times in a
    row, always with the same parameters; then the next group runs.
    """

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=None, size=config.embedding_size)
        # HF projects even if the two sizes are equal.
        self.project = linear(config.embedding_size, config.hidden_size, dtype)
        self.groups = nnx.List(
            Stack(
                PostNormBlock(config, dtype=dtype, drop_mlp=False)
                for _ in range(config.inner_group_num)
            )
            for _ in range(config.num_hidden_groups)
        )
        # Divide as HF does: if the quotient is not a whole number, the result depends on rounding.
        runs_per_group = config.num_hidden_layers / config.num_hidden_groups
        self.layer_groups = tuple(
            int(layer / runs_per_group) for layer in range(config.num_hidden_layers)
        )

    def run_layers(
        self, hidden: Float[Array, "b l h"], *layer_args: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """Run each layer's group, in the order of the layers."""
        for group in self.layer_groups:
            hidden = self.groups[group](hidden, *layer_args, rngs=rngs)
        return hidden


_BLOCK = r"groups\.(\d+)\.(\d+)\."
_NAME = r"encoder.albert_layer_groups.\1.albert_layers.\2."
WEIGHT_NAMES = EMBEDDING_NAMES | {
    r"project": r"encoder.embedding_hidden_mapping_in",
    _BLOCK + r"mlp_norm": _NAME + r"full_layer_layer_norm",
    _BLOCK + r"attention\.(query|key|value)": _NAME + r"attention.\3",
    _BLOCK + r"attention\.out": _NAME + r"attention.dense",
    _BLOCK + r"attention_norm": _NAME + r"attention.LayerNorm",
    _BLOCK + r"up": _NAME + r"ffn",
    _BLOCK + r"down": _NAME + r"ffn_output",
}
UNUSED_WEIGHTS = (*OTHER_TASKS, r"(predictions|sop_classifier)\..*")

FAMILY = Family(
    "albert",
    AlbertConfig.from_hf,
    AlbertEncoder,
    WEIGHT_NAMES,
    prefix="albert.",
    architecture="AlbertForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
)
