"""Training arguments that a script changes after it has built the trainer (host).

`Trainer` looks for changes when it trains or evaluates. A changed argument is checked like a new
one; most are read where they act, and what was built from the others is built anew.
"""

import os
from typing import Any

import transformers
from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
)
from transformers.trainer_callback import CallbackHandler, PrinterCallback

from qa_flax.train.early_stopping import update_callback
from qa_flax.train.progress import LogPrinter, progress_callback
from qa_flax.train.trackers import tracker_callbacks
from qa_flax.train.training_arguments import (
    check_training_arguments,
    check_values,
    report_once,
)


class KnownArguments:
    """The values of the arguments as the trainer last checked them."""

    def __init__(self):
        self._values: dict[str, Any] = {}

    def changes(self, args: transformers.TrainingArguments) -> set[str]:
        """The names of the arguments that differ from the values remembered."""
        values = vars(args)
        names = self._values.keys() | values.keys()
        return {
            name
            for name in names
            if (name[0] != "_" or name == "_logging_dir")
            and self._values.get(name) != values.get(name)
        }

    def check(self, args: transformers.TrainingArguments, changed: set[str]) -> None:
        """Check changed arguments, and set those that follow from them.

        Raises:
            ValueError: a value is invalid or not supported.
        """
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if old in changed and new not in changed and hasattr(args, new):
                setattr(args, new, getattr(args, old))
        metric = self._values.get("metric_for_best_model")
        was_derived = metric and args.greater_is_better == (not metric.endswith("loss"))
        is_kept = "metric_for_best_model" not in changed or "greater_is_better" in changed
        if was_derived and not is_kept:
            args.greater_is_better = None  # it is derived again
        check_values(args)
        check_training_arguments(args)

    def remember(self, args: transformers.TrainingArguments) -> None:
        """Take the current values as checked."""
        self._values = {
            name: value.copy() if isinstance(value, list | dict) else value
            for name, value in vars(args).items()
        }


EARLY_STOPPING = frozenset({"early_stopping_patience", "early_stopping_threshold"})
"""The names of the arguments of early stopping."""


class ArgumentCallbacks:
    """The callbacks that the arguments ask for: of `report_to`, early stopping, the progress."""

    def __init__(self, args: transformers.TrainingArguments):
        self.reports = tracker_callbacks(args)
        self.progress = _progress(args)

    def update(
        self, handler: CallbackHandler, args: transformers.TrainingArguments, changed: set[str]
    ) -> None:
        """Replace the callbacks in `handler` whose arguments have changed, if they are still there.

        Args:
            handler: the trainer's.
            args: the arguments.
            changed: the names of those that have changed.
        """
        callbacks = handler.callbacks
        if "report_to" in changed:
            reports = tracker_callbacks(args)  # raises an error before anything is removed
            callbacks[:] = [c for c in callbacks if not any(c is old for old in self.reports)]
            self.reports = reports
            present = {type(callback) for callback in callbacks}
            callbacks[1:1] = [new for new in self.reports if type(new) not in present]
        if "disable_tqdm" in changed:
            new = _progress(args)
            callbacks[:] = [new if c is self.progress else c for c in callbacks]
            self.progress = new
        if changed & EARLY_STOPPING:
            update_callback(callbacks, args)
        _set_tensorboard_folder(callbacks, args)


def _set_tensorboard_folder(
    callbacks: list[TrainerCallback], args: transformers.TrainingArguments
) -> None:
    """Let the callbacks for TensorBoard write into `logging_dir`, if it is given.

    transformers 5 has only an environment variable for it, which all trainers of a process share.
    """
    folder = vars(args).get("_logging_dir")
    if folder is None:
        return
    variable = os.environ.get("TENSORBOARD_LOGGING_DIR")
    writers = [c for c in callbacks if isinstance(c, TensorBoardCallback)]
    if variable and variable != folder:
        reason = f"the environment variable TENSORBOARD_LOGGING_DIR={variable} takes precedence"
        report_once(args, "logging_dir", folder, f" has no effect: {reason}")
    elif not writers:
        reason = 'nothing is written for TensorBoard without report_to="tensorboard"'
        report_once(args, "logging_dir", folder, f" has no effect: {reason}")
    else:
        for callback in writers:
            callback.logging_dir = os.path.expanduser(folder)


def _progress(args: transformers.TrainingArguments) -> TrainerCallback:
    if not args.disable_tqdm:
        return progress_callback()()
    return (LogPrinter if vars(args).get("_prints_tables") else PrinterCallback)()
