"""Run training steps asynchronously; read their losses when they are needed (host)."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from qa_flax.data.interrupts import interrupts_deferred
from qa_flax.device import parallel
from qa_flax.device.prefetch import Ready
from qa_flax.device.programs import Program
from qa_flax.device.step import Measurements, TrainState
from qa_flax.distributed import processes
from qa_flax.train.compiling import Compiling
from qa_flax.train.live_state import LiveState

OnCompiled = Callable[[Any, dict[str, Any]], None]
"""Called with a newly compiled step, before it runs, and with the arrays of its batch."""

STEPS_AHEAD = 1
"""How many steps are started before the host waits for the oldest. More would only take memory."""
MOST_UNREAD = 500
"""Losses are read after this many steps, even if nothing is logged or saved in between."""


class _Started(NamedTuple):
    """A step, whose measurements are on the cores, or will be."""

    rate: float
    """The learning rate to log; NaN: none."""
    windows: int
    measurements: Measurements


class Steps:
    """Starts the updates of one training and collects their losses and gradient norms.

    The host does not wait for a step: it starts the next one while the cores still compute. It
    reads losses only where they are needed, for a log, an evaluation or a checkpoint, and looks
    there whether all since the last time are finite.

    It is a context manager: what is not compiled yet when it ends is not compiled.

    Args:
        live: the owner of the training state, which each step replaces.
        step: from `train_program`.
        key: JAX key from which the dropout masks of the run are drawn.
        finished_steps: number of updates that a resumed run has already done.
        on_compiled: see `OnCompiled`.
        is_shown: whether a line says that the step is being compiled.

    Attributes:
        started: number of updates that the weights have, those of a resumed run included.
    """

    def __init__(
        self,
        live: LiveState,
        step: Program,
        key: Any,
        finished_steps: int = 0,
        on_compiled: OnCompiled | None = None,
        is_shown: bool = False,
    ):
        self._compiling = Compiling("the training step", is_shown)
        self._live, self._step = live, step
        self._key = parallel.put_key(key)
        self._on_compiled = on_compiled
        self._compiled: dict[Any, Callable] = {}  # the step for each set of batch shapes
        self._ahead: deque[tuple[dict[str, Any], tuple[Any, ...]]] = deque()  # to compile later
        self._running: deque[_Started] = deque()  # they may not have finished
        self._unread: list[_Started] = []  # they have finished
        self._clock = _Clock()
        self._read_steps = self.started = finished_steps
        self._run_loss, self._log_loss = _Mean(), _Mean()  # of the run; since the latest log
        self._last: dict[str, float] = {}

    def start(self, ready: Ready, learning_rate: float, logged_rate: float) -> None:
        """Start one update and return without waiting for it.

        Args:
            ready: a batch, its arrays [D, A, B, ...] on this process's cores.
            learning_rate: the factor of this update.
            logged_rate: the learning rate to log; NaN: none.

        Raises:
            ValueError: a callback wrote an array of another shape or dtype into the model.
            ProcessError: a callback wrote different values in different processes.
        """
        rates = parallel.put(np.full(parallel.process_core_count(), learning_rate, np.float32))
        inputs = self._live.state(), ready.arrays, rates, self._key
        shapes = _shapes_of(ready.arrays)
        # The first call may copy constants to the cores; one of several processes compiles again.
        is_first = shapes not in self._compiled
        if is_first:
            self._compiled[shapes] = self._compiled_for(ready.arrays, inputs)
        with interrupts_deferred():
            with nullcontext() if is_first else parallel.no_implicit_transfers():
                state, measurements = self._compiled[shapes](*inputs)
            self._live.replace(state)
            self.started += 1
            self._running.append(_Started(logged_rate, ready.batch.windows, measurements))
        self._compile_next()
        self._wait(STEPS_AHEAD)
        if len(self._unread) >= MOST_UNREAD:
            self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._compiling.__exit__(*error)

    def compile_ahead(
        self, state: TrainState, batches: Sequence[dict[str, jax.ShapeDtypeStruct]]
    ) -> None:
        """Begin to compile the step for batches of these shapes, in another thread.

        The step is traced in this thread: for the first batch now, and for the others after the
        first steps have been started, while the cores compute. With several processes nothing is
        done: there JAX compiles for arrays only, not for shapes.

        Args:
            state: the shapes of the state on one core, from `abstract_state`.
            batches: the shapes of the arrays [D, A, B, ...] of this process's cores, those that
                are needed first at the beginning.
        """
        if processes.count() > 1:
            return
        cores = parallel.process_core_count()

        def on_cores(array: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((cores, *array.shape), array.dtype)

        states = jax.tree.map(on_cores, state)
        rates = jax.ShapeDtypeStruct((cores,), np.float32)
        self._ahead = deque((batch, (states, batch, rates, self._key)) for batch in batches)
        self._compile_next()

    def _compile_next(self) -> None:
        if self._ahead:
            batch, inputs = self._ahead.popleft()
            self._compile(batch, inputs)

    def _compile(self, batch: dict[str, Any], inputs: tuple[Any, ...]) -> None:
        rows, tokens = batch["input_ids"].shape[-2:]
        lower = partial(self._step.lower, *inputs)
        self._compiling.add(_shapes_of(batch), f"{rows} x {tokens} tokens", lower)

    def _compiled_for(self, arrays: dict[str, Any], inputs: tuple[Any, ...]) -> Callable:
        """Return the compiled step for batches of these shapes."""
        # The compiled step needs the arrays of all cores, and one of several processes has only its
        # own. There the step itself is called.
        is_multiprocess = processes.count() > 1
        if is_multiprocess and self._compiled:
            return self._step
        self._compile(arrays, inputs)
        compiled = self._compiling.result(_shapes_of(arrays))
        if self._on_compiled is not None:
            self._on_compiled(compiled, arrays)
        return self._step if is_multiprocess else compiled

    @property
    def is_compiling(self) -> bool:
        """Whether the step is being compiled for some shape."""
        return bool(self._ahead) or self._compiling.is_busy

    def progress(self) -> dict[str, float]:
        """Return what is known without waiting, for a progress bar.

        Loss, gradient norm and learning rate of the last step whose loss was read, and the examples
        per second of all steps after the first, which may have been compiled.
        """
        return self._last | self._clock.rate()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for all steps; time spent inside the context does not count as training time.

        Raises `FloatingPointError` if a loss or gradient norm is not finite.
        """
        self._read()
        began = time.monotonic()
        try:
            yield
        finally:
            self._clock.pause(time.monotonic() - began)

    def logs(self) -> dict[str, float]:
        """Wait for all steps and return what to log, with the mean loss since the previous call.

        Raises `FloatingPointError` if a loss or gradient norm is not finite.
        """
        self._read()
        loss = self._log_loss.value(self._last["loss"])
        self._log_loss = _Mean()
        return self._last | {"loss": loss}

    def mean_loss(self) -> float:
        """Wait for all steps and return the mean loss of the run, resumed or not; 0.0 if none."""
        self._read()
        return self._run_loss.value(0.0)

    def counters(self) -> dict[str, Any]:
        """Wait for all steps and return the JSON values that `resume` takes."""
        self._read()
        return {"all": vars(self._run_loss), "since_log": vars(self._log_loss), "last": self._last}

    def resume(self, counters: dict[str, Any]) -> None:
        """Continue the mean losses of the run whose checkpoint holds `counters`."""
        self._run_loss, self._log_loss = (_Mean(**counters[n]) for n in ("all", "since_log"))
        self._last = dict(counters["last"])

    def wait(self) -> None:
        """Wait until all steps have finished, without reading their losses."""
        self._wait(0)

    def _wait(self, ahead: int) -> None:
        """Wait until at most `ahead` steps are running."""
        while len(self._running) > ahead:
            parallel.wait(self._running[0].measurements)
            self._clock.tick(self._running[0].windows)
            self._unread.append(self._running.popleft())

    def _read(self) -> None:
        """Wait for all steps and read their losses.

        Raises:
            FloatingPointError: the loss or gradient norm of a step is not finite.
        """
        self._wait(0)
        unread, self._unread = self._unread, []
        parallel.start_copy([step.measurements for step in unread])
        for step in unread:
            self._read_steps += 1
            loss, grad_norm = map(float, parallel.gather(step.measurements))
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise FloatingPointError(
                    f"step {self._read_steps}: loss {loss}, gradient norm {grad_norm}; both must "
                    "be finite, so training stopped. Lower learning_rate, set max_grad_norm, or "
                    "look at the windows of this step"
                )
            self._run_loss.add(loss)
            self._log_loss.add(loss)
            self._last = {"loss": loss, "grad_norm": grad_norm}
            if not math.isnan(step.rate):
                self._last["learning_rate"] = step.rate


def _shapes_of(arrays: dict[str, Any]) -> Any:
    return tuple(sorted((name, array.shape) for name, array in arrays.items()))


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
