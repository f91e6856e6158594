"""`qa-flax tune`: search for the training arguments that answer held-out questions best."""

import argparse
from dataclasses import dataclass, field

from qa_flax.commands.arguments import (
    DataArguments,
    DistributedArguments,
    ModelArguments,
    dataclass_parser,
)
from qa_flax.commands.hidden_torch import show_torch
from qa_flax.commands.tune.space import DEFAULT
from qa_flax.ranges import POSITIVE, at_least, check_flags

SUMMARY = "search for the training arguments that answer held-out questions best"

USAGE = """qa-flax tune --model_name_or_path DIR_OR_HUB_ID --train_file FILE [arguments]
       qa-flax tune FILE.json [arguments]   (or .yaml: values of arguments)"""

DESCRIPTION = """Search for the training arguments of qa-flax run: trials with other values, judged
on questions that are split off the training data (--validation_split, 0.2 by default, or --folds).
Learning rate, epochs, dropout, weight decay and layer-wise decay are searched. An argument that is
given has that value in all trials; --search changes the space. A stopped search resumes when the
command is repeated, and a larger --n_trials goes on with it. It ends with the command line of the
best trial. Needs optuna: pip install 'qa-flax[tune]'."""

_TRAINING_DATA = (
    "leave it out: a search that sees the data you report on would choose what fits it; give it to "
    "the command that is printed at the end"
)
OTHER_NAMES = {
    "validation_file": _TRAINING_DATA,
    "test_file": _TRAINING_DATA,
    "dev_file": _TRAINING_DATA,
    "predict_file": _TRAINING_DATA,
    "do_eval": "leave it out: every trial is evaluated on a part of the training data",
    "do_predict": _TRAINING_DATA,
    "do_train": "leave it out: every trial trains",
    "early_stopping_patience": "leave it out: num_train_epochs is searched",
    "load_best_model_at_end": "leave it out: num_train_epochs is searched",
    "metric": "use --metric_for_best_model",
    "objective": "use --metric_for_best_model",
    "direction": "use --greater_is_better",
    "trials": "use --n_trials",
    "model": "use --model_name_or_path",
    "hp_space": "use --search",
    "space": "use --search",
    "epochs": "use --num_train_epochs",
    "lr": "use --learning_rate",
    "batch_size": "use --per_device_train_batch_size",
    "dropout": "use --hidden_dropout_prob",
    "distributed": "leave it out: qa-flax tune runs in one process",
}

WITHOUT = (
    *("validation_file", "test_file", "max_eval_samples", "max_predict_samples"),
    *("overwrite_cache", "preprocessing_num_workers", "save_spans", "calibrate"),
    *("extra_train_file", "extra_train_ratio"),
    *("do_train", "do_eval", "do_predict", "load_best_model_at_end", "early_stopping_patience"),
    *("early_stopping_threshold", "resume_from_checkpoint", "profile", "prediction_loss_only"),
    *("distributed", "coordinator", "num_processes", "process_id", "initialization_timeout"),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"),
    *("hub_always_push", "hub_revision"),
)
"""Arguments of `qa-flax run` that this command does not have."""


@dataclass
class TuneArguments:
    """The search."""

    n_trials: int = field(
        default=20, metadata={"help": "How many trials, those of an earlier call included."}
    )
    search: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to search over, for each training argument: a range "
            "(learning_rate=1e-5..1e-4; num_train_epochs=2..6 for whole numbers; :log after it for "
            "a logarithmic scale), values (weight_decay=0.0,0.1) or one value, which is fixed. "
            "Others of the default space stay: "
            + " ".join(f"{name}={values}" for name, values in DEFAULT.items())
            + "."
        },
    )
    timeout: float | None = field(
        default=None, metadata={"help": "No trial begins after this many seconds."}
    )

    def __post_init__(self):
        check_flags({"n_trials": at_least(1), "timeout": POSITIVE.or_none()}, self)


def parser() -> argparse.ArgumentParser:
    """The parser of the model, data, training and search arguments."""
    from qa_flax.train.training_arguments import TrainingArguments

    parser = dataclass_parser(
        ModelArguments,
        DataArguments,
        TrainingArguments,
        DistributedArguments,
        TuneArguments,
        without=(*WITHOUT, "search"),
        own=("search", ["search", "n_trials", "timeout"]),
        prog="qa-flax tune",
        usage=USAGE,
        description=" ".join(DESCRIPTION.split()),
    )
    help_ = TuneArguments.__dataclass_fields__["search"].metadata["help"]
    named = {"metavar": "NAME=VALUES", "help": help_}
    parser.add_argument("--search", nargs="+", action="extend", **named)
    parser.set_defaults(
        output_dir="qa_flax_tune",
        save_strategy="no",
        eval_strategy="epoch",
        logging_strategy="no",
        metric_for_best_model="f1",
        report_to="none",
        packing=True,
    )
    parser.other_names = OTHER_NAMES  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def main(parsed: argparse.Namespace) -> int | None:
    """Search, as the arguments say.

    Returns:
        130 after a search that Ctrl-C stopped; otherwise None.

    Raises:
        UsageError: a file, an argument or the model is invalid, or optuna is not installed.
        Preempted: it was stopped by SIGTERM.
    """
    from qa_flax.commands.errors import usage_errors
    from qa_flax.train.trials import import_optuna

    with usage_errors(ImportError):
        import_optuna("qa-flax tune")
    from qa_flax.commands.run import reporting_interrupts
    from qa_flax.commands.tune.job import tune

    show_torch()
    return reporting_interrupts(tune, *parsed.dataclasses, given=parsed.given)
