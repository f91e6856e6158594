"""Stage 4 of 7: the layers that every encoder is built from (device, JAX).

Axis letters: `b` rows, `l` tokens (`q` query and `k` key tokens), `h` hidden size, `a` attention
heads, `d` head size, `f` MLP size.
Parameters are float32. `dtype` is the compute dtype of the matrix products. The attention softmax,
the LayerNorm statistics and the span logits are always float32.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.dropout import dropout
from qa_flax.models.padded import is_padded, is_wrapped, padded_rows_of
from qa_flax.models.sharding import is_shard, rows_of

# A parameter's path in a model: attribute names and list indexes.
ParamPath = tuple[Any, ...]


@runtime_checkable
class BlockConfig(Protocol):
    """The settings that the modules below read from a family's config, by Hugging Face's names."""

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


# A new module's parameters are placeholders: they have a shape but take no memory. `weights.py`
# replaces them by a checkpoint's values or those of `initial_array`. NNX needs no random numbers.


class _NoRandomNumbers:
    """Replaces `nnx.Rngs`: creating its keys takes longer than everything else in a layer."""

    def params(self) -> None:
        """No key."""


NO_RNGS: Any = _NoRandomNumbers()


def zeros(key: object, shape: tuple[int, ...], dtype: Any = jnp.float32, *_: Any) -> Any:
    """An NNX initializer: a single zero broadcast to `shape`, read-only; `key` is ignored."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def ones(key: object, shape: tuple[int, ...], dtype: Any = jnp.float32, *_: Any) -> Any:
    """As `zeros`, with ones."""
    return np.broadcast_to(np.ones((), dtype), shape)


class Dense(nnx.Linear):
    """`nnx.Linear` that accepts `rngs`, like every module of this package.

    It ignores them. `lora.LoraLinear`, which can replace it, needs them for dropout.
    """

    def __call__(
        self,
        inputs: Float[Array, "*rows n_in"],
        out_sharding: Any = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "*rows n_out"]:
        """Compute `x W + b` in the compute dtype; `out_sharding` is an argument of NNX."""
        return super().__call__(inputs, out_sharding)


def linear(n_in: int, n_out: int, dtype: jnp.dtype, *, bias: bool = True) -> Dense:
    """A dense layer with a kernel `[n_in, n_out]` and the compute dtype `dtype`."""
    return Dense(
        n_in, n_out, use_bias=bias, dtype=dtype, kernel_init=zeros, bias_init=zeros, rngs=NO_RNGS
    )


def layer_norm(size: int, epsilon: float, dtype: jnp.dtype, *, bias: bool = True) -> nnx.LayerNorm:
    """LayerNorm over the last axis, with float32 statistics."""
    # The fast variance, E[x^2] - E[x]^2, loses precision if the mean is large.
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


def rms_norm(size: int, epsilon: float, dtype: jnp.dtype) -> nnx.RMSNorm:
    """LayerNorm without mean and bias (Zhang and Sennrich 2019), with float32 statistics."""
    return nnx.RMSNorm(size, epsilon=epsilon, dtype=dtype, scale_init=ones, rngs=NO_RNGS)


class Table(nnx.Embed):
    """`nnx.Embed` whose table may be a `Shard` or a `PaddedTable`."""

    def __call__(
        self, inputs: Int[Array, "*rows"], out_sharding: Any = None
    ) -> Float[Array, "*rows size"]:
        """Look up the rows `inputs`, ids from 0 to n - 1; the row of any other id is NaN.

        `out_sharding` is an argument of NNX.
        """
        (array,) = jax.tree.leaves(nnx.state(self), is_leaf=is_wrapped)
        if is_padded(array):
            return padded_rows_of(array, inputs)
        return rows_of(array, inputs) if is_shard(array) else super().__call__(inputs, out_sharding)


def embedding(n: int, size: int) -> Table:
    """A table of `n` float32 vectors of `size`."""
    return Table(n, size, embedding_init=zeros, rngs=NO_RNGS)


def look_up(
    table: Callable[..., Array], ids: Int[Array, "*rows"], padding_idx: int | None = None
) -> Float[Array, "*rows size"]:
    """The vectors of `ids`; as in PyTorch, the vector of `padding_idx` gets no gradient."""
    vectors = table(ids)
    if padding_idx is None:
        return vectors
    return jnp.where((ids == padding_idx)[..., None], jax.lax.stop_gradient(vectors), vectors)


def initial_array(
    path: ParamPath,
    shape: tuple[int, ...],
    config: BlockConfig,
    random: np.random.Generator,
    *,
    deviation: float | None = None,
    cutoff: float = np.inf,
) -> np.ndarray:
    """Initial float32 values of a parameter, as in HF's BERT-shaped models.

    Weights are normal(0, `initializer_range`), scales 1, biases 0, the padding token's vector 0.

    Args:
        path: the parameter's path in the model.
        shape: the parameter's shape.
        config: the family's config.
        random: draws the weights.
        deviation: standard deviation of the weights; default `config.initializer_range`.
        cutoff: weights beyond this number of standard deviations are drawn again.
    """
    is_bias = path[-1].endswith("bias")
    if is_bias or path[-1] in ("scale", "gain"):
        return np.full(shape, not is_bias, np.float32)
    array = random.standard_normal(shape, np.float32)
    while (beyond := np.abs(array) > cutoff).any():
        array[beyond] = random.standard_normal(np.count_nonzero(beyond), np.float32)
    array *= np.float32(config.initializer_range if deviation is None else deviation)
    if path[-2:] == ("word", "embedding") and config.pad_token_id is not None:
        array[config.pad_token_id] = 0.0
    return array


class Fixed(nnx.Variable):
    """A tensor that is saved in checkpoints but never trained."""


class Idle(nnx.Module):
    """Arrays of a module that PyTorch's model has and does not use: saved, but never trained."""

    def __init__(self, **shapes: tuple[int, ...]):
        for name, shape in shapes.items():
            setattr(self, name, Fixed(zeros(None, shape)))


class FixedTable(nnx.Module):
    """A table like `embedding` that is never trained."""

    def __init__(self, n: int, size: int):
        self.embedding = Fixed(zeros(None, (n, size)))

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows size"]:
        """The vectors of `ids`."""
        return self.embedding[...][ids]


class Embeddings(nnx.Module):
    """The normalised sum of token, token type and position vectors: `[b, l] -> [b, l, size]`.

    Args:
        config: the family's config.
        dtype: the compute dtype.
        size: the size of the vectors.
        positions: rows of the position table; 0: no such table.
        types: rows of the token type table; 0: no such table.
        padding_position: the position of padding, whose vector is never trained. The vector of
            the padding token is never trained either.
        train_positions: whether the position table is trained.
        norm_bias: whether the LayerNorm has a bias.
        normalised: whether there is a LayerNorm.
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
        """Add up the vectors and apply LayerNorm and dropout. Token types default to 0."""
        summed = self.add_up(input_ids, token_type_ids, position_ids)
        hidden = summed.astype(self.dtype) if self.norm is None else self.norm(summed)
        return dropout(hidden, self.dropout_rate, rngs)

    def add_up(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        position_ids: Int[Array, "#b l"],
    ) -> Float[Array, "b l size"]:
        """The sum of the vectors, in float32 and in HF's order, so that rounding is the same."""
        summed = look_up(self.word, input_ids, self.padding)
        if self.token_type is not None:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            summed = summed + self.token_type(types)
        if self.position is not None:
            summed = summed + look_up(self.position, position_ids, self.padding_position)
        return summed


# ---- positions -----------------------------------------------------------------------------------


def sinusoids(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines, float64 `[n, size / 2]`, of positions 0 to n - 1 (Vaswani et al. 2017)."""
    angles = np.arange(n)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    return np.sin(angles), np.cos(angles)


def restarting_positions(
    segment_ids: Int[Array, "b l"], before: Int[Array, "b l"] | None = None
) -> Int[Array, "b l"]:
    """The position of each token in its segment, counted from 0 where the segment begins.

    `before` is the number of counted tokens before each token in its row. By default every token
    counts.
    """
    if before is None:
        before = jax.lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    return before - jax.lax.cummax(jnp.where(begins, before, 0), axis=1)


def check_length(length: int, limit: int | None) -> None:
    """Raise `ValueError` if rows of `length` tokens exceed `limit` positions; None: no limit."""
    if limit is not None and length > limit:
        raise ValueError(
            f"rows have {length} tokens, but this checkpoint has {limit} positions "
            f"(max_position_embeddings); use max_seq_length <= {limit}"
        )


def positions_from_0(
    input_ids: Int[Array, "b l"],
    position_ids: Int[Array, "b l"] | None,
    segment_ids: Int[Array, "b l"] | None,
    limit: int | None,
) -> Int[Array, "#b l"]:
    """`position_ids` if given, else positions counted from 0 that restart in every segment.

    Raises `ValueError` for unpacked rows of more than `limit` tokens; None: no limit.
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
    """RoBERTa's positions: tokens count from `padding + 1`; padding tokens have position `padding`.

    Args:
        input_ids: token ids.
        position_ids: returned if given.
        segment_ids: positions restart in every segment.
        padding: the id of the padding token.
        limit: the number of rows of the position table.

    Raises:
        ValueError: unpacked rows have more tokens than the table has positions.
    """
    if position_ids is not None:
        return position_ids
    real = (input_ids != padding).astype(input_ids.dtype)
    before = jnp.cumsum(real, axis=1) - real
    if segment_ids is not None:
        # Both tests are needed: a window may contain the padding token, and the tokens between
        # windows may be others.
        real, before = real * (segment_ids > 0), restarting_positions(segment_ids, before)
    else:
        check_length(input_ids.shape[1], limit - padding - 1)
    return (before + 1) * real + padding
