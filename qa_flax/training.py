"""A training under way: steps started ahead, their losses as they come in (host and device)."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from transformers.trainer_callback import ProgressCallback

from qa_flax import parallel
from qa_flax.step import Measurements, TrainState

# Steps started before the oldest one's loss is waited for: enough to keep the cores busy, few
# enough for the progress bar to tell the truth.
STEPS_IN_FLIGHT = 1


class TrainingProgress(ProgressCallback):
    """transformers' progress bars, with loss and learning rate of the last finished step."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar of the updates."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("Training")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Advance the bar of the batches, and name it when it is new."""
        is_new = self.prediction_bar is None
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if is_new and self.prediction_bar is not None:
            self.prediction_bar.set_description("Evaluating")

    def on_step_end(self, args, state, control, loss=None, learning_rate=None, **kwargs):
        """Advance the bar; the trainer gives the two numbers beside the usual arguments."""
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None and loss is not None:
            self.training_bar.set_postfix(loss=f"{loss:.3f}", lr=f"{learning_rate:.2e}")


class Training:
    """A training under way: the state on the cores, and the steps whose loss is still awaited."""

    def __init__(self, state: TrainState, step: Callable, key: Any, learning_rate: Callable):
        self.state = state
        self._step = step
        self._key = key
        self._learning_rate = learning_rate
        self._in_flight: deque[tuple[int, Measurements]] = deque()
        self._started = 0
        self._losses: list[float] = []
        self._logged = 0
        self._last: dict[str, float] = {}

    def start_step(self, arrays: dict[str, np.ndarray]) -> None:
        """Send a batch to the cores and start the step; returns before it is done."""
        self.state, measurements = self._step(self.state, parallel.put(arrays), self._key)
        parallel.start_copy(measurements)
        self._in_flight.append((self._started, measurements))
        self._started += 1

    def finished(self) -> dict[str, float]:
        """Loss and learning rate of the last step that is known to be done; {} before the first."""
        while len(self._in_flight) > STEPS_IN_FLIGHT:
            self._finish_one()
        return {name: self._last[name] for name in ("loss", "learning_rate") if self._last}

    def logs(self) -> dict[str, float]:
        """Wait for all steps; the mean loss since the last call, and the last step's numbers."""
        while self._in_flight:
            self._finish_one()
        losses, self._logged = self._losses[self._logged :], len(self._losses)
        return self._last | {"loss": float(np.mean(losses)) if losses else self._last["loss"]}

    def mean_loss(self) -> float:
        """Wait for all steps; the mean loss of all."""
        while self._in_flight:
            self._finish_one()
        return float(np.mean(self._losses)) if self._losses else 0.0

    def params(self) -> Any:
        """The parameters as NumPy, or None if a failed step has taken them with it."""
        if any(array.is_deleted() for array in jax.tree.leaves(self.state.params)):
            return None
        return parallel.take_copy(self.state.params)

    def _finish_one(self) -> None:
        step, measurements = self._in_flight.popleft()
        loss, grad_norm = (float(np.asarray(value)) for value in measurements)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"step {step + 1}: loss {loss}, gradient norm {grad_norm}. Training stopped. "
                "Lower learning_rate, set max_grad_norm, or look at the windows of this step"
            )
        self._losses.append(loss)
        rate = self._learning_rate(step)
        self._last = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate}
