"""Stage 4 of 7: RoFormer (Su et al. 2021): BERT with rotary positions (device, JAX)."""

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
    """The fields of a RoFormer config.json that affect the result, with HF's names."""

    embedding_size: int
    rotary_value: bool

    REQUIRED: ClassVar = NO_DECODER

    @property
    def head_size(self) -> int:
        """Elements of one head's query or key; each two neighbours are rotated together."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "RoFormerConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        config = super().from_hf(values)
        if config.head_size % 2:
            raise ValueError(
                f"hidden_size={config.hidden_size} with num_attention_heads="
                f"{config.num_attention_heads} gives heads of an odd size, {config.head_size}; "
                "rotary positions need an even size"
            )
        return config


class RotaryAttention(SelfAttention):
    """Self-attention with rotary queries and keys, and rotary values with `rotary_value`."""

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
        """Attend where `mask` allows; `angles` are those of `apply_rotary`."""
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
    """Rotate each pair of neighbouring elements of the last axis, in float32.

    `angles` holds the sines of each token's d/2 angles, then their cosines. Returns the dtype of
    `x`.
    """
    sin, cos = jnp.split(angles[:, :, None, :], 2, axis=-1)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


class RoFormerEncoder(Encoder):
    """Embeddings without positions, projected if their size differs, and post-norm blocks."""

    def __init__(self, config: RoFormerConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=_block, size=config.embedding_size, positions=0)
        self.angles = FixedTable(config.max_position_embeddings, config.head_size)

    def layer_args(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The attention mask and the rotary angles of every token."""
        return make_attention_mask(attention_mask, segment_ids), self.angles(positions)


def _block(config: RoFormerConfig, *, dtype: jnp.dtype) -> PostNormBlock:
    return PostNormBlock(config, RotaryAttention(config, dtype=dtype), dtype=dtype)


def fixed_arrays(config: RoFormerConfig) -> dict[ParamPath, np.ndarray]:
    """Sines, then cosines, of the angles of every position; HF checkpoints contain this table."""
    table = np.concatenate(sinusoids(config.max_position_embeddings, config.head_size), axis=-1)
    return {("encoder", "angles", "embedding"): table.astype(np.float32)}


WEIGHT_NAMES = (
    EMBEDDING_NAMES
    | {r"project": r"embeddings_project", r"angles": r"encoder.embed_positions"}
    | BLOCK_NAMES
)
UNUSED_WEIGHTS = (
    *OTHER_TASKS,
    # Of the checkpoints that were trained as ELECTRA, such as roformer_small_discriminator.
    r"(discriminator_predictions|generator_predictions|generator_lm_head|sequence_summary)\..*",
)

FAMILY = Family(
    "roformer",
    RoFormerConfig.from_hf,
    RoFormerEncoder,
    WEIGHT_NAMES,
    prefix="roformer.",
    architecture="RoFormerForQuestionAnswering",
    positional_inputs=("token_type_ids",),
    unused_weights=UNUSED_WEIGHTS,
    fixed_arrays=fixed_arrays,
)
