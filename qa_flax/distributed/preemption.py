"""SIGTERM: the machine is about to be taken away. Work stops where it can be gone on with.

One process hears the signal itself. Several must stop at the same place, or the cores of one would
wait for those of another: JAX's preemption service finds a place that none of them has passed yet,
if all poll it at every place, with numbers that follow one another, the first before any signal.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jax.experimental import multihost_utils

from qa_flax.distributed import processes

STATUS = 128 + signal.SIGTERM


class Preempted(SystemExit):
    """The work has been stopped by SIGTERM; unhandled, it ends the process with status 143."""

    def __init__(self):
        super().__init__(STATUS)


class _Notice:
    heeded = 0  # contexts entered
    came = False
    polls = 0


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, SIGTERM ends nothing by itself: `check` raises `Preempted` where it is called next.

    Contexts may be nested. A signal that no `check` has seen raises at the end of the outermost; of
    several processes one that has come between two of them, at the beginning of the next.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets nobody but the main thread listen to signals
        return
    _Notice.heeded += 1
    is_outermost = _Notice.heeded == 1
    several = processes.count() > 1
    before = None
    if is_outermost and not several:
        _Notice.came = False
        before = signal.signal(signal.SIGTERM, _note)
    try:
        if is_outermost:
            check()  # several processes: a signal before the first poll would never be heard of
        yield
        if is_outermost:
            check()
    finally:
        _Notice.heeded -= 1
        if is_outermost and not several:
            signal.signal(signal.SIGTERM, before)


def check() -> None:
    """Raise `Preempted` if SIGTERM has come; with several processes, in all of them at this place.

    All processes call it equally often, at the same places.
    """
    if not _Notice.heeded:
        return
    if processes.count() > 1:
        if _poll():
            raise Preempted
    elif _Notice.came:
        _Notice.came = False
        raise Preempted


def _poll() -> bool:
    _Notice.polls += 1
    return multihost_utils.reached_preemption_sync_point(_Notice.polls)


def _note(number: int, frame: FrameType | None) -> None:
    _Notice.came = True
