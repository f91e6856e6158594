"""Runs training steps ahead of the host, and reads each one's loss once it has finished."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qa_flax.data.batches import HostBatch
from qa_flax.device import parallel
from qa_flax.device.in_flight import InFlight
from qa_flax.device.step import Measurements
from qa_flax.distributed import processes
from qa_flax.train.live_state import LiveState

OnCompiled = Callable[[Any, dict[str, np.ndarray]], None]
"""Called with a compiled step before it runs, and the arrays of its batch."""


class Steps:
    """The updates of one training, started ahead of the host, and what they measured.

    Args:
        live: the owner of the state that each step replaces.
        step: `make_train_step`'s, over the cores.
        key: of the run's dropout masks.
        finished: updates that were done before.
        on_compiled: see `OnCompiled`.
    """

    def __init__(
        self,
        live: LiveState,
        step: Any,
        key: Any,
        finished: int = 0,
        on_compiled: OnCompiled | None = None,
    ):
        self._live, self._step = live, step
        self._key = parallel.put_key(key)
        self._on_compiled = on_compiled
        self._compiled: dict[Any, Callable] = {}  # by the shapes of a batch
        self._in_flight = InFlight[tuple[float, int]]()
        self._clock = _Clock()
        self._finished = finished
        self._all, self._since_log = _Mean(), _Mean()
        self._last: dict[str, float] = {}

    def start(self, batch: HostBatch, learning_rate: float) -> None:
        """Start the update of a batch; returns before it is done."""
        rates = np.full(parallel.process_core_count(), learning_rate, np.float32)
        arrays, rates = parallel.put((batch.arrays, rates))
        inputs = self._live.state(), arrays, rates, self._key
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        if shapes in self._compiled:
            with parallel.no_implicit_transfers():
                state, measurements = self._compiled[shapes](*inputs)
        else:
            self._compiled[shapes] = self._compile(inputs, batch.arrays)
            state, measurements = self._compiled[shapes](*inputs)
        self._live.replace(state)
        self._in_flight.add((learning_rate, batch.windows), measurements)

    def _compile(self, inputs: tuple[Any, ...], arrays: dict[str, np.ndarray]) -> Callable:
        """The step, compiled; its memory is known before it runs."""
        several = processes.count() > 1
        if several and self._compiled:
            return self._step
        compiled = self._step.lower(*inputs).compile()
        if self._on_compiled is not None:
            self._on_compiled(compiled, arrays)
        # With several processes a compiled step would need arrays of all cores; compiled once more,
        # it comes from JAX's cache, if there is one.
        return self._step if several else compiled

    def finished(self) -> dict[str, float]:
        """The numbers of the last step that is known to be done; {} before the first."""
        for label, measurements in self._in_flight.due():
            self._finish(*label, measurements)
        return self._last

    def progress(self) -> dict[str, float]:
        """`finished()`, and examples a second: of all steps but the first, which was compiled."""
        return (numbers := self.finished()) and numbers | self._clock.rate()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for all steps; what is done inside is no training time."""
        self._wait()
        began = time.monotonic()
        try:
            yield
        finally:
            self._clock.pause(time.monotonic() - began)

    def logs(self) -> dict[str, float]:
        """Wait for all steps; the mean loss since the last call, and the last step's numbers."""
        self._wait()
        loss = self._since_log.value(self._last["loss"])
        self._since_log = _Mean()
        return self._last | {"loss": loss}

    def mean_loss(self) -> float:
        """Wait for all steps; the mean loss of all."""
        self._wait()
        return self._all.value(0.0)

    def counters(self) -> dict[str, Any]:
        """Wait for all steps; what `resume` needs beside the state on the cores."""
        self._wait()
        return {"all": vars(self._all), "since_log": vars(self._since_log), "last": self._last}

    def resume(self, counters: dict[str, Any]) -> None:
        """Go on counting as the training that gave `counters`."""
        self._all, self._since_log = (_Mean(**counters[n]) for n in ("all", "since_log"))
        self._last = dict(counters["last"])

    def _wait(self) -> None:
        for label, measurements in self._in_flight.all():
            self._finish(*label, measurements)

    def _finish(self, rate: float, rows: int, measurements: Measurements) -> None:
        self._finished += 1
        loss, grad_norm = map(float, measurements)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"step {self._finished}: loss {loss}, gradient norm {grad_norm}. Training stopped. "
                "Lower learning_rate, set max_grad_norm, or look at the windows of this step"
            )
        self._clock.tick(rows)
        self._all.add(loss)
        self._since_log.add(loss)
        self._last = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate}


class _Clock:
    """Examples a second, from the end of the first step on, without pauses."""

    def __init__(self):
        self._last: float | None = None
        self._pause = self._seconds = 0.0
        self._rows = 0

    def pause(self, seconds: float) -> None:
        """So many of the seconds before the next step are not its own."""
        self._pause += seconds

    def tick(self, rows: int) -> None:
        """A step of so many rows is done."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds += now - self._last - self._pause
            self._rows += rows
        self._last, self._pause = now, 0.0

    def rate(self) -> dict[str, float]:
        """{} until there is something to divide by."""
        return {"examples_per_second": self._rows / self._seconds} if self._seconds > 0 else {}


class _Mean:
    """A mean that can be saved and resumed: summed one by one, in float64."""

    def __init__(self, total: float = 0.0, count: int = 0):
        self.total, self.count = total, count

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def value(self, otherwise: float) -> float:
        return self.total / self.count if self.count else otherwise
