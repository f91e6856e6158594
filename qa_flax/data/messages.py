"""Text helpers shared by error messages and warnings (host, text)."""

from collections.abc import Callable, Sequence
from typing import Any

MAX_SHOWN = 5  # items that a message lists before it ends in "..."


def first_few(items: Sequence, show: Callable[[Any], str] = str, separator: str = ", ") -> str:
    """Join the first few of `items` as text, followed by `...` if there are more."""
    shown = [show(item) for item in items[:MAX_SHOWN]]
    return separator.join(shown + ["..."] * (len(items) > MAX_SHOWN))


def quoted(text: Any) -> str:
    """Put an id in quotation marks."""
    return f'"{text}"'
