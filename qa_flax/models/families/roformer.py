"""Stage 4 of 7: RoFormer (Su et al. 2021): positions are angles to turn queries and keys by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.attention import attention, attention_pairs
from qa_flax.models.blocks import (
    BLOCK_NAMES,
    EMBEDDING_NAMES,
    OTHER_TASKS,
    PostNormBlock,
    SelfAttention,
    Stack,
)
from qa_flax.models.configs import read_config
from qa_flax.models.family import Family
from qa_flax.models.layers import (
    Embeddings,
    FixedTable,
    ParamPath,
    linear,
    positions_from_0,
    sinusoids,
)


@dataclass(frozen=True)
class RoFormerConfig:
    """The fields of a RoFormer config.json that change the result, by Hugging Face's names."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    rotary_value: bool
    initializer_range: float
    layer_norm_eps: float
    pad_token_id: int | None

    @property
    def head_size(self) -> int:
        """Values of one head's query, of which each two are turned together."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "RoFormerConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        config = read_config(cls, values, required=REQUIRED)
        if config.head_size % 2:
            raise ValueError(
                f"hidden_size={config.hidden_size} makes num_attention_heads="
                f"{config.num_attention_heads} heads of an odd size, {config.head_size}; "
                "rotary positions need an even one"
            )
        return config


REQUIRED = {"is_decoder": False, "add_cross_attention": False}


class RotaryAttention(SelfAttention):
    """Self-attention with queries and keys, perhaps values too, turned by their positions."""

    def __init__(self, config: RoFormerConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype)
        self.turn_value = config.rotary_value

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden: Float[Array, "b l h"],
        pairs: Bool[Array, "b 1 #l l"],
        angles: Float[Array, "#b l d"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `pairs` allows; `angles` as `turned` takes them."""
        b, l, h = hidden.shape
        by_head = (b, l, self.heads, h // self.heads)
        query = turned(self.query(hidden).reshape(by_head), angles)
        key = turned(self.key(hidden).reshape(by_head), angles)
        value = self.value(hidden).reshape(by_head)
        if self.turn_value:
            value = turned(value, angles)
        mixed = attention(query, key, value, pairs, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, h))


def turned(x: Float[Array, "b l a d"], angles: Float[Array, "#b l d"]) -> Float[Array, "b l a d"]:
    """Each two neighbours of the last axis as a point of the plane, turned about its origin.

    `angles`: the sines of the d/2 angles of each token, then their cosines. Computed in float32.
    """
    sin, cos = jnp.split(angles[:, :, None, :], 2, axis=-1)
    points = x.reshape(*x.shape[:-1], -1, 2)
    first, second = points[..., 0], points[..., 1]
    both = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return both.reshape(x.shape).astype(x.dtype)


class RoFormerEncoder(nnx.Module):
    """Embeddings without positions, projected where their size is another, and post-norm blocks."""

    def __init__(self, config: RoFormerConfig, *, dtype: jnp.dtype):
        size, hidden = config.embedding_size, config.hidden_size
        self.positions = config.max_position_embeddings
        self.embeddings = Embeddings(
            config, dtype=dtype, size=size, positions=0, types=config.type_vocab_size
        )
        self.project = linear(size, hidden, dtype) if size != hidden else None
        self.angles = FixedTable(config.max_position_embeddings, config.head_size)
        self.layers = Stack(
            PostNormBlock(config, RotaryAttention(config, dtype=dtype), dtype=dtype)
            for _ in range(config.num_hidden_layers)
        )

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
        if self.project is not None:
            hidden = self.project(hidden)
        pairs = attention_pairs(attention_mask, segment_ids)
        return self.layers(hidden, pairs, self.angles(positions), rngs=rngs)


def fixed_arrays(config: RoFormerConfig) -> dict[ParamPath, np.ndarray]:
    """The angles' sines, then their cosines, by position; HF keeps them in the checkpoint."""
    table = np.concatenate(sinusoids(config.max_position_embeddings, config.head_size), axis=-1)
    return {("encoder", "angles", "embedding"): table.astype(np.float32)}


WEIGHT_NAMES = (
    {r"project": r"embeddings_project", r"angles": r"encoder.embed_positions"}
    | EMBEDDING_NAMES
    | BLOCK_NAMES
)
UNUSED_WEIGHTS = (*OTHER_TASKS, r"sequence_summary\..*")

FAMILY = Family(
    "roformer",
    RoFormerConfig.from_hf,
    RoFormerEncoder,
    WEIGHT_NAMES,
    prefix="roformer.",
    architecture="RoFormerForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
    fixed_arrays=fixed_arrays,
)
