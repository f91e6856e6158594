"""Errors that the user can fix: `cli.py` prints one message, no traceback, and exits with 2."""

from collections.abc import Iterator
from contextlib import contextmanager

from qa_flax.commands.wording import in_flags
from qa_flax.models import PushError

TOKENIZER_ARGUMENT = "--tokenizer_name"
BASE_ARGUMENT = "--base_model_name_or_path"


class UsageError(ValueError):
    """The user's input is invalid; the message says how to fix it, so no traceback is printed."""


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of the given types into `UsageError`: the user's input causes them.

    Raises:
        UsageError: with the original message in the words of the command line, in place of an
            exception of one of `kinds`.
    """
    try:
        yield
    except (UsageError, PushError):  # a push fails for reasons that are not in the input
        raise
    except kinds as error:
        raise UsageError(in_flags(str(error))) from error


@contextmanager
def model_errors() -> Iterator[None]:
    """Turn exceptions of loading a model and its tokenizer into `UsageError`.

    Raises:
        UsageError: with the original message in the words of the command line.
    """
    from qa_flax.models.lora import GIVE_BASE  # imported here because it is slow

    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error).removesuffix(", or pass calibration=Calibration() to do without")
        text = text.replace(GIVE_BASE, GIVE_BASE.replace("base_model=", BASE_ARGUMENT))
        raise UsageError(text.replace("base_model=", f"{BASE_ARGUMENT} ")) from error
