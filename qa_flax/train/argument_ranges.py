"""Which values each training argument that is a number may have (host)."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

LARGEST_SEED = 2**32 - 1  # NumPy's legacy generator, which scripts seed, takes no larger one


class Range(NamedTuple):
    """The values that a number may have."""

    allowed: str
    """In words, after "it must be"."""

    is_valid: Callable[[Any], bool]
    """Whether a finite number is allowed."""

    is_whole: bool = False
    is_optional: bool = False
    """Whether None is allowed."""

    def contains(self, value: Any) -> bool:
        """Whether the value is allowed; NaN, infinity, text and booleans never are."""
        if value is None:
            return self.is_optional
        kind = Integral if self.is_whole else Real
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and self.is_valid(value)


def at_least(least: int, *, optional: bool = False) -> Range:
    """Whole numbers from `least` on."""
    allowed = f"a whole number of at least {least}"
    return Range(allowed, lambda v: v >= least, is_whole=True, is_optional=optional)


def not_negative(*, optional: bool = False) -> Range:
    """Numbers from 0 on."""
    return Range("a number of at least 0", lambda v: v >= 0, is_optional=optional)


_POSITIVE = Range("a number above 0", lambda v: v > 0)
_BELOW_1 = Range("at least 0 and below 1", lambda v: 0 <= v < 1)
_RATE = _BELOW_1._replace(is_optional=True)
_SEED = Range(
    f"a whole number from 0 to {LARGEST_SEED}", lambda v: 0 <= v <= LARGEST_SEED, is_whole=True
)

TRAINING_RANGES: dict[str, Range] = {
    "per_device_train_batch_size": at_least(1),
    "per_device_eval_batch_size": at_least(1),
    "gradient_accumulation_steps": at_least(1),
    "num_train_epochs": not_negative(),
    "max_steps": Range(
        "a whole number of at least 1, or -1 to train num_train_epochs",
        lambda v: v >= 1 or v == -1,
        is_whole=True,
    ),
    "learning_rate": not_negative(),
    "weight_decay": not_negative(),
    "adam_beta1": _BELOW_1,
    "adam_beta2": _BELOW_1,
    "adam_epsilon": not_negative(),
    "max_grad_norm": not_negative(optional=True),
    "label_smoothing_factor": _BELOW_1,
    "warmup_steps": not_negative(),
    "eval_delay": not_negative(),
    "eval_steps": not_negative(optional=True),
    "logging_steps": not_negative(),
    "save_steps": not_negative(),
    "save_total_limit": at_least(0, optional=True),
    "seed": _SEED,
    "data_seed": _SEED._replace(is_optional=True),
    # Those of `Regularization`.
    "hidden_dropout_prob": _RATE,
    "attention_probs_dropout_prob": _RATE,
    "classifier_dropout": _RATE,
    "layerwise_lr_decay": Range("above 0 and at most 1", lambda v: 0 < v <= 1),
    "reinit_layers": at_least(0),
    "early_stopping_patience": at_least(1, optional=True),
    "early_stopping_threshold": Range("at least 0", lambda v: v >= 0),
    "ema_decay": _BELOW_1,
    "eval_train_samples": at_least(0),
}
# With the strategy "steps" their interval cannot be 0.
_STRATEGIES = {"logging_steps": "logging_strategy", "save_steps": "save_strategy"}


def outside_ranges(args: Any) -> list[str]:
    """Describe each training argument whose value is outside its range, in one line.

    An argument that `args` lacks, such as `ema_decay` in `transformers.TrainingArguments`, is in
    order.
    """
    return [
        f"{name}={value!r}: it must be {range_.allowed}"
        for name, range_ in ranges_of(args).items()
        if not range_.contains(value := getattr(args, name))
    ]


def ranges_of(args: Any) -> dict[str, Range]:
    """The range of each argument that `args` has."""
    ranges = {name: range_ for name, range_ in TRAINING_RANGES.items() if hasattr(args, name)}
    for name, strategy in _STRATEGIES.items():
        if getattr(getattr(args, strategy, None), "value", getattr(args, strategy, "")) == "steps":
            ranges[name] = _POSITIVE
    return ranges
