"""What messages to the user have in common (host, text)."""

from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 5  # how many of many a message names


def first_few(items: Sequence, show: Callable[[Any], str] = str, separator: str = ", ") -> str:
    """The first of `items` as text, and `...` where there are more."""
    shown = [show(item) for item in items[:SHOWN]]
    return separator.join(shown + ["..."] * (len(items) > SHOWN))


def quoted(text: Any) -> str:
    """An id in quotation marks."""
    return f'"{text}"'
