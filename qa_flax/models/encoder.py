"""Stage 4 of 7: the encoder that most families use or extend (device, JAX)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

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
    """BERT's encoder: embeddings, an optional projection to the hidden size, and a stack of layers.

    A family overrides the methods in which it differs. `project` and `last_norm` are None if the
    encoder has no such module.
    """

    project: Any = None
    last_norm: Any = None

    packing_obstacle: ClassVar[str | None] = None
    """Why rows cannot hold several windows (`segment_ids`); None: they can."""

    beside_layers: ClassVar[Mapping[str, int]] = {"last_norm": -1}
    """Module outside the stack of layers -> index of the layer to which it belongs; others belong
    to the embeddings. `depth.py` reads it of every module that holds a `Stack`."""

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
        **embedding_options: Any,
    ):
        """Build the modules from a family's config.

        Args:
            config: the family's config, such as `EncoderConfig`.
            dtype: the compute dtype.
            block: builds a layer, called `(config, dtype=...)`; None: the family builds `layers`.
            last_norm: whether a LayerNorm follows the last layer.
            embeddings: a module called like `Embeddings`; by default `Embeddings` is built from
                the remaining arguments.
            size: the size of the embeddings; default: the hidden size.
            positions: rows of the position table; default: as in the config.
            types: rows of the token type table; default: as in the config.
            **embedding_options: further arguments of `Embeddings`.
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
            **embedding_options,
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
        """Compute the hidden states in the compute dtype.

        Args:
            input_ids: token ids.
            attention_mask: 1 for real tokens, 0 for padding.
            token_type_ids: 0 by default.
            position_ids: by default counted from 0, restarting in every segment.
            segment_ids: numbers of the windows packed into a row, 0 for padding; None: one window.
            rngs: its `dropout` stream draws the dropout masks; None means no dropout.

        Raises:
            ValueError: a row is longer than the checkpoint has positions, or `segment_ids` are
                given although the family cannot compute packed rows.
        """
        if segment_ids is not None and self.packing_obstacle is not None:
            raise ValueError(
                "this model does not support several windows in a row (segment_ids): "
                f"{self.packing_obstacle}; give each window its own row"
            )
        positions = self.positions_of(input_ids, position_ids, segment_ids)
        types = self.types_of(input_ids, token_type_ids)
        hidden = self.embed(input_ids, types, positions, segment_ids, rngs=rngs)
        layer_args = self.layer_args(input_ids, attention_mask, segment_ids, positions)
        hidden = self.run_layers(hidden, *layer_args, rngs=rngs)
        return hidden if self.last_norm is None else self.last_norm(hidden)

    def positions_of(
        self,
        input_ids: Int[Array, "b l"],
        position_ids: Int[Array, "b l"] | None,
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b l"]:
        """Each token's position; `ValueError` for rows that this encoder does not support."""
        return positions_from_0(input_ids, position_ids, segment_ids, self.position_limit)

    def types_of(
        self, input_ids: Int[Array, "b l"], token_type_ids: Int[Array, "b l"] | None
    ) -> Int[Array, "b l"] | None:
        """Each token's type; None means 0 for all."""
        return token_type_ids

    def embed(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
        *,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "b l h"]:
        """The hidden states before the first layer."""
        hidden = self.embeddings(input_ids, token_type_ids, positions, rngs=rngs)
        return hidden if self.project is None else self.project(hidden, rngs=rngs)

    def layer_args(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The positional arguments that every layer gets after the hidden states."""
        return (make_attention_mask(attention_mask, segment_ids),)

    def run_layers(
        self, hidden: Float[Array, "b l h"], *layer_args: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """Run all layers, one after the other."""
        return self.layers(hidden, *layer_args, rngs=rngs)


class PositionsAfterPadding(Encoder):
    """An encoder whose positions are counted from the padding token's id + 1, as in RoBERTa."""

    def __init__(self, config: Any, *, dtype: jnp.dtype, **options: Any):
        """`options` are arguments of `Encoder`."""
        self.padding: int = config.pad_token_id
        self.table_rows: int = config.max_position_embeddings
        super().__init__(config, dtype=dtype, padding_position=config.pad_token_id, **options)
        self.position_limit = self.table_rows - self.padding - 1

    def positions_of(
        self,
        input_ids: Int[Array, "b l"],
        position_ids: Int[Array, "b l"] | None,
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b l"]:
        """Each token's position, as in `layers.positions_after_padding`."""
        return positions_after_padding(
            input_ids, position_ids, segment_ids, self.padding, self.table_rows
        )
