"""Copies between the host and JAX's devices that every transfer guard allows (host).

With `jax.transfer_guard("disallow")` JAX refuses copies that a program did not ask for by name,
such as those of `jnp.array(numpy_array)` and `np.asarray(jax_array)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_device(array: Any, device: Any = None) -> jax.Array:
    """Copy a host array, or a JAX array, to a device, by default to JAX's default device.

    The memory is JAX's own, even on a CPU: a step may donate it, and writing into the host array
    does not change the result.
    """
    if isinstance(array, jax.Array):
        return jax.device_put(array, device, may_alias=False)
    # On a CPU `device_put` uses NumPy's memory if it begins at a multiple of 64 bytes, with
    # `may_alias=False`, too (jax 0.10).
    with implicit_transfers():
        return jnp.array(array, copy=True, device=device)


def to_host(array: Any) -> np.ndarray:
    """A JAX array as a NumPy array, which may be read-only; other arrays as they are."""
    return np.asarray(jax.device_get(array) if isinstance(array, jax.Array) else array)


def implicit_transfers() -> Any:
    """Return a context for code that creates arrays, whose constants JAX copies to the device.

    A script may have forbidden that with `jax.transfer_guard("disallow")`, to find needless copies
    in its steps.
    """
    return jax.transfer_guard("allow")
