"""Prevent Orbax from adding a handler to the root logger, and from printing tracebacks (host).

Orbax logs with absl when it is imported, saves and restores. absl's `logging.log` calls
`logging.basicConfig()` if the root logger has no handler, and that handler would print the
application's own warnings, in a format that the application did not choose.
"""

import logging
import re
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
    Errors of further writers, for which nobody waits any more, are logged by asyncio when their
    futures are deleted, which may be long after the context.
    """
    absl, before = logging.getLogger("absl"), sys.unraisablehook
    was_disabled, absl.disabled = absl.disabled, True

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    except BaseException:
        logging.getLogger("asyncio").addFilter(_is_no_error_of_tensorstore)
        raise
    finally:
        absl.disabled = was_disabled
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def _is_no_error_of_tensorstore(record: logging.LogRecord) -> bool:
    """Whether asyncio reports something else than an array that could not be written."""
    error = record.exc_info[1] if record.exc_info else None
    is_unretrieved = "exception was never retrieved" in record.getMessage()
    return not (is_unretrieved and re.search("tensorstore|OCDBT", str(error), re.IGNORECASE))
