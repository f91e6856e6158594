"""What the arguments make of a training: batches, updates, schedule, optimizer (host)."""

import math
from dataclasses import dataclass
from typing import Any

import optax
import transformers

from qa_flax import storage
from qa_flax.device.memory import abstract_state
from qa_flax.device.optim import make_optimizer
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.sharding import bytes_of
from qa_flax.storage import AnyPath
from qa_flax.train.schedules import Schedule, make_schedule
from qa_flax.train.training_arguments import plain_value


@dataclass(frozen=True)
class Plan:
    """How many rows, batches and updates a training has, counted as transformers counts them.

    `accumulation` batches make an update; those left over at the end of an epoch make a smaller
    one. The last, partial batch counts, unless `drop_last`.
    """

    windows: int
    rows: int
    """Of a batch, on all cores."""
    accumulation: int
    batches_per_epoch: int
    updates_per_epoch: int
    updates: int
    """Of the whole training."""

    @classmethod
    def of(cls, args: transformers.TrainingArguments, windows: int, cores: int) -> "Plan":
        """The plan of `windows` windows on so many cores.

        Raises:
            ValueError: `dataloader_drop_last` leaves nothing.
        """
        rows = cores * args.per_device_train_batch_size
        if args.dataloader_drop_last and windows < rows:
            raise ValueError(
                f"dataloader_drop_last leaves nothing: {windows} windows are no batch of {rows}; "
                "leave it out, or lower per_device_train_batch_size"
            )
        batches = windows // rows if args.dataloader_drop_last else math.ceil(windows / rows)
        accumulation = args.gradient_accumulation_steps
        per_epoch = max(1, math.ceil(batches / accumulation))
        total = args.max_steps
        if total <= 0:
            total = math.ceil(float(args.num_train_epochs) * per_epoch)
        return cls(windows, rows, accumulation, batches, per_epoch, total)

    @property
    def epochs(self) -> int:
        """Begun ones."""
        return math.ceil(self.updates / self.updates_per_epoch)

    def batches_of_update(self, done: int) -> int:
        """Batches in the next update of an epoch of which `done` updates are done."""
        return min(self.accumulation, self.batches_per_epoch - done * self.accumulation)

    def epoch_after(self, epochs: int, done: int) -> float:
        """Epochs, counted in batches, after so many whole ones and `done` updates more."""
        batches = min(done * self.accumulation, self.batches_per_epoch)
        return epochs + batches / self.batches_per_epoch

    def samples(self, args: transformers.TrainingArguments) -> float:
        """Windows that the whole training goes through."""
        if args.max_steps > 0:
            return args.max_steps * self.rows * self.accumulation
        return self.windows * args.num_train_epochs


def schedule_of(args: transformers.TrainingArguments, updates: int) -> Schedule:
    """The learning rate of each of so many updates."""
    kwargs: Any = args.lr_scheduler_kwargs
    return make_schedule(
        plain_value(args.lr_scheduler_type),
        float(args.learning_rate),
        args.get_warmup_steps(updates),
        updates,
        kwargs,
        greater_is_better=bool(args.greater_is_better),
    )


def optimizer_of(args: transformers.TrainingArguments) -> optax.GradientTransformation:
    """What makes the direction of an update of its gradient."""
    return make_optimizer(
        plain_value(args.optim),
        weight_decay=float(args.weight_decay),
        adam_beta1=float(args.adam_beta1),
        adam_beta2=float(args.adam_beta2),
        adam_epsilon=float(args.adam_epsilon),
        max_grad_norm=float(args.max_grad_norm or 0),
        optim_args=args.optim_args,
    )


def is_sharded(args: transformers.TrainingArguments) -> bool:
    """Whether each core holds shards; transformers' own arguments do not know of it."""
    return bool(getattr(args, "shard_params", False))


def wants_device_report(args: transformers.TrainingArguments) -> bool:
    """Whether `debug` asks for a report of what the device did."""
    options: Any = args.debug
    return "tpu_metrics_debug" in map(plain_value, options or ())


def output_dir(args: transformers.TrainingArguments) -> AnyPath:
    """Where the files of a run go."""
    return storage.path(args.output_dir or "trainer_output")


def optimizer_bytes(
    args: transformers.TrainingArguments, model: AutoModelForQuestionAnswering
) -> int:
    """What the optimizer's state of the trained parameters takes on each core."""
    return bytes_of(abstract_state(model, optimizer_of(args), is_sharded(args)).opt_state)
