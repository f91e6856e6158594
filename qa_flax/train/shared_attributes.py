"""What the parts of `Trainer` know of it: attributes that `Trainer` itself provides (host)."""

from typing import Any

import transformers
from transformers.trainer_callback import TrainerState

from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.events import Events
from qa_flax.train.live_state import LiveState


class SharedAttributes:
    """The base of the classes that `Trainer` combines; see there for the arguments."""

    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    compute_metrics: Any
    preprocess_logits_for_metrics: Any
    split_by_node: bool
    _collator: Any = None
    _events: Events
    _live: LiveState

    @property
    def args(self) -> transformers.TrainingArguments:
        """The training arguments."""
        raise NotImplementedError

    @property
    def model(self) -> AutoModelForQuestionAnswering:
        """The model."""
        raise NotImplementedError

    @property
    def state(self) -> TrainerState:
        """Steps, epochs and the log history."""
        raise NotImplementedError

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log values."""
        raise NotImplementedError
