"""A real Jupyter kernel: runs cells, and keeps every output message."""

import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Cell:
    """The output messages of one cell, oldest first."""

    code: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The contents of the messages of these kinds, such as `display_data`."""
        return [m["content"] for m in self.messages if m["msg_type"] in kinds]

    def stream(self, name: str) -> str:
        """Everything written to `stdout` or `stderr`."""
        return "".join(c["text"] for c in self.of("stream") if c["name"] == name)

    @property
    def error(self) -> str | None:
        """The name of the exception that ended the cell."""
        return next((c["ename"] for c in self.of("error")), None)

    @property
    def traceback(self) -> str:
        return "\n".join(line for c in self.of("error") for line in c["traceback"])

    @property
    def result(self) -> str | None:
        """The text of the value of the cell's last line."""
        return next((c["data"]["text/plain"] for c in self.of("execute_result")), None)

    def displays(self, kind: str = "text/html") -> list[list[str]]:
        """For each display, its contents from the first to the last update."""
        by_id: dict[Any, list[str]] = {}
        for content in self.of("display_data", "update_display_data"):
            name = content.get("transient", {}).get("display_id", id(content))
            by_id.setdefault(name, []).append(content["data"].get(kind, ""))
        return list(by_id.values())


class Kernel:
    """A running kernel.

    Args:
        manager: of jupyter_client, started.
        client: its blocking client, with running channels.
        seconds: the longest a cell may take.
    """

    def __init__(self, manager: Any, client: Any, seconds: float):
        self.manager, self._client, self._seconds = manager, client, seconds

    def run(
        self,
        code: str,
        *,
        interrupt_when: Callable[[Cell], bool] | None = None,
        watch: Callable[[Cell], Any] | None = None,
        fails: bool = False,
    ) -> Cell:
        """Run a cell to its end.

        Args:
            code: the cell.
            interrupt_when: interrupts the kernel once, after a message for which this holds.
            watch: called after each message.
            fails: whether an error is expected; otherwise it fails the test.
        """
        cell, until = Cell(code), time.monotonic() + self._seconds
        message_id = self._client.execute(code)
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=until - time.monotonic())
            except queue.Empty:
                raise AssertionError(f"no end after {self._seconds} s:\n{code}\n{cell}") from None
            if message["parent_header"].get("msg_id") != message_id:
                continue
            cell.messages.append(message)
            if message["content"].get("execution_state") == "idle":
                break
            if watch is not None:
                watch(cell)
            if interrupt_when is not None and interrupt_when(cell):
                interrupt_when = None
                self.manager.interrupt_kernel()
        assert interrupt_when is None, f"the cell ended before the interrupt:\n{cell}"
        assert fails or cell.error is None, f"{code}\n{cell.traceback}\n{cell.stream('stderr')}"
        return cell

    def value(self, expression: str) -> Any:
        """The value of an expression, by its `repr`."""
        return eval(self.run(f"print(repr(({expression})))").stream("stdout"))


@contextmanager
def kernel(folder: Path, seconds: float = 300.0, **environment: str) -> Iterator[Kernel]:
    """Start a kernel of this Python in a folder; `seconds` is the longest a cell may take."""
    from jupyter_client.manager import KernelManager

    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/support"), *_previous("PYTHONPATH")])
    manager = KernelManager(kernel_name="python3")
    variables = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", **environment}
    manager.start_kernel(cwd=str(folder), env=variables)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client, seconds)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _previous(name: str) -> list[str]:
    return [os.environ[name]] if os.environ.get(name) else []
