"""Stage 4 of 7: the pieces every encoder is built from (device, JAX).

Axis letters: `b` rows, `l` tokens (`q` asking, `k` asked), `h` hidden, `a` heads, `d` head size,
`f` mlp.
Parameters are float32. `dtype` is the compute dtype of the matrix products; attention's softmax,
LayerNorm's statistics and the span logits are float32 whatever it is.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.dropout import dropout
from qa_flax.models.sharding import is_shard, rows_of

# Where a parameter is in a model: attribute names and, in a list, indexes.
ParamPath = tuple[Any, ...]


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


# A module is made with parameters that take no memory, for their shapes: `weights.py` fills it
# from a checkpoint or with `initial_array`. The source of random numbers NNX asks for gives none.


class _NoRandomNumbers:
    """In place of `nnx.Rngs`, whose keys take longer to make than all else in a layer."""

    def params(self) -> None:
        """No key."""


NO_RNGS: Any = _NoRandomNumbers()


def zeros(key: object, shape: tuple[int, ...], dtype: Any = jnp.float32, *_: Any) -> Any:
    """An initializer as NNX calls it: one zero seen as `shape`, read-only; `key` is not used."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def ones(key: object, shape: tuple[int, ...], dtype: Any = jnp.float32, *_: Any) -> Any:
    """As `zeros`, of ones."""
    return np.broadcast_to(np.ones((), dtype), shape)


class Dense(nnx.Linear):
    """`nnx.Linear` that takes its caller's `rngs`, as every module here does.

    It has no use for them; `lora.LoraLinear`, which may stand in its place, drops out its input.
    """

    def __call__(
        self,
        inputs: Float[Array, "*rows n_in"],
        out_sharding: Any = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "*rows n_out"]:
        """`x W + b` in the compute dtype. `out_sharding` is NNX's."""
        return super().__call__(inputs, out_sharding)


def linear(n_in: int, n_out: int, dtype: jnp.dtype, *, bias: bool = True) -> Dense:
    """A dense layer, kernel `[n_in, n_out]`, multiplying in `dtype`."""
    return Dense(
        n_in, n_out, use_bias=bias, dtype=dtype, kernel_init=zeros, bias_init=zeros, rngs=NO_RNGS
    )


def layer_norm(size: int, epsilon: float, dtype: jnp.dtype, *, bias: bool = True) -> nnx.LayerNorm:
    """LayerNorm over the last axis with the checkpoint's epsilon and float32 statistics."""
    # The fast variance, E[x^2] - E[x]^2, loses digits when the mean is large.
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        use_bias=bias,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=ones,
        bias_init=zeros,
        rngs=NO_RNGS,
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
    return Table(n, size, embedding_init=zeros, rngs=NO_RNGS)


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
    biases 0, and zeros for the padding token.

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
        self.embedding = Fixed(zeros(None, (n, size)))

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows size"]:
        """The vectors of `ids`."""
        return self.embedding[...][ids]


class Embeddings(nnx.Module):
    """Token + token type + position vectors, normalised: `[b, l] -> [b, l, size]`.

    `types=0` or `positions=0`: there is no such table; `normalised=False`: no norm. Neither the
    padding token nor position `padding_position` is ever trained.
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


# ---- positions -----------------------------------------------------------------------------------


def sinusoids(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines of positions 0 to n - 1 (Vaswani et al. 2017), float64 `[n, size / 2]`."""
    angles = np.arange(n)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    return np.sin(angles), np.cos(angles)


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


def check_length(length: int, limit: int | None) -> None:
    """`ValueError` for rows longer than the checkpoint has positions; None: they have no end."""
    if limit is not None and length > limit:
        raise ValueError(
            f"rows of {length} tokens, but this checkpoint has {limit} positions "
            f"(max_position_embeddings); use max_seq_length <= {limit}"
        )


def positions_from_0(
    input_ids: Int[Array, "b l"],
    position_ids: Int[Array, "b l"] | None,
    segment_ids: Int[Array, "b l"] | None,
    limit: int | None,
) -> Int[Array, "#b l"]:
    """`position_ids` if given, else counted from 0, again in every segment.

    `ValueError` for unpacked rows longer than `limit`, where there is one.
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
    """As RoBERTa counts: tokens from `padding + 1` on, and every padding token has `padding`.

    `limit` is the number of rows of the position table. `ValueError` for rows that are too long.
    """
    if position_ids is not None:
        return position_ids
    real = (input_ids != padding).astype(input_ids.dtype)
    before = jnp.cumsum(real, axis=1) - real
    if segment_ids is not None:
        # The padding token may be in a window's text too, and may not be what is between windows.
        real, before = real * (segment_ids > 0), restarting_positions(segment_ids, before)
    else:
        check_length(input_ids.shape[1], limit - padding - 1)
    return (before + 1) * real + padding
