"""Stage 4 of 7: ConvBERT (Jiang et al. 2020): attention beside convolutions (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from qa_flax.models.attention import attention
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.grouped import GroupedDense
from qa_flax.models.layers import linear, zeros


@dataclass(frozen=True)
class ConvBertConfig(EncoderConfig):
    """The fields of a ConvBERT config.json that affect the result, with HF's names."""

    embedding_size: int
    head_ratio: int
    conv_kernel_size: int
    num_groups: int

    @property
    def heads(self) -> int:
        """The number of attention heads, and as many of the convolution."""
        return max(1, self.num_attention_heads // self.head_ratio)

    @property
    def half(self) -> int:
        """The size of all attention heads together, and of the convolution."""
        return self.hidden_size // 2

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "ConvBertConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        config = super().from_hf(values)
        h, f = config.hidden_size, config.intermediate_size
        if h % (2 * config.heads):
            raise ValueError(
                f"hidden_size={h} is not a multiple of {2 * config.heads}: with num_attention_heads"
                f"={config.num_attention_heads} and head_ratio={config.head_ratio} there are "
                f"{config.heads} heads of attention and {config.heads} of convolution"
            )
        if config.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"conv_kernel_size={config.conv_kernel_size} is not supported for convbert; it "
                "must be an odd number"
            )
        if h % config.num_groups or f % config.num_groups:
            raise ValueError(
                f"num_groups={config.num_groups} does not divide hidden_size={h} and "
                f"intermediate_size={f}"
            )
        return config


class Weights(nnx.Module):
    """The kernel of a convolution without bias."""

    def __init__(self, *shape: int):
        self.kernel = nnx.Param(zeros(None, shape))


class SeparableConvolution(nnx.Module):
    """A convolution of each channel by itself, then a dense layer over the channels."""

    def __init__(self, n_in: int, n_out: int, size: int, dtype: jnp.dtype):
        self.dtype = dtype
        self.bias = nnx.Param(zeros(None, (n_out, 1)))
        self.depthwise = Weights(size, 1, n_in)
        self.pointwise = Weights(1, n_in, n_out)

    def __call__(self, x: Float[Array, "b l i"]) -> Float[Array, "b l o"]:
        """Convolve in float32, then mix in the compute dtype; outside the row are zeros."""
        kernel = self.depthwise.kernel[...]
        convolved = sum(
            shifted.astype(jnp.float32) * weights[None]
            for shifted, weights in zip(shifts(x, len(kernel)), kernel, strict=True)
        )
        mixed = jnp.asarray(convolved, self.dtype) @ self.pointwise.kernel[0].astype(self.dtype)
        return mixed + self.bias[..., 0].astype(self.dtype)[None, None]


def shifts(x: Float[Array, "b l *n"], size: int) -> list[Float[Array, "b l *n"]]:
    """What the taps of a convolution read: `x` shifted by -(size // 2) to size // 2 tokens."""
    length, edge = x.shape[1], size // 2
    padded = jnp.pad(x, [(0, 0), (edge, edge)] + [(0, 0)] * (x.ndim - 2))
    return [padded[:, tap : tap + length] for tap in range(size)]


class ConvBertAttention(nnx.Module):
    """Attention heads, and as many heads of a convolution whose kernel depends on the token."""

    def __init__(self, config: ConvBertConfig, *, dtype: jnp.dtype):
        h, half, size = config.hidden_size, config.half, config.conv_kernel_size
        self.heads, self.size = config.heads, size
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = linear(h, half, dtype)
        self.key = linear(h, half, dtype)
        self.value = linear(h, half, dtype)
        self.key_convolution = SeparableConvolution(h, half, size, dtype)
        self.kernel_layer = linear(half, config.heads * size, dtype)
        self.convolved_layer = linear(h, half, dtype)
        self.out = linear(h, h, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `mask` allows; the convolution reads all neighbours, as in PyTorch."""
        b, l, h = hidden.shape
        by_head = (b, l, self.heads, -1)
        queries = self.query(hidden, rngs=rngs)
        query, key, value = (
            x.reshape(by_head)
            for x in (queries, self.key(hidden, rngs=rngs), self.value(hidden, rngs=rngs))
        )
        attended = attention(query, key, value, mask, dropout_rate=self.dropout_rate, rngs=rngs)
        scores = self.kernel_layer(self.key_convolution(hidden) * queries, rngs=rngs)
        scores = scores.reshape(b, l, self.heads, self.size).astype(jnp.float32)
        kernel = jax.nn.softmax(scores, axis=-1)
        read = shifts(self.convolved_layer(hidden, rngs=rngs).reshape(by_head), self.size)
        convolved = sum(kernel[..., tap, None] * values for tap, values in enumerate(read))
        both = jnp.concatenate([attended, jnp.asarray(convolved, attended.dtype)], axis=2)
        return self.out(both.reshape(b, l, h), rngs=rngs)


class ConvBertBlock(PostNormBlock):
    """A post-norm block; with `num_groups` above 1 the dense layers of its MLP are in groups."""

    def __init__(self, config: ConvBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, ConvBertAttention(config, dtype=dtype), dtype=dtype)
        h, f, groups = config.hidden_size, config.intermediate_size, config.num_groups
        if groups > 1:
            self.up = GroupedDense(h, f, groups, dtype)
            self.down = GroupedDense(f, h, groups, dtype)


class ConvBertEncoder(Encoder):
    """Embeddings, projected if their size differs, and blocks with convolutions.

    The convolutions of the last tokens read the padding after them. So padding changes a row's
    logits slightly, as in PyTorch, up to `conv_kernel_size // 2` tokens in each layer.
    """

    packing_obstacle = "its convolutions read the tokens beside a window"

    def __init__(self, config: ConvBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=ConvBertBlock, size=config.embedding_size)


_ATTENTION = r"layers\.(\d+)\.attention\."
_NAME = r"encoder.layer.\1.attention.self."
WEIGHT_NAMES = (
    EMBEDDING_NAMES
    | {r"project": r"embeddings_project"}
    | {
        _ATTENTION + r"(query|key|value)": _NAME + r"\2",
        _ATTENTION + r"key_convolution": _NAME + r"key_conv_attn_layer",
        _ATTENTION + r"key_convolution\.(depthwise|pointwise)": _NAME + r"key_conv_attn_layer.\2",
        _ATTENTION + r"kernel_layer": _NAME + r"conv_kernel_layer",
        _ATTENTION + r"convolved_layer": _NAME + r"conv_out_layer",
    }
    | BLOCK_NAMES
)
UNUSED_WEIGHTS = (
    *OTHER_TASKS,
    r"(discriminator_predictions|generator_predictions|generator_lm_head|sequence_summary)\..*",
)

FAMILY = Family(
    "convbert",
    ConvBertConfig.from_hf,
    ConvBertEncoder,
    WEIGHT_NAMES,
    prefix="convbert.",
    architecture="ConvBertForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
    # By default RoBERTa's, although the published tokenizers are BERT's.
    ignored_token_ids=("pad", "bos", "eos"),
)
