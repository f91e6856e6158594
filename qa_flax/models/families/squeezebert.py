"""Stage 4 of 7: SqueezeBERT (Iandola et al. 2020): BERT with layers in groups (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from qa_flax.models.blocks import EMBEDDING_NAMES, PostNormBlock, SelfAttention
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.grouped import PointwiseConvolution
from qa_flax.models.layers import Idle, layer_norm

# The epsilon of the layers' LayerNorms; HF's model reads layer_norm_eps for the embeddings only.
LAYER_EPSILON = 1e-12


@dataclass(frozen=True)
class SqueezeBertConfig(EncoderConfig):
    """The fields of a SqueezeBERT config.json that affect the result, with HF's names."""

    embedding_size: int
    q_groups: int
    k_groups: int
    v_groups: int
    post_attention_groups: int
    intermediate_groups: int
    output_groups: int

    REQUIRED: ClassVar = {"position_embedding_type": "absolute"}

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "SqueezeBertConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        config = super().from_hf(values)
        h, f = config.hidden_size, config.intermediate_size
        if config.embedding_size != h:
            raise ValueError(
                f"embedding_size={config.embedding_size} is not supported for squeezebert; it must "
                f"be hidden_size, which is {h}"
            )
        sizes = {"q_groups": (h,), "k_groups": (h,), "v_groups": (h,)}
        sizes |= {"post_attention_groups": (h,)}
        sizes |= dict.fromkeys(("intermediate_groups", "output_groups"), (h, f))
        for name, divided in sizes.items():
            if any(size % getattr(config, name) for size in divided):
                raise ValueError(
                    f"{name}={getattr(config, name)} does not divide "
                    f"{' and '.join(map(str, divided))}, the sizes of its layer"
                )
        return config


class SqueezeBertAttention(SelfAttention):
    """Self-attention whose projections are in groups."""

    def __init__(self, config: SqueezeBertConfig, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query: Any = PointwiseConvolution(h, h, config.q_groups, dtype)
        self.key: Any = PointwiseConvolution(h, h, config.k_groups, dtype)
        self.value: Any = PointwiseConvolution(h, h, config.v_groups, dtype)
        self.out: Any = PointwiseConvolution(h, h, config.post_attention_groups, dtype)


class SqueezeBertBlock(PostNormBlock):
    """A post-norm block whose dense layers are in groups."""

    def __init__(self, config: SqueezeBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, SqueezeBertAttention(config, dtype=dtype), dtype=dtype)
        h, f = config.hidden_size, config.intermediate_size
        self.up = PointwiseConvolution(h, f, config.intermediate_groups, dtype)
        self.down = PointwiseConvolution(f, h, config.output_groups, dtype)
        self.attention_norm, self.mlp_norm = (layer_norm(h, LAYER_EPSILON, dtype) for _ in "am")


class SqueezeBertEncoder(Encoder):
    """BERT's embeddings and blocks in groups.

    HF's model for question answering has a pooler that it does not use; it is kept for files.
    """

    def __init__(self, config: SqueezeBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=SqueezeBertBlock)
        h = config.hidden_size
        self.pooler = Idle(kernel=(h, h), bias=(h,))


_LAYER = r"encoder.layers.\1."
WEIGHT_NAMES = EMBEDDING_NAMES | {
    r"layers\.(\d+)\.attention\.(query|key|value)": _LAYER + r"attention.\2",
    r"layers\.(\d+)\.attention\.out": _LAYER + r"post_attention.conv1d",
    r"layers\.(\d+)\.attention_norm": _LAYER + r"post_attention.layernorm",
    r"layers\.(\d+)\.up": _LAYER + r"intermediate.conv1d",
    r"layers\.(\d+)\.down": _LAYER + r"output.conv1d",
    r"layers\.(\d+)\.mlp_norm": _LAYER + r"output.layernorm",
    r"pooler": r"pooler.dense",
}

FAMILY = Family(
    "squeezebert",
    SqueezeBertConfig.from_hf,
    SqueezeBertEncoder,
    WEIGHT_NAMES,
    prefix="transformer.",
    architecture="SqueezeBertForQuestionAnswering",
)
