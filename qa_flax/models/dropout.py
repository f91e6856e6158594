"""Stage 4 of 7: dropout and a fast generator of its random bits (device, JAX)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8, UInt32

from qa_flax.models.tracing import trace_settings


def dropout(
    x: Float[Array, "..."], rate: float, rngs: nnx.Rngs | None, *, is_scores: bool = False
) -> Float[Array, "..."]:
    """Zero each element with probability `rate` and scale the others by `1 / (1 - rate)`.

    Draws one key from the `dropout` stream of `rngs`. Returns `x` itself if `rngs` is None or
    `rate` is 0.

    Args:
        x: the elements.
        rate: the probability; hardware bits round it to a multiple of 1/256, see `drop_by_bytes`.
        rngs: None means no dropout.
        is_scores: whether the last two axes are those of query and key tokens. A TPU uses hardware
            bits faster if these axes are swapped when the bits are drawn.
    """
    if rngs is None or rate == 0.0:
        return x
    key = rngs.dropout()
    if not trace_settings().has_hardware_bits:
        return drop(x, rate, random_words(key, x.shape))
    if not is_scores:
        return drop_by_bytes(x, rate, random_bytes(key, x.shape))
    *axes, q, k = x.shape
    return drop_by_bytes(x, rate, jnp.swapaxes(random_bytes(key, (*axes, k, q)), -1, -2))


def drop(x: Float[Array, "..."], rate: float, words: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """As `dropout`, with a random word for each element."""
    # An element is kept if its random word is below `limit`; the scale uses that exact probability.
    limit = min(round((1.0 - rate) * 2**32), 2**32 - 1)
    keep = words < np.uint32(limit)
    return jnp.where(keep, x * (2**32 / limit if limit else 0.0), jnp.zeros((), x.dtype))


def drop_by_bytes(
    x: Float[Array, "..."], rate: float, values: UInt8[Array, "..."]
) -> Float[Array, "..."]:
    """As `dropout`, with a random byte for each element.

    The probability is `rate` rounded to a multiple of 1/256, at least 1/256. The scale uses that
    probability, so the mean is preserved.
    """
    limit = 0 if rate >= 1.0 else min(max(round((1.0 - rate) * 2**8), 1), 2**8 - 1)
    keep = values < np.uint8(limit)
    return jnp.where(keep, x * (2**8 / limit if limit else 0.0), jnp.zeros((), x.dtype))


def random_bytes(key: Array, shape: tuple[int, ...]) -> UInt8[Array, "..."]:
    """Random bytes from the generator of the key; with a key of `parallel.run_key` the chip's."""
    return jax.random.bits(key, shape, jnp.uint8)


def random_words(key: Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random 32-bit words for dropout masks; not for use where JAX's own streams are expected.

    Hashes each element's index twice with "lowbias32" (C. Wellons, hash-prospector), each time
    mixed with 32 new bits of `key`.
    """
    # XLA fuses this hash into the operation that uses it. `jax.random.bits` runs separately: for
    # the attention of 8 windows of 384 tokens on two CPU cores it took ten times as long as the
    # masking itself.
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    return words_at(random_bits(key), index).reshape(shape)


def random_bits(key: Array) -> UInt32[Array, "2"]:
    """The bits of a key that `words_at` takes."""
    return jax.random.bits(key, (2,), jnp.uint32)


def words_at(bits: UInt32[Array, "2"], index: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The words of `random_words` at flat indices, with `random_bits` of the same key."""
    return _mix(_mix(index ^ bits[0]) ^ bits[1])


def _mix(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)
