"""Handle SIGTERM (preemption): stop at the next point from which the run can be resumed.

A single process handles the signal itself. Several processes must stop at the same point, or the
cores of one would wait for those of another. Therefore all of them poll JAX's preemption service at
every such point, with consecutive numbers, and the service picks a point that none has passed. The
first poll must come before the signal.
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
"""The exit status of a process that SIGTERM stopped: 143."""


class Preempted(SystemExit):
    """SIGTERM stopped the work. If unhandled, the process exits with status 143."""

    def __init__(self):
        super().__init__(STATUS)

    def __str__(self) -> str:
        return "stopped by SIGTERM; a training is resumed by train(resume_from_checkpoint=True)"


@dataclass
class _State:
    contexts: int = 0  # how many are entered
    signalled: bool = False
    polls: int = 0


# Global, because a signal is sent to the whole process.
_state = _State()


@contextmanager
def sigterm_handled() -> Iterator[None]:
    """A context in which SIGTERM does not end the process: the next `check` raises `Preempted`.

    Contexts may be nested. With one process, a signal not yet seen by `check` is raised when the
    outermost context exits. With several, a signal received between two contexts is raised when the
    next one is entered.

    Raises:
        Preempted: SIGTERM was received.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows only the main thread to handle signals
        return
    _state.contexts += 1
    is_outermost = _state.contexts == 1
    has_service = processes.count() > 1
    previous_handler = None
    if is_outermost and not has_service:
        _state.signalled = False
        previous_handler = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        if is_outermost:
            check()  # JAX's service loses a signal that comes before the first poll
        yield
        if is_outermost:
            check()
    finally:
        _state.contexts -= 1
        if is_outermost and not has_service:
            signal.signal(signal.SIGTERM, previous_handler)


def check() -> None:
    """Raise `Preempted` if SIGTERM was received; with several processes, in all at the same point.

    Every process must call it equally often, at the same points. Outside `sigterm_handled` it does
    nothing.

    Raises:
        Preempted: SIGTERM was received.
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


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _state.signalled = True
