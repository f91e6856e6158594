"""A relay forwards connections, and keeps the client's side open when the service ends."""

import socket
import time

import pytest

from qa_flax.distributed import relay


@pytest.fixture
def service():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_bytes_are_forwarded_both_ways(service):
    port = relay.start("127.0.0.1", service.getsockname()[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        connection, _ = service.accept()
        data = bytes(range(256)) * 10_000
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with connection, connection.makefile("rb") as received:
            assert received.read() == data


def test_the_client_stays_connected_when_the_service_has_ended(service):
    port = relay.start("127.0.0.1", service.getsockname()[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        connection = service.accept()[0]
        connection.sendall(b"x")
        assert client.recv(10) == b"x"
        connection.close()
        for _ in range(3):  # to a service that is not there any more
            client.sendall(b"x")
            time.sleep(0.05)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(10)


def test_a_client_may_connect_before_the_service_listens():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with socket.create_connection(("127.0.0.1", relay.start("127.0.0.1", port))) as client:
        time.sleep(0.15)
        with socket.create_server(("127.0.0.1", port)) as service:
            client.sendall(b"hello")
            with service.accept()[0] as connection:
                assert connection.recv(5) == b"hello"
