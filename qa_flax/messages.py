"""Text helpers shared by error messages, warnings and printed lines (host, text).

Ids, file names and values of a data set or a model may hold characters that would move a terminal's
cursor, change its colours, forge a line of a log, or turn the direction of what follows. They are
escaped before they are shown; output files have the text as it is.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MAX_LENGTH = 200  # characters of an item that a message shows
MAX_SHOWN = 5  # items that a message lists before it ends in "..."

# C0 and C1 controls, separators of lines, marks that turn the direction of a text, surrogates.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NAMES = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def escaped(text: Any) -> str:
    r"""Return a text in one line without control characters: a line feed is shown as `\n`.

    Example:
        >>> print(escaped("one\x1b[31m\ntwo"))
        one\x1b[31m\ntwo
    """
    return _CONTROLS.sub(_escape, str(text))


def printable(text: Any) -> str:
    """Return a message, which may have several lines, without other control characters."""
    return _CONTROLS.sub(lambda m: m[0] if m[0] in "\n\t" else _escape(m), str(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _NAMES.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


# ---- values and items ----------------------------------------------------------------------------


def first_few(items: Sequence, show: Callable[[Any], str] = str, separator: str = ", ") -> str:
    """Join the first few of `items` as text, followed by `...` if there are more.

    Control characters are escaped; items that stand in lines of their own may have several lines.
    """
    safe = printable if "\n" in separator else escaped
    shown_items = [safe(short(show(item))) for item in items[:MAX_SHOWN]]
    return separator.join(shown_items + ["..."] * (len(items) > MAX_SHOWN))


def short(text: str, length: int = MAX_LENGTH) -> str:
    """Cut a text that would hide the message around it, such as an id of a thousand characters."""
    return text if len(text) <= length else f"{text[:length]}..."


def quoted(text: Any) -> str:
    """Put an id in quotation marks."""
    return f'"{escaped(text)}"'


def shown(value: Any) -> str:
    """Return a value of a file as Python writes it, cut if it is long, for an error message."""
    try:
        return escaped(short(repr(value), 100))
    except (RecursionError, ValueError):  # nested too deep, or an integer of thousands of digits
        return f"a {type(value).__name__} that is too large to be shown"


# ---- errors and logs -----------------------------------------------------------------------------


@contextmanager
def printable_errors() -> Iterator[None]:
    """Escape the control characters in the messages of the errors that are raised inside."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = short(error.filename)  # a name may be too long for the file system
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (printable(error.args[0]),)
        raise


class _Escaping(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def logger(name: str) -> logging.Logger:
    """Return the logger of a module whose messages show values of files, with these escaped."""
    result = logging.getLogger(name)
    if not any(isinstance(one, _Escaping) for one in result.filters):
        result.addFilter(_Escaping())
    return result


class PrintableRecord(logging.LogRecord):
    """A record of a log whose message has no control characters; for the command line's logs."""

    def getMessage(self) -> str:
        """Return the message."""
        return printable(super().getMessage())
