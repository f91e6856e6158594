"""Results that the cores still compute while the host continues (host and device)."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

from qa_flax.device import parallel

Label = TypeVar("Label")

CALLS_AHEAD = 1
"""How many calls are started before the host waits for the oldest result.

One keeps the cores busy and still lets a progress bar follow them closely.
"""
CPU_CALLS_AT_ONCE = 2
"""How many calls a CPU computes at a time if it is one JAX device: some operations use a single
thread, and a second call uses the others meanwhile."""


class InFlight(Generic[Label]):
    """A queue of device results that are being copied to the host, each with the caller's label.

    It is a context manager for those who use `call`: calls that have not begun are dropped at an
    error.
    """

    def __init__(self):
        self._queue: deque[tuple[Label, Any]] = deque()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if parallel.is_one_cpu():
            self._threads = ThreadPoolExecutor(CPU_CALLS_AT_ONCE, "qa_flax step")
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    def call(self, label: Label, step: Callable[[], Any]) -> None:
        """Start a call and add its result; a CPU of one device computes it in another thread.

        `step` must be compiled. If it raises, whoever takes its result gets the exception.
        """
        if self._threads is None:
            self.add(label, step())
        else:
            self._queue.append((label, self._threads.submit(lambda: parallel.gather(step()))))

    def add(self, label: Label, result: Any) -> None:
        """Start to copy a tree of device arrays to the host; returns before they are computed."""
        parallel.start_copy(result)
        self._queue.append((label, result))

    def due(self) -> Iterator[tuple[Label, Any]]:
        """Yield and remove the oldest results, as NumPy, until only those ahead are left."""
        ahead = CALLS_AHEAD if self._threads is None else CPU_CALLS_AT_ONCE
        while len(self._queue) > ahead:
            yield self._pop()

    def all(self) -> Iterator[tuple[Label, Any]]:
        """Yield and remove every result, oldest first, as NumPy; waits for each."""
        while self._queue:
            yield self._pop()

    def _pop(self) -> tuple[Label, Any]:
        label, result = self._queue.popleft()
        return label, result.result() if isinstance(result, Future) else parallel.gather(result)
