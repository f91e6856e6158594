"""Notice within seconds that a process of the run was killed, and end the others with its name.

Every process keeps a TCP connection to process 0. The operating system closes the connections of a
killed process at once; those of a host that fails are found by TCP keepalive. So a process that is
only busy, or stopped by a debugger, is never taken for a dead one. A process that ends in an
orderly way says so before its connection closes, whether it succeeded or not.

Process 0 tells the others of a process that died and waits until they have read it, because JAX's
service ends with process 0. JAX itself would notice after 100 s, and abort the
others without a name.
"""

import atexit
import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from qa_flax.distributed.processes import client, coordinator_host, count, index

logger = logging.getLogger(__name__)

SECONDS_UNTIL_DEAD = 20
"""After how long a host that does not answer is taken for dead."""

_KEY = "qa_flax/liveness"  # where process 0 listens, in JAX's key-value store
_CONNECT_SECONDS = 10.0
_REPORT_SECONDS = 5.0  # how long process 0 waits until the others have read who died
_GOODBYE = {"goodbye": True}


class _Watch:
    """The connections of this process, and what to do when one breaks."""

    def __init__(self, on_death: Callable[[], None]):
        self.on_death = on_death
        self.connections: dict[int, socket.socket] = {}
        self.lock = threading.Lock()
        self.is_reported = False
        self.has_left = False


_watch: _Watch | None = None


def start(on_death: Callable[[], None]) -> None:
    """Process 0: accept the others' connections. Elsewhere `connect` has to be called repeatedly.

    Repeated calls do nothing.

    Args:
        on_death: called in another thread after a process has died, and the message is printed; it
            must end this process.
    """
    global _watch
    if _watch is not None or count() == 1:
        return
    _watch = _Watch(on_death)
    leave_at_exit()
    if index() != 0:
        return
    token = secrets.token_hex(8)
    server = _listen()
    client().key_value_set(_KEY, json.dumps([server.getsockname()[1], token]))
    _in_thread(_accept, _watch, server, token)


def connect() -> bool:
    """Connect to process 0 if it listens already; return whether there is nothing left to do.

    Raises:
        JaxRuntimeError: process 0 does not listen yet, or JAX's service has been shut down.
    """
    watch = _watch
    if watch is None or index() == 0:
        return True
    port, token = json.loads(client().key_value_try_get(_KEY))
    host = coordinator_host()
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        _send(connection, {"token": token, "process": index(), "name": _own_name()})
    except OSError as error:
        logger.warning(
            "Process %d cannot connect to port %d of process 0 at %s (%s), so if a process is "
            "killed, the others end only after 100 s, without its name. Allow connections between "
            "the hosts on all ports.",
            index(),
            port,
            host,
            error,
        )
        return True
    watch.connections[0] = _kept_alive(connection)
    _in_thread(_read, watch, 0, f"process 0 on {host}", connection)
    return True


def leave() -> None:
    """Say that this process ends in an orderly way, so that the others do not take it for dead."""
    watch = _watch
    if watch is None:
        return
    watch.has_left = True
    for connection in list(watch.connections.values()):
        with contextlib.suppress(OSError):  # the other process has ended already
            _send(connection, _GOODBYE)


@cache
def leave_at_exit() -> None:
    """Call `leave` when Python exits. Called before JAX's initialization, this comes after its end.

    JAX's shutdown waits for all processes, and until then a death is worth a message.
    """
    atexit.register(leave)


# ---- connections ---------------------------------------------------------------------------------


def _own_name() -> str:
    return f"process {index()} (pid {os.getpid()} on {socket.gethostname()})"


def _in_thread(function: Callable[..., None], *arguments: Any) -> None:
    name = "qa_flax liveness"
    threading.Thread(target=function, args=arguments, daemon=True, name=name).start()


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Let the operating system ask every few seconds whether the other host is there."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = SECONDS_UNTIL_DEAD // 4
    options = {"TCP_KEEPIDLE": seconds, "TCP_KEEPINTVL": seconds, "TCP_KEEPCNT": 3}
    options["TCP_USER_TIMEOUT"] = SECONDS_UNTIL_DEAD * 1000
    for name, value in options.items():
        if hasattr(socket, name):  # not every system has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _accept(watch: _Watch, server: socket.socket, token: str) -> None:
    while True:
        connection, _ = server.accept()
        _in_thread(_greet, watch, connection, token)


def _greet(watch: _Watch, connection: socket.socket, token: str) -> None:
    """Process 0: read who connects; any other program is ignored."""
    try:
        connection.settimeout(_CONNECT_SECONDS)
        with connection.makefile() as lines:
            hello = json.loads(lines.readline(1000))
        if hello["token"] != token:
            raise ValueError("not a process of this run")
        process, name = int(hello["process"]), str(hello["name"])
        watch.connections[process] = _kept_alive(connection)
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        return
    _read(watch, process, name, connection)


def _read(watch: _Watch, process: int, name: str, connection: socket.socket) -> None:
    """Read what another process says until its connection ends, expectedly or not."""
    reason = "its connection closed, as when it is killed (kill -9, a full memory)"
    try:
        with connection, connection.makefile() as lines:
            for line in lines:
                message = json.loads(line)
                if "dead" in message:
                    _report(watch, message["dead"])
                    return
                if message == _GOODBYE:
                    return
    except ConnectionError:
        pass  # a killed process that had not read everything
    except OSError:
        reason = f"its host has not answered for {SECONDS_UNTIL_DEAD} s"
    except ValueError:
        pass  # killed in the middle of a line
    finally:
        watch.connections.pop(process, None)
    _report(watch, f"{name} died: {reason}")


def _report(watch: _Watch, death: str) -> None:
    """Tell the other processes of a death, and end this one."""
    with watch.lock:
        if watch.is_reported or watch.has_left:
            return
        watch.is_reported = True
    print(
        f"qa-flax: process {index()} exits because {death}. See its log; repeat the command to "
        "resume from the latest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    if index() == 0:
        _tell_others(watch, death)
    watch.on_death()


def _tell_others(watch: _Watch, death: str) -> None:
    """Process 0: send the others who died, and wait until they have ended."""
    for connection in list(watch.connections.values()):
        with contextlib.suppress(OSError):  # this one has died, too
            _send(connection, {"dead": death})
    until = time.monotonic() + _REPORT_SECONDS
    while watch.connections and time.monotonic() < until:  # each reader removes its connection
        time.sleep(0.05)
