"""Stage 4 of 7: the pieces every encoder is built from (device, JAX).

Axis letters: `b` rows, `l` tokens (`q` asking, `k` asked), `h` hidden, `a` heads, `d` head size,
`f` mlp.
Parameters are float32. `dtype` is the compute dtype of the matrix products; attention's softmax,
LayerNorm's statistics and the span logits are float32 whatever it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from qa_flax.models.sharding import has_shards, is_shard, rows_of, whole

# Where a parameter is in a model: attribute names and, in a list, indexes.
ParamPath = tuple[Any, ...]


class SpanLogits(NamedTuple):
    """What a question answering model returns: a score per token to begin and to end the answer.

    Both fields are float32 `[b, l]`; `start_logits` and `end_logits` are Hugging Face's names.
    """

    start: Float[Array, "b l"]
    end: Float[Array, "b l"]

    @property
    def start_logits(self) -> Float[Array, "b l"]:
        """Hugging Face's name of `start`."""
        return self.start

    @property
    def end_logits(self) -> Float[Array, "b l"]:
        """Hugging Face's name of `end`."""
        return self.end


# ---- activations ---------------------------------------------------------------------------------

# Hugging Face's "gelu" is the exact one (erf); the tanh forms differ from it by up to 5e-4.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_python": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


# ---- dropout -------------------------------------------------------------------------------------


def dropout(x: Float[Array, "..."], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "..."]:
    """Zero each element with probability `rate` and scale the rest by `1 / (1 - rate)`.

    `rngs=None` (or `rate=0`) returns `x` as it is. Draws one key from the `dropout` stream.
    """
    if rngs is None or rate == 0.0:
        return x
    # The last word below which an element is kept; the scale uses the probability it really gives.
    limit = min(round((1.0 - rate) * 2**32), 2**32 - 1)
    keep = random_words(rngs.dropout(), x.shape) < np.uint32(limit)
    return jnp.where(keep, x * (2**32 / limit if limit else 0.0), jnp.zeros((), x.dtype))


def random_words(key: Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random 32-bit words of `shape`, cheap enough to be free beside an elementwise product.

    Each element's index is mixed twice, each time with 32 fresh bits of `key`, by the "lowbias32"
    integer hash (C. Wellons, hash-prospector). XLA fuses this into the consumer, where
    `jax.random.bits` is a pass of its own: for the attention of 8 windows of 384 tokens on two CPU
    cores that pass took ten times as long as the masking itself.
    For dropout masks only, not for anything that needs JAX's own streams.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    return _mix(_mix(index ^ first) ^ second).reshape(shape)


def _mix(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


_LENT: ContextVar[nnx.Rngs | None] = ContextVar("lent_rngs", default=None)


@contextmanager
def lending(rngs: nnx.Rngs | None) -> Iterator[None]:
    """Lend `rngs` to those layers called inside that get none: `lora.LoraLinear` is one.

    It takes the place of a dense layer, and is called as one.
    """
    token = _LENT.set(rngs)
    try:
        yield
    finally:
        _LENT.reset(token)


def lent_rngs() -> nnx.Rngs | None:
    """What is lent just now; None means no dropout."""
    return _LENT.get()


# ---- attention -----------------------------------------------------------------------------------


def attention_pairs(
    attention_mask: Int[Array, "b l"], segment_ids: Int[Array, "b l"] | None = None
) -> Bool[Array, "b 1 #l l"]:
    """Which token (second-last axis, or 1 for all alike) may look at which token (last axis).

    Real tokens have `attention_mask` 1. With `segment_ids` several windows share a row and see only
    themselves; segment 0 is padding. The one place where attention masks are made.
    """
    pairs = (attention_mask > 0)[:, None, None, :]
    if segment_ids is None:
        return pairs
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return pairs & same & (segment_ids > 0)[:, None, None, :]


def restarting_positions(
    segment_ids: Int[Array, "b l"], before: Int[Array, "b l"] | None = None
) -> Int[Array, "b l"]:
    """Position of each token in its own segment, counted from 0 where a new segment begins.

    `before`: how many tokens that count are before each in its row; all do unless given.
    """
    if before is None:
        before = jax.lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    return before - jax.lax.cummax(jnp.where(begins, before, 0), axis=1)


def check_length(length: int, limit: int) -> None:
    """`ValueError` if rows of `length` tokens are more than the checkpoint has positions for."""
    if length > limit:
        raise ValueError(
            f"rows of {length} tokens, but this checkpoint has {limit} positions "
            f"(max_position_embeddings); use max_seq_length <= {limit}"
        )


def positions_from_0(
    input_ids: Int[Array, "b l"],
    position_ids: Int[Array, "b l"] | None,
    segment_ids: Int[Array, "b l"] | None,
    limit: int,
) -> Int[Array, "#b l"]:
    """`position_ids` if given, else counted from 0, again in every segment.

    `ValueError` for unpacked rows longer than `limit`.
    """
    if position_ids is not None:
        return position_ids
    if segment_ids is not None:
        return restarting_positions(segment_ids)
    check_length(input_ids.shape[1], limit)
    return jnp.arange(input_ids.shape[1])[None, :]


def positions_after_padding(
    input_ids: Int[Array, "b l"],
    position_ids: Int[Array, "b l"] | None,
    segment_ids: Int[Array, "b l"] | None,
    padding: int,
    limit: int,
) -> Int[Array, "b l"]:
    """As RoBERTa counts: tokens from `padding + 1` on, and every padding word has `padding`.

    `limit` is the number of rows of the position table. `ValueError` for rows that are too long.
    """
    if position_ids is not None:
        return position_ids
    real = (input_ids != padding).astype(input_ids.dtype)
    before = jnp.cumsum(real, axis=1) - real
    if segment_ids is not None:
        # The padding word may be in a window's text too, and may not be what is between windows.
        real, before = real * (segment_ids > 0), restarting_positions(segment_ids, before)
    else:
        check_length(input_ids.shape[1], limit - padding - 1)
    return (before + 1) * real + padding


def attention(
    query: Float[Array, "b q a d"],
    key: Float[Array, "b k a d"],
    value: Float[Array, "b k a d"],
    pairs: Bool[Array, "#b 1 #q k"],
    bias: Float[Array, "#b #a q k"] | None = None,
    *,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b q a d"]:
    """Scaled dot-product attention, float32 softmax; dropout falls on the probabilities, as in HF.

    Without dropout it is JAX's own, which has none to offer.

    `bias`, float32, is added to the scaled scores; `scale` is `d ** -0.5` unless given. A token
    that may look at nothing (padding between segments) gets a plain mean, never NaN.
    """
    if rngs is None or dropout_rate == 0.0:
        return jax.nn.dot_product_attention(query, key, value, bias, pairs, scale=scale)
    scores = jnp.einsum("bqad,bkad->baqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    return attend(scores, value, pairs, dropout_rate, rngs)


def attend(
    scores: Float[Array, "b a q k"],
    value: Float[Array, "b k a d"],
    pairs: Bool[Array, "#b 1 #q k"],
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b q a d"]:
    """Values mixed by the softmax of float32 `scores` over the tokens that `pairs` allows."""
    scores = jnp.where(pairs, scores, jnp.finfo(jnp.float32).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, rngs)
    return jnp.einsum("baqk,bkad->bqad", probabilities.astype(value.dtype), value)


# ---- modules -------------------------------------------------------------------------------------


@runtime_checkable
class BlockConfig(Protocol):
    """What the modules below read from a family's config; the names are Hugging Face's."""

    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def intermediate_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_act(self) -> str: ...  # noqa: D102
    @property
    def hidden_dropout_prob(self) -> float: ...  # noqa: D102
    @property
    def attention_probs_dropout_prob(self) -> float: ...  # noqa: D102
    @property
    def initializer_range(self) -> float: ...  # noqa: D102
    @property
    def layer_norm_eps(self) -> float: ...  # noqa: D102
    @property
    def pad_token_id(self) -> int | None: ...  # noqa: D102


# Parameters begin as zeros and `hf.py` fills them, from a checkpoint or with `initial_array`; NNX
# wants a source of random numbers all the same.


def linear(n_in: int, n_out: int, dtype: jnp.dtype, *, bias: bool = True) -> nnx.Linear:
    """A dense layer, kernel `[n_in, n_out]`, multiplying in `dtype`."""
    zeros = nnx.initializers.zeros
    return nnx.Linear(n_in, n_out, use_bias=bias, dtype=dtype, kernel_init=zeros, rngs=nnx.Rngs(0))


def layer_norm(size: int, epsilon: float, dtype: jnp.dtype, *, bias: bool = True) -> nnx.LayerNorm:
    """LayerNorm over the last axis with the checkpoint's epsilon and float32 statistics."""
    # The fast variance, E[x^2] - E[x]^2, loses digits when the mean is large.
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        use_bias=bias,
        dtype=dtype,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )


class Table(nnx.Embed):
    """`nnx.Embed`, that looks up rows on the cores that have them where it is divided."""

    def __call__(
        self, inputs: Int[Array, "*rows"], out_sharding: Any = None
    ) -> Float[Array, "*rows size"]:
        """The rows `inputs`, each from 0 to n - 1; NaN for others. `out_sharding` is NNX's."""
        (array,) = jax.tree.leaves(nnx.state(self), is_leaf=is_shard)
        return rows_of(array, inputs) if is_shard(array) else super().__call__(inputs, out_sharding)


def embedding(n: int, size: int) -> Table:
    """`n` vectors of `size`, looked up in float32."""
    return Table(n, size, embedding_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))


def look_up(
    table: Callable[..., Array], ids: Int[Array, "*rows"], untrained: int | None = None
) -> Float[Array, "*rows size"]:
    """The vectors of `ids`; that of `untrained` gets no gradient (PyTorch's `padding_idx`)."""
    found = table(ids)
    if untrained is None:
        return found
    return jnp.where((ids == untrained)[..., None], jax.lax.stop_gradient(found), found)


def initial_array(
    path: ParamPath,
    shape: tuple[int, ...],
    config: BlockConfig,
    random: np.random.Generator,
    *,
    deviation: float | None = None,
    cutoff: float = np.inf,
) -> np.ndarray:
    """How HF's BERT-shaped models begin: float32 normal(0, `initializer_range`) weights, scales 1,
    biases 0, and zeros for the padding word.

    `deviation` replaces `initializer_range`; weights beyond `cutoff` deviations are drawn again.
    """
    if path[-1] in ("scale", "bias"):
        return np.full(shape, path[-1] == "scale", np.float32)
    array = random.standard_normal(shape, np.float32)
    while (beyond := np.abs(array) > cutoff).any():
        array[beyond] = random.standard_normal(np.count_nonzero(beyond), np.float32)
    array *= np.float32(config.initializer_range if deviation is None else deviation)
    if path[-2:] == ("word", "embedding") and config.pad_token_id is not None:
        array[config.pad_token_id] = 0.0
    return array


class Fixed(nnx.Variable):
    """A tensor of a checkpoint that is never trained."""


class FixedTable(nnx.Module):
    """As `embedding`, but never trained."""

    def __init__(self, n: int, size: int):
        self.embedding = Fixed(jnp.zeros((n, size)))

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows size"]:
        """The vectors of `ids`."""
        return self.embedding[...][ids]


def sinusoids(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines of positions 0 to n - 1 (Vaswani et al. 2017), float64 `[n, size / 2]`."""
    angles = np.arange(n)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    return np.sin(angles), np.cos(angles)


class Embeddings(nnx.Module):
    """Word + token type + position vectors, normalised: `[b, l] -> [b, l, size]`.

    `types=0` or `positions=0`: there is no such table; `normalised=False`: no norm. Neither the
    padding word nor position `padding_position` is ever trained.
    """

    def __init__(
        self,
        config: BlockConfig,
        *,
        dtype: jnp.dtype,
        size: int,
        positions: int,
        types: int,
        padding_position: int | None = None,
        train_positions: bool = True,
        norm_bias: bool = True,
        normalised: bool = True,
    ):
        self.dtype = dtype
        self.dropout_rate = config.hidden_dropout_prob
        self.padding, self.padding_position = config.pad_token_id, padding_position
        self.word = embedding(config.vocab_size, size)
        table = embedding if train_positions else FixedTable
        self.position = table(positions, size) if positions else None
        self.token_type = embedding(types, size) if types else None
        norm = layer_norm(size, config.layer_norm_eps, dtype, bias=norm_bias)
        self.norm = norm if normalised else None

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        position_ids: Int[Array, "#b l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l size"]:
        """Sum in HF's order, so that float32 rounds as there. Token types default to 0."""
        summed = look_up(self.word, input_ids, self.padding)
        if self.token_type is not None:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            summed = summed + self.token_type(types)
        if self.position is not None:
            summed = summed + look_up(self.position, position_ids, self.padding_position)
        hidden = summed.astype(self.dtype) if self.norm is None else self.norm(summed)
        return dropout(hidden, self.dropout_rate, rngs)


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
        pairs: Bool[Array, "b 1 #l k"],
        bias: Float[Array, "#b #a l k"] | None = None,
        source: Float[Array, "b k h"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend where `pairs` allows, with `bias` on the scores."""
        b, l, h = hidden.shape
        source = hidden if source is None else source
        query, key, value = (
            x.reshape(b, -1, self.heads, h // self.heads)
            for x in (self.query(hidden), self.key(source), self.value(source))
        )
        mixed = attention(query, key, value, pairs, bias, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, h))


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
        inner = ACTIVATIONS[self.activation](self.up(hidden))
        return dropout(self.down(inner), self.mlp_dropout_rate, rngs)


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
            with lending(rngs):
                return layer(*inputs, rngs=rngs)

        graphdef, state = nnx.split(layer)
        # A layer put together from shards would be kept for the backward pass, all layers at once.
        if not (self.remat or has_shards(state)):
            return call(layer, key, *inputs)

        def again(state: Any, key: Any, hidden: Array, *rest: Any) -> Any:
            if has_shards(state):
                # Not before it is this layer's turn, or all layers are there at once.
                state, hidden = jax.lax.optimization_barrier((state, hidden))
            return call(nnx.merge(graphdef, whole(state)), key, hidden, *rest)

        return jax.checkpoint(again)(state, key, *inputs)
