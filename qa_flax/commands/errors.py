"""Errors that the user can fix: `cli.py` prints one message, no traceback, and exits with 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """The user's input is invalid; the message says how to fix it, so no traceback is printed."""


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of the given types into `UsageError`: the user's input causes them.

    Raises:
        UsageError: with the original message, in place of an exception of one of `kinds`.
    """
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        raise UsageError(str(error)) from error
