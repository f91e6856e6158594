"""Stage 1 of 7: files, hub data sets, data sets and lists -> rows as dicts (host, text)."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from qa_flax import storage
from qa_flax.data.rejected import RejectedRow

FORMATS = (
    "nested SQuAD JSON, flat JSON, JSONL, CSV/TSV, Parquet, a hub id, a datasets.Dataset or a list "
    "of dicts"
)
FILE_SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet"}
INT32_MAX = 2**31 - 1

Row = dict[str, Any]


class ExampleError(ValueError):
    """The examples cannot be read or are invalid; the message lists the problems and what to do."""


def read(
    source: Any,
    split: str | None = None,
    config_name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    bad_rows: str = "refuse",
) -> tuple[str, list[Row], list[RejectedRow]]:
    """Read all rows of a source.

    Args:
        source: see `load_examples`.
        split: the split of a hub id or `DatasetDict`, if there are several.
        config_name: the configuration of a hub id.
        kwargs: further arguments of `datasets.load_dataset`.
        columns: the source's own names of the columns question, context, answers and id, by these.
        bad_rows: what to do with lines that are no rows. "refuse" raises; "skip" leaves them out.

    Returns:
        The source's name for messages, its rows as dicts with the columns id, title, context,
        question, answers (or answer_text and answer_start) and is_impossible as far as it has them,
        and the lines that were left out. A missing value is None.

    Raises:
        FileNotFoundError: `source` looks like a path, but there is no such file.
        ExampleError: the source cannot be read, or lines of it cannot and are refused.
    """
    name, rows = _read(source, split, config_name, dict(kwargs or {}))
    return name, rows, []


def _read(
    source: Any, split: str | None, config_name: str | None, kwargs: dict[str, Any]
) -> tuple[str, list[Row]]:
    if isinstance(source, str | os.PathLike):
        if storage.is_remote(source):
            return str(source), _read_file(storage.local_copy(source))
        path = Path(source).expanduser()
        if path.is_file():
            return str(source), _read_file(path)
        is_folder = path.is_dir() and bool(str(source))  # Path("") is the working directory
        if not is_folder and _looks_like_path(str(source)):
            raise FileNotFoundError(f"{source}: no such file. Supported sources: {FORMATS}.")
        return str(source), _table_rows(_load_hub(str(source), split, config_name, kwargs))
    if isinstance(source, datasets.DatasetDict):
        return "the DatasetDict", _table_rows(_one_split(source, split, "the DatasetDict"))
    if isinstance(source, datasets.Dataset):
        return "the dataset", _table_rows(source)
    if isinstance(source, list) and all(isinstance(row, Mapping) for row in source):
        return "the list of examples", [dict(row) for row in source]
    raise ExampleError(
        f"cannot read examples from {type(source).__name__}. Supported sources: {FORMATS}."
    )


def _looks_like_path(source: str) -> bool:
    """Return False for a hub id: `name` or `owner/name` without the suffix of a data file."""
    return (
        source.startswith((".", "~", os.sep))
        or source.count("/") > 1
        or Path(source).suffix.lower() in FILE_SUFFIXES
        or not source.strip()
    )


def _load_hub(
    name: str, split: str | None, config_name: str | None, kwargs: dict[str, Any]
) -> datasets.Dataset:
    try:
        loaded = datasets.load_dataset(name, config_name, split=split, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        # RuntimeError: the repository has a loading script, which datasets >= 4 does not run.
        raise ExampleError(
            f"{name}: could not be loaded with datasets.load_dataset: {error}. "
            "Check the name, the split, the token and the network, or use a local file."
        ) from error
    return _one_split(loaded, split, name)


def _one_split(loaded: Any, split: str | None, name: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.DatasetDict):
        if split is None and len(loaded) == 1:
            return next(iter(loaded.values()))
        if split not in loaded:
            problem = "there are several splits" if split is None else f"no split {split!r}"
            raise ExampleError(f"{name}: {problem}; choose one of {', '.join(map(repr, loaded))}.")
        return loaded[split]
    if not isinstance(loaded, datasets.Dataset):
        raise ExampleError(f"{name}: a streaming data set is not supported; omit streaming=True.")
    return loaded


def arrow_table(dataset: datasets.Dataset) -> pa.Table:
    """Return all rows of a data set in order, for any `set_format`; the data set is not changed."""
    # A data set without rows cannot be sliced.
    rows = dataset.with_format("arrow")[:] if len(dataset) else dataset.data.table.slice(0, 0)
    return cast(pa.Table, rows)


_USED_COLUMNS = (
    "id",
    "title",
    "context",
    "question",
    "answers",
    "answer_text",
    "answer_start",
    "is_impossible",
)


def _table_rows(dataset: datasets.Dataset) -> list[Row]:
    """Convert a data set's rows to Python objects; columns that are not used are not decoded."""
    table = arrow_table(dataset)
    used = [column for column in table.column_names if column in _USED_COLUMNS]
    if not {"question", "context"} <= set(used):
        # One row with all column names is enough for the error message about missing columns.
        return [dict.fromkeys(table.column_names)] * min(len(dataset), 1)
    return table.select(used).to_pylist()


def _read_file(path: Path) -> list[Row]:
    data = path.read_bytes()
    if data[:4] == b"PAR1":
        return _read_parquet(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExampleError(
            f"{path}: neither UTF-8 text (byte {error.start} is invalid) nor Parquet. "
            f"Supported sources: {FORMATS}."
        ) from error
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, text, "\t" if suffix == ".tsv" else ",")
    if suffix in (".jsonl", ".ndjson"):
        return _read_json_lines(path, text)
    return _read_json(path, text)


def _read_parquet(path: Path) -> list[Row]:
    try:
        return _table_rows(datasets.Dataset(pq.read_table(path)))
    except pa.ArrowException as error:
        raise ExampleError(f"{path}: not a valid Parquet file: {error}") from error


def _read_csv(path: Path, text: str, delimiter: str) -> list[Row]:
    """Read rows of strings."""
    # Python's own reader, because pandas reads the answer "NA" as an empty cell.
    limit = csv.field_size_limit(INT32_MAX)  # some contexts exceed the default of 128 KiB
    try:
        # newline="" preserves \r\n in a context, which the answers' offsets count.
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [{k: v for k, v in row.items() if k is not None} for row in reader]
    except csv.Error as error:
        raise ExampleError(f"{path}: not valid CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _read_json(path: Path, text: str) -> list[Row]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values, one on each line
            return _read_json_lines(path, text)
        raise _not_json(path, error, error.lineno) from error
    except RecursionError as error:
        raise ExampleError(f"{path}: cannot parse JSON: it is nested too deeply.") from error
    return _json_rows(str(path), content)


def _not_json(path: Path, error: json.JSONDecodeError, line: int) -> ExampleError:
    return ExampleError(
        f"{path}: not valid JSON: {error.msg} at line {line}, column {error.colno}. "
        f"Supported sources: {FORMATS}."
    )


def _read_json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise _not_json(path, error, number) from error
    return _json_rows(str(path), rows[0] if len(rows) == 1 else rows)


def _json_rows(name: str, content: Any) -> list[Row]:
    """Return the rows of parsed JSON: nested SQuAD, `{"data": [...]}`, a list, or one row."""
    if isinstance(content, Mapping) and "data" in content:
        content = content["data"]
    if isinstance(content, Mapping) and {"question", "context"} & content.keys():
        content = [content]
    if isinstance(content, Mapping):
        keys = ", ".join(map(str, list(content)[:10]))
        raise ExampleError(f'{name}: a JSON object needs the key "data"; keys found: {keys}.')
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise ExampleError(f"{name}: examples must be a list of JSON objects.")
    if any("paragraphs" in row for row in content):
        return list(_nested(name, content))
    return [dict(row) for row in content]


def _nested(name: str, articles: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield a row for each question of nested SQuAD; `plausible_answers` are ignored."""
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_objects(name, article, "paragraphs", f"data[{a}]")):
            location = f"data[{a}].paragraphs[{p}]"
            for qa in _objects(name, paragraph, "qas", location):
                row = {
                    key: qa[key]
                    for key in ("id", "question", "answers", "is_impossible")
                    if key in qa
                }
                row |= {"title": article.get("title")}
                yield row | ({"context": paragraph["context"]} if "context" in paragraph else {})


def _objects(name: str, parent: Mapping[str, Any], key: str, location: str) -> list[Any]:
    value = parent.get(key)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        keys = ", ".join(map(str, parent)) or "none"
        raise ExampleError(
            f'{name}: {location} needs the key "{key}" with a list of objects; keys found: {keys}.'
        )
    return value
