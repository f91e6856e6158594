"""`metric_for_best_model`: its value in an evaluation, and the best value so far (host)."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import transformers
from transformers.trainer_callback import TrainerState

from qa_flax import storage
from qa_flax.storage import AnyPath
from qa_flax.train.training_arguments import plain_value


class MetricError(ValueError):
    """`metric_for_best_model` is not a metric that evaluation returns."""


def check_evaluation(args: transformers.TrainingArguments, eval_dataset: Any) -> None:
    """Refuse arguments that need an evaluation which the trainer cannot do.

    Raises:
        ValueError: there is no data set for `eval_strategy`, or no metric for
            `save_strategy="best"`.
    """
    patience = getattr(args, "early_stopping_patience", None)
    if patience is not None and eval_dataset is None:
        raise ValueError(
            f"early_stopping_patience={patience!r} needs an eval_dataset to evaluate on; pass one "
            "to the trainer (command line: --validation_file), or set early_stopping_patience=None "
            "(command line: leave --early_stopping_patience out)"
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(
            f"eval_strategy={plain_value(args.eval_strategy)!r} needs an eval_dataset; pass one to "
            "the trainer (command line: --do_eval with --validation_file), or set "
            'eval_strategy="no"'
        )
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        raise ValueError(
            'save_strategy="best" needs metric_for_best_model (command line: '
            '--metric_for_best_model), such as "f1" or "loss"'
        )


def check_best_metric(
    args: transformers.TrainingArguments, eval_dataset: Any, compute_metrics: Any
) -> None:
    """Refuse, before training starts, a `metric_for_best_model` that evaluation cannot return.

    The names of all metrics are known without `compute_metrics`, and if it has an attribute
    `metric_names`, as that of `qa-flax run`. Else they are known after the first evaluation.

    Raises:
        MetricError: names the metrics that evaluation returns.
    """
    names = () if compute_metrics is None else getattr(compute_metrics, "metric_names", None)
    is_needed = args.metric_for_best_model is not None and args.eval_strategy != "no"
    if not is_needed or names is None:
        return
    names = ["loss", *names]
    if names[1:] and getattr(args, "eval_train_samples", 0):
        names += ["accuracy_start", "accuracy_end"]
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else [""]
    available = [f"eval_{of_set}{name}" for of_set in sets for name in names]
    if metric_name(args) not in available:
        reason = "" if names[1:] else "without compute_metrics "
        similar = get_close_matches(metric_name(args), available, n=1)
        hint = f"; did you mean {similar[0].removeprefix('eval_')!r}?" if similar else ""
        raise MetricError(
            f"metric_for_best_model={args.metric_for_best_model!r}: {reason}evaluation returns "
            f"only {', '.join(available)}{hint}"
        )


def followed_metric(args: transformers.TrainingArguments, metrics: dict[str, Any]) -> float:
    """The value of `metric_for_best_model` in `metrics`; without that argument, of the loss.

    Raises:
        MetricError: `metrics` does not have it.
    """
    name = metric_name(args)
    if name not in metrics:
        raise MetricError(
            f"metric_for_best_model={args.metric_for_best_model!r}: evaluation returned no {name}; "
            f"it returned: {', '.join(sorted(metrics))}"
        )
    return float(metrics[name])


def update_best(
    args: transformers.TrainingArguments, state: TrainerState, metrics: dict[str, Any]
) -> bool:
    """Record the metric in `state` if it is the best so far, and return whether it is.

    NaN and infinity are never the best. Without `metric_for_best_model` nothing is recorded.
    """
    if args.metric_for_best_model is None:
        return False
    value, best = followed_metric(args, metrics), state.best_metric
    is_better = best is None or (value > best if args.greater_is_better else value < best)
    if not (math.isfinite(value) and is_better):
        return False
    state.best_metric = value
    if args.save_strategy != "no":
        state.best_global_step = state.global_step
    return True


def set_best_checkpoint(
    state: TrainerState, output_dir: AnyPath, unsaved: AnyPath | None = None
) -> None:
    """Set `state.best_model_checkpoint` to the best step's checkpoint, if there is one.

    Args:
        state: its `best_global_step` is the best step.
        output_dir: the folder with the checkpoints.
        unsaved: a checkpoint that is about to be saved, and counts as existing.
    """
    if state.best_global_step is not None:
        best = output_dir / f"checkpoint-{state.best_global_step}"
        if best == unsaved or storage.is_real_folder(best):
            state.best_model_checkpoint = str(best)


def metric_name(args: transformers.TrainingArguments) -> str:
    """The name of `metric_for_best_model` among the metrics of an evaluation."""
    name = args.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"
