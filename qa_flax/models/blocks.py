"""Stage 4 of 7: encoder layers and stacks of layers (device, JAX).

The axis letters are those of `layers.py`.
"""

from functools import partial
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
from qa_flax.models.tracing import TraceSettings, trace_settings


class SelfAttention(nnx.Module):
    """Multi-head self-attention `[b, l, h] -> [b, l, h]`; cross-attention if given a `source`."""

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
        """Attend to the tokens of `source` (of `hidden` by default) that `mask` allows.

        `bias` is added to the attention scores; `rngs=None` means no dropout.
        """
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
    """The sublayers of one encoder layer of the BERT-like families: attention and MLP.

    Args:
        config: the family's config.
        attention: a module called `(hidden, *attention_args, rngs=...)`; default `SelfAttention`.
        dtype: the compute dtype.
        drop_attended: whether dropout is applied to the output of the attention.
        drop_mlp: whether dropout is applied to the output of the MLP.
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
        self.up: Any = linear(h, f, dtype)
        self.down: Any = linear(f, h, dtype)
        self.mlp_norm = layer_norm(h, config.layer_norm_eps, dtype)

    def attend(
        self, hidden: Float[Array, "b l h"], *attention_args: Any, rngs: nnx.Rngs | None
    ) -> Float[Array, "b l h"]:
        """Apply the first sublayer: attention and dropout, without residual and norm."""
        attended = self.attention(hidden, *attention_args, rngs=rngs)
        return dropout(attended, self.attended_dropout_rate, rngs)

    def mlp(self, hidden: Float[Array, "b l h"], *, rngs: nnx.Rngs | None) -> Float[Array, "b l h"]:
        """Apply the second sublayer: MLP and dropout, without residual and norm."""
        inner = ACTIVATIONS[self.activation](self.up(hidden, rngs=rngs))
        return dropout(self.down(inner, rngs=rngs), self.mlp_dropout_rate, rngs)


class PostNormBlock(Block):
    """A post-norm layer: LayerNorm after each residual addition, as in BERT."""

    def __call__(
        self, hidden: Float[Array, "b l h"], *attention_args: Any, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l h"]:
        """Apply the attention, then the MLP; `rngs=None` means no dropout.

        `attention_args` are passed to the attention module after the hidden states.
        """
        hidden = self.attention_norm(hidden + self.attend(hidden, *attention_args, rngs=rngs))
        return self.mlp_norm(hidden + self.mlp(hidden, rngs=rngs))


class PreNormBlock(Block):
    """A pre-norm layer: LayerNorm on the input of each sublayer, inside the residual branch."""

    def __call__(
        self, hidden: Float[Array, "b l h"], *attention_args: Any, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l h"]:
        """Apply the attention, then the MLP; arguments as in `PostNormBlock`."""
        normed = self.attention_norm(hidden)
        hidden = hidden + self.attend(normed, *attention_args, rngs=rngs)
        return hidden + self.mlp(self.mlp_norm(hidden), rngs=rngs)


# Module paths (regular expressions) -> names in the checkpoints of most families. These tables are
# parts of `Family.weight_names`, which says what their order means.
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
POSITION_LAST_NAMES = {
    r"embeddings\.(word|token_type)": r"embeddings.\1_embeddings",
    r"embeddings\.norm": r"embeddings.LayerNorm",
    r"embeddings\.(position)": r"embeddings.\1_embeddings",
}

# Checkpoint tensors that question answering does not use: heads of other tasks, and buffers that
# older versions of transformers saved.
OTHER_TASKS = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"pooler\..*",
    r"cls\..*",
    r"classifier\..*",
)


class Stack(nnx.List):
    """Layers that run one after the other, with gradient checkpointing if `remat` is set.

    With `remat` the backward pass recomputes each layer's activations instead of storing them. This
    saves memory and takes about a third more time. Layers with sharded parameters (`sharding.py`)
    are always recomputed, and their parameters are all-gathered for one layer at a time.
    """

    remat: bool = False

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        *layer_args: Any,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Call every layer as `layer(hidden, *layer_args, rngs=...)`."""
        for layer in self:
            hidden = self.run(layer, hidden, *layer_args, rngs=rngs)
        return hidden

    def run(self, layer: Any, *inputs: Any, rngs: nnx.Rngs | None = None) -> Any:
        """Run one layer. Encoders whose layers take different arguments call it for each layer."""
        # One key per layer, so that recomputing the layer draws the same dropout masks.
        key = None if rngs is None else rngs.dropout()
        graphdef, state = nnx.split(layer)
        settings = graphdef, trace_settings()
        # Without remat, the all-gathered parameters of every layer would be stored for the backward
        # pass, and sharding would save no memory.
        if self.remat or has_shards(state):
            return jax.checkpoint(partial(_call, *settings))(state, key, *inputs)
        return _call(*settings, state, key, *inputs)


# A function of its own under `jit`, so that JAX traces layers of equal settings only once, and not
# each of them. XLA then puts the code in place of each call.
@partial(jax.jit, static_argnums=(0, 1))
def _call(
    graphdef: nnx.GraphDef, settings: TraceSettings, state: Any, key: Any, *inputs: Any
) -> Any:
    """Run the layer of a graph definition and a state, which may be sharded.

    The settings are an argument so that layers with other settings are traced again.
    """
    if has_shards(state):
        # The all-gather must wait for the layer's input. Otherwise XLA could gather the parameters
        # of all layers at once.
        state, hidden = jax.lax.optimization_barrier((state, inputs[0]))
        state, inputs = all_gather(state), (hidden, *inputs[1:])
    rngs = None if key is None else nnx.Rngs(dropout=key)
    return nnx.merge(graphdef, state)(*inputs, rngs=rngs)
