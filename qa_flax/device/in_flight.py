"""Work that the cores do while the host goes on (host and device)."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from qa_flax.device import parallel

Label = TypeVar("Label")

AHEAD = 1
"""Calls that are started before the oldest one's result is waited for: enough to keep the cores
busy, few enough for a progress bar to tell the truth."""


class InFlight(Generic[Label]):
    """Results on their way to the host, oldest first, each with what the caller knows it by."""

    def __init__(self):
        self._queue: deque[tuple[Label, Any]] = deque()

    def add(self, label: Label, result: Any) -> None:
        """Begin to copy device arrays to the host; returns before the cores are done."""
        parallel.start_copy(result)
        self._queue.append((label, result))

    def due(self) -> Iterator[tuple[Label, Any]]:
        """The results that more than `AHEAD` calls were started after, as NumPy."""
        while len(self._queue) > AHEAD:
            yield self._oldest()

    def all(self) -> Iterator[tuple[Label, Any]]:
        """Every result that is still on its way, as NumPy; waits for them."""
        while self._queue:
            yield self._oldest()

    def _oldest(self) -> tuple[Label, Any]:
        label, result = self._queue.popleft()
        return label, parallel.gather(result)
