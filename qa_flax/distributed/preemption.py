"""Handle SIGTERM (preemption) and Ctrl-C: stop at the next point that a run can be resumed from.

A single process handles the signal itself. Several processes must stop at the same point, or the
cores of one would wait for those of another. Therefore all of them poll JAX's preemption service at
every such point, with consecutive numbers, and the service picks a point that none has passed. The
first poll must come before the signal. The service knows SIGTERM only, so a process that Ctrl-C
interrupts sends itself SIGTERM, and at the common point all learn which of the two it was.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

from jax.experimental import multihost_utils

from qa_flax.distributed import exchange, failure, processes

STATUS = 128 + signal.SIGTERM
"""The exit status of a process that SIGTERM stopped: 143."""


class Preempted(SystemExit):
    """SIGTERM stopped the work. If unhandled, the process exits with status 143."""

    def __init__(self):
        super().__init__(STATUS)

    def __str__(self) -> str:
        return "stopped by SIGTERM; a training is resumed by train(resume_from_checkpoint=True)"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a training, at a point from which it can be resumed, in every process."""


@dataclass
class _State:
    contexts: int = 0  # how many are entered
    signalled: bool = False
    interrupted: bool = False  # by SIGINT, in the latest `interrupt_handled`
    is_raised: bool = False  # whether `check` has raised `Interrupted` for it
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


@contextmanager
def interrupt_handled(*, exits: bool) -> Iterator[None]:
    """A context in which the first Ctrl-C ends nothing: the next `check` raises `Interrupted`.

    One that no `check` has seen is raised when the context exits. A program that has set a handler
    of its own for SIGINT keeps it, and in a thread that is not the main one nothing changes.

    Args:
        exits: what a second Ctrl-C does. True: the process exits at once with status 130, even
            while a program is compiled. False: it raises `KeyboardInterrupt`, as outside of the
            context.

    Raises:
        Interrupted: Ctrl-C, or another SIGINT, was received.
    """
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if is_main else None
    if previous is not signal.default_int_handler:
        yield
        return
    _state.interrupted = _state.is_raised = False
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        with _exit_at_second() if exits else nullcontext():
            yield
        if _state.interrupted and not _state.is_raised and processes.count() == 1:
            raise Interrupted  # several processes stop at a point that JAX's service picks
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _exit_at_second() -> Iterator[None]:
    """A context in which a second SIGINT exits the process, whatever the main thread does.

    Python calls handlers in the main thread only, between two of its own instructions, and so not
    while a program is compiled. But it writes the number of each signal to a file at once.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_wait_for_second, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)


def _wait_for_second(reader: int) -> None:
    interrupts = 0
    while numbers := os.read(reader, 64):
        interrupts += numbers.count(signal.SIGINT)
        if interrupts > 1:
            print("qa-flax: interrupted twice", file=sys.stderr)
            failure.exit_all(failure.INTERRUPTED, "interrupted twice")
            failure.end(failure.INTERRUPTED)
    os.close(reader)


def check() -> None:
    """Raise if SIGTERM or Ctrl-C was received; with several processes, in all at the same point.

    Every process must call it equally often, at the same points. Outside `sigterm_handled` it does
    nothing.

    Raises:
        Preempted: SIGTERM was received.
        Interrupted: Ctrl-C was received in `interrupt_handled`, with several by one of them.
    """
    if not _state.contexts:
        return
    if processes.count() > 1:
        if _poll():
            is_new = _state.interrupted and not _state.is_raised
            interrupted = any(exchange.all_gather_json("whether Ctrl-C stops the run", is_new))
            _state.is_raised = True
            raise Interrupted if interrupted else Preempted
    elif _state.signalled:
        _state.signalled = False
        raise Preempted
    elif _state.interrupted and not _state.is_raised:
        _state.is_raised = True
        raise Interrupted


def _poll() -> bool:
    _state.polls += 1
    return multihost_utils.reached_preemption_sync_point(_state.polls)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _state.signalled = True


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if _state.interrupted:
        signal.default_int_handler(number, frame)
    _state.interrupted = True
    if processes.count() > 1:
        signal.raise_signal(signal.SIGTERM)  # JAX's service has its handler
