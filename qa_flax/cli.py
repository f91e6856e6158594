"""The command `qa-flax`: runs one of the subcommands in `commands/` and reports its errors."""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NoReturn

from qa_flax import __version__, commands
from qa_flax.commands.errors import UsageError, usage_errors
from qa_flax.commands.hidden_torch import hide_torch
from qa_flax.distributed import ProcessError
from qa_flax.messages import PrintableRecord, printable
from qa_flax.models import PushError

USAGE = "usage: qa-flax [--help] [--version] COMMAND [arguments]"
WITHOUT_TORCH = ("answer", "check", "clozes", "demo", "run", "tune")
"""Commands that import transformers; they call `show_torch` when they have."""
FIRST_STEPS = """First steps:
  qa-flax demo
      trains a tiny model on generated questions: no download, about a minute on a CPU
  qa-flax run --model_name_or_path bert-base-uncased --train_file FILE --validation_split 0.2 \\
      --do_train --do_eval --output_dir out
      trains on your questions and evaluates on a fifth of them
  qa-flax answer --model_name_or_path out --context TEXT_FILE
      asks the model
"""
DESCRIPTION = "Fine-tune and evaluate extractive question answering models with JAX and Flax."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: the command line without the program's name; None: `sys.argv[1:]`.

    Raises:
        SystemExit: the exit status is not 0. It is 2 for invalid input, 1 for a failed run, 130
            for Ctrl-C, 143 for SIGTERM, or the status that the subcommand returns.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv:
        print(f"{help_text()}\n\n{FIRST_STEPS}", end="", file=sys.stderr)
        sys.exit(2)
    if argv[0] in ("-h", "--help"):
        print(help_text())
    elif argv[0] == "--version":
        print(__version__)
    else:
        if arguments is None:  # a process of its own
            # Imports and tracing create a million objects that stay; Python would look through all
            # of them again and again.
            gc.set_threshold(100_000, 20, 20)
            _draw_no_bars_into_logs()
        if arguments is None and argv[0] in WITHOUT_TORCH:
            hide_torch()
        status = _run(argv[0], argv[1:])
        if status is not None:
            sys.exit(status)


def _draw_no_bars_into_logs() -> None:
    """Turn off the progress bars of datasets and huggingface_hub where stderr is no terminal.

    They would fill a log with carriage returns. Variables that are set take precedence. Call it
    before these libraries are imported.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def help_text() -> str:
    """Return the text of `qa-flax --help`: each subcommand with its summary."""
    modules = commands.discover()
    width = max(map(len, modules))
    lines = [f"  {name:{width}}  {module.SUMMARY}" for name, module in modules.items()]
    footer = "qa-flax COMMAND --help lists the arguments of a command."
    return "\n".join([USAGE, "", DESCRIPTION, "", "commands:", *lines, "", footer])


def _run(name: str, argv: list[str]) -> int | None:
    """Run one subcommand and return its exit status; print expected errors instead of raising."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.setLogRecordFactory(PrintableRecord)
    try:
        command = _command(name)
        parser = command.parser()
        parser.prog = f"qa-flax {name}"
        with usage_errors(ValueError, OSError, TypeError, KeyError):
            parsed = _parse(parser, argv)
        return command.main(parsed)
    except UsageError as error:
        status, message = 2, f"error: {error}"
    except (FloatingPointError, ProcessError, PushError) as error:
        status, message = 1, str(error)
    except OSError as error:  # after the input was checked: a full disk, a lost file system
        status, message = 1, f"{type(error).__name__}: {error}"
    except MemoryError as error:
        status, message = 1, f"not enough memory: {error}".removesuffix(": ")
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    finally:
        logging.setLogRecordFactory(logging.LogRecord)
    print(f"qa-flax: {printable(message)}", file=sys.stderr)
    if sys.modules.get("jax"):  # a process that has not imported JAX has not joined any others
        from qa_flax.distributed.failure import exit_all

        exit_all(status, message)
    return status


def _command(name: str) -> ModuleType:
    modules = commands.discover()
    if name not in modules:
        similar = _most_similar(name, list(modules))
        hint = f"; did you mean {similar!r}?" if similar else ""
        raise UsageError(f"there is no command {name!r}{hint} (qa-flax --help lists the commands)")
    return modules[name]


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    def raise_usage_error(message: str) -> NoReturn:
        other_names = getattr(parser, "other_names", {})
        options = list(parser._option_string_actions)
        hint = _hint(argv, options, other_names, abbreviates=parser.allow_abbrev)
        raise UsageError(f"{message}{hint} ({parser.prog} --help lists the arguments)")

    # argparse would print the usage before each message, but `qa-flax run` has too many arguments.
    parser.error = raise_usage_error
    return parser.parse_args(argv)


def _hint(
    argv: list[str], options: list[str], other_names: Mapping[str, str], *, abbreviates: bool
) -> str:
    """Return a suggestion for the first unknown option, or "".

    Args:
        argv: the command line.
        options: the options of the parser.
        other_names: names that other programs have for an option -> what to do here.
        abbreviates: whether the beginning of an option's name stands for it.
    """
    for argument in argv:
        name = argument.split("=")[0]
        is_known = name in options
        is_known |= abbreviates and any(option.startswith(name) for option in options)
        if name.startswith("--") and not is_known:
            if name[2:].replace("-", "_") in other_names:
                return f"; instead of {name}, {other_names[name[2:].replace('-', '_')]}"
            similar = _most_similar(name, options)
            return f"; did you mean {similar} instead of {name}?" if similar else ""
    return ""


def _most_similar(name: str, names: list[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, names, n=1)), None)
