"""Results that the cores still compute while the host continues (host and device)."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from qa_flax.device import parallel

Label = TypeVar("Label")

CALLS_AHEAD = 1
"""How many calls are started before the host waits for the oldest result.

One keeps the cores busy and still lets a progress bar follow them closely.
"""


class InFlight(Generic[Label]):
    """A queue of device results that are being copied to the host, each with the caller's label."""

    def __init__(self):
        self._queue: deque[tuple[Label, Any]] = deque()

    def add(self, label: Label, result: Any) -> None:
        """Start to copy a tree of device arrays to the host; returns before they are computed."""
        parallel.start_copy(result)
        self._queue.append((label, result))

    def due(self) -> Iterator[tuple[Label, Any]]:
        """Yield and remove the oldest results, as NumPy, until only `CALLS_AHEAD` are left."""
        while len(self._queue) > CALLS_AHEAD:
            yield self._pop()

    def all(self) -> Iterator[tuple[Label, Any]]:
        """Yield and remove every result, oldest first, as NumPy; waits for each."""
        while self._queue:
            yield self._pop()

    def _pop(self) -> tuple[Label, Any]:
        label, result = self._queue.popleft()
        return label, parallel.gather(result)
