"""The kind of processor that a program is traced for (host)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """In a `with` block, functions are traced for "cpu", "gpu" or "tpu", not for JAX's default.

    A program may be compiled for other devices than those of this machine.
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def traced_platform() -> str:
    """What the function that is being traced will run on: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


def is_for_cpu() -> bool:
    """Whether the function that is being traced will run on a CPU."""
    return traced_platform() == "cpu"
