"""`qa-flax run`: fine-tune, evaluate and predict, with the arguments of run_qa.py."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from qa_flax.commands.arguments import (
    DataArguments,
    DistributedArguments,
    ModelArguments,
    dataclass_parser,
)

SUMMARY = "fine-tune, evaluate and predict, with the arguments of run_qa.py"

USAGE = """qa-flax run --model_name_or_path DIR_OR_HUB_ID --output_dir DIR [arguments]
       qa-flax run arguments.json   (or .yaml)"""


def parser() -> argparse.ArgumentParser:
    """The parser of the model, data, training and process arguments."""
    from qa_flax.train.training_arguments import TrainingArguments

    return dataclass_parser(
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


def main(parsed: argparse.Namespace) -> None:
    """Train, evaluate and predict as the arguments say.

    Raises:
        UsageError: a file, an argument, the data or the model is invalid.
        FloatingPointError: a loss is not finite.
        ProcessError: the processes did not join, or run different commands.
        Preempted: the run was stopped by SIGTERM.
    """
    from qa_flax.commands.run.job import run
    from qa_flax.distributed.preemption import Preempted

    try:
        run(*parsed.dataclasses)
    except Preempted:
        print("qa-flax: stopped by SIGTERM; repeat the command to resume", file=sys.stderr)
        raise


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
