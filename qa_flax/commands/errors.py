"""Errors the user can mend: one message, exit status 2, no traceback (`cli.py` shows them)."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """What the user gave cannot be used; the message is all that need be shown."""


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, errors of these kinds are the user's to mend, not defects to trace.

    Raises:
        UsageError: in place of one of `kinds`, with its message.
    """
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        raise UsageError(str(error)) from error
