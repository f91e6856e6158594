"""Text helpers shared by error messages and warnings (host, text)."""

from collections.abc import Callable, Sequence
from typing import Any

MAX_LENGTH = 200  # characters of an item that a message shows
MAX_SHOWN = 5  # items that a message lists before it ends in "..."


def first_few(items: Sequence, show: Callable[[Any], str] = str, separator: str = ", ") -> str:
    """Join the first few of `items` as text, followed by `...` if there are more."""
    shown = [_short(show(item)) for item in items[:MAX_SHOWN]]
    return separator.join(shown + ["..."] * (len(items) > MAX_SHOWN))


def _short(text: str) -> str:
    """Cut a text that would hide the message around it, such as an id of a thousand characters."""
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."


def quoted(text: Any) -> str:
    """Put an id in quotation marks."""
    return f'"{text}"'
