"""Check that packed attention is right on this device, before the first packed step (device, JAX).

Attention that ignores segments is wrong in silence: the loss falls all the same. It has happened in
other packages on GPUs, with kernels that do not know segments.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from qa_flax.models.attention import attention, make_attention_mask
from qa_flax.models.transfers import to_device, to_host

TOLERANCES = {"float32": 2e-3, "bfloat16": 3e-2}
"""The largest difference that rounding explains, on any device; a mixture differs by about 1."""


@lru_cache
def packed_error(dtype: str) -> float:
    """Return by how much the attention of two packed windows differs from that of each alone.

    Args:
        dtype: the compute dtype.

    Returns:
        The largest difference, relative to the largest value.
    """
    random = np.random.default_rng(0)
    length, heads, size = 128, 2, 64
    arrays = random.normal(0, 2, (3, 1, length, heads, size)).astype(np.float32)
    query, key, value = arrays.astype(jnp.dtype(dtype))
    segments = np.repeat([1, 2, 0], [50, 70, 8])[None]

    @jax.jit
    def packed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        ids = jnp.asarray(segments, jnp.int32)  # a constant of the program
        return attention(query, key, value, make_attention_mask((ids > 0).astype(jnp.int32), ids))

    together = to_host(packed(*map(to_device, (query, key, value)))).astype(np.float64)
    error = 0.0
    for number in (1, 2):
        rows = segments[0] == number
        q, k, v = (np.asarray(x, np.float64)[0, rows] for x in (query, key, value))
        scores = np.einsum("qad,kad->aqk", q, k) / np.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        alone = np.einsum("aqk,kad->qad", weights / weights.sum(-1, keepdims=True), v)
        difference = np.abs(together[0, rows] - alone).max() / np.abs(alone).max()
        error = max(error, float(difference) if np.isfinite(difference) else np.inf)
    return error


def describe_packed_error(dtype: str) -> str | None:
    """Return why packed rows cannot be computed on this device; None if they can."""
    error = packed_error(dtype)
    if error <= TOLERANCES[dtype]:
        return None
    return (
        f"attention mixes the windows of a row on this device ({jax.devices()[0].device_kind}): "
        f"two packed windows differ by {error:.2g} from the same windows alone, in {dtype}. Please "
        "report it"
    )
