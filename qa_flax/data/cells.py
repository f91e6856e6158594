"""Stage 1 of 7: values of one cell: missing ones, numbers, lists that are written as text (host).

pandas writes a missing value as an empty cell, `NaN` or `<NA>`, and turns a column of integers with
a missing value into floats. NumPy's lists and numbers are written as `array([45])`, `np.int64(45)`
and, without commas, as `['a' 'b']`.
"""

import ast
import io
import itertools
import json
import math
import re
import tokenize
import warnings
from collections.abc import Mapping
from typing import Any

_ABSENT = frozenset(
    {"", "NaN", "nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "null", "NULL", "NaT"}
)


def is_missing(value: object) -> bool:
    """Return whether a value is None, or NaN, which table readers use for an empty cell."""
    return value is None or (isinstance(value, float) and value != value)


def may_be_absent(cell: object) -> bool:
    """Whether a cell is empty, or a word that a program wrote for a missing value."""
    return is_missing(cell) or (isinstance(cell, str) and cell.strip() in _ABSENT)


def plain(value: Any) -> Any:
    """Turn the values of pandas, NumPy and PyArrow into Python's; missing ones are None."""
    kind = type(value)
    if kind is str or kind is int or value is None:  # most values, so they come first
        return value
    if kind is dict:
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int):
        return _plain_scalar(value)
    if isinstance(value, float):
        return None if math.isnan(value) else _plain_scalar(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bytes):  # Parquet of programs that do not mark text as text
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _plain_scalar(value: Any) -> Any:
    """Return NumPy's subclasses of Python's types as these."""
    return value.item() if type(value).__module__ == "numpy" else value


# ---- numbers -------------------------------------------------------------------------------------


def start_of(cell: Any) -> Any:
    """Return the start that a cell holds as an int, None if it is missing; else the cell."""
    if may_be_absent(cell):
        return None
    if isinstance(cell, list):
        return [start_of(item) for item in cell]
    if isinstance(cell, str) and re.fullmatch(r"[+-]?[0-9]{1,15}([.]0*|,0)?", cell.strip()):
        return int(re.split("[.,]", cell.strip())[0])
    is_whole = isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53
    return int(cell) if is_whole else cell


def without_fraction(cells: list[Any]) -> list[Any]:
    """Return `7` for `7.0` if all cells are such numbers, as pandas writes a column with gaps."""
    texts = [cell for cell in cells if not may_be_absent(cell)]
    if texts and all(isinstance(text, str) and re.fullmatch(r"\d+\.0", text) for text in texts):
        return [cell if may_be_absent(cell) else cell[:-2] for cell in cells]
    return cells


def number_as_text(number: Any, context: Any, start: Any) -> Any:
    """Return a number that was a text, such as a year, as it stands in the context.

    Args:
        number: an int or float, or a str that such a number was written as, such as "1912.0".
        context: the context of the answer.
        start: where the answer begins; if that is None, anywhere.

    Returns:
        The text, if the context has it there as a number of its own; else `number`.
    """
    if isinstance(number, bool) or not isinstance(context, str):
        return number
    if isinstance(number, str):
        if not re.fullmatch(r"\d{1,15}\.0", number):
            return number
        spellings = [number, number[:-2]]
    elif isinstance(number, int):
        spellings = [str(number)] if abs(number) < 10**18 else []
    elif isinstance(number, float) and math.isfinite(number):
        whole = [str(int(number))] if number.is_integer() and abs(number) < 2**53 else []
        spellings = [repr(number), *whole]
    else:
        return number
    for text in spellings:
        pattern = re.compile(rf"(?<![\d.,]){re.escape(text)}(?!\d|[.,]\d)")
        if isinstance(start, int) and not isinstance(start, bool):
            is_there = 0 <= start < len(context) and pattern.match(context, start)
        else:
            is_there = start is None and pattern.search(context)
        if is_there:
            return text
    return number


# ---- lists and dicts that are written as text ----------------------------------------------------


def parse_cell(value: Any) -> Any:
    """Parse a cell that contains a list in JSON or Python syntax; return other cells unchanged."""
    is_list = isinstance(value, str) and re.match(r"\s*(\[|(np\.|numpy\.)?array\()", value)
    return parse_literal(value) if is_list else value


def parse_literal(text: str) -> Any:
    """Parse JSON or a Python literal, also with NumPy's `array(...)`; else return the text.

    A dict that has a key twice stays text, too.
    """
    try:
        return json.loads(text, object_pairs_hook=_dict_of)
    except _KeyTwice:
        return text
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in somebody's text
            tree = ast.parse(_with_commas(text.strip()), mode="eval")
            return ast.literal_eval(_PlainValues().visit(tree))
    # TypeError: a set or a dict of what cannot be in one, as `{{}}` and `{[]: 1}`.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return text


class _KeyTwice(ValueError):
    """A dict has a key twice, so that one of the values would be lost."""


def _dict_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _KeyTwice
    return values


_NUMPY_CALL = re.compile(r"array|asarray|list|tuple|u?int\d*|float\d*|str_?|bool_?|object_")


class _PlainValues(ast.NodeTransformer):
    """Replaces `array([...], dtype=...)` by `[...]`, `np.int64(45)` by 45 and `nan` by None."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        is_numpy = node.args and _NUMPY_CALL.fullmatch(name)
        return self.visit(node.args[0]) if is_numpy else node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        if len(set(keys)) < len(keys):
            raise _KeyTwice
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        values = {"nan": None, "NaN": None, "null": None, "NA": None, "true": True, "false": False}
        return ast.Constant(values[node.id]) if node.id in values else node


def _with_commas(text: str) -> str:
    """Put commas between the items of a list that `str` of a NumPy array has separated by blanks.

    Python would join `['a' 'b']` to one text.
    """
    if not re.search(r"""['"\d.]\s+['"\d.+-]""", text):
        return text
    commas: dict[int, list[int]] = {}  # row -> columns
    previous = None
    values = (tokenize.STRING, tokenize.NUMBER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT):
            continue
        is_apart = previous is not None and previous.end != token.start
        is_sign = token.string in "+-" and token.type == tokenize.OP and _touches(text, token)
        if (
            previous is not None
            and previous.type in values
            and (token.type in values or (is_sign and is_apart))
        ):
            commas.setdefault(previous.end[0], []).append(previous.end[1])
        previous = token
    lines = list(io.StringIO(text))
    for row, columns in commas.items():
        ends = itertools.pairwise([0, *columns, len(lines[row - 1])])
        lines[row - 1] = ",".join(lines[row - 1][first:end] for first, end in ends)
    return "".join(lines)


_DIGIT = re.compile(r"[\d.]")


def _touches(text: str, token: tokenize.TokenInfo) -> bool:
    """Whether a number follows a sign without a blank."""
    return _DIGIT.match(token.line, token.end[1]) is not None
