"""Read the JSON files `{id: value}` that an evaluation leaves: answers, n-best lists, null odds."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from qa_flax import messages, storage
from qa_flax.data.text_files import decode, unpacked
from qa_flax.messages import first_few

logger = messages.logger(__name__)


def read_answer_map(
    path: str | os.PathLike, kind: type | tuple[type, ...], what: str
) -> dict[str, Any]:
    """Read a JSON file {id: value}.

    Args:
        path: the file, here or in a bucket, also compressed.
        kind: the type or types of its values.
        what: what messages call such a value.

    Raises:
        ValueError: it is not JSON, no object, or a value is of another type or NaN.
        OSError: it cannot be read.
    """
    text = _text(path)
    try:
        values = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error
    if repeated := getattr(values, "repeated", ()):
        _warn_of_repeated(path, repeated)
    if not isinstance(values, dict):
        raise ValueError(f"{path} contains a {type(values).__name__}; it must be {{id: {what}}}")
    bad = [id_ for id_, value in values.items() if not isinstance(value, kind) or value != value]
    _refuse(path, bad, len(values), what)
    return values


def iterate_lists(path: str | os.PathLike) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Read a JSON file {id: [{...}, ...]} and yield one id after the other.

    The n-best lists of 100,000 questions take gigabytes as dicts; this holds the text only.

    Raises:
        ValueError: it is not such a file.
        OSError: it cannot be read.
    """
    text, decode_at = _text(path), json.JSONDecoder().raw_decode
    try:
        mark, place = _mark(text, 0, "{")
        if text[place : place + 1] == "}":
            mark, place = _mark(text, place, "}")
        while mark != "}":
            id_, place = decode_at(text, place)
            _, place = _mark(text, place, ":")
            rows, place = decode_at(text, place)
            if not isinstance(id_, str) or not _is_list(rows):
                raise _NoListError
            yield id_, rows
            mark, place = _mark(text, place, ",}")
        if place < len(text):
            raise json.JSONDecodeError("Extra data", text, place)
    except _NoListError as error:
        message = f"{path}: an id has no list of objects; it must be {{id: [{{...}}, ...]}}"
        raise ValueError(message) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _not_json(path, error) from error


class _NoListError(Exception):
    pass


def _is_list(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _mark(text: str, place: int, marks: str) -> tuple[str, int]:
    """Return which of `marks` is at `place`, and the place after it; white space is skipped."""
    place = _after_space(text, place)
    if place >= len(text) or text[place] not in marks:
        raise json.JSONDecodeError(f"Expecting {' or '.join(marks)}", text, place)
    return text[place], _after_space(text, place + 1)


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\n\r":
        place += 1
    return place


def _text(path: str | os.PathLike) -> str:
    return decode(str(path), unpacked(str(path), storage.path(path).read_bytes()))


def _not_json(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(f"{path} is not JSON: {error}")


def _refuse(path: str | os.PathLike, bad: list[str], count: int, what: str) -> None:
    if bad:
        raise ValueError(
            f"{path}: the values of {len(bad)} of {count} ids are not a {what} "
            f"(first: {first_few(bad)})"
        )


def _warn_of_repeated(path: str | os.PathLike, repeated: Sequence[str]) -> None:
    logger.warning(
        "%s: ids that occur several times, of which the last counts: %s", path, first_few(repeated)
    )


class _Answers(dict):
    """A JSON object, and the keys that it has several times."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = _Answers(pairs)
    if len(values) < len(pairs):
        names = Counter(name for name, _ in pairs)
        values.repeated = tuple(name for name, count in names.items() if count > 1)
    return values
