"""Other wordings of questions, from a table that the user gives (host, text)."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import datasets

from qa_flax.data.column_names import ColumnNames, canonical_name
from qa_flax.data.csv_files import read_csv
from qa_flax.data.readers import read_text
from qa_flax.data.rejected import ExampleError
from qa_flax.messages import first_few, quoted, shown

Paraphrases = dict[str, list[str]]
"""The id or the text of a question -> other wordings of it."""

_FORMS = (
    "it must be a CSV table with a column id or question and a column paraphrase, or JSON such as "
    '{"id or question": ["other wording", ...]} or [{"id": ..., "paraphrases": [...]}, ...]'
)
_DELIMITERS = {".tsv": "\t", ".tab": "\t", ".psv": "|"}


def read_paraphrases(source: Any) -> Paraphrases:
    """Read a table of paraphrases.

    Args:
        source: a CSV or TSV file, whose column `id` or `question` says which question a line is
            about, and whose other columns (those with `paraphrase` in their names, if there are
            any) have one wording each; the same as JSON or JSON Lines, where a value may be a list;
            a JSON object of ids or questions and lists; or such a dict.

    Raises:
        FileNotFoundError: there is no such file.
        ExampleError: the table has another form.

    Example:
        >>> read_paraphrases({"q1": ["Who is it by?", "Who wrote it?"], "Why?": "What for?"})
        {'q1': ['Who is it by?', 'Who wrote it?'], 'Why?': ['What for?']}
    """
    if isinstance(source, Mapping):
        return _of_mapping("paraphrases", source)
    if not isinstance(source, str | os.PathLike):
        raise ExampleError(f"paraphrases is a {type(source).__name__}; it must be a file or a dict")
    name = str(source)
    text, suffix = read_text(source)
    if text.lstrip()[:1] in ("{", "[") or suffix in (".json", ".jsonl", ".ndjson"):
        return _of_json(name, text)
    rows, rejected = read_csv(name, text, _DELIMITERS.get(suffix, ","), ColumnNames(name, needs=()))
    if rejected:
        raise ExampleError(
            f"{name}: line {rejected[0].line}: {'; '.join(rejected[0].reasons)}. Correct it, and "
            "put a text with the delimiter into quotation marks."
        )
    return _of_rows(name, rows)


def _of_json(name: str, text: str) -> Paraphrases:
    try:
        content = json.loads(text)
    except ValueError as error:
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        try:
            content = [json.loads(line) for line in lines]
        except ValueError:
            raise ExampleError(f"{name}: cannot parse JSON: {error}.") from error
    if isinstance(content, Mapping) and not _keys(content):
        return _of_mapping(name, content)
    rows = content if isinstance(content, list) else [content]
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ExampleError(f"{name}: no table of paraphrases: {_FORMS}.")
    return _of_rows(name, rows)


def _of_mapping(name: str, content: Mapping[Any, Any]) -> Paraphrases:
    table: Paraphrases = {}
    for key, value in content.items():
        _add(table, name, key, value)
    return _checked(name, table)


def _of_rows(name: str, rows: Sequence[Mapping[Any, Any]]) -> Paraphrases:
    table: Paraphrases = {}
    for row in rows:
        keys = _keys(row)
        if not keys:
            columns = first_few([str(column) for column in row])
            raise ExampleError(
                f"{name}: no column says which question a line is about (columns: {columns}); "
                f"{_FORMS}."
            )
        others = [column for column in row if canonical_name(column) is None]
        named = [column for column in others if "paraphrase" in str(column).lower()]
        is_example = any(canonical_name(column) == "context" for column in row)
        for column in named or ([] if is_example else others):
            _add(table, name, row[keys[0]], row[column])
    return _checked(name, table)


def _keys(row: Mapping[Any, Any]) -> list[Any]:
    """The columns that name the question, the id first."""
    known = {canonical_name(column): column for column in row}
    return [known[name] for name in ("id", "question") if name in known]


def _add(table: Paraphrases, name: str, key: Any, value: Any) -> None:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list in a cell of a table
        with suppress(ValueError):  # else it is a wording that begins with a bracket
            value = json.loads(value)
    texts: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    for text in texts:
        if text is None or (isinstance(text, str) and not text.strip()):
            continue  # an empty cell
        if not isinstance(text, str) or isinstance(key, bool) or not isinstance(key, str | int):
            raise ExampleError(f"{name}: {shown(key)}: {shown(text)} is no text; {_FORMS}.")
        table.setdefault(_normalized(str(key)), []).append(text.strip())


def _checked(name: str, table: Paraphrases) -> Paraphrases:
    if not table:
        raise ExampleError(f"{name}: there are no paraphrases; {_FORMS}.")
    return table


def _normalized(text: str) -> str:
    return " ".join(text.split())


def paraphrases_of(
    table: Paraphrases, ids: Sequence[str], questions: Sequence[str]
) -> list[list[str]]:
    """Return the other wordings of each question, without the question itself.

    Args:
        table: by id or by question; white space does not count.
        ids: of the questions.
        questions: their texts.
    """
    result = []
    for id_, question in zip(ids, questions, strict=True):
        keys = dict.fromkeys((_normalized(id_), _normalized(question)))
        texts = dict.fromkeys(text for key in keys for text in table.get(key, ()))
        result.append([text for text in texts if text != question.strip()])
    return result


def check_paraphrases(table: Paraphrases, examples: datasets.Dataset) -> None:
    """Refuse a table of other questions.

    Raises:
        ExampleError: it has no other wording of any of the examples' questions.
    """
    ids, questions = examples["id"][:], examples["question"][:]
    if not any(paraphrases_of(table, ids, questions)):
        raise ExampleError(
            f"paraphrases: none of the {len(table):,} ids or questions of the table "
            f"({first_few(list(table), quoted)}) is one of the {len(ids):,} training questions "
            f"(ids {first_few(ids, quoted)}) in other words; write ids or questions as they are "
            "there."
        )
