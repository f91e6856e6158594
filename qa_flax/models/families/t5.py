"""Stage 4 of 7: T5 (Raffel et al. 2019) and mT5 (Xue et al. 2020) with a span head (device, JAX).

The encoder reads a row. The decoder reads the same row shifted right by one token and attends to
the encoder's hidden states. The span head takes the decoder's hidden states, as in BART. Positions
are a bias of the attention scores, which depends on how far apart two tokens are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models import layers
from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import (
    along_diagonals,
    attention,
    make_attention_mask,
    make_causal_mask,
)
from qa_flax.models.blocks import Stack
from qa_flax.models.configs import read_config
from qa_flax.models.dropout import dropout
from qa_flax.models.family import Family
from qa_flax.models.layers import ParamPath, embedding, linear, positions_from_0, rms_norm


@dataclass(frozen=True)
class T5Config:
    """The fields of a T5 or mT5 config.json that affect the result; `NAMES` has HF's names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    decoder_layers: int
    num_attention_heads: int
    head_size: int
    intermediate_size: int
    hidden_act: str
    is_gated: bool
    hidden_dropout_prob: float
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_eps: float
    initializer_factor: float
    decoder_start_token_id: int

    SPLIT: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    NAMES: ClassVar = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "decoder_layers": "num_decoder_layers",
        "num_attention_heads": "num_heads",
        "head_size": "d_kv",
        "intermediate_size": "d_ff",
        "hidden_act": "dense_act_fn",
        "is_gated": "is_gated_act",
        "hidden_dropout_prob": "dropout_rate",
        "layer_norm_eps": "layer_norm_epsilon",
    }

    @property
    def attention_probs_dropout_prob(self) -> float:
        """The one dropout rate of all places."""
        return self.hidden_dropout_prob

    @property
    def initializer_range(self) -> float:
        """The standard deviation of the token embeddings; see `initial_array`."""
        return self.initializer_factor

    @property
    def pad_token_id(self) -> None:
        """None: the padding token's vector is trained like any other."""

    @property
    def max_position_embeddings(self) -> None:
        """None: relative positions have no limit."""

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "T5Config":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        family = values["model_type"]
        # T5's config class has no `decoder_start_token_id`, although its files do.
        values = {"decoder_start_token_id": None, **values}
        for name in ("pad_token_id", "decoder_start_token_id"):
            if values[name] is None:
                raise ValueError(
                    f"{name}=None is not supported for {family}; set it to the id of a token"
                )
        _check_activation(values)
        config = read_config(cls, values, names=cls.NAMES)
        buckets = config.relative_attention_num_buckets
        if buckets < 4 or config.relative_attention_max_distance <= buckets // 2:
            raise ValueError(
                f"relative_attention_num_buckets={buckets} with relative_attention_max_distance="
                f"{config.relative_attention_max_distance} is not supported for {family}; "
                "supported: 4 buckets or more, and a distance of more than half their number"
            )
        return config


def _check_activation(values: Mapping[str, Any]) -> None:
    """Refuse an unknown `feed_forward_proj`, or settings derived from it that contradict it."""
    *gate, activation = str(values["feed_forward_proj"]).split("-")
    if activation not in ACTIVATIONS or gate not in ([], ["gated"]):
        raise ValueError(
            f"feed_forward_proj={values['feed_forward_proj']!r} is not supported; supported: "
            f"{', '.join(sorted(ACTIVATIONS))}, each also with 'gated-' before it"
        )
    # As in HF, T5 1.1's "gated-gelu" means the approximation.
    function = "gelu_new" if (gate, activation) == (["gated"], "gelu") else activation
    for name, expected in (("is_gated_act", bool(gate)), ("dense_act_fn", function)):
        if values[name] != expected:
            raise ValueError(
                f"{name}={values[name]!r} contradicts feed_forward_proj="
                f"{values['feed_forward_proj']!r}, which means {name}={expected!r}; "
                "correct one of the two, or remove the former"
            )


def relative_position_buckets(
    relative: Int[np.ndarray, " n"], buckets: int, max_distance: int, is_causal: bool
) -> Int[np.ndarray, " n"]:
    """The bucket, 0 to `buckets - 1`, of each relative position (the key's minus the query's).

    Without `is_causal`, keys after the query have the upper half of the buckets; with it they share
    the bucket of distance 0, since they are masked. Half of the buckets of a direction hold a
    single distance, the others logarithmically growing ranges up to `max_distance`.
    """
    if is_causal:
        offset, distance = np.zeros_like(relative), np.maximum(-relative, 0)
    else:
        buckets //= 2
        offset, distance = buckets * (relative > 0), np.abs(relative)
    exact = buckets // 2
    # float32, as in PyTorch: where the exact result is a whole number, its rounding error decides.
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    scale = np.float32(np.log(max_distance / exact))
    far = exact + (ratio / scale * np.float32(buckets - exact)).astype(relative.dtype)
    return offset + np.where(distance < exact, distance, np.minimum(far, buckets - 1))


class T5Attention(nnx.Module):
    """Multi-head attention without biases and without scaling of the scores.

    The heads together may have another size than the hidden states.
    """

    def __init__(self, config: T5Config, *, dtype: jnp.dtype):
        h, inner = config.hidden_size, config.num_attention_heads * config.head_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = linear(h, inner, dtype, bias=False)
        self.key = linear(h, inner, dtype, bias=False)
        self.value = linear(h, inner, dtype, bias=False)
        self.out = linear(inner, h, dtype, bias=False)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l k"],
        bias: Float[Array, "#b #a l k"] | None = None,
        source: Float[Array, "b k h"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """As `blocks.SelfAttention`."""
        source = hidden if source is None else source
        query, key, value = (
            project(x, rngs=rngs).reshape(*x.shape[:2], self.heads, -1)
            for project, x in ((self.query, hidden), (self.key, source), (self.value, source))
        )
        mixed = attention(
            query, key, value, mask, bias, scale=1.0, dropout_rate=self.dropout_rate, rngs=rngs
        )
        return self.out(mixed.reshape(*hidden.shape[:2], -1), rngs=rngs)


class T5Block(nnx.Module):
    """A pre-norm layer of the encoder or, with `cross_attention`, of the decoder."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, cross_attention: bool):
        h, f = config.hidden_size, config.intermediate_size
        norm = (h, config.layer_norm_eps, dtype)
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob
        self.attention = T5Attention(config, dtype=dtype)
        self.attention_norm = rms_norm(*norm)
        if cross_attention:
            self.cross_attention = T5Attention(config, dtype=dtype)
            self.cross_attention_norm = rms_norm(*norm)
        self.is_gated = config.is_gated
        if config.is_gated:
            self.gate = linear(h, f, dtype, bias=False)
            self.gated_up = linear(h, f, dtype, bias=False)
        else:
            self.up = linear(h, f, dtype, bias=False)
        self.down = linear(f, h, dtype, bias=False)
        self.mlp_norm = rms_norm(*norm)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l l"],
        bias: Float[Array, "1 a l l"],
        encoded: Float[Array, "b k h"] | None = None,
        encoded_mask: Bool[Array, "b 1 #l k"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Return the new hidden states; `encoded` and its mask are as in `bart.BartBlock`."""
        attended = self.attention(self.attention_norm(hidden), mask, bias, rngs=rngs)
        hidden = hidden + dropout(attended, self.dropout_rate, rngs)
        if encoded is not None and encoded_mask is not None:
            normed = self.cross_attention_norm(hidden)
            attended = self.cross_attention(normed, encoded_mask, None, encoded, rngs=rngs)
            hidden = hidden + dropout(attended, self.dropout_rate, rngs)
        mixed = self._mlp(self.mlp_norm(hidden), rngs=rngs)
        return hidden + dropout(mixed, self.dropout_rate, rngs)

    def _mlp(self, hidden: Array, *, rngs: nnx.Rngs | None) -> Array:
        activated = self.gate if self.is_gated else self.up
        inner = ACTIVATIONS[self.activation](activated(hidden, rngs=rngs))
        if self.is_gated:
            inner = inner * self.gated_up(hidden, rngs=rngs)
        return self.down(dropout(inner, self.dropout_rate, rngs), rngs=rngs)


class T5Stack(nnx.Module):
    """The encoder or, with `is_decoder`, the decoder: blocks, position bias and a final norm."""

    # HF's first block holds the bias that all blocks use.
    beside_layers: ClassVar = {"distance_bias": 0, "norm": -1}

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, is_decoder: bool):
        self.is_decoder = is_decoder
        self.dropout_rate = config.hidden_dropout_prob
        self.max_distance = config.relative_attention_max_distance
        self.distance_bias = embedding(
            config.relative_attention_num_buckets, config.num_attention_heads
        )
        count = config.decoder_layers if is_decoder else config.num_hidden_layers
        self.layers = Stack(
            T5Block(config, dtype=dtype, cross_attention=is_decoder) for _ in range(count)
        )
        self.norm = rms_norm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(
        self,
        embedded: Float[Array, "b l h"],
        mask: Bool[Array, "b 1 #l l"],
        *layer_args: Any,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Hidden states of the tokens' vectors `embedded`; every block gets `layer_args`."""
        hidden = dropout(embedded, self.dropout_rate, rngs)
        bias = self._bias(embedded.shape[1])
        hidden = self.layers(hidden, mask, bias, *layer_args, rngs=rngs)
        return dropout(self.norm(hidden), self.dropout_rate, rngs)

    def _bias(self, length: int) -> Float[Array, "1 a l l"]:
        """What is added to the scores of every head, by relative position."""
        buckets = relative_position_buckets(
            np.arange(1 - length, length),
            self.distance_bias.num_embeddings,
            self.max_distance,
            self.is_decoder,
        )
        biases = self.distance_bias(jnp.asarray(buckets)).T
        rows = jnp.broadcast_to(biases[:, None], (biases.shape[0], length, biases.shape[1]))
        return along_diagonals(rows)[None]


class T5Model(nnx.Module):
    """Encoder and decoder with a shared token embedding table."""

    run_order: ClassVar = ("encoder", "decoder")

    def __init__(self, config: T5Config, *, dtype: jnp.dtype):
        self.dtype = dtype
        self.first_token = config.decoder_start_token_id
        self.word = embedding(config.vocab_size, config.hidden_size)
        self.encoder = T5Stack(config, dtype=dtype, is_decoder=False)
        self.decoder = T5Stack(config, dtype=dtype, is_decoder=True)

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
        """The decoder's hidden states, called as `encoder.Encoder`; token types are ignored.

        Raises `ValueError` for `position_ids`.
        """
        if position_ids is not None:
            raise ValueError(
                "t5 and mt5 have no position_ids: their positions are the distances between the "
                "tokens of a row; leave position_ids out"
            )
        mask = make_attention_mask(attention_mask, segment_ids)
        encoded = self.encoder(self.word(input_ids).astype(self.dtype), mask, rngs=rngs)

        starts = positions_from_0(input_ids, None, segment_ids, None) == 0
        decoder_ids = jnp.where(starts, self.first_token, jnp.roll(input_ids, 1, axis=1))
        causal = make_causal_mask(input_ids, segment_ids)
        embedded = self.word(decoder_ids).astype(self.dtype)
        return self.decoder(embedded, causal, encoded, mask, rngs=rngs)


def initial_array(
    path: ParamPath, shape: tuple[int, ...], config: T5Config, random: np.random.Generator
) -> np.ndarray:
    """As in HF: normal distributions whose deviations depend on the sizes of the layers."""
    factor, h = config.initializer_factor, config.hidden_size
    if path[-1] == "scale":
        return np.full(shape, factor, np.float32)
    deviations = {
        "word": 1.0,
        "query": (h * config.head_size) ** -0.5,
        "out": (config.num_attention_heads * config.head_size) ** -0.5,
        "down": config.intermediate_size**-0.5,
    }
    deviation = factor * deviations.get(path[-2], h**-0.5)
    return layers.initial_array(path, shape, config, random, deviation=deviation)


def _layer_names(stack: str, mlp: int) -> dict[str, str]:
    """The names of the modules in a stack's blocks, whose sublayer number `mlp` is the mlp."""
    pattern, block = rf"{stack}\.layers\.(\d+)\.", rf"{stack}.block.\1.layer."
    attention, cross = block + r"0.SelfAttention.", block + r"1.EncDecAttention."
    dense = block + rf"{mlp}.DenseReluDense."
    bias = rf"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    # HF shortens query, key, value and out to their first letters.
    return {
        pattern + r"attention\.(q|k|v|o)\w*": attention + r"\2",
        rf"{stack}\.distance_bias": bias,
        pattern + r"attention_norm": block + r"0.layer_norm",
        pattern + r"cross_attention\.(q|k|v|o)\w*": cross + r"\2",
        pattern + r"cross_attention_norm": block + r"1.layer_norm",
        pattern + r"up": dense + r"wi",
        pattern + r"gate": dense + r"wi_0",
        pattern + r"gated_up": dense + r"wi_1",
        pattern + r"down": dense + r"wo",
        pattern + r"mlp_norm": block + rf"{mlp}.layer_norm",
        rf"{stack}\.norm": rf"{stack}.final_layer_norm",
    }


WEIGHT_NAMES = {r"word": r"shared"} | _layer_names("encoder", 1) | _layer_names("decoder", 2)
# Other names of the shared embedding table: a file that stores it once may use any of these. The
# output layer `lm_head` is none of them, because T5 1.1 has another table there.
TIED_NAMES: dict[str, str] = dict.fromkeys(
    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"
)
UNUSED_WEIGHTS = (
    *map(re.escape, TIED_NAMES),
    r"lm_head\..*",
    r"classification_head\..*",
    # Old checkpoints have a bias of the decoder's cross-attention, which no model computes with.
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)

_T5 = Family(
    "t5",
    T5Config.from_hf,
    T5Model,
    WEIGHT_NAMES,
    prefix="",
    base_model_prefix="transformer",
    architecture="T5ForQuestionAnswering",
    positional_inputs=(),
    unused_weights=UNUSED_WEIGHTS,
    tied_names=TIED_NAMES,
    other_names=TIED_NAMES,
    initial_array=initial_array,
)
FAMILY = (_T5, replace(_T5, model_type="mt5", architecture="MT5ForQuestionAnswering"))
