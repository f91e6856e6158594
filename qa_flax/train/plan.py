"""Derive from the arguments the number of batches and updates, schedule and optimizer (host)."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import optax
import transformers

from qa_flax import storage
from qa_flax.device import parallel
from qa_flax.device.adjustable import with_settings
from qa_flax.device.memory import abstract_state
from qa_flax.device.optim import NEED_WHOLE_PARAMETERS, make_optimizer
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.sharding import bytes_of
from qa_flax.storage import AnyPath
from qa_flax.train.layer_rates import layerwise_decay, rate_factors
from qa_flax.train.schedules import Schedule, make_schedule
from qa_flax.train.training_arguments import plain_value
from qa_flax.train.weight_decay import decayed_parameters

_DEFAULT_STEPS = 500  # transformers' default of logging_steps


@dataclass(frozen=True)
class Plan:
    """How many rows, batches and updates a training has, counted as in transformers.

    An update takes `accumulation` batches, but the last update of an epoch may take fewer. A
    partial last batch counts, unless `dataloader_drop_last` is set.
    """

    windows: int | None
    """Training windows; None if they are streamed."""
    rows: int
    """Rows of a batch on all cores together."""
    accumulation: int
    """Batches per update (`gradient_accumulation_steps`)."""
    batches_per_epoch: int
    updates_per_epoch: int
    updates: int
    """Updates of the whole training."""
    has_length: bool = True
    """Whether the number of batches in an epoch is known; else `updates` count as one epoch."""

    @classmethod
    def from_args(cls, args: transformers.TrainingArguments, windows: int, cores: int) -> "Plan":
        """The plan for `windows` training windows on `cores` cores.

        Raises:
            ValueError: `dataloader_drop_last` leaves no batch.
        """
        rows = cores * args.per_device_train_batch_size
        if args.dataloader_drop_last and windows < rows:
            raise ValueError(
                f"dataloader_drop_last=True leaves no batch: there are {windows} windows, but a "
                f"batch has {rows} rows. Set it to False, or lower per_device_train_batch_size"
            )
        batches = windows // rows if args.dataloader_drop_last else math.ceil(windows / rows)
        return cls.from_batches(args, batches, windows, rows)

    @classmethod
    def from_batches(
        cls,
        args: transformers.TrainingArguments,
        batches: int | None,
        windows: int | None,
        rows: int,
    ) -> "Plan":
        """The plan for a data loader with `batches` batches of `rows` rows.

        Without a known number of batches, `max_steps` updates count as one epoch, as in
        transformers.

        Raises:
            ValueError: the data loader has no batches, or neither their number nor `max_steps` is
                known.
        """
        accumulation = args.gradient_accumulation_steps
        has_length = batches is not None
        if batches is None:
            if args.max_steps <= 0:
                raise ValueError(
                    "the training data is a stream, whose length is not known: set max_steps to "
                    "the number of updates"
                )
            batches = args.max_steps * accumulation
        if batches == 0:
            raise ValueError("the data loader of the training set has no batches")
        per_epoch = max(1, math.ceil(batches / accumulation))
        updates = args.max_steps
        if updates <= 0:
            updates = math.ceil(float(args.num_train_epochs) * per_epoch)
        return cls(windows, rows, accumulation, batches, per_epoch, updates, has_length)

    @property
    def epochs(self) -> int:
        """Number of epochs; a partial last epoch counts as one.

        As in transformers, the largest integer for a stream, which may end at any time.
        """
        if not self.has_length:
            return sys.maxsize
        return math.ceil(self.updates / self.updates_per_epoch)

    def batches_of_update(self, updates_done: int) -> int:
        """Number of batches in the next update of an epoch in which `updates_done` are done."""
        return min(self.accumulation, self.batches_per_epoch - updates_done * self.accumulation)

    def epoch_after(self, epochs_done: int, updates_done: int) -> float:
        """The fractional epoch after `epochs_done` epochs and `updates_done` more updates."""
        batches = min(updates_done * self.accumulation, self.batches_per_epoch)
        return epochs_done + batches / self.batches_per_epoch

    def samples(self, args: transformers.TrainingArguments) -> float:
        """Number of windows that the whole training processes."""
        if args.max_steps > 0 or self.windows is None:
            return args.max_steps * self.rows * self.accumulation
        return self.windows * args.num_train_epochs


def logging_steps_of(args: transformers.TrainingArguments, updates: int) -> int | None:
    """The updates between two logs of a short training, about a twentieth of it.

    With transformers' default of 500 it would log no loss. None: `logging_steps` holds, because it
    was set, or the training has fewer than 10 or at least as many updates as it says.
    """
    is_default = args.logging_steps == _DEFAULT_STEPS
    if plain_value(args.logging_strategy) != "steps" or not is_default:
        return None
    return max(1, round(updates / 20)) if 10 <= updates < _DEFAULT_STEPS else None


def describe_few_evaluations(args: transformers.TrainingArguments, updates: int) -> str | None:
    """Return a warning if `eval_steps` is more than all updates, so that none is evaluated before.

    transformers' default of `eval_steps` is `logging_steps`, 500.
    """
    steps = args.eval_steps
    if plain_value(args.eval_strategy) != "steps" or steps is None or not 10 <= updates < steps:
        return None
    return (
        f"eval_strategy='steps' with eval_steps={steps:g}, but the training has only {updates} "
        "updates, so it is evaluated once, after the last one. Set "
        f"eval_steps={max(1, round(updates / 10))}, or eval_strategy='epoch' for an evaluation "
        "after each epoch"
    )


def schedule_of(args: transformers.TrainingArguments, updates: int) -> Schedule:
    """Build the learning-rate schedule of a training with `updates` updates."""
    kwargs: Any = args.lr_scheduler_kwargs
    return make_schedule(
        plain_value(args.lr_scheduler_type),
        float(args.learning_rate),
        args.get_warmup_steps(updates),
        updates,
        kwargs,
        greater_is_better=bool(args.greater_is_better),
    )


def optimizer_of(
    args: transformers.TrainingArguments, model: AutoModelForQuestionAnswering
) -> optax.GradientTransformation:
    """Build the optimizer without its learning rate, which the training step applies."""
    weight_decay, is_trial = float(args.weight_decay), is_adjustable(args)
    settings: dict[str, Any] = {"is_adjustable": True, "decayed": decayed_parameters(model)}
    if not is_trial:
        settings = {
            "weight_decay": weight_decay,
            "decayed": decayed_parameters(model) if weight_decay else None,
            "rate_factors": rate_factors(model, layerwise_decay(args)),
        }
    return make_optimizer(
        plain_value(args.optim),
        adam_beta1=float(args.adam_beta1),
        adam_beta2=float(args.adam_beta2),
        adam_epsilon=float(args.adam_epsilon),
        max_grad_norm=float(args.max_grad_norm or 0),
        optim_args=args.optim_args,
        **settings,
    )


def is_adjustable(args: transformers.TrainingArguments) -> bool:
    """Whether weight decay and rates by layer are in the optimizer's state: in a search's trials.

    Trials that save checkpoints have the usual state, from which any training resumes.
    """
    saves = plain_value(args.save_strategy) != "no"
    return bool(vars(args).get("_is_trial")) and not (saves or is_sharded(args))


def initial_optimizer_state(
    args: transformers.TrainingArguments,
    model: AutoModelForQuestionAnswering,
    optimizer: optax.GradientTransformation,
    params: Any,
) -> Any:
    """The optimizer's state before the first update.

    Args:
        args: the arguments.
        model: the model.
        optimizer: from `optimizer_of`, or a script's own.
        params: the parameters that it trains.
    """
    state = optimizer.init(params)
    if not is_adjustable(args):
        return state
    factors = rate_factors(model, layerwise_decay(args))
    by_path = None if factors is None else dict(factors)
    return with_settings(state, params, float(args.weight_decay), by_path)


def is_sharded(args: transformers.TrainingArguments) -> bool:
    """Whether `shard_params` is set; transformers' own TrainingArguments does not have it."""
    return bool(getattr(args, "shard_params", False))


def pads_tables(args: transformers.TrainingArguments) -> bool:
    """Whether the cores hold padded tables during a training with the optimizer of `optim`."""
    return parallel.has_tiles() and plain_value(args.optim) not in NEED_WHOLE_PARAMETERS


def ema_decay_of(args: transformers.TrainingArguments) -> float:
    """`ema_decay`, 0 for none; transformers' own TrainingArguments does not have it."""
    return float(getattr(args, "ema_decay", None) or 0.0)


def has_bf16_gradients(args: transformers.TrainingArguments) -> bool:
    """`bf16_gradients`; transformers' own TrainingArguments does not have it."""
    return bool(getattr(args, "bf16_gradients", False))


def dropout_bits_of(args: transformers.TrainingArguments) -> str:
    """`dropout_bits`, "hash" where transformers' own TrainingArguments do not have it."""
    return getattr(args, "dropout_bits", None) or "hash"


def wants_device_report(args: transformers.TrainingArguments) -> bool:
    """Whether `debug` has `tpu_metrics_debug`, which asks for a report about the device."""
    options: Any = args.debug
    return "tpu_metrics_debug" in map(plain_value, options or ())


def output_dir(args: transformers.TrainingArguments) -> AnyPath:
    """The folder for the files of a run; `trainer_output` by default, as in transformers."""
    return storage.path(args.output_dir or "trainer_output")


def optimizer_bytes(
    args: transformers.TrainingArguments, model: AutoModelForQuestionAnswering
) -> int:
    """The size in bytes of the optimizer state on each core."""
    return bytes_of(abstract_state(model, optimizer_of(args, model), is_sharded(args)).opt_state)
