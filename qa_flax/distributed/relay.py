"""Forward this process's connections to JAX's distributed service through a local port.

JAX's client aborts its process, with a C++ stack and signal 6, as soon as its connection to the
service closes, and the service runs in process 0. So if process 0 were killed, the others could not
say why they end. A relay keeps their side of the connection open: `liveness` then has the time to
name the process. Nothing else changes; what both sides send is forwarded as it is.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_CONNECT_SECONDS = 20.0  # JAX's client then closes its connection and tries again
_BYTES = 1 << 16


def start(host: str, port: int) -> int:
    """Forward connections to a port of this machine to `host:port`, until this process ends.

    Args:
        host: the host of process 0.
        port: the port of JAX's service there, which may start to listen later.

    Returns:
        The port on 127.0.0.1 to connect to instead.

    Raises:
        OSError: no port can be opened.
    """
    server = socket.create_server(("127.0.0.1", 0))
    _in_thread(_accept, server, (host, port))
    return server.getsockname()[1]


def _in_thread(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True, name="qa_flax relay")
    thread.start()
    return thread


def _accept(server: socket.socket, address: tuple[str, int]) -> None:
    while True:
        client, _ = server.accept()
        _in_thread(_connect, client, address)


def _connect(client: socket.socket, address: tuple[str, int]) -> None:
    until = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            service = socket.create_connection(address, timeout=max(0.1, until - time.monotonic()))
        except OSError:
            if time.monotonic() > until:
                client.close()
                return
            time.sleep(0.1)
        else:
            break
    for connection in (client, service):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # When the service has closed its side, the client's stays open: see the top of this file.
    with service, client:
        answers = _in_thread(_forward, service, client)
        _forward(client, service)
        with contextlib.suppress(OSError):  # the service has ended
            service.shutdown(socket.SHUT_WR)
        answers.join()


def _forward(source: socket.socket, target: socket.socket) -> None:
    """Forward until the source closes its side; what the target no longer takes is dropped."""
    is_open = True
    with contextlib.suppress(OSError):  # the source was killed
        while data := source.recv(_BYTES):
            try:
                if is_open:
                    target.sendall(data)
            except OSError:
                is_open = False
