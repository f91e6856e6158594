"""Stage 1 of 7: files, hub data sets, data sets and lists -> rows as dicts (host, text).

Each source is read into rows with its own names of columns (`csv_files.py`, `json_files.py`,
or Arrow here), which are then renamed, and missing values become None.
"""

import difflib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from qa_flax import messages, storage
from qa_flax.data.cells import plain, without_fraction
from qa_flax.data.column_names import TEXTS, ColumnNames, Row, require
from qa_flax.data.csv_files import INT32_MAX, looks_like_table, read_csv
from qa_flax.data.hub import arrow_table, load_hub, one_split
from qa_flax.data.json_files import Rows, object_rows, read_json, read_json_lines
from qa_flax.data.objects import object_name, plain_object
from qa_flax.data.rejected import ExampleError, RejectedRow
from qa_flax.data.text_files import TABLE_MAGIC, decode, unpacked
from qa_flax.data.values import cleaned
from qa_flax.messages import MAX_SHOWN, first_few

__all__ = ["INT32_MAX", "ExampleError", "Row", "arrow_table", "read", "read_text"]

logger = messages.logger(__name__)

_TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
_LINE_SUFFIXES = {".jsonl", ".ndjson"}
PACKED_SUFFIXES = {".gz", ".bz2", ".xz"}
DATA_SUFFIXES = {
    *_TABLE_SUFFIXES,
    *_LINE_SUFFIXES,
    *(".json", ".parquet", ".arrow", ".feather"),
}
"""The suffixes of data files, by which they are found in a folder."""
# Suffixes of files, so that the name is not taken for an id on the Hub.
_FILE_SUFFIXES = {
    *_TABLE_SUFFIXES,
    *_LINE_SUFFIXES,
    *PACKED_SUFFIXES,
    *(".json", ".txt", ".parquet", ".arrow", ".feather", ".zip", ".tar", ".tgz", ".zst", ".xlsx"),
    *(".xls", ".ods", ".pkl", ".pickle", ".pt", ".html", ".htm", ".xml", ".yaml", ".yml", ".db"),
}
BAD_ROWS = ("refuse", "skip")


def read(
    source: Any,
    split: str | None = None,
    config_name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    columns: Mapping[str, str | None] | None = None,
    optional_columns: Collection[str] = (),
    has_fallback: bool = False,
    bad_rows: str = "refuse",
    needs: Collection[str] = TEXTS,
) -> tuple[str, list[Row], list[RejectedRow]]:
    """Read all rows of a source.

    Args:
        source: see `load_examples`.
        split: the split of a hub id or `DatasetDict`, if there are several.
        config_name: the configuration of a hub id.
        kwargs: further arguments of `datasets.load_dataset`.
        columns: the source's own names of the columns question, context, answers and id, by these;
            None: as they are called here.
        optional_columns: those of `columns` that the source need not have.
        has_fallback: whether such a column may have a known name instead.
        needs: those of the columns question and context without which a source is refused.
        bad_rows: what to do with lines that are no rows. "refuse" raises; "skip" leaves them out.

    Returns:
        The source's name for messages, its rows as dicts with the columns id, title, context,
        question, answers (or answer_text and answer_start) and is_impossible as far as it has them,
        and the lines that were left out. A missing value is None.

    Raises:
        FileNotFoundError: `source` looks like a path, but there is no such file.
        ExampleError: the source cannot be read, or lines of it cannot and are refused.
        ValueError: `bad_rows` is none of the values above.
    """
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"bad_rows must be one of {BAD_ROWS}, got {bad_rows!r}.")
    names = ColumnNames(
        object_name(source),
        columns,
        optional=optional_columns,
        needs=needs,
        has_fallback=has_fallback,
    )
    found = _read(source, split, config_name, dict(kwargs or {}), names)
    name = found.name
    if found.rejected and bad_rows == "refuse":
        raise ExampleError(_refusal(found))
    if found.unused_twice:
        logger.warning(
            "%s: keys that are not read occur twice in an object: %s.",
            name,
            first_few([f'"{key}" ({count})' for key, count in found.unused_twice.items()]),
        )
    rows = found.columns.rename(found.rows)
    if rows:
        require(name, rows, needs=needs)
    return name, [cleaned(row, is_text=found.is_text) for row in rows], found.rejected


def _read(
    source: Any,
    split: str | None,
    config_name: str | None,
    kwargs: dict[str, Any],
    columns: ColumnNames,
) -> Rows:
    """Read a source with its own names of columns."""
    name = columns.source
    if isinstance(source, str | os.PathLike):
        path = local_path(source)
        if path is not None:
            return _read_file(name, path, columns)
        return _arrow_rows(arrow_table(load_hub(name, split, config_name, kwargs)), columns)
    if isinstance(source, datasets.DatasetDict):
        source = one_split(source, split, name)
    if isinstance(source, datasets.Dataset):
        return _arrow_rows(arrow_table(source), columns)
    if isinstance(source, pa.Table):
        return _arrow_rows(source, columns)
    return object_rows(name, plain_object(source, name), columns)


# ---- paths ---------------------------------------------------------------------------------------


def local_path(source: str | os.PathLike) -> Path | None:
    """Return the path of a file, downloaded from a bucket if necessary; None for other names.

    Raises:
        FileNotFoundError: the name is that of a file that does not exist.
        ExampleError: it is an address on the web.
    """
    name = os.fspath(source)
    if re.match(r"(https?|ftp)://|www\.|(huggingface\.co|hf\.co|github\.com)/", str(name)):
        raise ExampleError(_about_address(str(name)))
    if str(name).startswith("file://"):
        source = name = str(name).removeprefix("file://")
    if storage.is_remote(source):
        return storage.local_copy(source)
    path = Path(source).expanduser()
    if path.exists() and not path.is_dir():
        return path
    is_folder = path.is_dir() and bool(str(source))  # Path("") is the working directory
    if not is_folder and _looks_like_path(str(source)):
        raise FileNotFoundError(_no_such_file(str(source), path))
    return None


def _about_address(address: str) -> str:
    hub = re.search(r"(?:huggingface\.co|hf\.co)/datasets/([\w.-]+/[\w.-]+)/?$", address)
    if hub:
        return f"{address} is the page of a data set on the Hub; give its id: {hub[1]}."
    page = re.fullmatch(r"(.*github\.com/[^/]+/[^/]+)/blob/(.*)", address)
    page = page or re.fullmatch(r"(.*huggingface\.co/.+)/blob/(.*)", address)
    if page:
        kind = "raw" if "github" in page[1] else "resolve"
        address_of_file = f"{page[1]}/{kind}/{page[2]}"
        return (
            f"{address} is a web page about a file. Download the file itself, for example with "
            f"curl -LO {address_of_file}, and give its path."
        )
    return (
        f"{address} is an address on the web, which is not read from there. Download the file, for "
        f"example with curl -LO {address}, and give its path."
    )


def _looks_like_path(source: str) -> bool:
    """Return False for a hub id: `name` or `owner/name` without the suffix of a data file."""
    return (
        source.startswith((".", "~", os.sep))
        or source.count("/") > 1
        or "\\" in source
        or Path(source).suffix.lower() in _FILE_SUFFIXES
        or not source.strip()
    )


def _no_such_file(source: str, path: Path) -> str:
    if not source.strip():
        return f"{source!r}: no such file; the name is empty."
    folder = path.parent
    if not folder.is_dir():
        return f"{source}: no such file; there is no folder {folder.absolute()} either."
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        names = []
    similar = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {folder / similar[0]}?" if similar else " Check the path."
    return f"{source}: no such file in {folder.absolute()}.{hint}"


# ---- files ---------------------------------------------------------------------------------------


def read_text(source: str | os.PathLike) -> tuple[str, str]:
    """Return the text of a file that holds no examples, also compressed, and its suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ExampleError: it is no text.
    """
    path = local_path(source)
    if path is None:
        raise FileNotFoundError(f"{os.fspath(source)}: no such file. Check the path.")
    name = object_name(source)
    data = unpacked(name, path.read_bytes())
    if data.startswith(TABLE_MAGIC):
        raise ExampleError(f"{name}: a Parquet or Arrow file; it must be text, as CSV or JSON.")
    return decode(name, data).removeprefix("\ufeff"), _suffix(path)


def _suffix(path: Path) -> str:
    suffixes = [s for s in map(str.lower, path.suffixes) if s not in PACKED_SUFFIXES]
    return suffixes[-1] if suffixes else ""


def _read_file(name: str, path: Path, columns: ColumnNames) -> Rows:
    data = unpacked(name, path.read_bytes())
    if data.startswith(TABLE_MAGIC):
        return _read_table_file(name, data, columns)
    text = decode(name, data)
    suffix = _suffix(path)
    starts_as_json = text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[")
    if suffix in _LINE_SUFFIXES:
        return read_json_lines(name, text, columns)
    is_table = suffix in _TABLE_SUFFIXES or looks_like_table(text, columns)
    if is_table and not starts_as_json:  # by content, whatever its name
        return _read_table(name, text, _TABLE_SUFFIXES.get(suffix, ","), columns)
    return read_json(name, text.removeprefix("\ufeff"), columns)


def _read_table(name: str, text: str, delimiter: str, columns: ColumnNames) -> Rows:
    found = Rows(name, columns)
    found.is_text = True
    found.rows, found.rejected = read_csv(name, text, delimiter, columns)
    for key in list(found.rows[0]) if found.rows else ():
        if columns.canonical(key) in ("id", "title", "answers", "answer_text"):
            cells = without_fraction([row[key] for row in found.rows])
            for row, cell in zip(found.rows, cells, strict=True):
                row[key] = cell
    return found


def _read_table_file(name: str, data: bytes, columns: ColumnNames) -> Rows:
    """Read Parquet, Feather or Arrow's stream format."""
    kind = "Parquet" if data.startswith(b"PAR1") else "Arrow"
    try:
        source = pa.BufferReader(data)
        if kind == "Parquet":
            table = pq.ParquetFile(source).read()
        elif data.startswith(b"ARROW1"):
            table = pa.ipc.open_file(source).read_all()
        else:
            table = pa.ipc.open_stream(source).read_all()
        table.validate(full=True)
    # OSError: damaged pages; the others: damaged metadata.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExampleError(
            f"{name}: not a valid {kind} file: {reason}. It is cut off or damaged: copy or write "
            "it again."
        ) from error
    return _arrow_rows(table, columns)


def _arrow_rows(table: pa.Table, columns: ColumnNames) -> Rows:
    """Convert a table's rows to Python objects; columns that are not used are not decoded."""
    found = Rows(columns.source, columns)
    names = table.column_names
    columns.check(names)
    used = columns.mapping(names)
    if not columns.needs <= set(used.values()):
        # One row with all column names is enough for the error message about missing columns.
        found.rows = [dict.fromkeys(names)] * min(table.num_rows, 1)
        return found
    try:
        found.rows = [plain(row) for row in table.select(list(used)).to_pylist()]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ExampleError(
            f"{columns.source}: a column cannot be read: {error}. Write the file again."
        ) from error
    return found


# ---- messages ------------------------------------------------------------------------------------


def _refusal(found: Rows) -> str:
    """Return the message about all lines and parts of a source that are no rows."""
    total = len(found.rows) + len(found.rejected)
    lines = []
    for row in found.rejected[:MAX_SHOWN]:
        where = "" if row.line is None else f"line {row.line}: "
        lines.append(f"  - {where}{'; '.join(row.reasons)}")
    if (more := len(found.rejected) - MAX_SHOWN) > 0:
        rest = [str(row.line) for row in found.rejected[MAX_SHOWN:] if row.line is not None]
        at = f" (lines {first_few(rest)})" if rest else ""
        lines.append(f"  - and {more:,} more{at}")
    hint = ""
    if found.is_text:
        hint = (
            " A cell that contains the delimiter, a quotation mark or a line end must be in "
            'quotation marks, with those inside it doubled: "He said ""yes"", then left".'
        )
    return (
        f"{found.name}: {len(found.rejected):,} of {total:,} rows cannot be read:\n"
        + "\n".join(lines)
        + f'\nCorrect them, or leave them out with bad_rows="skip".{hint}'
    )
