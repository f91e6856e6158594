"""Copies that a transfer guard allows."""

import jax
import jax.numpy as jnp
import numpy as np

from qa_flax.models.transfers import implicit_transfers, to_device, to_host


def at_multiple_of_64_bytes():
    """An array whose memory JAX could use without a copy."""
    memory = np.zeros(256, np.uint8)
    begin = -memory.ctypes.data % 64
    source = memory[begin : begin + 24].view(np.float32).reshape(2, 3)
    source[:] = np.arange(6).reshape(2, 3)
    return source


def test_copies_are_allowed_and_independent():
    source = at_multiple_of_64_bytes()
    with jax.transfer_guard("disallow"):
        on_device = to_device(source)
        again = to_device(on_device, jax.devices()[1])
        with implicit_transfers():
            jnp.array(source)
    source[:] = -1
    assert to_host(on_device).tolist() == to_host(again).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert again.devices() == {jax.devices()[1]}
    assert to_host(source) is source


def test_memory_of_jax_may_be_donated():
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    # Large enough for JAX to use NumPy's memory without a copy, if it were allowed to.
    source = np.zeros(1 << 16, np.float32)
    on_device = to_device(source)
    assert to_host(add(on_device)).sum() == 1 << 16
    assert on_device.is_deleted()
    assert not source.any()
