"""Stage 1 of 7: JSON, JSON Lines and objects of the same forms -> rows (host, text).

The forms are nested SQuAD, its articles or paragraphs alone, rows in a list, and what pandas'
`to_json` writes for each `orient`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from qa_flax.data.column_names import ColumnNames, Row
from qa_flax.data.rejected import ExampleError, RejectedRow
from qa_flax.messages import first_few, quoted

ROW_KEYS = {"question", "context"}


class Rows:
    """The rows of a source, with the parts of it that are no rows."""

    def __init__(self, name: str, columns: ColumnNames):
        self.name, self.columns = name, columns
        self.line: int | None = None
        """The line of the file that is being read, if each line is JSON of its own."""
        self.has_twice = False
        """Whether any object was given a key twice."""
        self.rows: list[Row] = []
        self.rejected: list[RejectedRow] = []
        self.is_text = False
        """Whether every value is text, as in a CSV file."""
        self.unused_twice: dict[str, int] = {}
        """Keys that are given twice where nothing is read, with their number."""

    def reject(self, reason: str, row: Any) -> None:
        """Leave a part of the source out."""
        id_ = row.get("id") if isinstance(row, Mapping) else None
        id_ = str(id_) if isinstance(id_, str | int) else None
        self.rejected.append(RejectedRow((reason,), row, id_, self.line))

    def kinds(self, item: Mapping[Any, Any]) -> frozenset[str]:
        """Return which of the columns that are read an object has."""
        return self.columns.kinds(item)


# ---- parsing -------------------------------------------------------------------------------------


class _Twice(dict):
    """An object of which some keys were given twice."""

    keys_twice: tuple[str, ...] = ()


def _parsed(found: Rows, text: str) -> Any:
    """Parse JSON; mark objects that were given a key twice.

    Raises:
        json.JSONDecodeError: the text is no JSON.
        ValueError: it is too deep or has a number with too many digits.
    """

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        marked, names = _Twice(values), [name for name, _ in pairs]
        marked.keys_twice = tuple(n for n in dict.fromkeys(names) if names.count(n) > 1)
        found.has_twice = True
        return marked

    try:
        return json.loads(text, object_pairs_hook=as_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(name: str, text: str, columns: ColumnNames) -> Rows:
    """Return the rows of a JSON file, or of one with a JSON value in each line.

    Raises:
        ExampleError: the text is no JSON, or has none of the forms of rows.
    """
    found = Rows(name, columns)
    try:
        content = _parsed(found, text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_json(_first_line(text)):
            return read_json_lines(name, text, columns)
        raise _not_json(name, text, error) from error
    except ValueError as error:
        raise ExampleError(f"{name}: cannot parse JSON: {error}.") from error
    if isinstance(content, str) and _is_json(content):  # encoded twice: json.dump(df.to_json())
        content = _parsed(found, content)
    _add(found, content, "")
    return found


def read_json_lines(name: str, text: str, columns: ColumnNames) -> Rows:
    """Return the rows of a file with a JSON value in each line; other lines are rejected.

    Raises:
        ExampleError: no line is JSON.
    """
    found = Rows(name, columns)
    values = 0
    first_error: json.JSONDecodeError | None = None
    for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1):
        line = line.strip("\ufeff \t")
        if not line:
            continue
        found.line = number
        try:
            content = _parsed(found, line)
        except json.JSONDecodeError as error:
            first_error = first_error or error
            found.reject(f"not valid JSON: {error.msg} at column {error.colno}", line)
            continue
        except ValueError as error:
            found.reject(f"cannot parse JSON: {error}", line)
            continue
        values += 1
        _add_line(found, content, number)
    found.line = None
    if not found.rows and found.rejected and _is_json(text):  # a value over several lines
        return read_json(name, text, columns)
    if not values and first_error is not None:
        raise _not_json(name, text, first_error, found.rejected[0].line)
    return found


def _add_line(found: Rows, content: Any, number: int) -> None:
    """Add the rows of a line of JSON Lines."""
    if isinstance(content, Mapping) and (ROW_KEYS & found.kinds(content)):
        _add_item(found, content, f"line {number}")
        return
    if not isinstance(content, Mapping | list):
        found.reject(f"a {_kind(content)}, not a JSON object", content)
        return
    before = len(found.rows)
    try:
        _add(found, content, f"line {number}")
    except ExampleError as error:
        del found.rows[before:]
        found.reject(str(error).removeprefix(f"{found.name}: "), content)


def _first_line(text: str) -> str:
    return next((line for line in re.split("\r\n|\n|\r", text) if line.strip("\ufeff \t")), "")


def _is_json(text: str) -> bool:
    try:
        json.loads(text.strip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return True


def _not_json(
    name: str, text: str, error: json.JSONDecodeError, line: int | None = None
) -> ExampleError:
    """Return an error that says where the text is no JSON, and what it may be instead."""
    where = f"{error.msg} at line {line or error.lineno}, column {error.colno}"
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        hint = f"It begins with {quoted(text.strip()[:30])}, but JSON begins with {{ or [."
    elif (line is None and not text[error.pos :].strip()) or "Unterminated string" in error.msg:
        hint = "The text ends too early: the file is cut off, or a bracket or quote is missing."
    elif text[error.pos : error.pos + 1] == "'":
        hint = "It is written with Python's str(); write it with json.dump."
    else:
        hint = "Correct the file there, or write it again with a JSON library."
    return ExampleError(f"{name}: not valid JSON: {where}. {hint}")


# ---- forms ---------------------------------------------------------------------------------------


def object_rows(name: str, content: Any, columns: ColumnNames) -> Rows:
    """Return the rows of an object that has one of the forms of this module.

    Raises:
        ExampleError: it has none of them.
    """
    found = Rows(name, columns)
    _add(found, content, "")
    return found


def _add(found: Rows, content: Any, location: str) -> None:
    """Add the rows of an object or list at `location`, such as `data`."""
    name = found.name
    if isinstance(content, list):
        _add_list(found, content, location or "data")
        return
    if not isinstance(content, Mapping):
        raise ExampleError(
            f"{name}: examples must be a list of JSON objects, but {location or 'the file'} is "
            f"a {_kind(content)}."
        )
    if twice := getattr(content, "keys_twice", ()):
        used = [key for key in twice if key in ("data", "columns", "paragraphs", "qas")]
        if used or any(found.columns.canonical(key) for key in twice):
            raise ExampleError(
                f"{name}: {location or 'the object'} has the key {quoted(twice[0])} twice, and one "
                "of the values would be lost; rename or remove one of them."
            )
    if "data" in content and not found.kinds(content) >= ROW_KEYS:
        columns = content.get("columns")
        if isinstance(columns, list) and isinstance(content["data"], list):
            _add_split(found, columns, content["data"])
        else:
            _count_unused(found, {key: content[key] for key in content if key != "data"}, content)
            _add(found, content["data"], "data")
        return
    if "paragraphs" in content or "qas" in content:
        _add_item(found, content, location or "data")
        return
    if found.kinds(content) >= (found.columns.needs or ROW_KEYS):
        _add_columns(found, content)
        return
    if ROW_KEYS & found.kinds(content):
        found.rows.append(dict(content))
        return
    _add_by_key(found, content)


def _add_by_key(found: Rows, content: Mapping[str, Any]) -> None:
    """Add the rows of an object whose values are rows, as pandas writes `orient="index"`."""
    rows = list(content.values())
    if rows and all(isinstance(r, Mapping) and ROW_KEYS & found.kinds(r) for r in rows):
        numbers = [str(number) for number in range(len(rows))]
        keys = list(content)
        if getattr(content, "keys_twice", ()):
            raise ExampleError(
                f"{found.name}: the key {quoted(getattr(content, 'keys_twice', ('',))[0])} occurs "
                "twice, and one of the rows would be lost."
            )
        for key, row in content.items():
            has_id = any(found.columns.canonical(column) == "id" for column in row)
            _add_item(found, row if has_id or keys == numbers else {"id": key, **row}, quoted(key))
        return
    keys = first_few([str(key) for key in content])
    lists = [k for k, v in content.items() if isinstance(v, list) and v and _is_row(found, v[0])]
    hint = f" {first_few(lists, quoted)} seem to hold rows: write each to a file of its own."
    raise ExampleError(
        f'{found.name}: a JSON object needs the key "data"; keys found: {keys or "none"}.'
        f"{hint if lists else ''}"
    )


def _add_columns(found: Rows, content: Mapping[str, Any]) -> None:
    """Add one row, or the rows of an object with a list or an object for each column."""
    used = {key: value for key, value in content.items() if found.columns.canonical(key)}
    texts = [value for key, value in used.items() if found.columns.canonical(key) in ROW_KEYS]
    if all(isinstance(value, list) for value in texts):
        lengths = {key: len(v) if isinstance(v, list) else None for key, v in used.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{k} {'no list' if n is None else n}" for k, n in lengths.items())
            raise ExampleError(f"{found.name}: the columns differ in length: {listed}.")
        columns = {k: v for k, v in content.items() if isinstance(v, list)}
        _add_rows_of(found, columns, list(range(next(iter(lengths.values()), 0) or 0)))
    elif all(isinstance(value, Mapping) for value in texts):
        labels = list(texts[0])
        different = [
            key
            for key, value in used.items()
            if not isinstance(value, Mapping) or set(value) != set(labels)
        ]
        twice = [key for key, value in used.items() if getattr(value, "keys_twice", ())]
        if different or twice:
            raise ExampleError(
                f"{found.name}: the columns {first_few(different or twice, quoted)} have other "
                "row labels than the other columns, or one of them twice."
            )
        columns = {k: v for k, v in content.items() if isinstance(v, Mapping) and k in used}
        _add_rows_of(found, columns, labels)
    else:
        _add_item(found, content, "data")


def _add_rows_of(found: Rows, columns: Mapping[str, Any], labels: list[Any]) -> None:
    """Add the rows of columns whose values are found by labels."""
    columns = {
        key: values for key, values in columns.items() if len(values) == len(labels)
    }  # a column that is not read may have any length
    for label in labels:
        row = {key: values[label] for key, values in columns.items()}
        _add_item(found, row, f"row {label}")


def _add_split(found: Rows, columns: list[Any], rows: list[Any]) -> None:
    """Add the rows of pandas' `orient="split"`."""
    for number, row in enumerate(rows):
        if isinstance(row, list) and len(row) == len(columns):
            _add_item(found, dict(zip(map(_joined, columns), row, strict=True)), f"data[{number}]")
        else:
            size = f"{len(row)} values" if isinstance(row, list) else f"a {_kind(row)}"
            found.reject(f"data[{number}] has {size} for {len(columns)} columns", row)
    names = [_joined(column) for column in columns]
    twice = [name for name in names if names.count(name) > 1 and found.columns.canonical(name)]
    if twice:
        raise ExampleError(
            f"{found.name}: the column {quoted(twice[0])} occurs {names.count(twice[0])} times; "
            "rename or remove all but one."
        )


def _joined(name: Any) -> str:
    """Return the name of a column; pandas writes one with several levels as a list."""
    return ".".join(str(part) for part in name if part) if isinstance(name, list) else str(name)


def _add_list(found: Rows, items: list[Any], location: str) -> None:
    if items and not any(isinstance(item, Mapping) for item in items):
        hint = ""
        if all(isinstance(item, list) for item in items):
            hint = ' Lists have no names of columns: with pandas, write orient="records".'
        raise ExampleError(
            f"{found.name}: examples must be a list of JSON objects, but they are "
            f"{_kind(items[0])}s.{hint}"
        )
    for number, item in enumerate(items):
        _add_item(found, item, f"{location}[{number}]")


def _add_item(found: Rows, item: Any, location: str) -> None:
    """Add the rows of an article, a paragraph or a row."""
    if not isinstance(item, Mapping):
        found.reject(f"{location} is a {_kind(item)}, not an object", item)
    elif "paragraphs" in item:
        if _is_unambiguous(found, item, location):
            article = {k: v for k, v in item.items() if found.columns.canonical(k) == "title"}
            for p, paragraph in enumerate(_objects(found, item, "paragraphs", location)):
                where = f"{location}.paragraphs[{p}]"
                _add_paragraph(found, paragraph, where, article)
    elif "qas" in item:
        _add_paragraph(found, item, location, {})
    elif "data" in item and not ROW_KEYS & found.kinds(item):
        _add(found, item["data"], f"{location}.data")
    elif _is_unambiguous(found, item, location):
        found.rows.append(dict(item))


def _add_paragraph(found: Rows, paragraph: Mapping[str, Any], location: str, article: Row) -> None:
    """Add a row for each question of a paragraph; `plausible_answers` are ignored."""
    if not _is_unambiguous(found, paragraph, location):
        return
    shared = article | {key: value for key, value in paragraph.items() if key != "qas"}
    # An id of the paragraph is not that of its questions.
    shared = {key: value for key, value in shared.items() if found.columns.canonical(key) != "id"}
    if not paragraph.get("qas") and found.columns.needs == {"context"}:
        found.rows.append(shared)  # its text is all that is read
        return
    for q, qa in enumerate(_objects(found, paragraph, "qas", location)):
        if _is_unambiguous(found, qa, f"{location}.qas[{q}]"):
            found.rows.append(shared | dict(qa))


def _objects(
    found: Rows, parent: Mapping[str, Any], key: str, location: str
) -> list[Mapping[str, Any]]:
    """Return the objects of a list in `parent`; what is none is rejected."""
    value = parent.get(key)
    if not isinstance(value, list):
        keys = ", ".join(map(str, parent)) or "none"
        found.reject(
            f'{location} needs the key "{key}" with a list of objects; keys found: {keys}',
            parent,
        )
        return []
    for number, item in enumerate(value):
        if not isinstance(item, Mapping):
            found.reject(f"{location}.{key}[{number}] is a {_kind(item)}, not an object", item)
    return [item for item in value if isinstance(item, Mapping)]


# ---- keys that are given twice -------------------------------------------------------------------

_READ = ("paragraphs", "qas", "data", "text", "answer_start")


def _is_unambiguous(found: Rows, item: Mapping[str, Any], location: str) -> bool:
    """Reject an object in which a key that is read is given twice; count other such keys."""
    if not found.has_twice:
        return True
    children = ("paragraphs", "qas")
    twice = list(_keys_twice(found, {k: v for k, v in item.items() if k not in children}, item))
    used = [key for key, is_read in twice if is_read]
    for key, is_read in twice:
        if not is_read:
            found.unused_twice[key] = found.unused_twice.get(key, 0) + 1
    if used:
        reason = f"{location} has the key {quoted(used[0])} twice"
        found.reject(reason, dict(item))
    return not used


def _count_unused(found: Rows, values: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    for key, _ in _keys_twice(found, values, origin):
        found.unused_twice[key] = found.unused_twice.get(key, 0) + 1


def _keys_twice(
    found: Rows, values: Any, origin: Any = None, is_read: bool = True
) -> Iterator[tuple[str, bool]]:
    """Yield the keys that are given twice at any depth, and whether their values are read."""
    if isinstance(values, Mapping):
        origin = values if origin is None else origin
        for key in getattr(origin, "keys_twice", ()):
            yield key, is_read and (found.columns.canonical(key) is not None or key in _READ)
        for key, value in values.items():
            if isinstance(value, dict | list):
                is_answers = found.columns.canonical(key) == "answers"
                yield from _keys_twice(found, value, None, is_read and is_answers)
    elif isinstance(values, list):
        for item in values:
            if isinstance(item, dict | list):
                yield from _keys_twice(found, item, None, is_read)


# ---- names of things -----------------------------------------------------------------------------


def _is_row(found: Rows, value: Any) -> bool:
    return isinstance(value, Mapping) and bool(
        ROW_KEYS & found.kinds(value) or {"paragraphs", "qas"} & value.keys()
    )


def _kind(value: Any) -> str:
    kinds = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
