"""What a user sees while the trainer works: bars on a terminal, plain lines in a log (host)."""

import sys
import time
from typing import Any

from transformers.trainer_callback import ProgressCallback, TrainerCallback

SECONDS_BETWEEN_LINES = 30.0

# What the trainer gives of the last finished step -> how it is shown.
_SHOWN = {
    "loss": ("loss", ".3f"),
    "learning_rate": ("lr", ".2e"),
    "grad_norm": ("grad_norm", ".2f"),
    "examples_per_second": ("examples/s", ".1f"),
}


class TrainingProgress(ProgressCallback):
    """transformers' progress bars, with loss and learning rate of the last finished step."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar of the updates."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("Training")
            if state.global_step:  # a run gone on with
                self.training_bar.update(state.global_step)
                self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Advance the bar of the batches, and name it when it is new."""
        is_new = self.prediction_bar is None
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if is_new and self.prediction_bar is not None:
            self.prediction_bar.set_description("Evaluating")

    def on_step_end(self, args, state, control, progress: Any = None, **kwargs):
        """Advance the bar; the trainer gives the last step's numbers beside the usual arguments."""
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None and progress:
            self.training_bar.set_postfix(_shown(progress))


class TrainingLines(TrainerCallback):
    """One line now and then, for logs that are read later: a bar would fill them with itself."""

    def __init__(self):
        self._begun = self._last = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Say how many updates there will be."""
        self._begun = self._last = time.monotonic()
        self._first = state.global_step
        if state.is_world_process_zero:
            from_ = f" from step {state.global_step}" if state.global_step else ""
            _print(f"Training: {state.max_steps} steps{from_}")

    def on_step_end(self, args, state, control, progress: Any = None, **kwargs):
        """A line every half a minute."""
        now = time.monotonic()
        is_due = progress and now - self._last >= SECONDS_BETWEEN_LINES
        if state.is_world_process_zero and is_due:
            self._last = now
            left = (now - self._begun) / (state.global_step - self._first)
            left *= state.max_steps - state.global_step
            numbers = ", ".join(f"{name} {value}" for name, value in _shown(progress).items())
            _print(f"step {state.global_step}/{state.max_steps}, {left:.0f} s left, {numbers}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """The numbers that are logged, one line."""
        if state.is_world_process_zero and logs:
            shown = ((k, f"{v:.4g}" if isinstance(v, float) else v) for k, v in logs.items())
            _print(
                f"step {state.global_step}: "
                + ", ".join(f"{name} {value}" for name, value in shown if name != "total_flos")
            )


def progress_callback() -> type[TrainerCallback]:
    """Bars where somebody is looking, else lines."""
    return TrainingProgress if sys.stderr.isatty() else TrainingLines


def _shown(progress: dict[str, float]) -> dict[str, str]:
    found = (name for name in _SHOWN if name in progress)
    return {_SHOWN[name][0]: format(progress[name], _SHOWN[name][1]) for name in found}


def _print(line: Any) -> None:
    print(line, file=sys.stderr, flush=True)
