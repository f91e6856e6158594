"""Progress of a training: bars on a terminal, a table in a notebook, lines in a log (host)."""

import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers.trainer_callback import (
    CallbackHandler,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
)

from qa_flax.data.screen import in_notebook, shows_nested_bars

SECONDS_BETWEEN_LINES = 30.0

# Value that was known at the last step, from the trainer -> label and format.
_FORMATS = {
    "loss": ("loss", ".3f"),
    "learning_rate": ("lr", ".2e"),
    "grad_norm": ("grad_norm", ".2f"),
    "examples_per_second": ("examples/s", ".1f"),
}


class TrainingProgress(ProgressCallback):
    """transformers' progress bars, with the speed and the values of the latest log."""

    _evaluated: Any = None
    """The data loader that the evaluation bar is for."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the training bar; a resumed run starts at its step."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("Training")
            if state.global_step:
                self.training_bar.update(state.global_step)
                self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Advance the evaluation bar; each data set of an evaluation has its own."""
        if self.prediction_bar is not None and eval_dataloader is not self._evaluated:
            self.prediction_bar.close()
            self.prediction_bar = None
        self._evaluated = eval_dataloader
        is_new = self.prediction_bar is None
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if is_new and self.prediction_bar is not None:
            self.prediction_bar.set_description("Evaluating")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the logged values above the bar, unless a table of them follows."""
        if not is_tabulated(args, logs):
            super().on_log(args, state, control, logs, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        """Advance the training bar, and show the latest values."""
        super().on_step_end(args, state, control, **kwargs)
        progress = progress_of(state)
        if self.training_bar is not None and progress:
            self.training_bar.set_postfix(formatted(progress))


class TrainingLines(ProgressCallback):
    """Prints a line every 30 seconds, for logs: a progress bar would fill them with its updates.

    It is a `ProgressCallback` so that `remove_callback(ProgressCallback)` removes it, too.
    """

    def __init__(self):
        super().__init__()
        self._last_line = 0.0
        # Time and number of the first step of a run, which includes compiling.
        self._first: tuple[float, int] | None = None
        self._is_training = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Print the number of steps and, for a resumed run, its first step."""
        self._is_training = True
        self._last_line, self._first = time.monotonic(), None
        if state.is_world_process_zero:
            start = f" from step {state.global_step}" if state.global_step else ""
            _print(f"Training: {state.max_steps} steps{start}")

    def on_step_end(self, args, state, control, **kwargs):
        """Print a line if the last one is at least `SECONDS_BETWEEN_LINES` old."""
        progress = progress_of(state)
        now = time.monotonic()
        if self._first is None:
            self._first = now, state.global_step
            return
        is_due = progress and now - self._last_line >= SECONDS_BETWEEN_LINES
        if state.is_world_process_zero and is_due:
            self._last_line = now
            per_step = (now - self._first[0]) / (state.global_step - self._first[1])
            remaining = per_step * (state.max_steps - state.global_step)
            values = ", ".join(f"{name} {value}" for name, value in formatted(progress).items())
            _print(f"step {state.global_step}/{state.max_steps}, {remaining:.0f} s left, {values}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the logged values in one line, unless a table of them follows."""
        follows = is_tabulated(args, logs, after_training=not self._is_training)
        if state.is_world_process_zero and logs and not follows:
            values = ((k, f"{v:.4g}" if isinstance(v, float) else v) for k, v in logs.items())
            _print(
                f"step {state.global_step}: "
                + ", ".join(f"{name} {value}" for name, value in values if name != "total_flos")
            )

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Print nothing."""

    def on_train_end(self, args, state, control, **kwargs):
        """Print nothing."""
        self._is_training = False


class LogPrinter(PrinterCallback):
    """transformers' `PrinterCallback`, without what a command prints as a table."""

    _is_training = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Note that a training has begun."""
        self._is_training = True

    def on_train_end(self, args, state, control, **kwargs):
        """Note that it has ended."""
        self._is_training = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the logged values as a dict."""
        if not is_tabulated(args, logs, after_training=not self._is_training):
            super().on_log(args, state, control, logs, **kwargs)


def is_tabulated(args: Any, logs: dict[str, Any] | None, *, after_training: bool = False) -> bool:
    """Whether a command will print these values as a table, so that no line needs them.

    Args:
        args: the training arguments; a command that prints tables has set `_prints_tables`.
        logs: the values.
        after_training: whether no training is running, so that they are of a last evaluation.
    """
    is_last = after_training or "train_runtime" in (logs or ())
    return is_last and vars(args).get("_prints_tables", False)


def set_progress(state: TrainerState, progress: dict[str, float]) -> None:
    """Store the latest values where only this package's callbacks read them.

    Callbacks need not accept a further argument, and `trainer_state.json` does not have them.
    """
    vars(state)["_progress"] = progress


def progress_of(state: TrainerState) -> dict[str, float]:
    """Return what `set_progress` stored; {} before the first step."""
    return vars(state).get("_progress", {})


def progress_callback() -> type[TrainerCallback]:
    """The callback class to use: a table in a notebook, bars on a terminal, otherwise lines."""
    if in_notebook():
        from qa_flax.train.notebook import NotebookProgress  # imports IPython

        return NotebookProgress
    return TrainingProgress if shows_nested_bars() else TrainingLines


def close_bars(handler: CallbackHandler, *, training: bool) -> None:
    """After an error or Ctrl-C, close the progress bars, which have no event for it.

    The next training or evaluation would otherwise go on with them.

    Args:
        handler: of the callbacks.
        training: whether a training has ended, not only an evaluation.
    """
    names = ("prediction_bar", "training_bar") if training else ("prediction_bar",)
    for callback in handler.callbacks:
        for name in names if isinstance(callback, ProgressCallback) else ():
            if (bar := getattr(callback, name, None)) is not None:
                bar.close()
                setattr(callback, name, None)


def formatted(progress: dict[str, float]) -> dict[str, str]:
    """The label and the text of each value."""
    return {
        label: format(progress[name], spec)
        for name, (label, spec) in _FORMATS.items()
        if name in progress
    }


def print_above_bar(line: str) -> None:
    """Print a line to stderr; it does not break a progress bar."""
    tqdm.write(line, file=sys.stderr)


def _print(line: Any) -> None:
    print(line, file=sys.stderr, flush=True)


def readable_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Format metrics as transformers prints them.

    Times (`..._runtime`) become h:mm:ss.cc, memory (`..._mem_...`) megabytes, `total_flos`
    gigaflops; other floats are rounded to four digits.
    """
    result = {}
    for name, value in metrics.items():
        if "_mem_" in name:
            value = f"{value >> 20}MB"
        elif "_runtime" in name:
            hundredths = int(abs(value - int(value)) * 100)
            value = f"{timedelta(seconds=int(value))}.{hundredths:02d}"
        elif name == "total_flos":
            value = f"{int(value) >> 30}GF"
        elif isinstance(value, float):
            value = round(value, 4)
        result[name] = value
    return result
