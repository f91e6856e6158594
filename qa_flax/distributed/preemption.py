"""Handle SIGTERM (preemption): stop at the next point from which the run can be resumed.

One process handles the signal itself. Several must stop at the same point, or the cores of one
would wait for those of another: JAX's preemption service finds a point that none of them has
passed yet, if all poll it at every point with consecutive numbers, the first before any signal.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from jax.experimental import multihost_utils

from qa_flax.distributed import processes

STATUS = 128 + signal.SIGTERM


class Preempted(SystemExit):
    """The work has been stopped by SIGTERM; unhandled, it ends the process with status 143."""

    def __init__(self):
        super().__init__(STATUS)


@dataclass
class _State:
    contexts: int = 0  # entered
    signalled: bool = False
    polls: int = 0


# Of the process, as the signal is.
_state = _State()


@contextmanager
def sigterm_handled() -> Iterator[None]:
    """Inside, SIGTERM ends nothing by itself: the next `check` raises `Preempted`.

    Contexts may be nested. With one process a signal not yet seen by `check` is raised when the
    outermost context exits; with several, one received between two contexts is raised when the next
    is entered.

    Raises:
        Preempted: see above.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets nobody but the main thread listen to signals
        return
    _state.contexts += 1
    is_outermost = _state.contexts == 1
    several = processes.count() > 1
    before = None
    if is_outermost and not several:
        _state.signalled = False
        before = signal.signal(signal.SIGTERM, _note)
    try:
        if is_outermost:
            check()  # several processes: a signal before the first poll would never be heard of
        yield
        if is_outermost:
            check()
    finally:
        _state.contexts -= 1
        if is_outermost and not several:
            signal.signal(signal.SIGTERM, before)


def check() -> None:
    """Stop here if SIGTERM has come; with several processes, all of them at this point.

    All processes call it equally often, at the same points.

    Raises:
        Preempted: it has come.
    """
    if not _state.contexts:
        return
    if processes.count() > 1:
        if _poll():
            raise Preempted
    elif _state.signalled:
        _state.signalled = False
        raise Preempted


def _poll() -> bool:
    _state.polls += 1
    return multihost_utils.reached_preemption_sync_point(_state.polls)


def _note(number: int, frame: FrameType | None) -> None:
    _state.signalled = True
