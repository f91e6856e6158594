"""Prevent Orbax from adding a handler to the root logger (host).

Orbax logs with absl when it is imported, saves and restores. absl's `logging.log` calls
`logging.basicConfig()` if the root logger has no handler, and that handler would print the
application's own warnings, in a format that the application did not choose.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


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
