"""Stage 4 of 7: DeBERTa, version 1 (He et al. 2020): one projection for q, k, v (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qa_flax.models.families import deberta_v2
from qa_flax.models.family import Family
from qa_flax.models.layers import linear, zeros

# What version 2 added is off, whatever a config.json says: HF's class of version 1 ignores it.
NOT_IN_VERSION_1 = {**deberta_v2.DEFAULTS, "attention_head_size": None}


@dataclass(frozen=True)
class DebertaConfig(deberta_v2.DebertaV2Config):
    """The fields of a DeBERTa config.json that affect the result, with HF's names."""

    REQUIRED: ClassVar = {"talking_head": False}

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "DebertaConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        config = super().from_hf({**values, **NOT_IN_VERSION_1})
        assert isinstance(config, cls)
        return config


class InterleavedAttention(deberta_v2.DisentangledAttention):
    """Disentangled attention whose queries, keys and values come from one dense layer.

    Its outputs are ordered by head. Keys have no bias, and neither have the keys of positions.
    """

    position_key_bias = False

    def add_projections(self, size: int, dtype: jnp.dtype) -> None:
        """Add the modules that `projected` uses, for hidden states of `size`."""
        self.qkv = linear(size, 3 * size, dtype, bias=False)
        self.q_bias = nnx.Param(zeros(None, (size,)))
        self.v_bias = nnx.Param(zeros(None, (size,)))

    def projected(
        self, hidden: Float[Array, "b l h"], *, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b l a d"], ...]:
        """The queries, keys and values of all heads."""
        by_head = self.qkv(hidden, rngs=rngs).reshape(*hidden.shape[:2], self.heads, -1)
        query, key, value = jnp.split(by_head, 3, axis=-1)

        def plus(x: Array, bias: nnx.Param) -> Array:
            return x + bias[...].reshape(1, 1, self.heads, -1).astype(x.dtype)

        return plus(query, self.q_bias), key, plus(value, self.v_bias)


class DebertaEncoder(deberta_v2.DebertaV2Encoder):
    """DeBERTa-v2's encoder with the attention of version 1."""

    def __init__(self, config: DebertaConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, attention=InterleavedAttention)


_ATTENTION = r"layers\.(\d+)\.attention\."
_SELF = r"encoder.layer.\1.attention.self."
WEIGHT_NAMES = {
    **{name: deberta_v2.WEIGHT_NAMES[name] for name in list(deberta_v2.WEIGHT_NAMES)[:3]},
    _ATTENTION + r"(q|v)_bias": _SELF + r"\2_bias",
    _ATTENTION + r"qkv": _SELF + r"in_proj",
    _ATTENTION + r"position_key": _SELF + r"pos_proj",
    _ATTENTION + r"position_query": _SELF + r"pos_q_proj",
    **deberta_v2.WEIGHT_NAMES,
}

FAMILY = Family(
    "deberta",
    DebertaConfig.from_hf,
    DebertaEncoder,
    WEIGHT_NAMES,
    prefix="deberta.",
    architecture="DebertaForQuestionAnswering",
    unused_weights=deberta_v2.UNUSED_WEIGHTS,
)
