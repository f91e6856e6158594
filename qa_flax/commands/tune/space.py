"""The space of a search: which training arguments `qa-flax tune` varies, and over what (host)."""

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT = {
    "learning_rate": "1e-5..3e-4",
    "num_train_epochs": "2..8",
    "hidden_dropout_prob": "0.0,0.1,0.2",
    "weight_decay": "0.0,0.01,0.1",
    "layerwise_lr_decay": "0.8,0.9,1.0",
}
"""What is searched unless it is given. Rates that are not the learning rate have few values."""
FIRST = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3,
    "hidden_dropout_prob": 0.1,
    "weight_decay": 0.0,
    "layerwise_lr_decay": 1.0,
}
"""The first trial, where the space has these values: those of a run without a search."""
LOG_SCALE = ("learning_rate",)
HOW = (
    "write a range as LOW..HIGH (1e-5..1e-4; with :log after it on a logarithmic scale), values as "
    "0.0,0.1,0.2, or one value, which is then fixed"
)


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are whole: both ends are written without a point."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def contains(self, value: Any) -> bool:
        """Return whether a value is in it."""
        return self.low <= value <= self.high

    def draw(self, trial: Any, name: str) -> Any:
        """Draw a number with an optuna trial."""
        draw = trial.suggest_int if self.is_whole else trial.suggest_float
        return draw(name, self.low, self.high, log=self.is_log)

    def __str__(self):
        return f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.is_log else "")


@dataclass(frozen=True)
class Choice:
    """Some values."""

    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Return whether it is one of them."""
        return value in self.values

    def draw(self, trial: Any, name: str) -> Any:
        """Draw one with an optuna trial."""
        return trial.suggest_categorical(name, self.values)

    def __str__(self):
        return " or ".join(map(str, self.values))


Space = Mapping[str, Range | Choice]


def read_space(
    texts: Sequence[str],
    parser: argparse.ArgumentParser,
    allowed: Collection[str],
    given: Collection[str],
    left_out: Collection[str] = (),
) -> tuple[Space, dict[str, Any]]:
    """Read `--search`, and add what is searched by default.

    Args:
        texts: each `NAME=VALUES`.
        parser: has the arguments with the types of their values.
        allowed: the arguments that may be searched.
        given: those that have a value on the command line, which are not searched.
        left_out: those that are not searched by default, because the model has no such thing.

    Returns:
        The space, and the arguments that `--search` fixes at one value.

    Raises:
        ValueError: says what is wrong with a text.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not values.strip():
            raise ValueError(
                f"--search {text}: it must be NAME=VALUES, such as {_example()}; {HOW}"
            )
        if name not in allowed:
            raise ValueError(
                f"--search {text}: there is no training argument {name} to search over; those that "
                f"are searched by default: {', '.join(DEFAULT)}"
            )
        if name in named:
            raise ValueError(f"--search has {name} twice; remove one of them")
        if name in given:
            raise ValueError(f"--search {text}, but --{name} fixes its value; remove one of them")
        named[name] = values
    skipped = {*given, *left_out}
    default = {name: text for name, text in DEFAULT.items() if name not in skipped | named.keys()}
    space: dict[str, Range | Choice] = {}
    fixed: dict[str, Any] = {}
    for name, text in {**default, **named}.items():
        part = _read(name, text, _action(parser, name))
        if isinstance(part, Choice) and len(part.values) == 1:
            fixed[name] = part.values[0]
        else:
            space[name] = part
    if not space:
        raise ValueError(
            "nothing is left to search: every argument has a fixed value; give one of them several "
            f"with --search, such as {_example()}"
        )
    return space, fixed


def _example() -> str:
    return f"learning_rate={DEFAULT['learning_rate']}"


def _action(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    return parser._option_string_actions[f"--{name}"]


def _read(name: str, text: str, action: argparse.Action) -> Range | Choice:
    text, colon, scale = text.strip().partition(":")
    if colon and scale != "log":
        raise ValueError(f"--search {name}={text}:{scale}: {HOW}")
    low, dots, high = text.partition("..")
    if not dots:
        if colon:
            raise ValueError(f"--search {name}={text}:log: only a range has a scale; {HOW}")
        values = tuple(_value(name, part.strip(), action) for part in text.split(","))
        if len(set(values)) < len(values):
            raise ValueError(f"--search {name}={text} has a value twice; remove one of them")
        return Choice(values)
    ends = [_number(part) for part in (low, high)]
    is_number = action.type in (int, float) or name in FIRST
    if None in ends or not is_number:
        raise ValueError(f"--search {name}={text}: LOW..HIGH needs two numbers; {HOW}")
    first, last = (end for end in ends if end is not None)
    if action.type is int and not (isinstance(first, int) and isinstance(last, int)):
        raise ValueError(f"--search {name}={text}: {name} is a whole number; {HOW}")
    if not (isinstance(first, int) and isinstance(last, int)):
        first, last = float(first), float(last)
    is_log = bool(colon) or name in LOG_SCALE
    if not first < last or (is_log and first <= 0):
        needed = "above 0 and below HIGH" if is_log else "below HIGH"
        raise ValueError(f"--search {name}={text}: LOW must be {needed}")
    return Range(first, last, is_log)


def _number(text: str) -> float | None:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return None


def _value(name: str, text: str, action: argparse.Action) -> Any:
    """Return a value of an argument, as the command line reads it."""
    number = _number(text)
    if number is not None and (action.type in (int, float) or name in FIRST):
        return number
    try:
        value = action.type(text) if callable(action.type) else text
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--search {name}: {text!r} is no value of --{name} ({error})") from error
    value = getattr(value, "value", value)
    if action.choices and value not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise ValueError(f"--search {name}: {text!r} is not allowed; choose from {choices}")
    return value


def draw(space: Space, trial: Any) -> dict[str, Any]:
    """Draw the values of a trial."""
    return {name: part.draw(trial, name) for name, part in space.items()}


def first_trial(space: Space) -> dict[str, Any]:
    """Return the values of the first trial, as far as the space has them."""
    return {
        name: value
        for name, value in FIRST.items()
        if name in space and space[name].contains(value)
    }


def values_to_check(space: Space, fixed: Mapping[str, Any]) -> list[tuple[str, Sequence[Any]]]:
    """Return the values of each argument, of a range both ends: if these are valid, all are."""
    ends = [
        (name, part.values if isinstance(part, Choice) else (part.low, part.high))
        for name, part in space.items()
    ]
    return [*ends, *((name, (value,)) for name, value in fixed.items())]
