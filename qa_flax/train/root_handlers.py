"""Prevent Orbax from adding a handler to the root logger, and from printing tracebacks (host).

Orbax logs with absl when it is imported, saves and restores. absl's `logging.log` calls
`logging.basicConfig()` if the root logger has no handler, and that handler would print the
application's own warnings, in a format that the application did not choose.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def keep_root_handlers() -> Iterator[None]:
    """A context in which absl adds no handler to the root logger.

    If the root logger has no handler, it temporarily gets `logging.lastResort`, the handler that
    Python uses in that case anyway. So warnings look the same inside the context and outside.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    stand_in = logging.lastResort or logging.NullHandler()
    root.addHandler(stand_in)
    try:
        yield
    finally:
        root.removeHandler(stand_in)


@contextmanager
def orbax_errors_raised_only() -> Iterator[None]:
    """A context in which an error of Orbax is the exception that it raises, and nothing else.

    Orbax also logs it, with its traceback. And once one of its writers has failed, it closes the
    event loop, which the others then miss: tensorstore hands that error to `sys.unraisablehook`.
    """
    absl, before = logging.getLogger("absl"), sys.unraisablehook
    was_disabled, absl.disabled = absl.disabled, True

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        absl.disabled = was_disabled
        if sys.unraisablehook is hook:
            sys.unraisablehook = before
