"""Stage 4 of 7: DeBERTa-v2 and -v3 (He et al. 2020, 2021): disentangled attention (device, JAX).

Axis letters in addition to those of `layers`: `w`, the `2 l - 1` relative positions in a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import along_diagonals, attention, make_attention_mask
from qa_flax.models.blocks import BLOCK_NAMES, OTHER_TASKS, PostNormBlock, Stack
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.dropout import dropout
from qa_flax.models.family import Family
from qa_flax.models.layers import (
    NO_RNGS,
    Dense,
    embedding,
    layer_norm,
    linear,
    look_up,
    positions_from_0,
    zeros,
)


@dataclass(frozen=True)
class DebertaV2Config(EncoderConfig):
    """The fields of a DeBERTa-v2 config.json that affect the result, with HF's names."""

    embedding_size: int
    relative_attention: bool
    max_relative_positions: int
    position_buckets: int
    norm_rel_ebd: str
    share_att_key: bool
    pos_att_type: tuple[str, ...]
    position_biased_input: bool
    conv_kernel_size: int
    conv_groups: int
    conv_act: str

    REQUIRED: ClassVar = {"norm_rel_ebd": ("none", "layer_norm"), "attention_head_size": None}

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "DebertaV2Config":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        # Defaults of HF's config class: not every config.json has these fields.
        values = DEFAULTS | {"embedding_size": values["hidden_size"]} | dict(values)
        score_types = tuple(values["pos_att_type"] or ())
        if unknown := sorted(set(score_types) - {"c2p", "p2c"}):
            raise ValueError(
                f"pos_att_type={values['pos_att_type']!r} is not supported for "
                f"{values['model_type']}: {', '.join(unknown)}; supported: c2p, p2c"
            )
        if values["conv_act"] not in ACTIVATIONS:
            raise ValueError(
                f"conv_act={values['conv_act']!r} is not supported; "
                f"supported: {', '.join(sorted(ACTIVATIONS))}"
            )
        if values["max_relative_positions"] < 1:
            values["max_relative_positions"] = values["max_position_embeddings"]
        return super().from_hf(values | {"pos_att_type": score_types})

    @property
    def span(self) -> int:
        """Half the number of rows of the relative position table."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions


DEFAULTS = {
    "position_buckets": -1,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "conv_kernel_size": 0,
    "conv_groups": 1,
    "conv_act": "tanh",
}


def relative_position_rows(length: int, limit: int, buckets: int) -> np.ndarray:
    """The table's row for each relative position from `1 - length` to `length - 1`, int64 `[w]`.

    A relative position is the query's position minus the key's. The table has one row for each of
    `limit` relative positions to each side. With `buckets > 0` it has one for each of `buckets`
    buckets to each side: half of them hold a single relative position, the others cover
    logarithmically growing ranges (He et al. 2021).
    """
    relative = np.arange(1 - length, length)
    span = buckets if buckets > 0 else limit
    if buckets > 0:
        middle = buckets // 2
        # float32, as in PyTorch: where the exact result is a whole number, its rounding error
        # decides the ceiling.
        size = np.maximum(np.abs(relative), middle).astype(np.float32)
        scale = np.log(np.float32((limit - 1) / middle))
        far = np.ceil(np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
        near = np.abs(relative) <= middle
        relative = np.where(near, relative, far * np.sign(relative)).astype(np.int64)
    return np.clip(relative + span, 0, 2 * span - 1)


class DisentangledAttention(nnx.Module):
    """Attention with content-to-position (c2p) and position-to-content (p2c) scores."""

    position_key_bias: ClassVar[bool] = True

    def __init__(self, config: DebertaV2Config, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.score_types = config.pos_att_type
        self.position_dropout_rate = config.hidden_dropout_prob
        self.dropout_rate = config.attention_probs_dropout_prob
        self.add_projections(h, dtype)
        self.out = linear(h, h, dtype)
        # With `share_att_key` positions have the same projections as content.
        separate = config.relative_attention and not config.share_att_key
        bias = self.position_key_bias
        self.position_key = (
            linear(h, h, dtype, bias=bias) if separate and "c2p" in self.score_types else None
        )
        self.position_query = (
            linear(h, h, dtype) if separate and "p2c" in self.score_types else None
        )

    def add_projections(self, size: int, dtype: jnp.dtype) -> None:
        """Add the modules that `projected` uses, for hidden states of `size`."""
        self.query: Any = linear(size, size, dtype)
        self.key: Any = linear(size, size, dtype)
        self.value = linear(size, size, dtype)

    def projected(
        self, hidden: Float[Array, "b l h"], *, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b l a d"], ...]:
        """The queries, keys and values of all heads."""
        by_head = (*hidden.shape[:2], self.heads, -1)
        projections = (self.query, self.key, self.value)
        return tuple(project(hidden, rngs=rngs).reshape(by_head) for project in projections)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 l l"],
        relative: Float[Array, "w h"] | None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `mask` allows; `relative` has the vectors of the relative positions."""
        b, l, h = hidden.shape
        query, key, value = self.projected(hidden, rngs=rngs)
        bias = None
        # As in HF, the score types count even if `relative_attention` is off.
        scale = 1 / math.sqrt(query.shape[-1] * (1 + len(self.score_types)))
        if relative is not None and self.score_types:
            relative = dropout(relative, self.position_dropout_rate, rngs)
            bias = scale * self._bias(query, key, relative, rngs)
        mixed = attention(
            query, key, value, mask, bias, scale=scale, dropout_rate=self.dropout_rate, rngs=rngs
        )
        return self.out(mixed.reshape(b, l, h), rngs=rngs)

    def _bias(
        self, query: Array, key: Array, relative: Float[Array, "w h"], rngs: nnx.Rngs | None
    ) -> Array:
        """The relative position bias of the attention scores, float32, before scaling."""
        total = jnp.zeros((), jnp.float32)

        def score(content: Array, project: Dense, vectors: Array) -> Array:
            positions = project(vectors, rngs=rngs).reshape(vectors.shape[0], self.heads, -1)
            scores = jnp.einsum(
                "blad,wad->balw", content, positions, preferred_element_type=jnp.float32
            )
            return along_diagonals(scores)

        # Relative positions (query minus key) decrease along a query's row of scores, so c2p needs
        # the vectors in reverse order.
        if "c2p" in self.score_types:
            total = total + score(query, self.position_key or self.key, relative[::-1])
        if "p2c" in self.score_types:
            scores = score(key, self.position_query or self.query, relative)
            total = total + scores.swapaxes(2, 3)
        return total


class Convolution(nnx.Module):
    """A convolution over tokens, parallel to the first layer; in the largest checkpoints."""

    def __init__(self, config: DebertaV2Config, *, dtype: jnp.dtype):
        size, edge = config.conv_kernel_size, (config.conv_kernel_size - 1) // 2
        self.activation = config.conv_act
        self.dropout_rate = config.hidden_dropout_prob
        self.mix = nnx.Conv(
            config.hidden_size,
            config.hidden_size,
            (size,),
            padding=[(edge, edge)],
            feature_group_count=config.conv_groups,
            dtype=dtype,
            kernel_init=zeros,
            bias_init=zeros,
            rngs=NO_RNGS,
        )
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(
        self,
        embedded: Float[Array, "b l h"],
        hidden: Float[Array, "b l h"],
        real: Float[Array, "b l 1"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Convolve `embedded`, add the result to `hidden` and normalise; padding becomes 0."""
        mixed = dropout(self.mix(embedded) * real, self.dropout_rate, rngs)
        return self.norm(hidden + ACTIVATIONS[self.activation](mixed)) * real


class DebertaV2Embeddings(nnx.Module):
    """Token, position and type vectors (the last two optional), normalised; padding becomes 0."""

    def __init__(self, config: DebertaV2Config, *, dtype: jnp.dtype):
        size, hidden = config.embedding_size, config.hidden_size
        positions, types = config.max_position_embeddings, config.type_vocab_size
        self.padding = config.pad_token_id
        self.dropout_rate = config.hidden_dropout_prob
        self.word = embedding(config.vocab_size, size)
        self.position = embedding(positions, size) if config.position_biased_input else None
        self.token_type = embedding(types, size) if types else None
        self.project = linear(size, hidden, dtype, bias=False) if size != hidden else None
        self.norm = layer_norm(hidden, config.layer_norm_eps, dtype)

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        position_ids: Int[Array, "#b l"] | None,
        real: Float[Array, "b l 1"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Token types default to 0; `position_ids` are required if there is a position table."""
        summed = look_up(self.word, input_ids, self.padding)
        if self.position is not None and position_ids is not None:
            summed = summed + self.position(position_ids)
        if self.token_type is not None:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            summed = summed + self.token_type(types)
        if self.project is not None:
            summed = self.project(summed, rngs=rngs)
        return dropout(self.norm(summed) * real, self.dropout_rate, rngs)


class DebertaV2Encoder(nnx.Module):
    """Post-norm blocks with disentangled attention, which depends on relative positions."""

    beside_layers: ClassVar = {"convolution": 0}

    def __init__(
        self,
        config: DebertaV2Config,
        *,
        dtype: jnp.dtype,
        attention: type[DisentangledAttention] = DisentangledAttention,
    ):
        h = config.hidden_size
        self.config = config
        self.embeddings = DebertaV2Embeddings(config, dtype=dtype)
        normed = config.norm_rel_ebd == "layer_norm"
        self.distances = embedding(2 * config.span, h) if config.relative_attention else None
        self.distances_norm = layer_norm(h, config.layer_norm_eps, dtype) if normed else None
        self.layers = Stack(
            PostNormBlock(config, attention(config, dtype=dtype), dtype=dtype)
            for _ in range(config.num_hidden_layers)
        )
        self.convolution = Convolution(config, dtype=dtype) if config.conv_kernel_size else None

    @property
    def packing_obstacle(self) -> str | None:
        """Why rows cannot hold several windows; None: they can."""
        if self.convolution is None:
            return None
        return "its convolution (conv_kernel_size) would mix them"

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
        """As `encoder.Encoder`; without a position table rows can have any length.

        Raises `ValueError` for packed rows if the checkpoint has a convolution.
        """
        if segment_ids is not None and self.packing_obstacle is not None:
            raise ValueError(
                "this checkpoint does not support several windows in a row (segment_ids): "
                f"{self.packing_obstacle}; give each window its own row"
            )
        if self.config.position_biased_input:
            limit = self.config.max_position_embeddings
            position_ids = positions_from_0(input_ids, position_ids, segment_ids, limit)
        real = (attention_mask > 0)[..., None]
        embedded = self.embeddings(
            input_ids, token_type_ids, position_ids, real.astype(jnp.float32), rngs=rngs
        )
        # As in HF, padding attends to all tokens equally: every key is masked.
        mask = make_attention_mask(attention_mask, segment_ids) & real[:, None]
        relative = self._relative_vectors(input_ids.shape[1])
        hidden = embedded
        for index, layer in enumerate(self.layers):
            hidden = self.layers.run(layer, hidden, mask, relative, rngs=rngs)
            if index == 0 and self.convolution is not None:
                hidden = self.convolution(embedded, hidden, real.astype(hidden.dtype), rngs=rngs)
        return hidden

    def _relative_vectors(self, length: int) -> Float[Array, "w h"] | None:
        """The vectors of the relative positions `1 - length .. length - 1`."""
        if self.distances is None:
            return None
        limit, buckets = self.config.max_relative_positions, self.config.position_buckets
        rows = relative_position_rows(length, limit, buckets)
        vectors = self.distances(jnp.asarray(rows))
        return vectors if self.distances_norm is None else self.distances_norm(vectors)


WEIGHT_NAMES = {
    r"embeddings\.(word|position|token_type)": r"embeddings.\1_embeddings",
    r"embeddings\.project": r"embeddings.embed_proj",
    r"embeddings\.norm": r"embeddings.LayerNorm",
    **BLOCK_NAMES,
    r"layers\.(\d+)\.attention\.(query|key|value)": r"encoder.layer.\1.attention.self.\2_proj",
    r"layers\.(\d+)\.attention\.position_(key|query)": (
        r"encoder.layer.\1.attention.self.pos_\2_proj"
    ),
    r"distances": r"encoder.rel_embeddings",
    r"distances_norm": r"encoder.LayerNorm",
    r"convolution\.mix": r"encoder.conv.conv",
    r"convolution\.norm": r"encoder.conv.LayerNorm",
}
# Many checkpoints contain a position table that their config turns off.
UNUSED_WEIGHTS = (
    *OTHER_TASKS,
    r"embeddings\.position_embeddings\..*",
    r"(lm|mask)_predictions\..*",
)

FAMILY = Family(
    "deberta-v2",
    DebertaV2Config.from_hf,
    DebertaV2Encoder,
    WEIGHT_NAMES,
    prefix="deberta.",
    architecture="DebertaV2ForQuestionAnswering",
    unused_weights=UNUSED_WEIGHTS,
)
