"""`qa-flax run`: fine-tune, evaluate and predict, with the arguments of run_qa.py."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qa_flax.commands.arguments import (
    DataArguments,
    DistributedArguments,
    ModelArguments,
    dataclass_parser,
)
from qa_flax.commands.hidden_torch import show_torch

SUMMARY = "fine-tune, evaluate and predict, with the arguments of run_qa.py"

USAGE = """qa-flax run --model_name_or_path DIR_OR_HUB_ID --output_dir DIR [arguments]
       qa-flax run FILE.json [arguments]   (or .yaml: values of arguments, which others override)"""


_LEAVE_OUT = "leave it out"
# Arguments of other versions of run_squad.py and run_qa.py -> what to do here.
OTHER_NAMES = {
    "predict_file": "use --validation_file with --do_eval, or --test_file with --do_predict",
    "dev_file": "use --validation_file",
    "eval_file": "use --validation_file",
    "data_dir": "use --train_file and --validation_file",
    "use_fast_tokenizer": f"{_LEAVE_OUT}: tokenizers are always the fast ones",
    "use_slow_tokenizer": f"{_LEAVE_OUT}: only fast tokenizers give the offsets of answers",
    "do_lower_case": f"{_LEAVE_OUT}: the tokenizer's own setting is used",
    "model_type": f"{_LEAVE_OUT}: the model's config.json has its type",
    "model": "use --model_name_or_path",
    "init_checkpoint": "use --model_name_or_path",
    "bert_config_file": "use --config_name",
    "vocab_file": "use --tokenizer_name",
    "max_query_length": "use --long_questions, which says what to do with long questions",
    "max_length": "use --max_seq_length",
    "stride": "use --doc_stride",
    "train_batch_size": "use --per_device_train_batch_size",
    "eval_batch_size": "use --per_device_eval_batch_size",
    "predict_batch_size": "use --per_device_eval_batch_size",
    "batch_size": "use --per_device_train_batch_size",
    "lr": "use --learning_rate",
    "epochs": "use --num_train_epochs",
    "warmup_proportion": "use --warmup_ratio",
    "threads": f"{_LEAVE_OUT}: the tokenizer uses all CPU cores",
    "lang_id": f"{_LEAVE_OUT}: the supported families need none",
    "verbose_logging": "use --log_level debug",
    "eval_all_checkpoints": f"{_LEAVE_OUT}; --eval_strategy evaluates during the training",
    "version_2": "use --version_2_with_negative",
    "use_auth_token": "use --token",
}


def parser() -> argparse.ArgumentParser:
    """The parser of the model, data, training and process arguments."""
    from qa_flax.train.training_arguments import TrainingArguments

    parser = dataclass_parser(
        ModelArguments,
        DataArguments,
        TrainingArguments,
        DistributedArguments,
        prog="qa-flax run",
        usage=USAGE,
        description="Fine-tune a question answering model, evaluate it and predict answers. The "
        "arguments have the names and defaults of Hugging Face's run_qa.py. A stopped run resumes "
        "from the latest checkpoint in --output_dir when the command is repeated.",
    )
    parser.other_names = OTHER_NAMES  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def main(parsed: argparse.Namespace) -> int | None:
    """Train, evaluate and predict as the arguments say.

    Returns:
        130 after a training that Ctrl-C stopped; otherwise None.

    Raises:
        UsageError: a file, an argument, the data or the model is invalid.
        FloatingPointError: a loss is not finite.
        ProcessError: the processes did not join, or run different commands.
        Preempted: the run was stopped by SIGTERM.
    """
    from qa_flax.commands.run.job import run

    show_torch()
    return reporting_interrupts(run, *parsed.dataclasses)


def reporting_interrupts(job: Callable[..., Any], *arguments: Any, **settings: Any) -> int | None:
    """Call a job that trains; say so if Ctrl-C or SIGTERM stopped it.

    Returns:
        130 after a training that Ctrl-C stopped; otherwise None.

    Raises:
        Preempted: the job was stopped by SIGTERM.
    """
    from qa_flax.distributed.failure import INTERRUPTED
    from qa_flax.distributed.preemption import Interrupted, Preempted

    try:
        job(*arguments, **settings)
    except Interrupted as interrupted:  # in all processes at the same point
        print(f"qa-flax: {str(interrupted) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except Preempted:
        print("qa-flax: stopped by SIGTERM; repeat the command to resume", file=sys.stderr)
        raise
    return None


def parse_arguments(arguments: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments of `qa-flax run`.

    Args:
        arguments: the command line after `qa-flax run`, or the path of one JSON or YAML file.

    Returns:
        `ModelArguments`, `DataArguments`, `TrainingArguments` and `DistributedArguments`.

    Raises:
        ValueError: a value is invalid.
        SystemExit: the arguments cannot be parsed.
    """
    return parser().parse_args(arguments).dataclasses
