"""Stage 1 of 7: tables of text with a delimiter -> rows of strings (host, text).

Python's own reader is used, because pandas reads the answer "NA" as an empty cell, and drops or
fills cells in silence.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qa_flax.data.cells import may_be_absent, parse_cell, start_of
from qa_flax.data.column_names import ColumnNames, Row
from qa_flax.data.rejected import ExampleError, RejectedRow

INT32_MAX = 2**31 - 1
DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Dialect:
    """How the cells of a table are separated and quoted."""

    delimiter: str
    has_quotes: bool = True
    escape: str | None = None
    skips_blanks: bool = False

    def reader(self, lines: Iterator[str]) -> Any:
        """Return Python's reader of lines of this dialect."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            escapechar=self.escape,
            quoting=csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE,
            skipinitialspace=self.skips_blanks,
            strict=True,
        )


@dataclass(frozen=True)
class Record:
    """The cells of a row; `problem` is not "" if the line is no row."""

    line: int
    last_line: int
    cells: list[str]
    problem: str = ""


@contextmanager
def _large_cells() -> Iterator[None]:
    limit = csv.field_size_limit(INT32_MAX)  # some contexts exceed the default of 128 KiB
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def read_csv(
    name: str, text: str, delimiter: str, columns: ColumnNames
) -> tuple[list[Row], list[RejectedRow]]:
    r"""Return the rows of a table as dicts of strings, and the lines that are no rows.

    Args:
        name: what messages call the file.
        text: its content; `\r\n` in a cell is kept, because the answers' offsets count it.
        delimiter: the delimiter that the file's name suggests. Another one is used if the header
            has known columns with that only.
        columns: the names of columns.

    Raises:
        ExampleError: the header is missing, or has a column that is read twice.
    """
    lines = list(io.StringIO(text, newline=""))
    first = 0
    if lines and (separator := re.fullmatch(r'"?sep=(.)"?\s*', lines[0])):  # Excel's first line
        first, delimiter = 1, separator[1]
    while first < len(lines) and not lines[first].strip():
        first += 1
    with _large_cells():
        header, start, delimiter = _header(name, lines, first, delimiter, columns)
        columns.mapping(header)  # refuses a column that occurs twice
        dialect = Dialect(delimiter, skips_blanks=_skips_blanks(header, lines, start, delimiter))
        records = _best_records(lines, start, dialect, _RowCheck(header, columns))
    rows = [dict(zip(header, r.cells, strict=True)) for r in records if not r.problem]
    if rows and dialect.skips_blanks:
        rows = [{key.strip(): value for key, value in row.items()} for row in rows]
    rejected = [_rejected(r, lines, header, columns) for r in records if r.problem]
    return rows, rejected


def looks_like_table(text: str, columns: ColumnNames) -> bool:
    """Whether a text begins with a header that names a question and, if needed, a context."""
    needs = columns.needs or {"question", "context"}
    first = re.split(r"[\r\n]", text[:2000].lstrip("\ufeff"), maxsplit=1)[0]
    return any(needs <= columns.kinds(first.split(d)) for d in DELIMITERS)


# ---- header and dialect --------------------------------------------------------------------------


def _header(
    name: str, lines: list[str], first: int, delimiter: str, columns: ColumnNames
) -> tuple[list[str], int, str]:
    """Return the names of the columns, the index of the line after them, and the delimiter."""
    best: tuple[int, list[str], int, str] | None = None
    for candidate in dict.fromkeys([delimiter, *DELIMITERS]):
        reader = Dialect(candidate).reader(iter(lines[first:]))
        try:
            header = next(reader, [])
        except csv.Error:
            continue
        known = len(columns.kinds(header))
        if best is None or known > best[0]:
            best = known, header, first + reader.line_num, candidate
    if best is None:
        raise ExampleError(
            f"{name}: line {first + 1}, which must name the columns, has a quotation mark that is "
            "not closed."
        )
    return best[1:]


def _skips_blanks(header: list[str], lines: list[str], start: int, delimiter: str) -> bool:
    """Whether a blank follows every delimiter of the header and of the lines, as in `id, question`.

    Then the blank belongs to the delimiter, and a quotation mark may follow it.
    """
    if len(header) < 2 or not all(name.startswith(" ") for name in header[1:]):
        return False
    pattern = re.compile(re.escape(delimiter) + " ")
    return all(pattern.search(line) for line in lines[start:] if delimiter in line)


def _best_records(
    lines: list[str], start: int, dialect: Dialect, check: "_RowCheck"
) -> list[Record]:
    """Read all rows; where quotation marks do not fit, try how other programs write them."""
    body = "".join(lines[start:])
    records = list(_records(lines, start, dialect, check))
    problems = sum(bool(record.problem) for record in records)
    if _has_escapes(body, dialect.delimiter, certain=not problems):
        found = list(_records(lines, start, Dialect(dialect.delimiter, escape="\\"), check))
        if sum(bool(record.problem) for record in found) < max(problems, 1):
            return found
    if not problems or dialect.delimiter != "\t":
        return records
    if not re.search(r'(^|\t)"[^\t\n]*"(\t|\r?$)', body, re.M):  # no cell is in quotation marks
        found = list(_records(lines, start, Dialect("\t", has_quotes=False), check))
        if not any(record.problem for record in found):
            return found
    return records


def _has_escapes(text: str, delimiter: str, *, certain: bool) -> bool:
    r"""Whether backslashes escape other characters, as with pandas' `escapechar="\\"`.

    Args:
        text: the lines without the header.
        delimiter: the delimiter.
        certain: whether it must be certain: `\"` stands in a cell that would otherwise be quoted.
    """
    if "\\" not in text:
        return False
    mark = re.escape(delimiter)
    others = re.sub(r"\\\\", "", text)
    if re.search(rf'\\(?!["\r\n{mark}])', others):
        return False  # it is a character of the text, as in C:\data
    return not certain or bool(re.search(rf'\\"[^"\r\n{mark}]', others))


# ---- rows ----------------------------------------------------------------------------------------


def _records(
    lines: list[str], start: int, dialect: Dialect, check: "_RowCheck"
) -> Iterator[Record]:
    """Yield the rows from a line on; after a line that is none, reading begins at the next one."""
    is_doubtful = False
    while start < len(lines):
        reader = dialect.reader(lines[n] for n in range(start, len(lines)))
        begin, restart = start, None
        while restart is None:
            first = begin
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(first + 1, first + 1, [], _quote_problem(error))
                is_doubtful, restart = True, first + 1
                continue
            begin = start + reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != check.width:
                problem = f"{len(cells)} fields, but the header has {check.width}"
                if begin > first + 1:
                    problem += " (its quotation mark is closed some lines later)"
                    restart = first + 1  # the lines in between may be rows
                yield Record(first + 1, first + 1 if restart else begin, cells, problem)
                is_doubtful = is_doubtful or bool(restart)
            elif begin > first + 1 and check.are_rows(lines[first:begin], dialect):
                problem = "a quotation mark that is closed in another row, line "
                yield Record(first + 1, first + 1, cells, f"{problem}{begin}")
                is_doubtful, restart = True, first + 1
            elif is_doubtful and not check.is_row(cells):
                problem = "the rest of a row whose quotation marks do not fit"
                yield Record(first + 1, begin, cells, problem)
            else:
                is_doubtful = False
                yield Record(first + 1, begin, cells)
        start = restart


def _quote_problem(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "not valid CSV: unexpected end of data (a quotation mark is not closed)"
    return f"not valid CSV: {error} (a quotation mark inside a quoted cell must be doubled)"


class _RowCheck:
    """Recognizes rows of a table by themselves, without what surrounds them."""

    def __init__(self, header: list[str], columns: ColumnNames):
        self.width = len(header)
        kinds = columns.mapping(header)
        self._needed = [n for n, key in enumerate(header) if kinds.get(key) in _NEEDED]
        self._starts = [n for n, key in enumerate(header) if kinds.get(key) == "answer_start"]
        self._ids = [n for n, key in enumerate(header) if kinds.get(key) == "id"]

    def is_row(self, cells: list[str]) -> bool:
        """Whether cells are those of a row rather than a piece of text between commas."""
        return (
            len(cells) == self.width
            and not any(cell.startswith(" ") for cell in cells)
            and all(cells[n].strip() for n in self._needed)
            and all(_may_be_start(cells[n]) for n in self._starts)
            and not any(" " in cells[n] for n in self._ids)
        )

    def are_rows(self, lines: list[str], dialect: Dialect) -> bool:
        """Whether each of the lines is a row if quotation marks have no meaning.

        That is so where a stray quotation mark has taken the rows after it into its cell, but
        hardly in a text of several lines.
        """
        if not dialect.has_quotes or dialect.escape:
            return False
        rows = (line.rstrip("\r\n").split(dialect.delimiter) for line in lines)
        return all(self.is_row([cell.strip('"') for cell in cells]) for cells in rows)


_NEEDED = ("question", "context")


def _may_be_start(cell: str) -> bool:
    return may_be_absent(cell) or not isinstance(start_of(parse_cell(cell)), str)


def _rejected(
    record: Record, lines: list[str], header: list[str], columns: ColumnNames
) -> RejectedRow:
    text = "".join(lines[record.line - 1 : record.last_line]).rstrip("\r\n")
    has_id = bool(record.cells) and header and columns.canonical(header[0]) == "id"
    id_ = record.cells[0] if has_id and record.cells[0] else None
    return RejectedRow((record.problem,), text, id_, record.line)
