"""The command `qa-flax`: parses and calls, no logic."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUN_HELP = """usage: qa-flax run --model_name_or_path DIR_OR_HUB_ID --output_dir DIR [arguments]
       qa-flax run arguments.json   (or .yaml)

Fine-tune, evaluate and predict: the arguments of Hugging Face's run_qa.py, by the same names."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 and one message where the user's input cannot be used."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] == "run":
        _run(arguments[1:])
    elif arguments and arguments[0] == "env":
        _env(arguments[1:])
    else:
        _others(arguments)


def _others(arguments: list[str]) -> None:
    from qa_flax import __version__

    parser = argparse.ArgumentParser(
        prog="qa-flax", description="Extractive question answering in JAX/Flax, on every core."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="fine-tune, evaluate, predict (qa-flax run --help)")
    commands.add_parser("env", help="versions, devices, processes, and what is wrong with them")
    demo = commands.add_parser("demo", help="fine-tune a tiny BERT on generated questions")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the training (0)")
    demo.add_argument("--output_dir", default="qa_flax_demo", help="for the model and the files")
    scorer = commands.add_parser(
        "score",
        help="EM and F1 of a file of answers, as the official SQuAD scorers print them",
        description="EM and F1 of a file of answers, as the official SQuAD scorers print them.",
    )
    scorer.add_argument("dataset", metavar="DATASET", help="SQuAD JSON, JSONL, CSV or Parquet")
    scorer.add_argument("predictions", metavar="PREDICTIONS", help="JSON, {id: answer}")
    scorer.add_argument("--na-prob-file", "-n", help="JSON, {id: number}, such as null_odds.json")
    scorer.add_argument(
        "--na-prob-thresh", "-t", type=float, default=1.0, help='a greater number counts as "" (1)'
    )
    scorer.add_argument("--out-file", "-o", help="write there instead of printing")
    scorer.add_argument(
        "--version_2_with_negative",
        action="store_true",
        help="score as SQuAD v2.0 (default where a question has no answer)",
    )
    scorer.add_argument("--language", help="MLQA's rules for ar, de, en, es, hi, vi or zh")
    converter = commands.add_parser(
        "convert",
        help="pytorch_model.bin -> model.safetensors (needs PyTorch)",
        description="Write model.safetensors beside a checkpoint's pytorch_model.bin. A pickle can "
        "run code: only plain tensors are read.",
    )
    converter.add_argument("directory", metavar="DIRECTORY", type=Path, help="of the checkpoint")
    parsed = vars(parser.parse_args(arguments))
    _start_logging()
    {"demo": _demo, "score": _score, "convert": _convert}[parsed.pop("command")](**parsed)


def _demo(seed: int, output_dir: str) -> None:
    from qa_flax.commands.demo import run_demo
    from qa_flax.device.parallel import use_host_cores

    use_host_cores()
    run_demo(seed=seed, output_dir=output_dir)


def _score(out_file: str | None, **arguments: Any) -> None:
    from qa_flax import storage
    from qa_flax.commands.score import as_printed, score

    try:
        text = as_printed(score(**arguments))
        if out_file is None:
            print(text)
        else:
            storage.write_text(storage.path(out_file), text + "\n")
    except (ValueError, OSError) as error:
        print(f"qa-flax: error: {error}", file=sys.stderr)
        sys.exit(2)


def _convert(directory: Path) -> None:
    from qa_flax.commands.convert import convert

    try:
        print(f"{convert(directory)} written")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"qa-flax: error: {error}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> None:
    _start_logging()
    from qa_flax.commands.run_job import UsageError, run
    from qa_flax.distributed.failure import end_all
    from qa_flax.distributed.preemption import Preempted
    from qa_flax.distributed.processes import HostError

    try:
        run(*parse_run_arguments(arguments))
        return
    except Preempted:
        print("qa-flax: stopped by SIGTERM; repeat the command to go on", file=sys.stderr)
        raise
    except UsageError as error:
        status, said = 2, f"error: {error}"
    except (FloatingPointError, HostError) as error:
        status, said = 1, str(error)
    except KeyboardInterrupt:
        status, said = 130, "interrupted"
    print(f"qa-flax: {said}", file=sys.stderr)
    end_all(status, said)
    sys.exit(status)


def _env(arguments: list[str]) -> None:
    _start_logging()
    from transformers import HfArgumentParser

    from qa_flax.commands.arguments import HostArguments
    from qa_flax.commands.environment import report
    from qa_flax.distributed import processes

    parser = HfArgumentParser(
        HostArguments,  # pyright: ignore[reportArgumentType]
        prog="qa-flax env",
        description="Versions, devices, processes, memory, cache, and what is wrong with them; "
        "exits with 1 if anything is.",
    )
    try:
        (host_args,) = parser.parse_args_into_dataclasses(arguments)
    except ValueError as error:
        print(f"qa-flax: error: {error}", file=sys.stderr)
        sys.exit(2)
    lines, problems = report(host_args)
    if processes.is_main() or problems:
        print("\n".join(lines))
        print("\n".join(f"problem: {problem}" for problem in problems) or "no problem found")
    sys.exit(1 if problems else 0)


def parse_run_arguments(arguments: list[str]) -> tuple[Any, ...]:
    """`ModelArguments, DataArguments, TrainingArguments, HostArguments`, from a line or a file.

    Raises:
        UsageError: they cannot be read.
    """
    from transformers import HfArgumentParser

    from qa_flax.commands.arguments import DataArguments, HostArguments, ModelArguments
    from qa_flax.commands.run_job import UsageError
    from qa_flax.train.training_arguments import TrainingArguments

    def refuse(message: str):  # argparse would print the usage of all arguments, 170 of them
        raise UsageError(f"{message} (qa-flax run --help lists the arguments)")

    kinds: Any = (ModelArguments, DataArguments, TrainingArguments, HostArguments)
    parser = HfArgumentParser(kinds, prog="qa-flax run")
    parser.error = refuse
    if not arguments:
        print(RUN_HELP, file=sys.stderr)
        sys.exit(2)
    try:
        if len(arguments) == 1 and arguments[0].endswith(".json"):
            return parser.parse_json_file(arguments[0])
        if len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
            return parser.parse_yaml_file(arguments[0])
        return parser.parse_args_into_dataclasses(arguments)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise UsageError(str(error)) from error


def _start_logging() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
