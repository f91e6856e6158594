"""Build batches and copy them to the cores ahead, in a thread of their own (host and device)."""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

from qa_flax.data.batches import HostBatch
from qa_flax.device import parallel
from qa_flax.models.id_limits import IdLimits, check_ids

Item = TypeVar("Item")

BATCHES_AHEAD = 2
"""How many batches wait on the cores, in addition to the one in use and the one being built."""
_SECONDS = 0.1  # after which a thread that waits for room looks whether it should stop


class Ready(NamedTuple):
    """A batch whose arrays are on the cores, or are on the way there."""

    batch: HostBatch
    arrays: dict[str, Any]
    """Those of the batch, on the cores."""


def ready(batch: HostBatch, limits: IdLimits) -> Ready:
    """Start to copy a batch to the cores.

    Raises:
        ValueError: an id is outside the model's tables, whose sizes are the `limits`.
    """
    check_ids(batch.arrays, limits)
    return Ready(batch, parallel.put(batch.arrays))


@contextmanager
def prefetched(items: Iterator[Item], ahead: int = BATCHES_AHEAD) -> Iterator[Iterator[Item]]:
    """Take items from an iterator in another thread, ahead of their use.

    Args:
        items: taken one after the other, by that thread only.
        ahead: the number of items that may wait.

    Yields:
        An iterator of the same items. An exception of `items` is raised after those before it. The
        thread ends with the context, after the item it is taking then.

    Example:
        >>> with prefetched(iter(range(3))) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    thread = _Thread(items, ahead)
    thread.start()
    try:
        yield thread.taken()
    finally:
        thread.stop()


class _Thread(Thread):
    """Puts entries into a queue: items, and at last an error or the end."""

    def __init__(self, items: Iterator[Any], ahead: int):
        super().__init__(name="qa_flax batches", daemon=True)
        self._items = items
        self._queue: Queue[tuple[str, Any]] = Queue(ahead)
        self._is_stopped = Event()

    def run(self) -> None:
        try:
            for item in self._items:
                self._offer("item", item)
                if self._is_stopped.is_set():
                    return
        except BaseException as error:  # raised by `taken`, where the item would have been used
            self._offer("error", error)
        else:
            self._offer("end", None)

    def _offer(self, kind: str, value: Any) -> None:
        """Wait for room in the queue, or until the thread should stop."""
        while not self._is_stopped.is_set():
            try:
                return self._queue.put((kind, value), timeout=_SECONDS)
            except Full:
                continue

    def taken(self) -> Iterator[Any]:
        """Yield the items, in the thread that uses them."""
        while (entry := self._queue.get())[0] == "item":
            yield entry[1]
        if entry[0] == "error":
            raise entry[1]

    def stop(self) -> None:
        """End the thread, after the item that it is taking."""
        self._is_stopped.set()
        self.join()
