"""Early stopping, by `early_stopping_patience` or a script's own callback (host).

Which other arguments the patience sets is in `regularization.py`.
"""

from collections.abc import Sequence
from typing import Any

import transformers
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from qa_flax.train.best import metric_name
from qa_flax.train.plan import Plan
from qa_flax.train.training_arguments import report_once


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):
    """transformers' callback as `early_stopping_patience` adds it.

    It has the same name, under which checkpoints save its count of evaluations, so that a run may
    be resumed with either.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Count the evaluation; one of several data sets that has not the metric does not count."""
        if metric_name(args) in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def update_callback(callbacks: list[TrainerCallback], args: transformers.TrainingArguments) -> None:
    """Let the callback of `early_stopping_patience` be what the arguments ask for."""
    callbacks[:] = [c for c in callbacks if not isinstance(c, EarlyStoppingCallback)]
    patience = getattr(args, "early_stopping_patience", None)
    if patience is not None:
        threshold = getattr(args, "early_stopping_threshold", None) or 0.0
        callbacks.append(EarlyStoppingCallback(patience, threshold))
        prefer_script_callback(callbacks, args)


def prefer_script_callback(
    callbacks: list[TrainerCallback], args: transformers.TrainingArguments
) -> None:
    """Remove the callback of `early_stopping_patience` if the script has one, and report it."""
    early = [c for c in callbacks if isinstance(c, transformers.EarlyStoppingCallback)]
    own = [c for c in early if isinstance(c, EarlyStoppingCallback)]
    if own and len(own) < len(early):
        callbacks[:] = [c for c in callbacks if c not in own]
        (script, *_) = (c for c in early if c not in own)
        report_once(
            args,
            "early_stopping_patience",
            own[0].early_stopping_patience,
            " does not stop the training: the EarlyStoppingCallback in the trainer's callbacks "
            f"does, with its patience of {script.early_stopping_patience}",
        )


def describe_late_stop(
    callbacks: Sequence[TrainerCallback],
    args: transformers.TrainingArguments,
    state: TrainerState,
    plan: Plan,
) -> str | None:
    """Say so if the training has too few evaluations to be stopped early; None: it has enough.

    Args:
        callbacks: of the trainer.
        args: the arguments.
        state: with the number of updates, and of those between two evaluations.
        plan: the number of updates in an epoch.
    """
    if not any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        return None
    patience: int = getattr(args, "early_stopping_patience", 0)
    is_by_epoch = args.eval_strategy == "epoch"
    interval = plan.updates_per_epoch if is_by_epoch else max(1, int(state.eval_steps))
    earliest = (patience + 1) * interval  # the first evaluation is always the best so far
    if earliest < state.max_steps:
        return None
    return (
        f"early_stopping_patience={patience} cannot stop this training before its end: the "
        f"{_counted(patience + 1, 'evaluation')} that this takes end at step {earliest}, and the "
        f"training has {_counted(state.max_steps, 'update')}. Raise num_train_epochs, evaluate "
        "more often (eval_strategy steps and eval_steps), or lower the patience. The best model is "
        "kept in any case"
    )


def describe_stop(
    callbacks: Sequence[TrainerCallback],
    args: transformers.TrainingArguments,
    state: TrainerState,
    *,
    is_best_loaded: bool,
) -> str | None:
    """Describe how early stopping ended a training; None: it did not.

    Args:
        callbacks: of the trainer.
        args: the arguments.
        state: at the end of the training.
        is_best_loaded: whether the model has the weights of the best step.
    """
    ended = [
        callback
        for callback in callbacks
        if isinstance(callback, transformers.EarlyStoppingCallback)
        and callback.early_stopping_patience_counter >= callback.early_stopping_patience
    ]
    if not ended or state.global_step >= state.max_steps:
        return None
    name, threshold = metric_name(args), ended[0].early_stopping_threshold
    margin = f" by more than {threshold:g}" if threshold else ""
    count = _counted(ended[0].early_stopping_patience_counter, "evaluation")
    line = (
        f"Stopped at step {state.global_step} of {state.max_steps}: {name} has not improved"
        f"{margin} for {count}"
    )
    if state.best_global_step is None or state.best_metric is None:
        return line
    best = f"step {state.best_global_step} ({name} {state.best_metric:.4g})"
    return f"{line}; " + (f"the model is that of {best}" if is_best_loaded else f"best was {best}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
