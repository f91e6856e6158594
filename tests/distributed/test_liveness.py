"""A killed process ends the others within seconds, and every log names it."""

import json
import re
import signal
import socket
import threading
import time

import pytest
from process_jobs import launch

from qa_flax.distributed import liveness


def until(condition, seconds=10.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Main:
    """Process 0's side of the connections, in this process, and what it reports."""

    def __init__(self):
        self.deaths = 0
        self.watch = liveness._Watch(self._on_death)
        self.server = liveness._listen()
        liveness._in_thread(liveness._accept, self.watch, self.server, "token")

    def _on_death(self):
        self.deaths += 1

    def connect(self, process, token="token"):
        connection = socket.create_connection(("127.0.0.1", self.server.getsockname()[1]))
        hello = {"token": token, "process": process, "name": f"process {process} (pid 7 on x)"}
        liveness._send(connection, hello)
        return connection


@pytest.fixture
def main():
    main = Main()
    yield main
    main.server.close()


def test_a_connection_that_closes_without_a_goodbye_is_a_death(main, capsys):
    first, second = main.connect(1), main.connect(2)
    until(lambda: len(main.watch.connections) == 2)
    first.close()
    assert json.loads(second.recv(1000)) == {
        "dead": "process 1 (pid 7 on x) died: its connection closed, as when it is killed (kill "
        "-9, a full memory)"
    }
    assert not main.deaths, "it waits until the others have read it"
    second.close()
    until(lambda: main.deaths == 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "qa-flax: process 0 exits because process 1 (pid 7 on x) died: its" in line
    assert "repeat the command to resume" in line


def test_an_orderly_end_and_other_programs_are_no_deaths(main, capsys):
    peer = main.connect(1)
    until(lambda: len(main.watch.connections) == 1)
    with peer:
        liveness._send(peer, liveness._GOODBYE)
    main.connect(2, token="of another run").close()
    with socket.create_connection(("127.0.0.1", main.server.getsockname()[1])) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert browser.recv(1) == b""
    until(lambda: not main.watch.connections)
    assert (main.deaths, capsys.readouterr().err) == (0, "")


def test_the_others_are_told_by_process_0(main, capsys):
    ours, theirs = socket.socketpair()
    with theirs:
        liveness._send(theirs, {"dead": "process 3 (pid 9 on y) died: reason"})
    reader = threading.Thread(target=liveness._read, args=(main.watch, 0, "process 0", ours))
    reader.start()
    reader.join(10)
    assert main.deaths == 1
    assert "process 3 (pid 9 on y) died: reason. See its log" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 1), (2, 0), (4, 2), (4, 0)])
def test_all_processes_end_when_one_is_killed(tmp_path, count, victim):
    (tmp_path / "victim").write_text(str(victim))
    (exited,) = launch("killed", count=count, cores=2, folder=tmp_path)
    others = [process for i, process in enumerate(exited) if i != victim]
    outputs = "\n".join(process.output[-3000:] for process in others)
    assert exited[victim].status == -signal.SIGKILL
    assert [process.status for process in others] == [1] * (count - 1), outputs
    times = [(tmp_path / "logs" / f"killed-{i}.status").stat().st_mtime for i in range(count)]
    print("seconds until the last end:", max(times) - times[victim])
    assert max(times) - times[victim] < 20
    for i, process in enumerate(exited):
        if i != victim:
            message = rf"qa-flax: process {i} exits because process {victim} .*died: its connection"
            assert re.search(message, process.output), outputs
            assert "Check failure stack trace" not in process.output
            assert "Traceback" not in process.output
