"""Stage 4 of 7: RoFormer (Su et al. 2021): positions are angles to turn queries and keys by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.attention import attention, make_attention_mask
from qa_flax.models.blocks import (
    BLOCK_NAMES,
    EMBEDDING_NAMES,
    OTHER_TASKS,
    PostNormBlock,
    SelfAttention,
)
from qa_flax.models.configs import NO_DECODER, EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import FixedTable, ParamPath, sinusoids


@dataclass(frozen=True)
class RoFormerConfig(EncoderConfig):
    """The fields of a RoFormer config.json that change the result, by Hugging Face's names."""

    embedding_size: int
    rotary_value: bool

    REQUIRED: ClassVar = NO_DECODER

    @property
    def head_size(self) -> int:
        """Values of one head's query, of which each two are turned together."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "RoFormerConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        config = super().from_hf(values)
        if config.head_size % 2:
            raise ValueError(
                f"hidden_size={config.hidden_size} makes num_attention_heads="
                f"{config.num_attention_heads} heads of an odd size, {config.head_size}; "
                "rotary positions need an even one"
            )
        return config


class RotaryAttention(SelfAttention):
    """Self-attention with queries and keys, perhaps values too, turned by their positions."""

    def __init__(self, config: RoFormerConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype)
        self.rotary_value = config.rotary_value

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l l"],
        angles: Float[Array, "#b l d"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `mask` allows; `angles` as `apply_rotary` takes them."""
        b, l, h = hidden.shape
        by_head = (b, l, self.heads, h // self.heads)
        query = apply_rotary(self.query(hidden, rngs=rngs).reshape(by_head), angles)
        key = apply_rotary(self.key(hidden, rngs=rngs).reshape(by_head), angles)
        value = self.value(hidden, rngs=rngs).reshape(by_head)
        if self.rotary_value:
            value = apply_rotary(value, angles)
        mixed = attention(query, key, value, mask, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, h), rngs=rngs)


def apply_rotary(
    x: Float[Array, "b l a d"], angles: Float[Array, "#b l d"]
) -> Float[Array, "b l a d"]:
    """Each two neighbours of the last axis as a point of the plane, turned about its origin.

    `angles`: the sines of the d/2 angles of each token, then their cosines. Computed in float32.
    """
    sin, cos = jnp.split(angles[:, :, None, :], 2, axis=-1)
    points = x.reshape(*x.shape[:-1], -1, 2)
    first, second = points[..., 0], points[..., 1]
    both = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return both.reshape(x.shape).astype(x.dtype)


class RoFormerEncoder(Encoder):
    """Embeddings without positions, projected where their size is another, and post-norm blocks."""

    def __init__(self, config: RoFormerConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=_block, size=config.embedding_size, positions=0)
        self.angles = FixedTable(config.max_position_embeddings, config.head_size)

    def where(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The mask, and the angles of every token."""
        return make_attention_mask(attention_mask, segment_ids), self.angles(positions)


def _block(config: RoFormerConfig, *, dtype: jnp.dtype) -> PostNormBlock:
    return PostNormBlock(config, RotaryAttention(config, dtype=dtype), dtype=dtype)


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
