"""The processes of a run, one a host: they join, tell each other things, and end together.

What the cores compute they exchange by themselves (`step.py`). Here is what the hosts tell each
other beside it: batch widths, answers, metrics, that one of them has failed. It goes through the
key-value store of the service that every JAX process is connected to, so it needs no device, and
every wait has an end.
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the store has no public name
from jax._src.clusters import ClusterEnv
from safetensors.numpy import load, save

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT = 900.0
"""How long one host waits for another: tokenising, saving and uploading take minutes."""

_PIECE = 1 << 20  # bytes of one value in the store; a message of the service holds 4 MiB
_SECONDS_BETWEEN_LOOKS = 0.5
_LAST_WORDS = 10.0  # seconds that a failing host waits until the others have heard of it
_FAILURE, _HEARD = "qa_flax/failure", "qa_flax/heard"


class HostError(RuntimeError):
    """The processes of a run cannot work together; the message says which, and what to do."""


def count() -> int:
    """How many processes have joined; 1 without joining. Does not start JAX's backend."""
    return distributed.global_state.num_processes or 1


def index() -> int:
    """Which of them this one is, from 0."""
    return distributed.global_state.process_id or 0


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return index() == 0


def part_of(total: int) -> slice:
    """This process's rows of `total`, as `datasets.distributed.split_dataset_by_node` has them.

    With fewer rows than processes, some have none (which that function does not allow).
    """
    each, more = divmod(total, count())
    first = index() * each + min(index(), more)
    return slice(first, first + each + (index() < more))


# ---- joining -------------------------------------------------------------------------------------


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300.0,
) -> None:
    """Become one of the processes of a run: `jax.distributed.initialize`, with messages that help.

    Call it before JAX's first computation, in every process. What is None is what JAX finds out
    of the cluster it runs on (TPU VMs, GKE, Slurm, MPI). A run of one process needs no joining.

    Raises:
        HostError: the cluster is not known, an argument is wrong, or after `timeout` seconds not
            all processes were there; the message names those that are missing.
    """
    found = (coordinator, num_processes, process_id)
    if None in found:
        detect = ClusterEnv.auto_detect_unset_distributed_params
        found = detect(*found, None, None, int(timeout))[:3]
    address, of, number = found
    if of == 1:
        return
    if address is None or of is None or number is None:
        raise HostError(
            "--distributed: JAX knows no cluster here that would tell coordinator, number of "
            "processes and process id; give --coordinator HOST:PORT --num_processes N "
            "--process_id I, another I from 0 to N-1 in each process"
        )
    if not 0 <= number < of:
        raise HostError(f"--process_id is {number}; with {of} processes it is one of 0 to {of - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise HostError(f"--coordinator is {address!r}; it must be HOST:PORT, of process 0")
    if number == 0:
        _call_the_roll(int(port), of, timeout)
    else:
        _answer_the_roll((host.strip("[]"), int(port)), number, of, timeout)
    # All are there; JAX ends the process, without a word on the others, if this takes longer.
    jax.distributed.initialize(address, of, number, initialization_timeout=max(60, int(timeout)))


def _call_the_roll(port: int, of: int, timeout: float) -> None:
    """Process 0: wait for the others, at the port where JAX's service will be, and let them go on.

    JAX's own joining ends a process that waits in vain, and nobody learns who was missing.
    """
    until = time.monotonic() + timeout
    there: dict[int, socket.socket] = {}
    heard: list[socket.socket] = []
    problem = ""
    with ExitStack() as stack:
        server = stack.enter_context(_listening(port))
        while len(there) < of - 1 and not problem:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
                number, given = _read_answer(connection)
                heard.append(connection)
            except TimeoutError:
                missing = sorted(set(range(1, of)) - there.keys())
                problem = (
                    f"{len(there) + 1} of {of} processes joined after {timeout:.0f} s (missing: "
                    f"process {', '.join(map(str, missing))}): start the command on every worker"
                )
            else:
                if number >= 0 and given != of:
                    problem = f"process {number} was told of {given} processes, process 0 of {of}"
                elif number in there and _is_open(there[number]):
                    problem = f"two processes were given --process_id {number}"
                elif number > 0:
                    there[number] = connection
        for connection in heard:
            with contextlib.suppress(OSError):  # it has gone since, as one may before JAX's joining
                connection.sendall(f"{problem}\n".encode())
    if problem:
        raise HostError(problem)


def _answer_the_roll(address: tuple[str, int], number: int, of: int, timeout: float) -> None:
    until = time.monotonic() + timeout
    named = f"{address[0]}:{address[1]}"
    while True:
        try:
            with socket.create_connection(address, timeout=max(0.1, until - time.monotonic())) as c:
                c.sendall(f"{number} {of}\n".encode())
                # Process 0 may have started to wait later than this one.
                c.settimeout(timeout + _LAST_WORDS)
                said = c.makefile().readline()
            if said:
                break
        except OSError as error:
            if time.monotonic() > until:
                raise HostError(
                    f"process {number} of {of} did not reach process 0 at {named} within "
                    f"{timeout:.0f} s ({error}): start the command on every worker"
                ) from error
        if time.monotonic() > until:
            raise HostError(f"process 0 at {named} ended while process {number} waited for it")
        time.sleep(0.2)
    if said.strip():
        raise HostError(said.strip())


def _listening(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise HostError(
            f"process 0 cannot listen at port {port} ({error}): a run that has not ended may hold "
            "it; end that one, or give --coordinator another port"
        ) from error


def _read_answer(connection: socket.socket) -> tuple[int, int]:
    """Number and number of processes; (-1, ...) of what is none of ours."""
    connection.settimeout(_LAST_WORDS)
    try:
        number, of = connection.makefile().readline().split()
        return int(number), int(of)
    except (ValueError, OSError):
        return -1, -1


def _is_open(connection: socket.socket) -> bool:
    """Whether the process at the other end is still there; it has nothing more to say."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)


# ---- telling each other --------------------------------------------------------------------------

_exchanges = 0


def exchange(what: str, data: bytes, timeout: float = SECONDS_TO_WAIT) -> list[bytes]:
    """What every process gave, in their order. All call it, in the same order of calls.

    Raises:
        HostError: a process did not come within `timeout` seconds; `what` says to what.
    """
    global _exchanges
    if count() == 1:
        return [data]
    client, number = _client(), _exchanges
    _exchanges += 1
    pieces = [data[i : i + _PIECE] for i in range(0, len(data), _PIECE)]
    for i, piece in enumerate(pieces):
        client.key_value_set_bytes(f"qa_flax/{number}/{index()}/{i}", piece)
    head = json.dumps([what, len(pieces)]).encode()
    client.key_value_set_bytes(f"qa_flax/{number}/{index()}/head", head)
    found = [data if i == index() else _given(number, i, what, timeout) for i in range(count())]
    # Whoever is here has all of the exchange before this one.
    client.key_value_delete(f"qa_flax/{number - 1}/{index()}")
    return found


def _given(number: int, by: int, what: str, timeout: float) -> bytes:
    client, place = _client(), f"qa_flax/{number}/{by}"
    try:
        head = client.blocking_key_value_get_bytes(f"{place}/head", round(timeout * 1000))
        other, count = json.loads(head)
        if other != what:
            raise HostError(
                f"process {by} is at another place ({other}) than process {index()} ({what}): "
                "start the same command, with the same arguments and data, on every worker"
            )
        pieces = [
            client.blocking_key_value_get_bytes(f"{place}/{i}", round(timeout * 1000))
            for i in range(count)
        ]
    except jax.errors.JaxRuntimeError as error:
        raise HostError(
            f"process {index()} waited {timeout:.0f} s in vain for process {by} ({what}): see that "
            f"one's log ({str(error).splitlines()[0]})"
        ) from error
    return b"".join(pieces)


def exchange_json(what: str, value: Any) -> list[Any]:
    """`exchange` of what JSON can say; NumPy's numbers and arrays become Python's."""
    if count() == 1:
        return [value]
    given = json.dumps(value, default=lambda array: array.tolist())
    return [json.loads(data) for data in exchange(what, given.encode())]


def exchange_arrays(what: str, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """`exchange` of NumPy arrays by name."""
    if count() == 1:
        return [dict(arrays)]
    given = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return [load(data) for data in exchange(what, given)]


def concatenated(what: str, tree: Any) -> Any:
    """A tree of arrays `[n, ...]` with the rows of all processes, in their order."""
    if count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    parts = exchange_arrays(what, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    joined = [np.concatenate([part[str(i)] for part in parts]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, joined)


def of_main(what: str, value: Any) -> Any:
    """The main process's value, in every process; JSON must be able to say it."""
    return exchange_json(what, value if is_main() else None)[0]


def wait_for_all(what: str) -> None:
    """Until every process is here."""
    exchange(what, b"")


def require_shared(folder: Any) -> None:
    """Refuse a folder (`pathlib` or `epath`) that is another one on each host.

    Raises:
        HostError: names the processes that do not see what process 0 writes there.
    """
    if count() == 1:
        return
    probe = folder / of_main("shared folder", f".shared-{uuid.uuid4().hex}")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    wait_for_all("a file in the shared folder")
    seen = exchange_json("the file is seen", probe.exists())
    if is_main():
        probe.unlink()
    if blind := [str(process) for process, sees in enumerate(seen) if not sees]:
        raise HostError(
            f"output_dir: what process 0 writes in {folder} is not seen by process "
            f"{', '.join(blind)}, so no checkpoint could be resumed from; give a folder that all "
            "hosts share, such as a bucket (gs://...)"
        )


def _client() -> Any:
    return distributed.global_state.client


# ---- ending together -----------------------------------------------------------------------------

_is_watching = False


def end_together() -> None:
    """From now on one process that fails ends all, and each says in its own log what failed.

    Without it the others would wait for cores that compute no more. It fails when an exception is
    handled by nobody, or `end_all` is called. One process alone needs none of this.

    Raises:
        HostError: JAX runs on the cores of several processes that have not joined.
    """
    global _is_watching
    if jax.process_count() != count():
        raise HostError(
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
        _client().key_value_set(_FAILURE, json.dumps([index(), status, why]))
    except jax.errors.JaxRuntimeError as error:  # another was first, or the service is gone
        logger.info("The other processes were not told: %s", error)
    _end(status)


def _end_with_others(is_over: threading.Event) -> None:
    while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
        try:
            number, status, why = json.loads(_client().key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the service has been shut down: the run is over
        if number != index():
            said = f"qa-flax: process {index()} ends because process {number} failed: {why}"
            print(said, file=sys.stderr)
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
        _client().key_value_set(f"{_HEARD}/{index()}", "")
        while index() == 0 and time.monotonic() < until:
            if len(_client().key_value_dir_get(_HEARD)) == count():
                break
            time.sleep(0.1)
    except jax.errors.JaxRuntimeError as error:
        logger.info("Process 0 has gone: %s", error)
    os._exit(status)
