"""What decides how a program is traced, besides its arguments (host)."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

DROPOUT_BITS = ("hash", "hardware")
"""Where the random bits of dropout come from: `random_words`, or the processor's own generator."""


@dataclasses.dataclass(frozen=True)
class TraceSettings:
    """The settings of a trace. Whatever caches a traced function must be given all of them.

    A new setting belongs here: `blocks.Stack` then traces its layers again where it differs.
    """

    platform: str = "cpu"
    """What the program will run on: "cpu", "gpu" or "tpu". It may be compiled for other devices
    than those of this machine."""

    dropout_bits: str = "hash"
    """One of `DROPOUT_BITS`."""

    sums_in_bf16: bool = False
    """Whether the cores exchange gradients in bfloat16. Half as many bytes are sent. Each core's
    gradient is rounded to bfloat16 (8 bits of precision), and the sum is float32 again. One core
    exchanges nothing, and rounds nothing."""

    @property
    def is_for_cpu(self) -> bool:
        """Whether the program will run on a CPU."""
        return self.platform == "cpu"

    @property
    def has_hardware_bits(self) -> bool:
        """Whether dropout takes the processor's own random bits."""
        return self.dropout_bits == "hardware"


_SETTINGS: ContextVar[TraceSettings | None] = ContextVar("trace_settings", default=None)


def trace_settings() -> TraceSettings:
    """The settings of the function that is being traced; by default for JAX's default backend."""
    return _SETTINGS.get() or TraceSettings(platform=jax.default_backend())


@contextmanager
def traced_with(**changes: Any) -> Iterator[None]:
    """In a `with` block, functions are traced with these `TraceSettings`; others stay as they are.

    >>> with traced_with(platform="tpu"):
    ...     trace_settings().is_for_cpu
    False
    """
    token = _SETTINGS.set(dataclasses.replace(trace_settings(), **changes))
    try:
        yield
    finally:
        _SETTINGS.reset(token)
