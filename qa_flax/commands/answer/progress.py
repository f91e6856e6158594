"""The progress of `qa-flax answer` on stderr: questions, and the windows of long texts (host)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from qa_flax.data.screen import shows_bar

_PATIENCE = 1.0  # seconds after which the windows of a single question are shown
_LOG_SECONDS = 30.0  # between two lines in a log


class Progress:
    """Shows how far an answerer is; its `progress`."""

    def __init__(self):
        self._bar: tqdm | None = None
        self._counts_questions = False
        self._started = self._logged = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show the number of windows that are computed, of those that are computed together."""
        now = time.monotonic()
        if self._counts_questions:
            if self._bar is not None and not self._bar.disable:
                self._bar.set_postfix_str(f"windows {done:,}/{total:,}")
            return
        if self._bar is None and now - self._started > _PATIENCE and done < total:
            if shows_bar():
                self._bar = tqdm(total=total, unit="window", leave=False, file=sys.stderr)
            elif now - self._logged > _LOG_SECONDS and self._started:
                self._logged = now
                print(f"{done:,} of {total:,} windows", file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.total, self._bar.n = total, done
            self._bar.refresh()

    @contextmanager
    def of_question(self) -> Iterator[None]:
        """Show the windows of one question if they take long, while the context lasts."""
        self._started = self._logged = time.monotonic()
        self._counts_questions = False
        try:
            yield
        finally:
            self._close()

    @contextmanager
    def of_questions(self, total: int) -> Iterator["Progress"]:
        """Show how many questions of a batch are answered, while the context lasts."""
        self._counts_questions = True
        self._started = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total, desc="Answering", unit="question", disable=not shows_bar(), file=sys.stderr
        )
        try:
            yield self
        finally:
            self._close()

    def answered(self, done: int, total: int) -> None:
        """Count one more answered question of a batch."""
        if self._bar is not None and not self._bar.disable:
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._logged > _LOG_SECONDS and done < total:
            self._logged = now
            print(f"Answering: {done:,} of {total:,} questions", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
