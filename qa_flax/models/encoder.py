"""Stage 4 of 7: the encoder most families are made of (device, JAX)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.attention import make_attention_mask
from qa_flax.models.blocks import PostNormBlock, Stack
from qa_flax.models.layers import (
    Embeddings,
    layer_norm,
    linear,
    positions_after_padding,
    positions_from_0,
)


class Encoder(nnx.Module):
    """Embeddings, projected to the hidden size where theirs is another, and layers: BERT's own.

    A family overrides what is different. `project` and `last_norm` are None where there is none.
    """

    project: Any = None
    last_norm: Any = None

    def __init__(
        self,
        config: Any,
        *,
        dtype: jnp.dtype,
        block: Callable[..., nnx.Module] | None = PostNormBlock,
        last_norm: bool = False,
        embeddings: nnx.Module | None = None,
        size: int | None = None,
        positions: int | None = None,
        types: int | None = None,
        **of_embeddings: Any,
    ):
        """`block`, called `(config, dtype=...)`, makes a layer; None: the family makes them.

        `embeddings` is a module called as `Embeddings`, which is made unless it is given: with
        `size`, `positions` and `types` where they are not as in the config, and `of_embeddings`.
        """
        hidden: int = config.hidden_size
        width = hidden if size is None else size
        self.position_limit: int | None = config.max_position_embeddings
        self.embeddings: Any = embeddings or Embeddings(
            config,
            dtype=dtype,
            size=width,
            positions=config.max_position_embeddings if positions is None else positions,
            types=config.type_vocab_size if types is None else types,
            **of_embeddings,
        )
        if width != hidden:
            self.project = linear(width, hidden, dtype)
        if block is not None:
            self.layers = Stack(block(config, dtype=dtype) for _ in range(config.num_hidden_layers))
        if last_norm:
            self.last_norm = layer_norm(hidden, config.layer_norm_eps, dtype)

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
        """Hidden states in the compute dtype; `rngs=None` means no dropout.

        Token types default to 0; positions count from 0, again in every segment.
        """
        positions = self.positions_of(input_ids, position_ids, segment_ids)
        types = self.types_of(input_ids, token_type_ids)
        hidden = self.embeddings(input_ids, types, positions, rngs=rngs)
        if self.project is not None:
            hidden = self.project(hidden, rngs=rngs)
        where = self.where(input_ids, attention_mask, segment_ids, positions)
        hidden = self.run_layers(hidden, *where, rngs=rngs)
        return hidden if self.last_norm is None else self.last_norm(hidden)

    def positions_of(
        self,
        input_ids: Int[Array, "b l"],
        position_ids: Int[Array, "b l"] | None,
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b l"]:
        """Each token's position; `ValueError` for rows that this encoder cannot take."""
        return positions_from_0(input_ids, position_ids, segment_ids, self.position_limit)

    def types_of(
        self, input_ids: Int[Array, "b l"], token_type_ids: Int[Array, "b l"] | None
    ) -> Int[Array, "b l"] | None:
        """Each token's type; None: 0."""
        return token_type_ids

    def where(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """What every layer gets beside the hidden states."""
        return (make_attention_mask(attention_mask, segment_ids),)

    def run_layers(
        self, hidden: Float[Array, "b l h"], *where: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """All layers, one after the other."""
        return self.layers(hidden, *where, rngs=rngs)


class PositionsAfterPadding(Encoder):
    """An encoder whose positions begin after the padding token's id, as RoBERTa's do."""

    def __init__(self, config: Any, *, dtype: jnp.dtype, **options: Any):
        """`options` as those of `Encoder`."""
        self.padding: int = config.pad_token_id
        self.table_rows: int = config.max_position_embeddings
        super().__init__(config, dtype=dtype, padding_position=config.pad_token_id, **options)

    def positions_of(
        self,
        input_ids: Int[Array, "b l"],
        position_ids: Int[Array, "b l"] | None,
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b l"]:
        """As `positions_after_padding`."""
        return positions_after_padding(
            input_ids, position_ids, segment_ids, self.padding, self.table_rows
        )
