"""Join the processes of a run, with error messages that name the missing ones."""

import contextlib
import socket
import time
from contextlib import ExitStack

import jax
from jax._src.clusters import ClusterEnv

from qa_flax.distributed import ProcessError, failure, liveness, processes, relay

_GRACE_SECONDS = 10.0  # allowance for processes that start later, or are slow to send a message


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300.0,
) -> None:
    """Call `jax.distributed.initialize`; after a timeout, name the processes that are missing.

    Every process must call it, before JAX's first computation. JAX detects the values of arguments
    that are None from the cluster environment (TPU VMs, GKE, Slurm, MPI). With one process the
    function does nothing.

    Args:
        coordinator: `HOST:PORT` where process 0 listens.
        num_processes: the number of processes of the run.
        process_id: the index of this process, from 0.
        timeout: seconds to wait for the other processes.

    Raises:
        ProcessError: JAX detects no cluster, an argument is invalid, or processes are missing.
    """
    settings = (coordinator, num_processes, process_id)
    if None in settings:
        detect = ClusterEnv.auto_detect_unset_distributed_params
        settings = detect(*settings, None, None, int(timeout))[:3]
    address, size, process = settings
    if size == 1:
        return
    if address is None or size is None or process is None:
        raise ProcessError(
            "--distributed: JAX detects no cluster that provides the coordinator, the number of "
            "processes and the process id; set --coordinator HOST:PORT --num_processes N "
            "--process_id I, with a different I from 0 to N-1 in each process"
        )
    if not 0 <= process < size:
        raise ProcessError(
            f"--process_id is {process}; with {size} processes it must be one of 0 to {size - 1}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ProcessError(f"--coordinator is {address!r}; it must be HOST:PORT of process 0")
    host = host.strip("[]")
    if process == 0:
        _wait_for_others(int(port), size, timeout)
    else:
        _report_to_main((host, int(port)), process, size, timeout)
        address = f"127.0.0.1:{relay.start(host, int(port))}"
        processes.set_coordinator_host(host)
    liveness.leave_at_exit()
    # All processes are running, so this is fast. After its own timeout JAX ends the process without
    # naming the missing ones.
    jax.distributed.initialize(address, size, process, initialization_timeout=max(60, int(timeout)))
    failure.watch()


def _wait_for_others(port: int, size: int, timeout: float) -> None:
    """Process 0: wait until all other processes have connected, then reply to them.

    It listens on the port that JAX's service uses afterwards. The reply is one line: empty if all
    have joined, otherwise the message of the error that process 0 raises as well.
    """
    until = time.monotonic() + timeout
    joined: dict[int, socket.socket] = {}
    connections: list[socket.socket] = []
    problem = ""
    with ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        while len(joined) < size - 1 and not problem:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
                process, other_size = _read_hello(connection)
                connections.append(connection)
            except TimeoutError:
                missing = sorted(set(range(1, size)) - joined.keys())
                problem = (
                    f"{len(joined) + 1} of {size} processes joined after {timeout:.0f} s (missing: "
                    f"process {', '.join(map(str, missing))}): start the command on every worker"
                )
            else:
                if process >= 0 and other_size != size:
                    problem = (
                        f"--num_processes is {other_size} in process {process} and {size} in "
                        "process 0; it must be the same in all"
                    )
                elif process in joined and _is_connected(joined[process]):
                    problem = (
                        f"two processes have the same --process_id {process}; each needs its own, "
                        f"from 0 to {size - 1}"
                    )
                elif process > 0:
                    joined[process] = connection
        for connection in connections:
            with contextlib.suppress(OSError):  # the process may have disconnected in the meantime
                connection.sendall(f"{problem}\n".encode())
    if problem:
        raise ProcessError(problem)


def _report_to_main(address: tuple[str, int], process: int, size: int, timeout: float) -> None:
    """Other processes: connect to process 0 and wait until it replies that all have joined."""
    until = time.monotonic() + timeout
    name = f"{address[0]}:{address[1]}"
    while True:
        try:
            with socket.create_connection(address, timeout=max(0.1, until - time.monotonic())) as c:
                c.sendall(f"{process} {size}\n".encode())
                # Process 0 may have started to wait later than this process, and replies later.
                c.settimeout(timeout + _GRACE_SECONDS)
                reply = c.makefile().readline()
            if reply:
                break
        except OSError as error:
            if time.monotonic() > until:
                raise ProcessError(
                    f"process {process} of {size} did not reach process 0 at {name} within "
                    f"{timeout:.0f} s ({error}): start the command on every worker"
                ) from error
        if time.monotonic() > until:
            raise ProcessError(
                f"process 0 at {name} disconnected while process {process} waited for the others: "
                "see the log of process 0"
            )
        time.sleep(0.2)
    if reply.strip():
        raise ProcessError(reply.strip())


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ProcessError(
            f"process 0 cannot listen on port {port} ({error}): another run may still use it; stop "
            "that run, or set --coordinator to another port"
        ) from error


def _read_hello(connection: socket.socket) -> tuple[int, int]:
    """Read a peer's process id and number of processes; (-1, -1) for any other program."""
    connection.settimeout(_GRACE_SECONDS)
    try:
        process, size = connection.makefile().readline().split()
        return int(process), int(size)
    except (ValueError, OSError):
        return -1, -1


def _is_connected(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:  # no data, but still connected: a peer only sends its hello
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)
