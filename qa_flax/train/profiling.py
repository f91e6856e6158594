"""`profile`: a trace of some updates of a training (host)."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qa_flax import storage
from qa_flax.device.traces import start_trace, stop_trace
from qa_flax.distributed import processes
from qa_flax.train.plan import output_dir
from qa_flax.train.progress import print_above_bar
from qa_flax.train.steps import Steps

logger = logging.getLogger(__name__)

FOLDER = "profile"
"""Where the trace is, in `output_dir`."""
UPDATES_BEFORE = 2
"""Updates before the trace begins: the first ones wait for the compiler and fill the caches."""


class Profiler:
    """Records `args.profile` updates; without that argument it does nothing.

    Args:
        args: the training arguments.
        steps: runs the updates.
        first: the update that the training begins after.
    """

    def __init__(self, args: Any, steps: Steps, first: int):
        self._steps, self._count = steps, getattr(args, "profile", 0)
        self._earliest, self._begin = first + UPDATES_BEFORE, 0
        self._output_dir = output_dir(args) if self._count else None
        self._stack = ExitStack()
        self._folder: Path | None = None

    def after_update(self, update: int) -> None:
        """Begin to record when the steps are compiled, and stop `profile` updates later."""
        if self._folder is not None and update == self._begin + self._count:
            self._stop(self._count)
        is_due = self._count and not self._begin and update >= self._earliest
        if is_due and not self._steps.is_compiling:
            with self._steps.paused():
                folder = self._stack.enter_context(storage.output_folder(self._target()))
                start_trace(folder)
            self._folder, self._begin = folder, update

    def end(self, update: int) -> None:
        """The training has ended after `update`: stop recording."""
        if self._folder is not None:
            self._stop(update - self._begin)
        elif self._count and not self._begin:
            logger.warning(
                "profile=%d has no effect: the trace begins after update %d and when the steps "
                "are compiled, and the training ended after update %d; train longer",
                self._count,
                self._earliest,
                update,
            )
        self._stack.close()

    def _target(self) -> Any:
        assert self._output_dir is not None
        target = self._output_dir / FOLDER
        storage.make_folder(target)
        return target

    def _stop(self, updates: int) -> None:
        assert self._folder is not None
        folder, self._folder = self._folder, None
        try:
            self._steps.wait()
        finally:  # also after a step that failed: JAX records one trace at a time
            summary = stop_trace(folder)
        self._stack.close()
        if not processes.is_main():
            return
        text = "no work of a core was recorded" if summary is None else summary.text()
        lines = text.replace("\n", "\n  ")
        target = f"{self._output_dir}/{FOLDER}"
        print_above_bar(f"Profile of {updates} updates, in {target}:\n  {lines}")
