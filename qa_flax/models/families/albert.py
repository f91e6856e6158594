"""Stage 4 of 7: ALBERT (Lan et al. 2019): few layers, shared, each run many times."""

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
    """The fields of an ALBERT config.json that change the result, by Hugging Face's names."""

    embedding_size: int
    num_hidden_groups: int
    inner_group_num: int

    REQUIRED: ClassVar = {"position_embedding_type": "absolute"}


class AlbertEncoder(Encoder):
    """Embeddings, projected to the hidden size, and groups of post-norm blocks that take turns.

    A group is `inner_group_num` blocks. It runs `num_hidden_layers / num_hidden_groups` times, each
    time with the same parameters, before the next one does.
    """

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=None, size=config.embedding_size)
        # Where the sizes are the same, too.
        self.project = linear(config.embedding_size, config.hidden_size, dtype)
        self.groups = nnx.List(
            Stack(
                PostNormBlock(config, dtype=dtype, drop_mlp=False)
                for _ in range(config.inner_group_num)
            )
            for _ in range(config.num_hidden_groups)
        )
        # Where the quotient is no whole number, rounding decides: divided as HF does.
        runs = config.num_hidden_layers / config.num_hidden_groups
        self.turns = tuple(int(turn / runs) for turn in range(config.num_hidden_layers))

    def run_layers(
        self, hidden: Float[Array, "b l h"], *where: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """The groups, in turns."""
        for group in self.turns:
            hidden = self.groups[group](hidden, *where, rngs=rngs)
        return hidden


_BLOCK = r"groups\.(\d+)\.(\d+)\."
_NAME = r"encoder.albert_layer_groups.\1.albert_layers.\2."
WEIGHT_NAMES = EMBEDDING_NAMES | {
    r"project": r"encoder.embedding_hidden_mapping_in",
    _BLOCK + r"attention\.(query|key|value)": _NAME + r"attention.\3",
    _BLOCK + r"attention\.out": _NAME + r"attention.dense",
    _BLOCK + r"attention_norm": _NAME + r"attention.LayerNorm",
    _BLOCK + r"up": _NAME + r"ffn",
    _BLOCK + r"down": _NAME + r"ffn_output",
    _BLOCK + r"mlp_norm": _NAME + r"full_layer_layer_norm",
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
