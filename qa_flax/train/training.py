"""A training under way: steps started ahead, their losses as they come in (host and device)."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from qa_flax.device import parallel
from qa_flax.device.step import Measurements, TrainState
from qa_flax.distributed import processes

# Steps started before the oldest one's loss is waited for: enough to keep the cores busy, few
# enough for the progress bar to tell the truth.
STEPS_IN_FLIGHT = 1


class Training:
    """A training under way: the state on the cores, and the steps whose loss is still awaited."""

    def __init__(
        self,
        state: TrainState,
        step: Any,
        key: Any,
        on_compiled: Callable[[Any, dict[str, np.ndarray]], None] | None = None,
    ):
        self.state = state
        self._step = step
        self._key = key
        self._on_compiled = on_compiled  # with each compiled step, before it runs, and its batch
        self._steps: dict[Any, Callable] = {}  # by the shapes of a batch
        self._in_flight: deque[tuple[float, int, Measurements]] = deque()
        self._clock = _Clock()
        self._finished = int(np.asarray(state.step).flat[0])
        self._all, self._since_log = _Mean(), _Mean()
        self._last: dict[str, float] = {}

    def start_step(self, arrays: dict[str, np.ndarray], learning_rate: float, rows: int) -> None:
        """Start the step of a batch with so many valid rows; returns before it is done."""
        inputs = self.state, parallel.put(arrays), np.float32(learning_rate), self._key
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        if shapes not in self._steps:
            self._steps[shapes] = self._step_for(inputs, arrays)
        self.state, measurements = self._steps[shapes](*inputs)
        parallel.start_copy(measurements)
        self._in_flight.append((learning_rate, rows, measurements))

    def _step_for(self, inputs: tuple[Any, ...], arrays: dict[str, np.ndarray]) -> Callable:
        """The step, compiled; what it takes is known before it runs."""
        several = processes.count() > 1
        if several and self._steps:
            return self._step
        compiled = self._step.lower(*inputs).compile()
        if self._on_compiled is not None:
            self._on_compiled(compiled, arrays)
        # Of several processes a compiled step would want arrays of all cores; compiled once more,
        # it comes from JAX's cache, if there is one.
        return self._step if several else compiled

    def finished(self) -> dict[str, float]:
        """The numbers of the last step that is known to be done; {} before the first."""
        while len(self._in_flight) > STEPS_IN_FLIGHT:
            self._finish_one()
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

    def taken(self) -> TrainState:
        """The whole state as NumPy, without what no step changes; all hosts call it."""
        return parallel.take_whole(self.state._replace(fixed=()))

    def params(self) -> Any:
        """The trained parameters as NumPy, or None if a failed step has taken them with it."""
        if any(array.is_deleted() for array in jax.tree.leaves(self.state.params)):
            return None
        return parallel.take_whole(self.state.params)

    def counters(self) -> dict[str, Any]:
        """Wait for all steps; what `resume` needs beside the state on the cores."""
        self._wait()
        return {"all": vars(self._all), "since_log": vars(self._since_log), "last": self._last}

    def resume(self, counters: dict[str, Any]) -> None:
        """Go on counting as the training that gave `counters`."""
        self._all, self._since_log = (_Mean(**counters[n]) for n in ("all", "since_log"))
        self._last = dict(counters["last"])

    def _wait(self) -> None:
        while self._in_flight:
            self._finish_one()

    def _finish_one(self) -> None:
        rate, rows, measurements = self._in_flight.popleft()
        self._finished += 1
        loss, grad_norm = (float(np.asarray(value)) for value in measurements)
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
    """A mean that can be written down and gone on with: added up one by one, in float64."""

    def __init__(self, total: float = 0.0, count: int = 0):
        self.total, self.count = total, count

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def value(self, otherwise: float) -> float:
        return self.total / self.count if self.count else otherwise
