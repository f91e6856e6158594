"""Stage 4 of 7: a layer of an encoder, and layers that run one after the other (device, JAX).

Axis letters as in `layers`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import attention
from qa_flax.models.dropout import dropout
from qa_flax.models.layers import BlockConfig, layer_norm, linear
from qa_flax.models.sharding import all_gather, has_shards


class SelfAttention(nnx.Module):
    """Multi-head attention of a row's tokens to each other: `[b, l, h] -> [b, l, h]`.

    With `source`, `[b, k, h]`, to that text's tokens.
    """

    def __init__(self, config: BlockConfig, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = linear(h, h, dtype)
        self.key = linear(h, h, dtype)
        self.value = linear(h, h, dtype)
        self.out = linear(h, h, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l k"],
        bias: Float[Array, "#b #a l k"] | None = None,
        source: Float[Array, "b k h"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `mask` allows, with `bias` on the scores."""
        b, l, h = hidden.shape
        source = hidden if source is None else source
        query, key, value = (
            x.reshape(b, -1, self.heads, h // self.heads)
            for x in (
                self.query(hidden, rngs=rngs),
                self.key(source, rngs=rngs),
                self.value(source, rngs=rngs),
            )
        )
        mixed = attention(query, key, value, mask, bias, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, h), rngs=rngs)


class Block(nnx.Module):
    """The parts of one encoder layer of the BERT-shaped families.

    `attention` is a module called `(hidden, *where, rngs=...)`; `SelfAttention` unless given.
    `drop_attended=False` or `drop_mlp=False`: no dropout on that sublayer's result.
    """

    def __init__(
        self,
        config: BlockConfig,
        attention: nnx.Module | None = None,
        *,
        dtype: jnp.dtype,
        drop_attended: bool = True,
        drop_mlp: bool = True,
    ):
        h, f = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.attended_dropout_rate = config.hidden_dropout_prob if drop_attended else 0.0
        self.mlp_dropout_rate = config.hidden_dropout_prob if drop_mlp else 0.0
        self.attention: Any = attention or SelfAttention(config, dtype=dtype)
        self.attention_norm = layer_norm(h, config.layer_norm_eps, dtype)
        self.up = linear(h, f, dtype)
        self.down = linear(f, h, dtype)
        self.mlp_norm = layer_norm(h, config.layer_norm_eps, dtype)

    def attend(
        self, hidden: Float[Array, "b l h"], *where: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """The first sublayer; `where` goes to the attention."""
        return dropout(self.attention(hidden, *where, rngs=rngs), self.attended_dropout_rate, rngs)

    def mlp(self, hidden: Float[Array, "b l h"], *, rngs: nnx.Rngs | None) -> Float[Array, "b l h"]:
        """The second sublayer."""
        inner = ACTIVATIONS[self.activation](self.up(hidden, rngs=rngs))
        return dropout(self.down(inner, rngs=rngs), self.mlp_dropout_rate, rngs)


class PostNormBlock(Block):
    """A layer whose sublayers' results are added, then normalised."""

    def __call__(
        self, hidden: Float[Array, "b l h"], *where: Any, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l h"]:
        """Attention, then the mlp; `where` goes to the attention, `rngs` turns dropout on."""
        hidden = self.attention_norm(hidden + self.attend(hidden, *where, rngs=rngs))
        return self.mlp_norm(hidden + self.mlp(hidden, rngs=rngs))


class PreNormBlock(Block):
    """A layer whose sublayers read normalised states; their results are added to the states."""

    def __call__(
        self, hidden: Float[Array, "b l h"], *where: Any, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l h"]:
        """As `PostNormBlock`."""
        hidden = hidden + self.attend(self.attention_norm(hidden), *where, rngs=rngs)
        return hidden + self.mlp(self.mlp_norm(hidden), rngs=rngs)


# A block's modules -> the names most families' checkpoints have for them, as `Family.weight_names`.
BLOCK_NAMES = {
    r"layers\.(\d+)\.attention\.(query|key|value)": r"encoder.layer.\1.attention.self.\2",
    r"layers\.(\d+)\.attention\.out": r"encoder.layer.\1.attention.output.dense",
    r"layers\.(\d+)\.attention_norm": r"encoder.layer.\1.attention.output.LayerNorm",
    r"layers\.(\d+)\.up": r"encoder.layer.\1.intermediate.dense",
    r"layers\.(\d+)\.down": r"encoder.layer.\1.output.dense",
    r"layers\.(\d+)\.mlp_norm": r"encoder.layer.\1.output.LayerNorm",
}
EMBEDDING_NAMES = {
    r"embeddings\.(word|position|token_type)": r"embeddings.\1_embeddings",
    r"embeddings\.norm": r"embeddings.LayerNorm",
}

# Tensors of other tasks, and buffers older versions wrote, that question answering does not use.
OTHER_TASKS = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"pooler\..*",
    r"cls\..*",
    r"classifier\..*",
)


class Stack(nnx.List):
    """Layers that run one after the other.

    With `remat` a layer's inside is not kept for the backward pass but computed again in it
    (gradient checkpointing): less memory for about a third more time. So it is in any case where
    the parameters are shards (`sharding.py`), which are put together for one layer at a time.
    """

    remat: bool = False

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        *where: Any,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Every layer called `(hidden, *where, rngs=...)`."""
        for layer in self:
            hidden = self.run(layer, hidden, *where, rngs=rngs)
        return hidden

    def run(self, layer: Any, *inputs: Any, rngs: nnx.Rngs | None = None) -> Any:
        """One layer; for encoders whose layers do not all take the same."""
        # A key a layer, so that computing it again draws the same masks.
        key = None if rngs is None else rngs.dropout()

        def call(layer: Any, key: Any, *inputs: Any) -> Any:
            rngs = None if key is None else nnx.Rngs(dropout=key)
            return layer(*inputs, rngs=rngs)

        graphdef, state = nnx.split(layer)
        # A layer put together from shards would be kept for the backward pass, all layers at once.
        if not (self.remat or has_shards(state)):
            return call(layer, key, *inputs)

        def again(state: Any, key: Any, hidden: Array, *rest: Any) -> Any:
            if has_shards(state):
                # Not before it is this layer's turn, or all layers are there at once.
                state, hidden = jax.lax.optimization_barrier((state, hidden))
            return call(nnx.merge(graphdef, all_gather(state)), key, hidden, *rest)

        return jax.checkpoint(again)(state, key, *inputs)
