"""Compile several programs at a time, and say so while it takes long (host)."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from qa_flax.distributed import preemption

AT_ONCE = 2
"""How many programs are compiled at a time. Each takes memory on the host."""
SECONDS_UNTIL_LINE = 2.0
SECONDS_BETWEEN_LINES = 30.0


class Compiling:
    """Programs that are compiled in other threads; see `compiling`."""

    def __init__(self, label: str, futures: Sequence[Future], is_shown: bool):
        self._label, self._futures, self._is_shown = label, futures, is_shown
        self._began = time.monotonic()

    def results(self) -> list[Any]:
        """Wait for the programs and return them.

        Prints a line if that takes more than `SECONDS_UNTIL_LINE`, and one when it is done.

        Raises:
            Preempted: SIGTERM was received.
            Exception: what a compilation raised.
        """
        count = len(self._futures)
        label = self._label if count == 1 else f"{self._label} for {count} shapes of batches"
        next_line, has_line = self._began + SECONDS_UNTIL_LINE, False
        while pending := [future for future in self._futures if not future.done()]:
            wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            preemption.check()
            if self._is_shown and pending and time.monotonic() >= next_line:
                seconds = f", {self._seconds():.0f} s so far" if has_line else ""
                _print(f"Compiling {label} ({count - len(pending)} of {count} done{seconds})")
                next_line, has_line = time.monotonic() + SECONDS_BETWEEN_LINES, True
        results = [future.result() for future in self._futures]
        if has_line:
            _print(f"Compiled {label} in {self._seconds():.1f} s")
        return results

    def _seconds(self) -> float:
        return time.monotonic() - self._began


@contextmanager
def compiling(label: str, jobs: Sequence[Callable[[], Any]], is_shown: bool) -> Iterator[Compiling]:
    """Begin to compile programs in other threads; the caller may prepare something meanwhile.

    Args:
        label: what is compiled, such as "the training step".
        jobs: each compiles one program and returns it.
        is_shown: whether lines are printed.

    Yields:
        A `Compiling`, whose `results` waits for them. What has not begun is dropped when the
        context ends.
    """
    pool = ThreadPoolExecutor(AT_ONCE, "qa_flax compiling")
    try:
        yield Compiling(label, [pool.submit(job) for job in jobs], is_shown)
    finally:
        # Without waiting: after SIGTERM there is little time to save a checkpoint.
        pool.shutdown(wait=False, cancel_futures=True)


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # does not break a progress bar
