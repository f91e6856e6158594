"""`qa-flax check`: find the questions of a file whose labelled answers are most likely wrong."""

import argparse
from dataclasses import dataclass, field

from qa_flax.commands.arguments import (
    DataArguments,
    DistributedArguments,
    ModelArguments,
    dataclass_parser,
)
from qa_flax.commands.hidden_torch import show_torch
from qa_flax.ranges import at_least

SUMMARY = "find the questions of a file whose labelled answers are most likely wrong"

USAGE = "qa-flax check FILE --model_name_or_path DIR_OR_HUB_ID [--folds 5] [arguments]"

DESCRIPTION = """Find wrong labels. The questions of FILE are split into folds; questions about one
text stay together. For each fold a model is trained on the other folds and judges the questions
that it has not seen. The questions whose labelled answers it finds most unlikely come first, with
the passage, the label and what the model says. A stopped check resumes when the command is
repeated: finished folds are not trained again. FILE is not changed."""

_UNSEEN = "leave it out: a model must not see the labels that it judges"
_ONE_FILE = "leave it out: the labels of FILE are checked"
OTHER_NAMES = {
    "train_file": "give the file itself: qa-flax check FILE",
    "file": "give the file itself: qa-flax check FILE",
    "input": "give the file itself: qa-flax check FILE",
    "dataset_name": "give the id in place of FILE",
    "model": "use --model_name_or_path",
    "validation_file": _ONE_FILE,
    "test_file": _ONE_FILE,
    "validation_split": "use --folds",
    "version_2_with_negative": "leave it out: whether questions may have no answer is seen in FILE",
    "eval_strategy": _UNSEEN,
    "early_stopping_patience": _UNSEEN,
    "load_best_model_at_end": _UNSEEN,
    "metric_for_best_model": _UNSEEN,
    "top": "use --show",
    "epochs": "use --num_train_epochs",
    "lr": "use --learning_rate",
    "batch_size": "use --per_device_train_batch_size",
}

WITHOUT = (
    # Of the data: there is one file, and every question of it is judged.
    *("dataset_name", "dataset_config_name", "validation_file", "test_file", "validation_split"),
    *("max_train_samples", "max_eval_samples", "max_predict_samples", "overwrite_cache"),
    *("preprocessing_num_workers", "version_2_with_negative", "null_score_diff_threshold"),
    *("n_best_size", "hf_compatible", "save_spans", "calibrate", "gather", "language"),
    *("extra_train_file", "extra_train_ratio"),
    # Of the training: nothing is evaluated, and the models are not kept.
    *("do_train", "do_eval", "do_predict", "eval_strategy", "evaluation_strategy", "eval_steps"),
    *("eval_delay", "eval_on_start", "eval_train_samples", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "early_stopping_patience"),
    *("early_stopping_threshold", "prediction_loss_only", "include_for_metrics"),
    *("resume_from_checkpoint", "profile"),
    # Of several processes.
    *("distributed", "coordinator", "num_processes", "process_id", "initialization_timeout"),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"),
    *("hub_always_push", "hub_revision"),
)
"""Arguments of `qa-flax run` that this command does not have."""


@dataclass
class CheckArguments:
    """What is shown and written."""

    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file for the rows (.json: a list, .jsonl: a line for each question); "
            "default: label_check.json in output_dir."
        },
    )
    show: int = field(
        default=10,
        metadata={
            "help": "How many questions to print. All of them are in label_check.txt in output_dir."
        },
    )

    def __post_init__(self):
        if not at_least(0).contains(self.show):
            raise ValueError(f"--show is {self.show}; it must be {at_least(0).allowed}")
        if self.output is not None and not self.output.lower().endswith((".json", ".jsonl")):
            raise ValueError(
                f"--output is {self.output}, but the rows are written as JSON; give a name that "
                "ends in .json or .jsonl"
            )


def parser() -> argparse.ArgumentParser:
    """The parser of the model, data, training and output arguments."""
    from qa_flax.train.label_check import DEFAULTS
    from qa_flax.train.training_arguments import TrainingArguments

    parser = dataclass_parser(
        ModelArguments,
        DataArguments,
        TrainingArguments,
        DistributedArguments,
        CheckArguments,
        without=WITHOUT,
        positional={"train_file": "FILE"},
        own=("label check", ["folds", "split_by", "show", "output"]),
        prog="qa-flax check",
        usage=USAGE,
        description=" ".join(DESCRIPTION.split()),
    )
    parser.set_defaults(
        folds=5,
        output_dir="qa_flax_check",
        save_strategy="epoch",  # so that a stopped fold resumes
        save_total_limit=1,
        **DEFAULTS,
    )
    parser.other_names = OTHER_NAMES  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def main(parsed: argparse.Namespace) -> int | None:
    """Check the labels, as the arguments say.

    Returns:
        130 after a training that Ctrl-C stopped; otherwise None.

    Raises:
        UsageError: the file, an argument or the model is invalid.
        FloatingPointError: a training diverged.
        Preempted: it was stopped by SIGTERM.
    """
    from qa_flax.commands.check.job import check_file
    from qa_flax.commands.run import reporting_interrupts

    show_torch()
    return reporting_interrupts(check_file, *parsed.dataclasses)
