"""Which values a number may have, in words and as a test: the ground of all checks of arguments."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from qa_flax.messages import shown

LARGEST = 10**300  # a float holds it
LARGEST_SEED = 2**32 - 1  # NumPy's legacy generator, which scripts seed, takes no larger one


class Range(NamedTuple):
    """The values that a number may have."""

    allowed: str
    """In words, after "it must be"."""

    is_valid: Callable[[Any], bool]
    """Whether a number is allowed."""

    is_whole: bool = False
    is_optional: bool = False
    """Whether None is allowed."""

    is_infinite: bool = False
    """Whether infinity is allowed."""

    def contains(self, value: Any) -> bool:
        """Whether the value is allowed; NaN, text and booleans never are."""
        if value is None:
            return self.is_optional
        kind = Integral if self.is_whole else Real
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if not is_number:
            return False
        if isinstance(value, Integral):  # may be too large for a float
            return abs(int(value)) < LARGEST and self.is_valid(value)
        if math.isnan(value):
            return False
        return (self.is_infinite or not math.isinf(value)) and self.is_valid(value)

    def or_none(self) -> "Range":
        """The same range and None."""
        return self._replace(is_optional=True)


def at_least(least: int) -> Range:
    """Whole numbers from `least` on."""
    return Range(f"a whole number of at least {least}", lambda v: v >= least, is_whole=True)


NUMBER = Range("a number", lambda v: True, is_infinite=True)
NOT_NEGATIVE = Range("a number of at least 0", lambda v: v >= 0)
POSITIVE = Range("a number above 0", lambda v: v > 0)
BELOW_1 = Range("at least 0 and below 1", lambda v: 0 <= v < 1)
SHARE = Range("a number above 0 and below 1, such as 0.1", lambda v: 0 < v < 1)
SEED = Range(
    f"a whole number from 0 to {LARGEST_SEED}", lambda v: 0 <= v <= LARGEST_SEED, is_whole=True
)


def check_numbers(ranges: Mapping[str, Range], **values: Any) -> None:
    """Refuse values outside their ranges.

    Args:
        ranges: the range of each name.
        **values: the values by name.

    Raises:
        ValueError: names each of them, in one line.
    """
    problems = [
        f"{name}={shown(value)}: it must be {ranges[name].allowed}"
        for name, value in values.items()
        if not ranges[name].contains(value)
    ]
    if problems:
        raise ValueError("; ".join(problems))


def check_flags(ranges: Mapping[str, Range], arguments: Any) -> None:
    """Refuse arguments of the command line that are outside their ranges.

    Args:
        ranges: the range of each name.
        arguments: has the values as attributes; names that it has not are not looked at.

    Raises:
        ValueError: names each of them, in one line.

    Example:
        >>> import argparse
        >>> check_flags({"seed": at_least(0), "folds": at_least(2)}, argparse.Namespace(seed=-1))
        Traceback (most recent call last):
        ...
        ValueError: --seed is -1; it must be a whole number of at least 0
    """
    problems = [
        f"--{name} is {value}; it must be {range_.allowed}"
        for name, range_ in ranges.items()
        if hasattr(arguments, name) and not range_.contains(value := getattr(arguments, name))
    ]
    if problems:
        raise ValueError("; ".join(problems))
