"""Stop all processes when one fails; otherwise the others would wait for its cores forever."""

import atexit
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import jax

from qa_flax.distributed import ProcessError, liveness
from qa_flax.distributed.processes import client, count, index

logger = logging.getLogger(__name__)

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C: 130."""

_POLL_SECONDS = 0.5
_SECONDS_TO_NOTICE = 2.0  # after which `liveness` has noticed the death of a process
_ACKNOWLEDGE_SECONDS = 10.0  # how long process 0 waits until the others have read the failure
_FAILURE, _ACKNOWLEDGED = "qa_flax/failure", "qa_flax/acknowledged"  # keys in the store

_is_watching = _has_hook = False
_exit_functions: list[Callable[[], None]] = []


def propagate_failures() -> None:
    """From now on, exit all processes when one fails; each prints the cause in its own log.

    A process fails when it calls `exit_all`, does not handle an exception, or is killed. For
    exceptions `sys.excepthook` is replaced by one that calls the previous hook first. Repeated
    calls, and calls in a run of one process, do nothing.

    Raises:
        ProcessError: JAX runs on the cores of several processes that have not joined (`join`).
    """
    global _has_hook
    if jax.process_count() != count():
        raise ProcessError(
            f"JAX runs on {jax.process_count()} processes that have not joined: call "
            "jax.distributed.initialize() before any other JAX function (qa-flax: --distributed)"
        )
    watch()
    if count() == 1 or _has_hook:
        return
    _has_hook = True
    previous_hook = sys.excepthook

    def show_and_exit(kind: type, error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Often a consequence of another process's death, which is the better message.
            time.sleep(_SECONDS_TO_NOTICE)
        previous_hook(kind, error, trace)
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        exit_all(status, "".join(traceback.format_exception_only(error)).strip())

    sys.excepthook = show_and_exit


def watch() -> None:
    """Start to watch the other processes, once they have joined; `propagate_failures` does, too."""
    global _is_watching
    if count() == 1 or _is_watching:
        return
    _is_watching = True
    liveness.start(lambda: end(1))
    is_finished = threading.Event()
    watcher = threading.Thread(target=_watch_for_failure, args=(is_finished,), daemon=True)
    watcher.start()
    # Python would crash at exit while the thread calls JAX's service.
    atexit.register(lambda: (is_finished.set(), watcher.join()))


def before_exit(function: Callable[[], None]) -> Callable[[], None]:
    """Have a function called before this process exits because of a failure, here or elsewhere.

    Such an exit skips `finally`, contexts and `atexit`. The function must not wait for others. It
    is returned, so that this can be its decorator.
    """
    _exit_functions.append(function)
    return function


def exit_all(status: int, reason: str) -> None:
    """Exit every process with this status; with one process, return.

    The other processes print `reason`; the caller has already printed it in this one.
    """
    if count() == 1:
        return
    print(f"qa-flax: process {index()} failed, so all processes exit", file=sys.stderr)
    try:
        client().key_value_set(_FAILURE, json.dumps([index(), status, reason]))
    except jax.errors.JaxRuntimeError as error:  # another process failed first, or process 0 exited
        logger.info("The failure could not be reported to the other processes: %s", error)
    _exit(status)


def _watch_for_failure(is_finished: threading.Event) -> None:
    is_connected = False
    while not is_finished.wait(_POLL_SECONDS):
        try:
            is_connected = is_connected or liveness.connect()
            process, status, reason = json.loads(client().key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the service has been shut down: the run has finished
        if process != index():
            print(
                f"qa-flax: process {index()} exits because process {process} failed: {reason}",
                file=sys.stderr,
            )
            _exit(status)
        return


def _exit(status: int) -> None:
    """Exit at once; process 0 first waits until the others have read the failure from its store."""
    # `sys.exit` would wait for the other processes when JAX's service shuts down.
    sys.stdout.flush()
    sys.stderr.flush()
    until = time.monotonic() + _ACKNOWLEDGE_SECONDS
    try:
        client().key_value_set(f"{_ACKNOWLEDGED}/{index()}", "")
        while index() == 0 and time.monotonic() < until:
            if len(client().key_value_dir_get(_ACKNOWLEDGED)) == count():
                break
            time.sleep(0.1)
    except jax.errors.JaxRuntimeError as error:
        logger.info("Process 0 has exited: %s", error)
    end(status)


def end(status: int) -> None:
    """Exit at once, but for the functions that `before_exit` was given."""
    liveness.leave()
    for function in _exit_functions:
        try:
            function()
        except OSError as error:  # the file system may be what failed
            logger.info("Before the exit: %s", error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
