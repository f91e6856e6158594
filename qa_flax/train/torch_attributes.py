"""Attributes of transformers' Trainer that scripts and callbacks read (host)."""

from typing import Any

from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.events import Events
from qa_flax.train.overrides import NOT_CALLED

LABEL_NAMES = ["start_positions", "end_positions"]


class TorchAttributes:
    """What scripts read of a trainer beside its arguments, its model and its state; a mix-in."""

    _events: Events

    is_in_train = False
    """Whether `train()` is running."""
    is_deepspeed_enabled = is_fsdp_enabled = is_model_parallel = place_model_on_device = False

    @property
    def optimizer(self) -> Any:
        """The optimizer as callbacks get it, with `param_groups`; None before `train()`."""
        return self._events.handler.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        raise ValueError(_BUILT_LATER.format("optimizer"))

    @property
    def lr_scheduler(self) -> Any:
        """The schedule as callbacks get it, with `get_last_lr()`; None before `train()`."""
        return self._events.handler.lr_scheduler

    @lr_scheduler.setter
    def lr_scheduler(self, schedule: Any) -> None:
        raise ValueError(_BUILT_LATER.format("lr_scheduler"))

    @property
    def label_names(self) -> list[str]:
        """The columns with the labels."""
        return list(LABEL_NAMES)

    @label_names.setter
    def label_names(self, names: list[str]) -> None:
        if list(names) != LABEL_NAMES:
            raise ValueError(
                f"label_names={names!r}: the labels of extractive question answering are always "
                f"{' and '.join(LABEL_NAMES)}; rename the columns of the data set"
            )

    @property
    def model_wrapped(self) -> AutoModelForQuestionAnswering:
        """The model: nothing is wrapped around it."""
        model: Any = self._events.handler.model
        return model

    def get_num_trainable_parameters(self) -> int:
        """The number of parameters that are trained."""
        return self.model_wrapped.num_parameters(only_trainable=True)

    def __getattr__(self, name: str) -> Any:
        """Name the replacement of a method that only transformers' Trainer has."""
        if name in NOT_CALLED:
            raise AttributeError(f"qa_flax's Trainer has no {name}; use {NOT_CALLED[name]} instead")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_BUILT_LATER = (
    "trainer.{} cannot be set: train() builds it. Pass optimizers=(optax transformation, schedule) "
    "to the trainer, where each may be None, or set optim= and lr_scheduler_type="
)
