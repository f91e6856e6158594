"""Progress of a training in a notebook: a bar and a table of the metrics, updated in place (host).

The bar and the table are those of transformers, which need IPython and nothing else, so they work
without ipywidgets. Only a process that is a kernel imports this module.
"""

import html
from collections.abc import Mapping
from typing import Any

from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils.notebook import (
    NotebookProgressBar,
    NotebookProgressCallback,
    NotebookTrainingTracker,
    text_to_html_table,
)

from qa_flax.train.progress import formatted, progress_of

MAX_ROWS = 100  # of the table; every update sends all of it to the browser

# Ends of the names of metrics that the table leaves out: times, speeds and counts.
_HIDDEN = ("_runtime", "_per_second", "_time", "_total", "_flos")
# Logged with the loss at every step.
_OF_STEPS = ("epoch", "grad_norm", "learning_rate", "num_input_tokens_seen", "total_flos")


class NotebookProgress(NotebookProgressCallback, ProgressCallback):
    """A bar with the latest values, and a table of losses and metrics.

    The table has a row for each evaluation; without evaluations, for each log. It is a callback of
    both classes so that `remove_callback` of either removes it, as in transformers.
    """

    def __init__(self):
        ProgressCallback.__init__(self)
        self._loss: float | None = None  # the one logged last

    def on_train_begin(self, args, state, control, **kwargs):
        """Show an empty bar: compiling the first step may take a minute."""
        self._loss = None
        if state.is_world_process_zero:
            self.training_bar = _Table(state.max_steps)
            self.training_bar.wait(state.global_step, "compiling the first step")

    def on_step_end(self, args, state, control, **kwargs):
        """Advance the bar, a few times in a second at most."""
        if self.training_bar is not None:
            values = ", ".join(f"{n} {v}" for n, v in formatted(progress_of(state)).items())
            epoch = f"epoch {state.epoch:.2f}/{state.num_train_epochs}"
            self.training_bar.update(
                state.global_step, comment=f"{epoch}, {values}" if values else epoch
            )

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Advance the bar of the evaluation, which is below that of the training if there is one.

        It appears with the first batch.
        """
        if not (state.is_world_process_zero and has_length(eval_dataloader)):
            return
        if self.prediction_bar is None:
            batches = len(eval_dataloader)  # pyright: ignore[reportArgumentType]
            table = self.training_bar
            if table is None:
                self.prediction_bar = NotebookProgressBar(batches, prefix="Evaluating")
            else:
                self.prediction_bar = table.add_child(batches, prefix="Evaluating")
        self.prediction_bar.update((self.prediction_bar.value or 0) + 1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add logged values to the table; outside a training, show a table of its own."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        self._loss = logs.get("loss", self._loss)
        values = {
            _label(name): _text(value)
            for name, value in logs.items()
            if name not in _OF_STEPS and not f"_{name}".endswith(_HIDDEN)
        }
        is_evaluated = args.eval_strategy != "no"
        if not values or (is_evaluated and values.keys() == {"Training Loss"}):
            return  # the row of the evaluation will have it
        if self.training_bar is None:
            row = {"Step": str(state.global_step)} | values
            display(HTML(text_to_html_table([list(row), list(row.values())])))
        else:
            before = {} if self._loss is None else {"Training Loss": _text(self._loss)}
            self.training_bar.add(state.global_step, before | values)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Remove the bar of the evaluation; `on_log` has shown the metrics."""
        self._end_evaluation()

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        """Remove the bar of the prediction."""
        self._end_evaluation()

    def on_train_end(self, args, state, control, **kwargs):
        """Show the last step; the display stays."""
        if self.training_bar is not None:
            self.training_bar.update(state.global_step, force_update=True)
            self.training_bar = None

    def _end_evaluation(self) -> None:
        if self.prediction_bar is not None:
            self.prediction_bar.close()
            if self.training_bar is not None:
                self.training_bar.remove_child()
        self.prediction_bar = None


class _Table(NotebookTrainingTracker):
    """transformers' bar and table, whose rows are filled by several logs of a step."""

    def __init__(self, num_steps: int):
        super().__init__(num_steps)
        self._columns = dict.fromkeys(["Step", "Training Loss"])
        self._rows: dict[int, dict[str, str]] = {}

    def wait(self, step: int, reason: str) -> None:
        """Show the bar before the clock of the first update starts."""
        self.value, self.label = step, f"[{step}/{self.total}, {reason}]"
        self.display()

    def add(self, step: int, values: Mapping[str, str]) -> None:
        """Add values to the row of a step."""
        row = self._rows.setdefault(step, {"Step": str(step)})
        row |= values
        self._columns |= dict.fromkeys(row)
        shown = list(self._rows.values())[-MAX_ROWS:]
        lines = [[row.get(name, "") for name in self._columns] for row in shown]
        self.inner_table = [list(self._columns), *lines]
        self.display()

    def close(self) -> None:
        """Leave the display as it is, without the bar of an evaluation."""
        if self.child_bar is not None:
            self.remove_child()


def _label(name: str) -> str:
    """The heading of a metric: `eval_exact_match` -> "Exact Match", as in transformers."""
    if name == "loss":
        return "Training Loss"
    if name == "eval_loss":
        return "Validation Loss"
    words = name.removeprefix("eval_").split("_")
    return html.escape(" ".join(word[:1].upper() + word[1:] for word in words))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
