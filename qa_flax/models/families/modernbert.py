"""Stage 4 of 7: ModernBERT (Warner et al. 2024): rotary positions, local attention, gated mlps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models import layers
from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import attention, make_attention_mask
from qa_flax.models.blocks import Stack
from qa_flax.models.configs import read_config
from qa_flax.models.dropout import dropout
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import ParamPath, layer_norm, linear
from qa_flax.models.local_attention import local_attention, make_local_mask
from qa_flax.models.qa import SpanHead, SpanLogits

# Cosines and sines of the angles by which a layer rotates its queries and keys.
Rotation = tuple[Float[Array, "#b l 1 half"], Float[Array, "#b l 1 half"]]

GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class ModernBertConfig:
    """The fields of a ModernBERT config.json that affect the result; `NAMES` has HF's names."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    mlp_dropout: float
    classifier_dropout: float
    classifier_activation: str
    layer_types: tuple[str, ...]
    local_attention: int
    global_rope_theta: float
    local_rope_theta: float
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    classifier_bias: bool
    initializer_range: float
    initializer_cutoff_factor: float
    layer_norm_eps: float
    pad_token_id: int | None

    # The dropout rates of the embeddings and of the mlp are two settings.
    SPLIT: ClassVar = {"hidden_dropout_prob": ("mlp_dropout",)}
    NAMES: ClassVar = {
        "hidden_act": "hidden_activation",
        "hidden_dropout_prob": "embedding_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "norm_eps",
    }

    @property
    def max_position_embeddings(self) -> None:
        """None: rotary positions have no limit."""

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "ModernBertConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        flat, required = dict(values), {}
        flat["layer_types"] = tuple(values["layer_types"])
        for i, kind in enumerate(flat["layer_types"]):
            flat[f"layer_types[{i}]"] = kind
            required[f"layer_types[{i}]"] = (GLOBAL, LOCAL)
        for theta, kind in (("global_rope_theta", GLOBAL), ("local_rope_theta", LOCAL)):
            rope = values["rope_parameters"][kind]
            flat[theta] = rope["rope_theta"]
            flat[f"rope_parameters.{kind}.rope_type"] = rope["rope_type"]
            required[f"rope_parameters.{kind}.rope_type"] = "default"
        config = read_config(cls, flat, names=cls.NAMES, required=required)
        if config.initializer_cutoff_factor <= 0:
            raise ValueError(
                f"initializer_cutoff_factor={config.initializer_cutoff_factor} is not supported "
                "for modernbert: new weights are drawn within that many standard deviations; "
                "supported: any number above 0"
            )
        if config.hidden_size // config.num_attention_heads % 2:
            raise ValueError(
                f"hidden_size={config.hidden_size} with num_attention_heads="
                f"{config.num_attention_heads} gives heads of an odd size; rotary positions need "
                "an even size"
            )
        return config


class ModernBertEncoder(Encoder):
    """Token embeddings, pre-norm layers with global or local attention, and a final norm.

    `position_ids` set the rotary angles only: the local window is counted in tokens of the row.
    """

    beside_layers: ClassVar = {"final_norm": -1}

    def __init__(self, config: ModernBertConfig, *, dtype: jnp.dtype):
        super().__init__(
            config, dtype=dtype, block=None, positions=0, types=0, norm_bias=config.norm_bias
        )
        h = config.hidden_size
        self.head_size = h // config.num_attention_heads
        self.global_theta, self.local_theta = config.global_rope_theta, config.local_rope_theta
        self.window = config.local_attention // 2
        self.layer_types = config.layer_types
        self.layers = Stack(
            ModernBertLayer(config, first=i == 0, local=kind == LOCAL, dtype=dtype)
            for i, kind in enumerate(config.layer_types)
        )
        self.final_norm = layer_norm(h, config.layer_norm_eps, dtype, bias=config.norm_bias)

    def layer_args(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The attention masks and the rotations of both layer types."""
        masks = {
            GLOBAL: make_attention_mask(attention_mask, segment_ids),
            LOCAL: make_local_mask(attention_mask, segment_ids, self.window),
        }
        rotations = {
            GLOBAL: rotation(positions, self.head_size, self.global_theta),
            LOCAL: rotation(positions, self.head_size, self.local_theta),
        }
        return masks, rotations

    def run_layers(
        self, hidden: Float[Array, "b l h"], *layer_args: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """Run each layer with the mask and the rotation of its type, then the final norm."""
        masks, rotations = layer_args
        for layer, kind in zip(self.layers, self.layer_types, strict=True):
            hidden = self.layers.run(layer, hidden, masks[kind], rotations[kind], rngs=rngs)
        return self.final_norm(hidden)


class ModernBertLayer(nnx.Module):
    """A pre-norm layer: attention, then a gated mlp, `[b, l, h] -> [b, l, h]`.

    The `first` layer has no norm before its attention: the embeddings are normalised already.
    """

    def __init__(self, config: ModernBertConfig, *, first: bool, local: bool, dtype: jnp.dtype):
        h, f = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.mlp_dropout_rate = config.mlp_dropout
        norm = (h, config.layer_norm_eps, dtype)
        self.attention_norm = None if first else layer_norm(*norm, bias=config.norm_bias)
        self.attention = ModernBertAttention(config, local=local, dtype=dtype)
        self.mlp_norm = layer_norm(*norm, bias=config.norm_bias)
        self.up = linear(h, 2 * f, dtype, bias=config.mlp_bias)
        self.down = linear(f, h, dtype, bias=config.mlp_bias)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "n 1 #q k"],
        rotation: Rotation,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """`mask` is from `make_local_mask` in a local layer, else from `make_attention_mask`."""
        normed = hidden if self.attention_norm is None else self.attention_norm(hidden)
        hidden = hidden + self.attention(normed, mask, rotation, rngs=rngs)
        inner, gate = jnp.split(self.up(self.mlp_norm(hidden), rngs=rngs), 2, axis=-1)
        inner = dropout(ACTIVATIONS[self.activation](inner) * gate, self.mlp_dropout_rate, rngs)
        return hidden + self.down(inner, rngs=rngs)


class ModernBertAttention(nnx.Module):
    """Multi-head attention with rotary queries and keys: `[b, l, h] -> [b, l, h]`."""

    def __init__(self, config: ModernBertConfig, *, local: bool, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.window = config.local_attention // 2 if local else None
        self.dropout_rate = config.attention_probs_dropout_prob
        self.qkv = linear(h, 3 * h, dtype, bias=config.attention_bias)
        self.out = linear(h, h, dtype, bias=config.attention_bias)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "n 1 #q k"],
        rotation: Rotation,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `mask` allows; probabilities and output have the same dropout rate."""
        b, l, h = hidden.shape
        query, key, value = (
            x.reshape(b, l, self.heads, h // self.heads)
            for x in jnp.split(self.qkv(hidden, rngs=rngs), 3, axis=-1)
        )
        query, key = apply_rotary(query, rotation), apply_rotary(key, rotation)
        rate = self.dropout_rate
        if self.window is None:
            mixed = attention(query, key, value, mask, dropout_rate=rate, rngs=rngs)
        else:
            mixed = local_attention(
                query, key, value, mask, self.window, dropout_rate=rate, rngs=rngs
            )
        return dropout(self.out(mixed.reshape(b, l, h), rngs=rngs), rate, rngs)


def rotation(positions: Int[Array, "#b l"], size: int, theta: float) -> Rotation:
    """Cosines and sines for heads of `size` elements at `positions` (Su et al. 2021), float32."""
    # NumPy's float32 powers agree with PyTorch's except in the last one or two digits.
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = 1 / np.float32(theta) ** exponents
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: Float[Array, "b l a d"], rotation: Rotation) -> Float[Array, "b l a d"]:
    """Rotate each pair of a head's elements `i` and `i + d / 2`, in float32."""
    cosines, sines = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


class ModernBertHead(SpanHead):
    """A dense layer, activation and norm, as in the masked language model; then the span head."""

    def __init__(self, config: ModernBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, dropout_rate=config.classifier_dropout)
        h = config.hidden_size
        self.activation = config.classifier_activation
        self.dense = linear(h, h, dtype, bias=config.classifier_bias)
        self.norm = layer_norm(h, config.layer_norm_eps, dtype, bias=config.norm_bias)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """As `qa.SpanHead`."""
        hidden = self.norm(ACTIVATIONS[self.activation](self.dense(hidden, rngs=rngs)))
        return super().__call__(hidden, input_ids, rngs=rngs)


def initial_array(
    path: ParamPath, shape: tuple[int, ...], config: ModernBertConfig, random: np.random.Generator
) -> np.ndarray:
    """As `layers.initial_array`, but from truncated normal distributions as in HF.

    The standard deviation of `out`, `down` and the head's `dense` layers is divided by
    `(2 * number of layers) ** 0.5`; that of the span outputs is `hidden_size ** -0.5`.
    """
    deviation = config.initializer_range
    if path[-2] in ("out", "down", "dense"):
        deviation /= (2 * len(config.layer_types)) ** 0.5
    elif path[-2] == "outputs":
        deviation = config.hidden_size**-0.5
    cutoff = config.initializer_cutoff_factor
    return layers.initial_array(path, shape, config, random, deviation=deviation, cutoff=cutoff)


WEIGHT_NAMES = {
    r"embeddings\.word": r"embeddings.tok_embeddings",
    r"embeddings\.norm": r"embeddings.norm",
    r"layers\.(\d+)\.attention_norm": r"layers.\1.attn_norm",
    r"layers\.(\d+)\.attention\.qkv": r"layers.\1.attn.Wqkv",
    r"layers\.(\d+)\.attention\.out": r"layers.\1.attn.Wo",
    r"layers\.(\d+)\.mlp_norm": r"layers.\1.mlp_norm",
    r"layers\.(\d+)\.up": r"layers.\1.mlp.Wi",
    r"layers\.(\d+)\.down": r"layers.\1.mlp.Wo",
    r"final_norm": r"final_norm",
}
HEAD_WEIGHT_NAMES = {r"dense": r"head.dense", r"norm": r"head.norm", r"outputs": r"classifier"}
# The classifier of another task is not listed: it has the same name as the span outputs.
UNUSED_WEIGHTS = (r"decoder\..*",)

FAMILY = Family(
    "modernbert",
    ModernBertConfig.from_hf,
    ModernBertEncoder,
    WEIGHT_NAMES,
    prefix="model.",
    architecture="ModernBertForQuestionAnswering",
    positional_inputs=(),
    head=ModernBertHead,
    head_weight_names=HEAD_WEIGHT_NAMES,
    unused_weights=UNUSED_WEIGHTS,
    initial_array=initial_array,
)
