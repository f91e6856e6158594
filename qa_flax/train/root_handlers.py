"""Keeps orbax from adding a handler to the root logger (host).

absl's `logging.log`, which orbax calls when it is imported, saves and restores, calls
`logging.basicConfig()` if the root logger has no handler. That would print the application's own
warnings in another format than it chooses later on.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keep_root_handlers() -> Iterator[None]:
    """Inside, absl adds no handler to the root logger.

    A root logger without handlers gets Python's handler of last resort for the time, so warnings
    are printed as they are without any.
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
