"""`metric_for_best_model`: which evaluation was the best so far (host)."""

import math
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.trainer_callback import TrainerState

from qa_flax.storage import AnyPath


class MetricError(ValueError):
    """`metric_for_best_model` is not among the metrics."""


def check_best_metric(
    args: transformers.TrainingArguments, eval_dataset: Any, has_compute_metrics: bool
) -> None:
    """Refuse a metric that no evaluation can give, before hours have gone by.

    Raises:
        MetricError: names what evaluation gives.
    """
    is_needed = args.metric_for_best_model is not None and args.eval_strategy != "no"
    if not is_needed or has_compute_metrics:
        return
    names = eval_dataset if isinstance(eval_dataset, Mapping) else None
    possible = ["eval_loss"] if names is None else [f"eval_{name}_loss" for name in names]
    if _metric_name(args) not in possible:
        raise MetricError(
            f"metric_for_best_model={args.metric_for_best_model!r}: without compute_metrics "
            f"evaluation gives only {', '.join(possible)}"
        )


def followed_metric(args: transformers.TrainingArguments, metrics: dict[str, Any]) -> float:
    """The value of `metric_for_best_model` (or of the loss).

    Raises:
        MetricError: it is not among `metrics`.
    """
    name = _metric_name(args)
    if name not in metrics:
        raise MetricError(
            f"metric_for_best_model: evaluation gave no {name}; it gave: "
            f"{', '.join(sorted(metrics))}"
        )
    return float(metrics[name])


def note_best(
    args: transformers.TrainingArguments, state: TrainerState, metrics: dict[str, Any]
) -> bool:
    """Keep the best value in `state`; a NaN never is. Whether these metrics are the best."""
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


def find_best(state: TrainerState, output: AnyPath, coming: AnyPath | None = None) -> None:
    """Put into `state` where the best model's checkpoint is, if there is one (or soon will be)."""
    if state.best_global_step is not None:
        best = output / f"checkpoint-{state.best_global_step}"
        if best == coming or best.is_dir():
            state.best_model_checkpoint = str(best)


def _metric_name(args: transformers.TrainingArguments) -> str:
    name = args.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"
