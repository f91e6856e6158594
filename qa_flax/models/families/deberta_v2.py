"""Stage 4 of 7: DeBERTa-v2 and -v3 (He et al. 2020, 2021): disentangled attention (device, JAX)."""

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
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock, Stack
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
    """The fields of a DeBERTa-v2 config.json that change the result, by Hugging Face's names."""

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
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        # Hugging Face has these defaults in its code; they are not in every config.json.
        values = DEFAULTS | {"embedding_size": values["hidden_size"]} | dict(values)
        kinds = tuple(values["pos_att_type"] or ())
        if unknown := sorted(set(kinds) - {"c2p", "p2c"}):
            raise ValueError(
                f"pos_att_type={values['pos_att_type']!r} is not supported for deberta-v2: "
                f"{', '.join(unknown)}; known: c2p, p2c"
            )
        if values["conv_act"] not in ACTIVATIONS:
            raise ValueError(
                f"conv_act={values['conv_act']!r} is not known here; "
                f"known: {', '.join(sorted(ACTIVATIONS))}"
            )
        if values["max_relative_positions"] < 1:
            values["max_relative_positions"] = values["max_position_embeddings"]
        return super().from_hf(values | {"pos_att_type": kinds})

    @property
    def span(self) -> int:
        """Half the number of distances, or of buckets of distances, told apart."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions


DEFAULTS = {
    "position_buckets": -1,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "conv_kernel_size": 0,
    "conv_groups": 1,
    "conv_act": "tanh",
}


def distance_rows(length: int, limit: int, buckets: int) -> np.ndarray:
    """The row of the table of distances for each distance from `1 - length` to `length - 1`.

    The table tells `limit` distances to each side apart or, with `buckets > 0`, as many buckets:
    exact up to half of them, then logarithmic (He et al. 2021). int64 `[2 * length - 1]`.
    """
    distance = np.arange(1 - length, length)
    span = buckets if buckets > 0 else limit
    if buckets > 0:
        middle = buckets // 2
        # float32, as in PyTorch: the ceiling of what should be whole depends on the rounding.
        size = np.maximum(np.abs(distance), middle).astype(np.float32)
        scale = np.log(np.float32((limit - 1) / middle))
        far = np.ceil(np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
        near = np.abs(distance) <= middle
        distance = np.where(near, distance, far * np.sign(distance)).astype(np.int64)
    return np.clip(distance + span, 0, 2 * span - 1)


class DisentangledAttention(nnx.Module):
    """Attention with content-to-position (c2p) and position-to-content (p2c) scores."""

    def __init__(self, config: DebertaV2Config, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.kinds = config.pos_att_type
        self.position_dropout_rate = config.hidden_dropout_prob
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = linear(h, h, dtype)
        self.key = linear(h, h, dtype)
        self.value = linear(h, h, dtype)
        self.out = linear(h, h, dtype)
        own = config.relative_attention and not config.share_att_key
        self.position_key = linear(h, h, dtype) if own and "c2p" in self.kinds else None
        self.position_query = linear(h, h, dtype) if own and "p2c" in self.kinds else None

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 l l"],
        distances: Float[Array, "w h"] | None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `mask` allows; `distances` are the vectors of `1 - l .. l - 1`."""
        b, l, h = hidden.shape
        query, key, value = (
            project(hidden, rngs=rngs).reshape(b, l, self.heads, -1)
            for project in (self.query, self.key, self.value)
        )
        bias = None
        # Counted whether or not positions are looked at, as in Hugging Face.
        scale = 1 / math.sqrt(query.shape[-1] * (1 + len(self.kinds)))
        if distances is not None and self.kinds:
            distances = dropout(distances, self.position_dropout_rate, rngs)
            bias = scale * self._bias(query, key, distances, rngs)
        mixed = attention(
            query, key, value, mask, bias, scale=scale, dropout_rate=self.dropout_rate, rngs=rngs
        )
        return self.out(mixed.reshape(b, l, h), rngs=rngs)

    def _bias(
        self, query: Array, key: Array, distances: Float[Array, "w h"], rngs: nnx.Rngs | None
    ) -> Array:
        """What the distance of query and key adds to their score, float32, not scaled."""
        total = jnp.zeros((), jnp.float32)

        def score(content: Array, project: Dense, vectors: Array) -> Array:
            positions = project(vectors, rngs=rngs).reshape(vectors.shape[0], self.heads, -1)
            each = jnp.einsum(
                "blad,wad->balw", content, positions, preferred_element_type=jnp.float32
            )
            return along_diagonals(each)

        # The distance is the query's position less the key's: it falls along a query's row.
        if "c2p" in self.kinds:
            total = total + score(query, self.position_key or self.key, distances[::-1])
        if "p2c" in self.kinds:
            scores = score(key, self.position_query or self.query, distances)
            total = total + scores.swapaxes(2, 3)
        return total


class Convolution(nnx.Module):
    """Beside the first layer of the largest checkpoints: neighbouring tokens mixed."""

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
        """What is mixed of `embedded`, added to `hidden` and normalised; padding becomes 0."""
        mixed = dropout(self.mix(embedded) * real, self.dropout_rate, rngs)
        return self.norm(hidden + ACTIVATIONS[self.activation](mixed)) * real


class DebertaV2Embeddings(nnx.Module):
    """Word, perhaps position and type vectors, projected and normalised; padding becomes 0."""

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
        """Token types default to 0; `position_ids` are needed where positions have vectors."""
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
    """Post-norm blocks whose attention knows how far tokens are apart."""

    def __init__(self, config: DebertaV2Config, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.config = config
        self.embeddings = DebertaV2Embeddings(config, dtype=dtype)
        normed = config.norm_rel_ebd == "layer_norm"
        self.distances = embedding(2 * config.span, h) if config.relative_attention else None
        self.distances_norm = layer_norm(h, config.layer_norm_eps, dtype) if normed else None
        self.layers = Stack(
            PostNormBlock(config, DisentangledAttention(config, dtype=dtype), dtype=dtype)
            for _ in range(config.num_hidden_layers)
        )
        self.convolution = Convolution(config, dtype=dtype) if config.conv_kernel_size else None

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
        """As `encoder.Encoder`; rows have no longest length where positions have no vectors.

        `ValueError` for packed rows where the checkpoint has a convolution: it would mix windows.
        """
        if segment_ids is not None and self.convolution is not None:
            raise ValueError(
                "this checkpoint's convolution (conv_kernel_size) mixes neighbours, so that "
                "several windows in a row are not possible; give each a row of its own"
            )
        if self.config.position_biased_input:
            limit = self.config.max_position_embeddings
            position_ids = positions_from_0(input_ids, position_ids, segment_ids, limit)
        real = (attention_mask > 0)[..., None]
        embedded = self.embeddings(
            input_ids, token_type_ids, position_ids, real.astype(jnp.float32), rngs=rngs
        )
        # As in Hugging Face, padding looks at everything alike.
        mask = make_attention_mask(attention_mask, segment_ids) & real[:, None]
        distances = self._distances(input_ids.shape[1])
        hidden = embedded
        for number, layer in enumerate(self.layers):
            hidden = self.layers.run(layer, hidden, mask, distances, rngs=rngs)
            if number == 0 and self.convolution is not None:
                hidden = self.convolution(embedded, hidden, real.astype(hidden.dtype), rngs=rngs)
        return hidden

    def _distances(self, length: int) -> Float[Array, "w h"] | None:
        """The vectors of the distances `1 - length .. length - 1`."""
        if self.distances is None:
            return None
        limit, buckets = self.config.max_relative_positions, self.config.position_buckets
        found = self.distances(jnp.asarray(distance_rows(length, limit, buckets)))
        return found if self.distances_norm is None else self.distances_norm(found)


WEIGHT_NAMES = {
    **EMBEDDING_NAMES,
    **BLOCK_NAMES,
    r"layers\.(\d+)\.attention\.(query|key|value)": r"encoder.layer.\1.attention.self.\2_proj",
    r"layers\.(\d+)\.attention\.position_(key|query)": (
        r"encoder.layer.\1.attention.self.pos_\2_proj"
    ),
    r"distances": r"encoder.rel_embeddings",
    r"distances_norm": r"encoder.LayerNorm",
    r"convolution\.mix": r"encoder.conv.conv",
    r"convolution\.norm": r"encoder.conv.LayerNorm",
    r"embeddings\.project": r"embeddings.embed_proj",
}
# Many hold a table of positions that their config says is not used.
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
