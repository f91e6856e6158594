"""Training arguments against overfitting, in addition to those of transformers (host).

`TrainingArguments` inherits these fields, so `qa-flax run` has them as flags of the same names.
"""

import logging
import re
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class Regularization:
    """Dropout rates, rates by layer, frozen layers, early stopping, averaged weights."""

    hidden_dropout_prob: float | None = field(
        default=None,
        metadata={
            "help": "Dropout probability of embeddings and layer outputs, by whatever name the "
            "model's config has for it (ModernBERT: embedding_dropout and mlp_dropout); default: "
            "the model's own."
        },
    )
    attention_probs_dropout_prob: float | None = field(
        default=None,
        metadata={
            "help": "Dropout probability of the attention weights, by whatever name the model's "
            "config has for it; default: the model's own."
        },
    )
    classifier_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout probability before the span head. Only DistilBERT (qa_dropout) and "
            "ModernBERT have one there; other families refuse it. Default: the model's own."
        },
    )
    layerwise_lr_decay: float = field(
        default=1.0,
        metadata={
            "help": "Learning rates by layer: the span head has the full rate, the last layer the "
            "rate times this factor d, the one before times d squared, and so on; the embeddings "
            "have one power more than the first layer. 1.0: the same rate everywhere."
        },
    )
    freeze_layers: str | None = field(
        default=None,
        metadata={
            "help": "Layers that are not trained, such as 0-3 or 0,1,5. They are counted from 0, "
            "the layer after the embeddings; a range includes both ends. In an encoder-decoder "
            "the decoder's layers follow the encoder's. In Python also a number or a list. With "
            "LoRA: the adapters in these layers."
        },
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Do not train the embeddings, and what else comes before the layers: "
            "projections to the hidden size and tables of relative positions."
        },
    )
    reinit_layers: int = field(
        default=0,
        metadata={
            "help": "Initialize the last N layers anew from the seed before training (Zhang et al. "
            "2021, arXiv 2006.05987), once for each model; not when a run is resumed."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop when metric_for_best_model (default: loss, of the evaluation data) has "
            "not improved for this many evaluations, and keep the best model. It sets "
            "load_best_model_at_end, and eval_strategy and save_strategy to the same value: each "
            "epoch, unless eval_strategy or eval_steps is given. Needs evaluation data."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={
            "help": "An evaluation counts as an improvement for early stopping only if it is "
            "better than the best one so far by more than this."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights: update t "
            "takes the last average times this decay, such as 0.999, but at most (1 + t) / "
            "(10 + t), plus the new weights times the rest. Training and resuming continue with "
            "the plain weights; after training the model has the average. It takes the memory of "
            "one more copy of the trained parameters. 0: no average."
        },
    )
    eval_train_samples: int = field(
        default=0,
        metadata={
            "help": "At each evaluation, also evaluate this many training questions, chosen at "
            "random once, to see how far the model overfits; all if there are fewer. The metrics "
            "are train_exact_match, train_f1, train_accuracy_start and train_accuracy_end beside "
            "those of eval_. An accuracy is the percentage, among the windows that hold the "
            "answer, whose best start (or end) token is the right one. 0: none."
        },
    )


def invalid_values(args: Any) -> list[str]:
    """Describe each of these arguments that has no effect, or whose text cannot be read."""
    problems: list[str] = []
    threshold = getattr(args, "early_stopping_threshold", None)
    if threshold and getattr(args, "early_stopping_patience", None) is None:
        problems.append(
            f"early_stopping_threshold={threshold!r}: it has no effect without "
            "early_stopping_patience"
        )
    try:
        layer_numbers(getattr(args, "freeze_layers", None))
    except ValueError as error:
        problems.append(str(error))
    return problems


def layer_numbers(freeze_layers: Any) -> frozenset[int]:
    """Read the argument `freeze_layers`.

    Args:
        freeze_layers: text such as "0-3" or "0,1,5-7", a number, several of these, or None.

    Returns:
        The numbers of the layers, from 0.

    Raises:
        ValueError: the value has another form.
    """
    if freeze_layers is None:
        return frozenset()
    is_several = isinstance(freeze_layers, list | tuple | set | frozenset | range)
    parts: list[Any] = list(freeze_layers) if is_several else [freeze_layers]
    texts = [text for part in parts for text in str(part).split(",")]
    matches = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text, re.A) for text in texts]
    ranges = [(int(m[1]), int(m[2] or m[1])) for m in matches if m]
    if len(ranges) < len(texts) or any(first > last for first, last in ranges):
        raise ValueError(
            f"freeze_layers={freeze_layers!r}: it must have numbers of layers from 0, and ranges "
            "with the smaller number first, separated by commas, such as 2, 0-3 or 0,1,5"
        )
    return frozenset(n for first, last in ranges for n in range(first, last + 1))


def set_for_early_stopping(args: Any) -> None:
    """Set the arguments that `early_stopping_patience` needs, and log those that it changes.

    Without a patience, those that an earlier one has set get their former values again, unless
    they have been changed since.
    """
    patience = getattr(args, "early_stopping_patience", None)
    if patience is None:
        _unset(args, vars(args).pop("_set_by_early_stopping", {}))
        return
    before = {name: getattr(args, name) for name in _needed_by_early_stopping(args)}
    needed = {n: v for n, v in _needed_by_early_stopping(args).items() if v != before[n]}
    if not needed:
        return
    record = dict(vars(args).get("_set_by_early_stopping", {}))  # a copy of args may share it
    for name, value in needed.items():
        former, _ = record.get(name, (before[name], None))
        record[name] = former, value
        setattr(args, name, value)
    vars(args)["_set_by_early_stopping"] = record
    logger.warning("early_stopping_patience=%r sets %s.", patience, _assignments(needed))


def _unset(args: Any, record: dict[str, tuple[Any, Any]]) -> None:
    """Give arguments their former values, if they still have those of the record."""
    former = {name: old for name, (old, new) in record.items() if getattr(args, name) == new}
    for name, value in former.items():
        setattr(args, name, value)
    if "metric_for_best_model" in former:
        args.greater_is_better = None  # it was derived from the metric
    if former:
        logger.warning("early_stopping_patience=None resets %s.", _assignments(former))


def _assignments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_plain(value)!r}" for name, value in values.items())


def remove_evaluation(args: Any) -> None:
    """Change arguments of a training that evaluates into those of a run that does not train."""
    vars(args).pop("_set_by_early_stopping", None)
    args.early_stopping_patience, args.early_stopping_threshold = None, 0.0
    args.load_best_model_at_end, args.eval_strategy = False, "no"


def _needed_by_early_stopping(args: Any) -> dict[str, Any]:
    """What other arguments must be: every evaluation is saved, and the best one loaded."""
    evaluation = _plain(args.eval_strategy)
    if evaluation == "no":
        evaluation = "steps" if args.eval_steps else "epoch"
    # "best" saves after each evaluation that is the best so far, which is enough.
    saving = "best" if _plain(args.save_strategy) == "best" else evaluation
    needed = {"eval_strategy": evaluation, "save_strategy": saving}
    if saving == "steps":
        # Without eval_steps transformers evaluates when it logs.
        needed["save_steps"] = args.eval_steps or args.logging_steps
    metric = args.metric_for_best_model or "loss"
    return needed | {"load_best_model_at_end": True, "metric_for_best_model": metric}


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
