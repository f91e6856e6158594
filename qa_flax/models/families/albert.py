"""Stage 4 of 7: ALBERT (Lan et al. 2019): few layers, shared, each run many times."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.attention import attention_pairs
from qa_flax.models.blocks import EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock, Stack
from qa_flax.models.configs import read_config
from qa_flax.models.family import Family
from qa_flax.models.layers import Embeddings, linear, positions_from_0


@dataclass(frozen=True)
class AlbertConfig:
    """The fields of an ALBERT config.json that change the result, by Hugging Face's names."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_hidden_groups: int
    inner_group_num: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    pad_token_id: int | None

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "AlbertConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        return read_config(cls, values, required=REQUIRED)


REQUIRED = {"position_embedding_type": "absolute"}


class AlbertEncoder(nnx.Module):
    """Embeddings, projected to the hidden size, and groups of post-norm blocks that take turns.

    A group is `inner_group_num` blocks. It runs `num_hidden_layers / num_hidden_groups` times, each
    time with the same parameters, before the next one does.
    """

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype):
        self.positions = config.max_position_embeddings
        self.embeddings = Embeddings(
            config,
            dtype=dtype,
            size=config.embedding_size,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
        )
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

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None = None,
        position_ids: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """As `bert.BertEncoder`."""
        positions = positions_from_0(input_ids, position_ids, segment_ids, self.positions)
        hidden = self.embeddings(input_ids, token_type_ids, positions, rngs=rngs)
        hidden = self.project(hidden)
        pairs = attention_pairs(attention_mask, segment_ids)
        for group in self.turns:
            hidden = self.groups[group](hidden, pairs, rngs=rngs)
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
