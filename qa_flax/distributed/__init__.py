"""Run as several JAX processes: join, exchange values, stop together on failure or SIGTERM.

No stage of its own: a run of one process needs nothing from here, and every call is a no-op.
"""

import warnings
from typing import Any


class ProcessError(RuntimeError):
    """The processes of a run cannot work together; the message names them and a remedy."""


def __getattr__(name: str) -> Any:
    if name == "HostError":
        message = "qa_flax.distributed.HostError is deprecated; use ProcessError instead"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return ProcessError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
