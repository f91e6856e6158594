"""Stage 1 of 7: rows -> examples, every problem told once, with ids (host, text)."""

import ast
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa

from qa_flax.data.messages import first_few
from qa_flax.data.readers import INT32_MAX, ExampleError, Row, read

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "title": datasets.Value("string"),
        "context": datasets.Value("string"),
        "question": datasets.Value("string"),
        "answers": {
            "text": datasets.List(datasets.Value("string")),
            "answer_start": datasets.List(datasets.Value("int32")),
        },
    }
)
MISALIGNED = ("keep", "repair", "refuse")


def load_examples(
    source: Any,
    *,
    split: str | None = None,
    config_name: str | None = None,
    misaligned: str = "keep",
    require_answers: bool = False,
    **load_dataset_kwargs: Any,
) -> datasets.Dataset:
    """Read question answering examples from any supported source.

    Args:
        source: a path to nested SQuAD v1.1/v2.0 JSON, flat JSON (``{"data": [...]}`` or a list),
            JSONL, CSV/TSV or Parquet (told apart by content); a hub id; a ``datasets.Dataset``;
            or a list of dicts.
        split: the split of a hub id or ``DatasetDict``; needed where there are several.
        config_name: the configuration of a hub id.
        misaligned: what to do with an answer whose text is not in the context at its
            ``answer_start``. ``"keep"`` leaves it and warns once; ``"repair"`` moves it to the
            nearest place where the text does occur, leaving and counting those that occur
            nowhere; ``"refuse"`` raises.
        require_answers: raise for a row without an ``answers`` value (training). An empty list of
            answers is a value: the question is unanswerable.
        load_dataset_kwargs: ``cache_dir``, ``token``, ``revision``... for a hub id.

    Returns:
        A dataset with the columns ``id`` (str), ``title`` (str, "" where absent), ``context``,
        ``question`` and ``answers`` {``text``: list of str, ``answer_start``: list of int32,
        in code points}. Other columns are dropped. Ids become strings; a row without one gets
        ``"row-<n>"``, n its row number from 0, so it is the same at every reading of the data.

    Raises:
        FileNotFoundError: ``source`` looks like a path and nothing is there.
        ExampleError: the data cannot be read or used; all bad rows are in the one message.
    """
    if misaligned not in MISALIGNED:
        raise ValueError(f"misaligned must be one of {MISALIGNED}, got {misaligned!r}.")
    name, rows = read(source, split, config_name, load_dataset_kwargs)
    if not rows:
        raise ExampleError(f"{name}: no examples in it. Check the path and the split.")
    _require_columns(name, rows, require_answers)
    report = _Report(name, len(rows))
    columns: dict[str, list[Any]] = {key: [] for key in FEATURES}
    for number, row in enumerate(rows):
        for key, value in _example(row, number, report, misaligned, require_answers).items():
            columns[key].append(value)
    report.duplicates(columns["id"])
    report.finish(misaligned)
    return datasets.Dataset(pa.table(columns, schema=FEATURES.arrow_schema))


# --- One row -------------------------------------------------------------------------------------


def _example(row: Row, number: int, report: "_Report", misaligned: str, required: bool) -> Row:
    """The row in the one form; what is wrong with it goes to `report`."""
    id_ = row.get("id")
    id_ = f"row-{number}" if _is_missing(id_) or id_ == "" else _id_text(id_)
    context = _text(row.get("context"), "context", id_, report)
    question = _text(row.get("question"), "question", id_, report)
    raw = _raw_answers(row)
    if required and _is_missing(raw):
        report.bad("no answers (training needs them; use an empty list where there is none)", id_)
    texts, starts = _answers(raw, id_, report)
    for k, (text, start) in enumerate(zip(texts, starts, strict=True)):
        starts[k] = _aligned_start(context, text, start, id_, report, misaligned)
    title = row.get("title")
    return {
        "id": id_,
        "title": title if isinstance(title, str) and _is_unicode(title) else "",
        "context": context,
        "question": question,
        "answers": {"text": texts, "answer_start": starts},
    }


def _is_missing(value: object) -> bool:
    """None, or the NaN that table readers put in an empty cell."""
    return value is None or (isinstance(value, float) and value != value)


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can write and UTF-8 (and so Arrow) cannot."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _id_text(value: object) -> str:
    # A table column of integers with a gap arrives as floats; 7.0 is the id "7".
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text if _is_unicode(text) else text.encode("unicode_escape").decode("ascii")


def _text(value: object, column: str, id_: str, report: "_Report") -> str:
    if _is_missing(value):
        report.bad(f"{column} is missing", id_)
    elif not isinstance(value, str):
        report.bad(f"{column} is not text but {type(value).__name__}", id_)
    elif not value.strip():
        report.bad(f"{column} is empty or only white space", id_)
    elif not _is_unicode(value):
        report.bad(f"{column} holds half of a surrogate pair, which is not Unicode text", id_)
    else:
        return value
    return ""


def _raw_answers(row: Row) -> Any:
    """The `answers` value, or the `answer_text` and `answer_start` columns in its place."""
    if "answers" in row or "answer_text" not in row:
        return row.get("answers")
    text, start = _parsed(row["answer_text"]), _parsed(row.get("answer_start"))
    if _is_missing(text) and _is_missing(start):
        return None
    return {"text": text, "answer_start": start}


def _parsed(value: Any) -> Any:
    """A cell that holds a list, written as JSON or Python, as that list; else the cell itself."""
    is_list = isinstance(value, str) and value.lstrip().startswith("[")
    return _literal(value) if is_list else value


def _literal(text: str) -> Any:
    """JSON, or a Python literal (also with the `array(...)` that pandas writes); else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_WithoutArrays().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


class _WithoutArrays(ast.NodeTransformer):
    """`array([...], dtype=...)` -> `[...]`: how numpy prints inside a CSV written by pandas."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and node.args
        return self.visit(node.args[0]) if is_array else node


def _answers(raw: Any, id_: str, report: "_Report") -> tuple[list[str], list[int]]:
    """The answers' texts and starts, from any of the forms in use."""
    if isinstance(raw, str):
        raw = _literal(raw) if raw.strip() else None
    if _is_missing(raw):
        return [], []
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        if not all(isinstance(a, Mapping) and {"text", "answer_start"} <= a.keys() for a in raw):
            report.bad(_MALFORMED, id_)
            return [], []
        raw = {key: [a[key] for a in raw] for key in ("text", "answer_start")}
    if not isinstance(raw, Mapping) or not {"text", "answer_start"} <= raw.keys():
        report.bad(_MALFORMED, id_)
        return [], []
    texts, starts = _listed(raw["text"]), _listed(raw["answer_start"])
    if len(texts) != len(starts):
        report.bad("answers.text and answers.answer_start differ in length", id_)
        return [], []
    whole = [_whole_number(start) for start in starts]
    if not all(isinstance(t, str) and _is_unicode(t) for t in texts) or None in whole:
        report.bad("an answer's text is not text or its answer_start not a whole number", id_)
        return [], []
    return texts, [start for start in whole if start is not None]


_MALFORMED = (
    "answers is neither {text: [...], answer_start: [...]} nor a list of {text, answer_start}"
)


def _listed(value: Any) -> list[Any]:
    if _is_missing(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _whole_number(value: Any) -> int | None:
    """An int32 from 7, 7.0 or "7", else None."""
    try:
        number = int(value)
        return number if number == float(value) and abs(number) <= INT32_MAX else None
    except (TypeError, ValueError, OverflowError):
        return None


def _aligned_start(
    context: str, text: str, start: int, id_: str, report: "_Report", misaligned: str
) -> int:
    """`start`, or where the text really begins if it is to be repaired."""
    if start >= 0 and context.startswith(text, start):
        return start
    if not context:  # already reported
        return start
    if misaligned == "repair" and (found := _nearest(context, text, start)) is not None:
        report.repaired.append(id_)
        return found
    if start < 0:
        report.bad("answer_start is negative (an unanswerable question has no answers)", id_)
    elif misaligned == "refuse":
        report.bad("an answer is not in the context at its answer_start", id_)
    else:
        report.misaligned.append(id_)
    return start


def _nearest(context: str, text: str, start: int) -> int | None:
    """The occurrence of `text` that begins nearest to `start` (the earlier of two), or None."""
    before = context.rfind(text, 0, max(start, 0) + len(text))
    after = context.find(text, max(start, 0))
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start)) if text and found else None


# --- What went wrong -----------------------------------------------------------------------------


class _Report:
    """Every problem of one source, by kind, to be told once."""

    def __init__(self, name: str, rows: int):
        self.name, self.rows = name, rows
        self.kinds: dict[str, list[str]] = {}
        self.misaligned: list[str] = []
        self.repaired: list[str] = []

    def bad(self, kind: str, id_: str) -> None:
        self.kinds.setdefault(kind, []).append(id_)

    def duplicates(self, ids: list[str]) -> None:
        if len(set(ids)) == len(ids):
            return
        seen: set[str] = set()
        repeated = [id_ for id_ in ids if id_ in seen or seen.add(id_)]
        self.kinds["id was already used by an earlier row"] = repeated

    def finish(self, misaligned: str) -> None:
        """Warn about answers out of place; raise if any row cannot be used."""
        if self.kinds:
            lines = [f"  - {kind}: {_counted(ids)}" for kind, ids in self.kinds.items()]
            hint = ""
            if any("answer_start" in kind for kind in self.kinds) and misaligned != "repair":
                hint = ' misaligned="repair" moves answers to where their text occurs.'
            raise ExampleError(
                f"{self.name}: some of the {self.rows} examples cannot be used:\n"
                + "\n".join(lines)
                + f"\nCorrect or remove these rows.{hint}"
            )
        if self.repaired:
            logger.warning(
                "%s: answers moved to their text: %s", self.name, _counted(self.repaired)
            )
        if self.misaligned:
            tail = (
                "Their text occurs nowhere in the context, so they are kept as they are."
                if misaligned == "repair"
                else 'They are kept as they are; misaligned="repair" moves them, "refuse" stops.'
            )
            ids = _counted(self.misaligned)
            logger.warning("%s: answers not at their answer_start: %s. %s", self.name, ids, tail)


def _counted(ids: list[str]) -> str:
    """`3 (ids "a", "b", "c")`, the first few of them, in the order met."""
    distinct = list(dict.fromkeys(ids))
    names = first_few(distinct, lambda id_: json.dumps(id_, ensure_ascii=False))
    return f"{len(ids)} (ids {names})"


def _require_columns(name: str, rows: list[Row], require_answers: bool) -> None:
    found = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in ("question", "context") if column not in found]
    if require_answers and not {"answers", "answer_text"} & set(found):
        missing.append("answers")
    if "answer_text" in found and "answers" not in found and "answer_start" not in found:
        missing.append("answer_start")
    if missing:
        raise ExampleError(
            f"{name}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}. "
            f"Columns found: {', '.join(map(str, found)) or 'none'}. "
            "Needed: question, context, and for training answers; used if there: id, title."
        )
