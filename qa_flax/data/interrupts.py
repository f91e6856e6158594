"""Ctrl-C, or interrupting a notebook's cell, where it would do harm or be lost (host)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """A context that SIGINT does not interrupt: it acts when the context exits.

    A step releases the old weights, so an exception between the step and the statement that stores
    the new ones would lose both. A tokenizer creates so many objects at once that Python collects
    garbage before it returns; JAX is called then, and Python drops what is raised in such a call.

    Contexts may be nested. Only the main thread receives SIGINT;
    in other threads, and where SIGINT has no handler in Python, the context does nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if is_main else None
    if not callable(previous):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    for arguments in received:
        previous(*arguments)
