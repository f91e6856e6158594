"""Training arguments that change the model: dropout rates, frozen parameters (host).

`Trainer` checks them when it is built and applies them when a training starts, so that the latest
values count. They change the model as a script could: by its config and `requires_grad`.
"""

from typing import Any

from qa_flax.models.model import AutoModelForQuestionAnswering, family_of
from qa_flax.models.parameters import freeze_by_arguments
from qa_flax.train.dropout_rates import dropout_settings, set_dropout
from qa_flax.train.freezing import frozen_paths
from qa_flax.train.reinitialize import reinit_paths
from qa_flax.train.training_arguments import report_once


def check_model_arguments(args: Any, model: AutoModelForQuestionAnswering) -> None:
    """Check that the arguments fit the model.

    Args:
        args: training arguments; transformers' own lack these arguments.
        model: the model to train.

    Raises:
        ValueError: one does not fit; the message says what the model has.
    """
    dropout_settings(args, model)
    for name, remark in family_of(model.config).dropout_remarks.items():
        if value := getattr(args, name, None):
            report_once(args, name, value, f": {remark}")
    frozen_paths(args, model)
    reinit_paths(args, model)


def apply_model_arguments(args: Any, model: AutoModelForQuestionAnswering) -> None:
    """Change the model as the arguments say; what earlier arguments have changed is undone.

    Args:
        args: training arguments.
        model: the model to train.

    Raises:
        ValueError: an argument does not fit the model, or the model is being trained.
    """
    set_dropout(model, dropout_settings(args, model))
    freeze_by_arguments(model, frozen_paths(args, model))
