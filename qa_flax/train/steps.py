"""Run training steps asynchronously; read the loss of each step once it has finished (host)."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from qa_flax.data.batches import HostBatch
from qa_flax.data.interrupts import interrupts_deferred
from qa_flax.device import parallel
from qa_flax.device.in_flight import InFlight
from qa_flax.device.step import Measurements
from qa_flax.distributed import processes
from qa_flax.models.id_limits import check_ids
from qa_flax.train.live_state import LiveState

OnCompiled = Callable[[Any, dict[str, np.ndarray]], None]
"""Called with a newly compiled step, before it runs, and with the arrays of its batch."""


class Steps:
    """Starts the updates of one training and collects their losses and gradient norms.

    The host does not wait for a step: it starts the next one while the cores still compute.

    Args:
        live: the owner of the training state, which each step replaces.
        step: `make_train_step` over the cores, from `train_program`.
        key: JAX key from which the dropout masks of the run are drawn.
        finished_steps: number of updates that a resumed run has already done.
        on_compiled: see `OnCompiled`.

    Attributes:
        started: number of updates that the weights have, those of a resumed run included.
    """

    def __init__(
        self,
        live: LiveState,
        step: Any,
        key: Any,
        finished_steps: int = 0,
        on_compiled: OnCompiled | None = None,
    ):
        self._live, self._step = live, step
        self._key = parallel.put_key(key)
        self._on_compiled = on_compiled
        self._compiled: dict[Any, Callable] = {}  # the step for each set of batch shapes
        self._in_flight = InFlight[tuple[float, int]]()
        self._clock = _Clock()
        self._finished_steps = self.started = finished_steps
        self._run_loss, self._log_loss = _Mean(), _Mean()  # of the run; since the latest log
        self._last: dict[str, float] = {}

    def start(self, batch: HostBatch, learning_rate: float, logged_rate: float) -> None:
        """Start one update and return without waiting for it.

        Args:
            batch: arrays [D, A, B, ...] of this process's cores.
            learning_rate: the factor of this update.
            logged_rate: the learning rate to log; NaN: none.

        Raises:
            ValueError: an id is outside the model's tables, or a callback wrote an array of another
                shape or dtype into the model.
            ProcessError: a callback wrote different values in different processes.
        """
        check_ids(batch.arrays, self._live.model.id_limits)
        rates = np.full(parallel.process_core_count(), learning_rate, np.float32)
        arrays, rates = parallel.put((batch.arrays, rates))
        inputs = self._live.state(), arrays, rates, self._key
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        is_new = shapes not in self._compiled
        if is_new:
            self._compiled[shapes] = self._compile(inputs, batch.arrays)
        with interrupts_deferred():
            with nullcontext() if is_new else parallel.no_implicit_transfers():
                state, measurements = self._compiled[shapes](*inputs)
            self._live.replace(state)
            self.started += 1
            self._in_flight.add((logged_rate, batch.windows), measurements)

    def _compile(self, inputs: tuple[Any, ...], arrays: dict[str, np.ndarray]) -> Callable:
        """Compile the step for a new batch shape, so that its memory is reported before it runs."""
        is_multiprocess = processes.count() > 1
        if is_multiprocess and self._compiled:
            return self._step
        compiled = self._step.compile(*inputs)
        if self._on_compiled is not None:
            self._on_compiled(compiled, arrays)
        # The compiled step needs the arrays of all cores, and one of several processes has only its
        # own. There the uncompiled step is called: JAX compiles it once more, or takes it from the
        # compilation cache if one is set up.
        return self._step if is_multiprocess else compiled

    def last(self) -> dict[str, float]:
        """Return loss, gradient norm and learning rate of the last finished step; {} before one.

        Raises:
            FloatingPointError: the loss or gradient norm of a step is not finite.
        """
        for label, measurements in self._in_flight.due():
            self._finish(*label, measurements)
        return self._last

    def progress(self) -> dict[str, float]:
        """Return `last()` with the examples per second of all steps after the first (compiled)."""
        return (numbers := self.last()) and numbers | self._clock.rate()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for all steps; time spent inside the context does not count as training time."""
        self._wait()
        began = time.monotonic()
        try:
            yield
        finally:
            self._clock.pause(time.monotonic() - began)

    def logs(self) -> dict[str, float]:
        """Wait for all steps and return `last()`, with the mean loss since the previous call."""
        self._wait()
        loss = self._log_loss.value(self._last["loss"])
        self._log_loss = _Mean()
        return self._last | {"loss": loss}

    def mean_loss(self) -> float:
        """Wait for all steps and return the mean loss of the run, resumed or not; 0.0 if none."""
        self._wait()
        return self._run_loss.value(0.0)

    def counters(self) -> dict[str, Any]:
        """Wait for all steps and return the JSON values that `resume` takes."""
        self._wait()
        return {"all": vars(self._run_loss), "since_log": vars(self._log_loss), "last": self._last}

    def resume(self, counters: dict[str, Any]) -> None:
        """Continue the mean losses of the run whose checkpoint holds `counters`."""
        self._run_loss, self._log_loss = (_Mean(**counters[n]) for n in ("all", "since_log"))
        self._last = dict(counters["last"])

    def _wait(self) -> None:
        for label, measurements in self._in_flight.all():
            self._finish(*label, measurements)

    def _finish(self, rate: float, rows: int, measurements: Measurements) -> None:
        self._finished_steps += 1
        loss, grad_norm = map(float, measurements)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"step {self._finished_steps}: loss {loss}, gradient norm {grad_norm}; both must "
                "be finite, so training stopped. Lower learning_rate, set max_grad_norm, or look "
                "at the windows of this step"
            )
        self._clock.tick(rows)
        self._run_loss.add(loss)
        self._log_loss.add(loss)
        self._last = {"loss": loss, "grad_norm": grad_norm}
        if not math.isnan(rate):
            self._last["learning_rate"] = rate


class _Clock:
    """Measures examples per second, from the end of the first step on, without pauses."""

    def __init__(self):
        self._last: float | None = None
        self._pause = self._seconds = 0.0
        self._rows = 0

    def pause(self, seconds: float) -> None:
        """Exclude these seconds from the time until the next step finishes."""
        self._pause += seconds

    def tick(self, rows: int) -> None:
        """Count a step of `rows` examples that has just finished."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds += now - self._last - self._pause
            self._rows += rows
        self._last, self._pause = now, 0.0

    def rate(self) -> dict[str, float]:
        """Return `examples_per_second`; {} until the second step has finished."""
        return {"examples_per_second": self._rows / self._seconds} if self._seconds > 0 else {}


class _Mean:
    """A mean that can be saved and resumed: values are summed one by one, in float64.

    A checkpoint stores the attributes by name.
    """

    def __init__(self, total: float = 0.0, count: int = 0):
        self.total, self.count = total, count

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def value(self, default: float) -> float:
        return self.total / self.count if self.count else default
