"""Training arguments against overfitting, in addition to those of transformers (host).

`TrainingArguments` inherits these fields, so `qa-flax run` has them as flags of the same names.
"""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Regularization:
    """Dropout rates, rates by layer, frozen layers, early stopping, averaged weights."""

    hidden_dropout_prob: float | None = field(
        default=None,
        metadata={
            "help": "Dropout probability of embeddings and layer outputs, by whatever name the "
            "model's config has for it; default: the model's own."
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
            "help": "Dropout probability before the span head, for families that have one there; "
            "default: the model's own."
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
            "the layer after the embeddings; a range includes both ends."
        },
    )
    freeze_embeddings: bool = field(
        default=False, metadata={"help": "Do not train the embeddings."}
    )
    reinit_layers: int = field(
        default=0,
        metadata={
            "help": "Initialize the last N layers anew before training (Zhang et al. 2021, "
            "arXiv 2006.05987)."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop when metric_for_best_model (default: eval_loss) has not improved for "
            "this many evaluations, and keep the best model. It sets load_best_model_at_end, and "
            "eval_strategy and save_strategy to the same value."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "How much the metric must improve to count, for early stopping."},
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


# Name -> allowed values in words, and the test for them. None and the field's default are allowed.
_RANGES: dict[str, tuple[str, Any]] = {
    "hidden_dropout_prob": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "attention_probs_dropout_prob": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "classifier_dropout": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "layerwise_lr_decay": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "reinit_layers": ("a whole number of at least 0", lambda v: _is_count(v, 0)),
    "early_stopping_patience": ("a whole number of at least 1", lambda v: _is_count(v, 1)),
    "early_stopping_threshold": ("at least 0", lambda v: v >= 0),
    "ema_decay": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "eval_train_samples": ("a whole number of at least 0", lambda v: _is_count(v, 0)),
}


def invalid_values(args: Any) -> list[str]:
    """Describe each of these arguments whose value is outside its range."""
    return [
        f"{name}={value!r}: it must be {allowed}"
        for name, (allowed, is_valid) in _RANGES.items()
        if (value := getattr(args, name, None)) is not None
        and not (_is_number(value) and is_valid(value))
    ]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least
