"""JSON and YAML files with the arguments of a command: the same checks as on the command line."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

SUFFIXES = (".json", ".yaml", ".yml")
COMMA_SEPARATED = ("freeze_layers", "lora_target_modules")
"""Arguments of several values in one text; in a file they may be lists."""


class _Invalid(ValueError):
    """A value that its argument cannot have; the message says what it must be."""


def read(path: str, parser: argparse.ArgumentParser, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Read a file of arguments.

    Args:
        path: a JSON or YAML file with an object: the name of an argument -> its value.
        parser: has the arguments, with the types and choices of their values.
        hints: the type annotation of each argument, which may allow lists and dicts.

    Returns:
        The converted values by the arguments' `dest`.

    Raises:
        ValueError: the file cannot be read, or names all keys and values that are invalid.
    """
    options = {
        option.lstrip("-"): (option, action)
        for option, action in parser._option_string_actions.items()
        if action.dest != "help" and option.startswith("--")
    }
    values: dict[str, Any] = {}
    problems = []
    for key, value in _content(path):
        if key not in options:
            problems.append(_unknown(key, [name for name in options if "-" not in name]))
            continue
        _, action = options[key]
        if action.dest in values:
            problems.append(f"{key} is given twice; remove one of them")
            continue
        try:
            values[action.dest] = _converted(action, value, hints.get(action.dest))
        except _Invalid as error:
            problems.append(f"{key} is {json.dumps(value, default=str)}; it must be {error}")
    if problems:
        raise ValueError(f"{path}: " + f"\n{path}: ".join(problems))
    return values


def _content(path: str) -> Iterable[tuple[Any, Any]]:
    """The pairs of keys and values, also of keys that are there twice.

    Raises:
        ValueError: the file is missing, not JSON or YAML, or contains no object.
    """
    from qa_flax import storage  # imported here because it is slow

    file = storage.path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file of arguments")
    try:
        text = file.read_text(encoding="utf-8-sig")
        is_json = Path(path).suffix == ".json"
        content = json.loads(text, object_pairs_hook=_Pairs) if is_json else _read_yaml(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start} is invalid)") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: not valid JSON: {error.msg} at {place}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, _Pairs):
        raise ValueError(
            f"{path}: it must contain an object with the arguments, such as "
            f'{{"learning_rate": 3e-5}}, but contains {"nothing" if content is None else "a "}'
            f"{'' if content is None else type(content).__name__}"
        )
    return [(key, _plain(value)) for key, value in content]


class _Pairs(list):
    """The pairs of an object: a dict would lose the first of two equal keys."""


def _read_yaml(text: str) -> Any:
    import yaml  # imported here because it is slow

    class PairsLoader(yaml.SafeLoader):
        """Keeps the pairs of an object, also those with the same key."""

    def pairs(loader: yaml.SafeLoader, node: yaml.MappingNode) -> _Pairs:
        loader.flatten_mapping(node)
        return _Pairs(
            (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
            for key, value in node.value
        )

    PairsLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, pairs)
    try:
        return yaml.load(text, Loader=PairsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(item) for key, item in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _unknown(key: Any, names: Sequence[str]) -> str:
    similar = get_close_matches(str(key).lstrip("-"), names, n=1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return f"there is no argument {key!r}{hint}"


def _converted(action: argparse.Action, value: Any, hint: Any) -> Any:
    """Convert a value as the command line would convert its text.

    Raises:
        _Invalid: the argument cannot have it.
    """
    if value is None:
        if action.default is None and not action.required:
            return None
        default = "" if action.required else f"; leave it out for the default, {action.default!r}"
        raise _Invalid(_expected(action) + default)
    if action.nargs == 0:  # --no_pad_to_max_length
        return _boolean(action, value) == bool(action.const)
    if action.nargs == "+":
        items = value if isinstance(value, list) else [value]
        return [_scalar(action, item) for item in items]
    if action.dest in COMMA_SEPARATED and isinstance(value, list):
        return ",".join(str(_scalar(action, item)) for item in value)
    if isinstance(value, list | dict) and _allows(hint, type(value)):
        return value
    return _scalar(action, value)


def _scalar(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, list | dict):
        raise _Invalid(_expected(action))
    if _is_boolean(action):
        return _boolean(action, value)
    if value is False and "no" in (action.choices or ()):
        value = "no"  # YAML reads the word `no` as false
    is_text = action.type in (str, None)
    if isinstance(value, bool) and (is_text or action.type in (int, float)):
        quoted = ", in quotes, because YAML reads no, off, yes and on as false and true"
        raise _Invalid(_expected(action) + (quoted if is_text else ""))
    convert: Any = action.type or str
    try:
        converted = convert(str(value) if not isinstance(value, str) else value)
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        raise _Invalid(_expected(action)) from None
    if action.choices is not None and converted not in action.choices:
        raise _Invalid(_expected(action))
    return converted


def _boolean(action: argparse.Action, value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    words |= {"t": True, "y": True, "f": False, "n": False}
    if isinstance(value, float) or str(value).lower() not in words:
        raise _Invalid(_expected(action))
    return words[str(value).lower()]


def _is_boolean(action: argparse.Action) -> bool:
    return getattr(action.type, "__name__", "") == "string_to_bool"


def _expected(action: argparse.Action) -> str:
    """What the value must be, in words."""
    if action.choices is not None:
        return "one of " + ", ".join(str(getattr(c, "value", c)) for c in action.choices)
    if _is_boolean(action) or action.nargs == 0:
        return "true or false"
    names = {int: "a whole number", float: "a number"}
    name = names.get(action.type, "text")  # pyright: ignore[reportArgumentType,reportCallIssue]
    return f"a list of {'text' if name == 'text' else 'numbers'}" if action.nargs == "+" else name


def _allows(hint: Any, kind: type) -> bool:
    """Whether a type annotation is a union with `list` or `dict`."""
    return any((get_origin(part) or part) is kind for part in (hint, *get_args(hint)))
