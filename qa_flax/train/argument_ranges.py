"""Which values each training argument that is a number may have (host)."""

from typing import Any

from qa_flax.ranges import BELOW_1, NOT_NEGATIVE, POSITIVE, SEED, Range, at_least

TRAINING_RANGES: dict[str, Range] = {
    "per_device_train_batch_size": at_least(1),
    "per_device_eval_batch_size": at_least(1),
    "gradient_accumulation_steps": at_least(1),
    "num_train_epochs": NOT_NEGATIVE,
    "max_steps": Range(
        "a whole number of at least 1, or -1 to train num_train_epochs",
        lambda v: v >= 1 or v == -1,
        is_whole=True,
    ),
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE.or_none(),
    "label_smoothing_factor": BELOW_1,
    "warmup_steps": NOT_NEGATIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_steps": NOT_NEGATIVE.or_none(),
    "logging_steps": NOT_NEGATIVE,
    "save_steps": NOT_NEGATIVE,
    "save_total_limit": at_least(0).or_none(),
    "seed": SEED,
    "data_seed": SEED.or_none(),
    "profile": at_least(0),
    # Those of `Regularization`.
    "hidden_dropout_prob": BELOW_1.or_none(),
    "attention_probs_dropout_prob": BELOW_1.or_none(),
    "classifier_dropout": BELOW_1.or_none(),
    "layerwise_lr_decay": Range("above 0 and at most 1", lambda v: 0 < v <= 1),
    "reinit_layers": at_least(0),
    "early_stopping_patience": at_least(1).or_none(),
    "early_stopping_threshold": Range("at least 0", lambda v: v >= 0),
    "ema_decay": BELOW_1,
    "eval_train_samples": at_least(0),
    # Those of `MoreData`.
    "extra_train_ratio": BELOW_1.or_none(),
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
            ranges[name] = POSITIVE
    return ranges
