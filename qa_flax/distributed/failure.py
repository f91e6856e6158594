"""One process that fails ends all: without it the others would wait for cores that are gone."""

import atexit
import json
import logging
import os
import sys
import threading
import time
import traceback
from types import TracebackType

import jax

from qa_flax.distributed import ProcessError
from qa_flax.distributed.processes import client, count, index

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
_LAST_WORDS = 10.0  # seconds that a failing process waits until the others have heard of it
_FAILURE, _HEARD = "qa_flax/failure", "qa_flax/heard"

_is_watching = False


def end_together() -> None:
    """From now on one process that fails ends all, and each prints what failed in its own log.

    Without it the others would wait for cores that compute no more. A process fails when it calls
    `end_all`, or when an exception is handled by nobody: for the latter `sys.excepthook` is
    replaced (the former hook is called first), once, and only if several processes have joined.
    With one process nothing is changed.

    Raises:
        ProcessError: JAX runs on the cores of several processes that have not joined.
    """
    global _is_watching
    if jax.process_count() != count():
        raise ProcessError(
            f"JAX sees {jax.process_count()} processes that have not joined: call "
            "jax.distributed.initialize() before anything else of JAX (qa-flax: --distributed)"
        )
    if count() == 1 or _is_watching:
        return
    _is_watching = True
    is_over = threading.Event()
    watching = threading.Thread(target=_end_with_others, args=(is_over,), daemon=True)
    watching.start()
    # A thread that is in JAX's service when Python ends would crash it.
    atexit.register(lambda: (is_over.set(), watching.join()))
    show = sys.excepthook

    def show_and_end(kind: type, error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        end_all(1, "".join(traceback.format_exception_only(error)).strip())

    sys.excepthook = show_and_end


def end_all(status: int, why: str) -> None:
    """End every process with this exit status, if there are several; else return.

    The caller has shown `why`, which the others show in their turn.
    """
    if count() == 1:
        return
    print(f"qa-flax: process {index()} failed, so all of them end", file=sys.stderr)
    try:
        client().key_value_set(_FAILURE, json.dumps([index(), status, why]))
    except jax.errors.JaxRuntimeError as error:  # another was first, or the service is gone
        logger.info("The failure could not be reported to the other processes: %s", error)
    _end(status)


def _end_with_others(is_over: threading.Event) -> None:
    while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
        try:
            number, status, why = json.loads(client().key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the service has been shut down: the run is over
        if number != index():
            print(
                f"qa-flax: process {index()} ends because process {number} failed: {why}",
                file=sys.stderr,
            )
            _end(status)
        return


def _end(status: int) -> None:
    """At once: Python's own way out would wait for the others at the end of JAX's service.

    But process 0 has the store, and stays until the others have read there why they end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    until = time.monotonic() + _LAST_WORDS
    try:
        client().key_value_set(f"{_HEARD}/{index()}", "")
        while index() == 0 and time.monotonic() < until:
            if len(client().key_value_dir_get(_HEARD)) == count():
                break
            time.sleep(0.1)
    except jax.errors.JaxRuntimeError as error:
        logger.info("Process 0 has gone: %s", error)
    os._exit(status)
