"""Stage 1 of 7: values of one cell: missing ones, and lists that are written as text (host)."""

import ast
import json
from typing import Any


def is_missing(value: object) -> bool:
    """Return whether a value is None, or NaN, which table readers use for an empty cell."""
    return value is None or (isinstance(value, float) and value != value)


def parse_cell(value: Any) -> Any:
    """Parse a cell that contains a list in JSON or Python syntax; return other cells unchanged."""
    is_list = isinstance(value, str) and value.lstrip().startswith("[")
    return parse_literal(value) if is_list else value


def parse_literal(text: str) -> Any:
    """Parse JSON or a Python literal, also with pandas' `array(...)`; else return the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_WithoutArrays().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


class _WithoutArrays(ast.NodeTransformer):
    """Replaces `array([...], dtype=...)`, as pandas writes NumPy arrays to CSV, by `[...]`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and node.args
        return self.visit(node.args[0]) if is_array else node
