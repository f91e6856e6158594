"""Compile programs in threads of their own, and say so while somebody waits for one (host)."""

import os
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self

from qa_flax.distributed import preemption, processes
from qa_flax.train.progress import print_above_bar

AT_ONCE = max(1, min(4, (os.cpu_count() or 1) // 2))
"""How many programs are compiled at a time. The compiler uses several threads for one, too."""
SECONDS_UNTIL_LINE = 2.0
SECONDS_BETWEEN_LINES = 30.0


class Compiling:
    """Programs that are compiled in the order in which they are added.

    It is a context manager: what has not begun when it ends is not compiled.

    Args:
        label: what is compiled, such as "the training step".
        is_shown: whether lines are printed.
    """

    def __init__(self, label: str, is_shown: bool):
        self._label, self._is_shown = label, is_shown
        self._pool = ThreadPoolExecutor(AT_ONCE, "qa_flax compiling")
        self._programs: dict[Hashable, tuple[str, Future]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Without waiting: after SIGTERM there is little time to save a checkpoint.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, key: Hashable, detail: str, lower: Callable[[], Any]) -> None:
        """Trace a program in this thread and compile it in another, unless one has this key.

        Args:
            key: of the program.
            detail: for the lines, such as "8 x 384 tokens".
            lower: traces it and returns an object with `compile`. A script's JAX settings, such as
                `with jax.default_matmul_precision("highest")`, hold in its own thread only.
        """
        if key not in self._programs:
            self._programs[key] = detail, self._pool.submit(lower().compile)

    @property
    def is_busy(self) -> bool:
        """Whether a program is being compiled, or waits for that."""
        return not all(future.done() for _, future in self._programs.values())

    def result(self, key: Hashable) -> Any:
        """Wait for a program and return it.

        Prints a line if that takes more than `SECONDS_UNTIL_LINE`, and one when it is done.

        Raises:
            Preempted: SIGTERM was received.
            Exception: what the compilation raised.
        """
        detail, future = self._programs[key]
        began = last_line = time.monotonic()
        has_line = False
        while not wait([future], timeout=0.2).done:
            if processes.count() == 1:  # several must ask equally often
                preemption.check()
            now = time.monotonic()
            pause = SECONDS_BETWEEN_LINES if has_line else SECONDS_UNTIL_LINE
            if self._is_shown and now - last_line >= pause:
                so_far = f", {now - began:.0f} s so far" if has_line else ""
                print_above_bar(f"Compiling {self._label} for {detail} on each core{so_far}")
                last_line, has_line = now, True
        if has_line:
            seconds = time.monotonic() - began
            print_above_bar(f"Compiled {self._label} for {detail} in {seconds:.1f} s")
        return future.result()
