"""The command `qa-flax`: a loop over the folder `commands/`, whose modules are its verbs."""

import argparse
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from qa_flax import __version__, commands
from qa_flax.commands.errors import UsageError, usage_errors
from qa_flax.distributed import ProcessError

USAGE = "usage: qa-flax [--help] [--version] COMMAND [arguments]"
DESCRIPTION = "Extractive question answering in JAX/Flax, on every core."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 and one message where the user's input cannot be used."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv:
        print(help_text(), file=sys.stderr)
        sys.exit(2)
    if argv[0] in ("-h", "--help"):
        print(help_text())
    elif argv[0] == "--version":
        print(__version__)
    else:
        status = _run(argv[0], argv[1:])
        if status is not None:
            sys.exit(status)


def help_text() -> str:
    """What `qa-flax --help` prints: each verb with its summary."""
    verbs = commands.found()
    width = max(map(len, verbs))
    lines = [f"  {verb:{width}}  {module.SUMMARY}" for verb, module in verbs.items()]
    ending = "qa-flax COMMAND --help lists the arguments of a command."
    return "\n".join([USAGE, "", DESCRIPTION, "", "commands:", *lines, "", ending])


def _run(verb: str, argv: list[str]) -> int | None:
    """Run one verb; returns the exit status. Every error a verb may end with is handled here."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        command = _command(verb)
        parser = command.parser()
        parser.prog = f"qa-flax {verb}"
        with usage_errors(ValueError, OSError, TypeError, KeyError):
            parsed = _parse(parser, argv)
        return command.main(parsed)
    except UsageError as error:
        status, message = 2, f"error: {error}"
    except (FloatingPointError, ProcessError) as error:
        status, message = 1, str(error)
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    print(f"qa-flax: {message}", file=sys.stderr)
    if sys.modules.get("jax"):  # without it no process has joined another
        from qa_flax.distributed.failure import end_all

        end_all(status, message)
    return status


def _command(verb: str) -> ModuleType:
    verbs = commands.found()
    if verb not in verbs:
        near = _nearest(verb, list(verbs))
        hint = f"; did you mean {near!r}?" if near else ""
        raise UsageError(f"there is no command {verb!r}{hint} (qa-flax --help lists the commands)")
    return verbs[verb]


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    def refuse(message: str) -> NoReturn:  # argparse would print the usage, 170 arguments of run
        hint = _hint(argv, list(parser._option_string_actions))
        raise UsageError(f"{message}{hint} ({parser.prog} --help lists the arguments)")

    parser.error = refuse
    return parser.parse_args(argv)


def _hint(argv: list[str], options: list[str]) -> str:
    """A suggestion for the first option that is none, nor the beginning of one."""
    for argument in argv:
        name = argument.split("=")[0]
        if name.startswith("--") and not any(option.startswith(name) for option in options):
            near = _nearest(name, options)
            return f"; did you mean {near} in place of {name}?" if near else ""
    return ""


def _nearest(name: str, names: list[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, names, n=1)), None)
