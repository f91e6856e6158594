"""A script's own loss, optimizer, schedule and reduction of logits, as the trainer runs them.

The arguments are those of transformers' Trainer: `compute_loss_func`, `optimizers`,
`optimizer_cls_and_kwargs` and `preprocess_logits_for_metrics`. They take JAX functions and optax
transformations; an object of PyTorch is refused with a message that names the replacement.
"""

import inspect
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import optax
import transformers

from qa_flax.data.columns import blocks
from qa_flax.device.step import LossFunction
from qa_flax.train.layer_rates import layerwise_decay
from qa_flax.train.plan import is_sharded
from qa_flax.train.schedules import Schedule


class Custom(NamedTuple):
    """What a script replaces; None: the arguments decide."""

    loss: LossFunction | None = None
    optimizer: optax.GradientTransformation | None = None
    """Returns the updates to add to the parameters, its own learning rate included."""
    schedule: Callable[[int], Any] | None = None
    """The learning rate of an update, by its number from 0."""


def make_custom(
    args: transformers.TrainingArguments,
    compute_loss_func: Any,
    optimizers: tuple[Any, Any] | None,
    optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None,
) -> Custom:
    """Check the constructor's arguments of these names.

    Raises:
        ValueError: one of them is PyTorch's, has another form, or contradicts `args`.
    """
    if compute_loss_func is not None:
        _check_loss(compute_loss_func)
        if not _is_hashable(compute_loss_func):
            # `device.programs` looks a compiled step up by it; a partial's hash is its identity.
            compute_loss_func = partial(compute_loss_func)
    optimizer, schedule = _pair(optimizers)
    if optimizer_cls_and_kwargs is not None:
        if optimizer is not None:
            raise ValueError("pass either optimizers or optimizer_cls_and_kwargs, not both")
        factory, kwargs = optimizer_cls_and_kwargs
        if (getattr(factory, "__module__", None) or "").split(".")[0] == "torch":
            raise ValueError(
                f"optimizer_cls_and_kwargs: {factory.__name__} is a PyTorch optimizer; pass an "
                "optax function such as (optax.adamw, {'learning_rate': 3e-5}), or set optim="
            )
        optimizer = factory(**kwargs)
    if optimizer is not None:
        _check_optimizer(optimizer)
    if schedule is not None and (hasattr(schedule, "get_last_lr") or not callable(schedule)):
        raise ValueError(
            f"optimizers: the schedule is a {type(schedule).__name__}; pass a function of the "
            "number of the update that returns its learning rate (such as an optax schedule), "
            "None, or set lr_scheduler_type="
        )
    custom = Custom(compute_loss_func, optimizer, schedule)
    check_custom(custom, args)
    return custom


def check_custom(custom: Custom, args: transformers.TrainingArguments) -> None:
    """Refuse arguments that contradict what the script replaces; they may change at any time.

    Raises:
        ValueError: names the argument and what to use instead.
    """
    if custom.loss is not None and args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} has no effect together with "
            "compute_loss_func; smooth the labels in that function, or set it to 0"
        )
    decay = layerwise_decay(args)
    if custom.optimizer is not None and decay != 1.0:
        raise ValueError(
            f"layerwise_lr_decay={decay} has no effect together with an own optimizer, which has "
            "its own learning rates; set optim= instead of passing an optimizer (an own schedule "
            "may stay: optimizers=(None, schedule)), or set layerwise_lr_decay to 1.0"
        )
    if custom.optimizer is not None and is_sharded(args):
        raise ValueError(
            "shard_params=True: an own optimizer sees one shard of each array, so a norm over all "
            "of them would be wrong; set optim= instead, or leave shard_params out"
        )


def _pair(optimizers: Any) -> tuple[Any, Any]:
    if optimizers is None:
        return None, None
    # An optax transformation is a pair of functions itself.
    is_pair = isinstance(optimizers, tuple | list) and len(optimizers) == 2
    if not is_pair or isinstance(optimizers, optax.GradientTransformation):
        raise ValueError(
            f"optimizers is {optimizers!r}; it must be a pair (optax transformation or None, "
            "schedule or None)"
        )
    return tuple(optimizers)


def _check_loss(function: Any) -> None:
    help_ = (
        "it must be a JAX function of (logits, batch): start and end logits [b, l], and a dict of "
        "arrays with start_positions, end_positions and attention_mask; it returns one loss for "
        "each window, [b]"
    )
    if not callable(function):
        raise ValueError(f"compute_loss_func is {function!r}; {help_}")
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a function without a signature, such as a built-in one
        names = []
    if wrong := [name for name in ("labels", "num_items_in_batch") if name in names]:
        raise ValueError(
            f"compute_loss_func has the parameter {' and '.join(wrong)} of PyTorch's form; {help_}"
        )


def _check_optimizer(optimizer: Any) -> None:
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizers: the optimizer is a {type(optimizer).__module__}."
            f"{type(optimizer).__name__}; pass an optax transformation such as optax.adamw(3e-5), "
            "or set optim="
        )


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # such as a dataclass of arrays
        return False
    return True


class OwnSchedule(Schedule):
    """A script's schedule: of the trainer's optimizer, or only reported beside an own optimizer.

    Args:
        function: the learning rate by the number of the update; None: it is not known.
        applies: whether the step multiplies the update by it. An own optimizer has its own rate.
    """

    def __init__(self, function: Callable[[int], Any] | None, applies: bool):
        super().__init__(math.nan)
        self._function, self._applies = function, applies

    def rate(self, step: int) -> float:
        """Return the factor of update `step`; `get_last_lr` then has the learning rate."""
        self._last = math.nan if self._function is None else float(self._function(step))
        return self._last if self._applies else 1.0


class ParamGroup(dict[str, Any]):
    """A read-only entry of `OptimizerView.param_groups`."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise ValueError(
            f"param_groups[0][{name!r}] cannot be set: the optimizer runs inside a compiled step. "
            "Pass optimizers=(None, schedule) to the trainer to choose the learning rates"
        )


class OptimizerView:
    """The optimizer as callbacks of PyTorch scripts read it: `optimizer.param_groups[0]["lr"]`.

    Args:
        args: the training arguments.
        schedule: gives the learning rate.
    """

    def __init__(self, args: transformers.TrainingArguments, schedule: Schedule):
        self._args, self._schedule = args, schedule

    @property
    def param_groups(self) -> list[ParamGroup]:
        """One group, with the learning rate of the latest update and the weight decay."""
        (rate,) = self._schedule.get_last_lr()
        return [ParamGroup(lr=rate, weight_decay=float(self._args.weight_decay))]


def as_direction(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Turn updates to add into the direction that the training step subtracts.

    The same optax transformation gives the same object again, so that a second training reuses the
    compiled step. An object of another class may have changed since, so it is never reused.
    """
    if isinstance(optimizer, optax.GradientTransformation) and _is_hashable(optimizer):
        return _direction(optimizer)
    return _direction.__wrapped__(optimizer)


@lru_cache(maxsize=8)
def _direction(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optimizer, optax.scale(-1.0))


def preprocess_logits(function: Callable[..., Any], logits: Any, labels: Any, rows: int) -> Any:
    """Apply `preprocess_logits_for_metrics` to `rows` windows at a time and join the results.

    Args:
        function: called with start and end logits, NumPy [n, L] each, and with start and end
            positions [n] each or None. Returns an array [n, ...], or a tuple or list of them.
        logits: start and end logits, [N, L] each.
        labels: start and end positions, [N] each, or None.
        rows: windows in one call.
    """
    results = []
    for block in blocks(len(logits[0]), rows):
        some_labels = None if labels is None else tuple(array[block] for array in labels)
        results.append(function(tuple(array[block] for array in logits), some_labels))
    if isinstance(results[0], tuple | list):
        columns = zip(*results, strict=True)
        return tuple(np.concatenate([np.asarray(part) for part in column]) for column in columns)
    return np.concatenate([np.asarray(part) for part in results])
