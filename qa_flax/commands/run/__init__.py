"""`qa-flax run`: fine-tune, evaluate and predict, by the arguments of Hugging Face's run_qa.py."""

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

SUMMARY = "fine-tune, evaluate, predict, by the arguments of run_qa.py"

USAGE = """qa-flax run --model_name_or_path DIR_OR_HUB_ID --output_dir DIR [arguments]
       qa-flax run arguments.json   (or .yaml)"""


def parser() -> argparse.ArgumentParser:
    """Four groups of arguments: of the model, the data, the training, the processes."""
    from qa_flax.train.training_arguments import TrainingArguments

    return dataclass_parser(
        ModelArguments,
        DataArguments,
        TrainingArguments,
        DistributedArguments,
        prog="qa-flax run",
        usage=USAGE,
        description="Fine-tune, evaluate and predict: the arguments of Hugging Face's run_qa.py, "
        "by the same names.",
    )


def main(parsed: argparse.Namespace) -> None:
    """Do the run.

    Raises:
        UsageError: a file, an argument, the data or the model cannot be used.
        FloatingPointError: a loss is not finite.
        ProcessError: the processes cannot work together.
        Preempted: SIGTERM has come.
    """
    from qa_flax.commands.run.job import run
    from qa_flax.distributed.preemption import Preempted

    try:
        run(*parsed.dataclasses)
    except Preempted:
        print("qa-flax: stopped by SIGTERM; repeat the command to go on", file=sys.stderr)
        raise


def parse_arguments(arguments: Sequence[str]) -> tuple[Any, ...]:
    """The four groups of arguments, from a command line or a JSON or YAML file.

    Raises:
        ValueError: a value cannot be used.
        SystemExit: they cannot be parsed.
    """
    return parser().parse_args(arguments).dataclasses
