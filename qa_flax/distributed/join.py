"""Joining the other processes of a run, with messages that say who is missing."""

import contextlib
import socket
import time
from contextlib import ExitStack

import jax
from jax._src.clusters import ClusterEnv

from qa_flax.distributed import ProcessError

_LAST_WORDS = 10.0  # seconds that processes may be apart in time


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
        ProcessError: the cluster is not known, an argument is wrong, or after `timeout` seconds not
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
        raise ProcessError(
            "--distributed: JAX knows no cluster here that would tell coordinator, number of "
            "processes and process id; give --coordinator HOST:PORT --num_processes N "
            "--process_id I, another I from 0 to N-1 in each process"
        )
    if not 0 <= number < of:
        raise ProcessError(
            f"--process_id is {number}; with {of} processes it must be one of 0 to {of - 1}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ProcessError(f"--coordinator is {address!r}; it must be HOST:PORT, of process 0")
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
        raise ProcessError(problem)


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
                raise ProcessError(
                    f"process {number} of {of} did not reach process 0 at {named} within "
                    f"{timeout:.0f} s ({error}): start the command on every worker"
                ) from error
        if time.monotonic() > until:
            raise ProcessError(f"process 0 at {named} ended while process {number} waited for it")
        time.sleep(0.2)
    if said.strip():
        raise ProcessError(said.strip())


def _listening(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ProcessError(
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
