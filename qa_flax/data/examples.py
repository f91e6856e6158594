"""Stage 1 of 7: rows -> checked examples; one message lists all problems with their ids (host)."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa

from qa_flax.data.cells import is_missing, parse_cell, parse_literal
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
    """Load question answering examples from a file, the hub, a data set or a list of dicts.

    Args:
        source: a path to nested SQuAD v1.1/v2.0 JSON, flat JSON (``{"data": [...]}`` or a list),
            JSONL, CSV/TSV or Parquet; a hub id; a ``datasets.Dataset`` or ``DatasetDict``; or a
            list of dicts. A path may name an object in a bucket (``gs://...``).
        split: the split of a hub id or ``DatasetDict``; required if there are several.
        config_name: the configuration of a hub id.
        misaligned: what to do with an answer whose text is not in the context at its
            ``answer_start``. ``"keep"`` leaves it unchanged and logs one warning. ``"repair"``
            moves it to the nearest occurrence of its text; an answer that does not occur in the
            context is left unchanged, and a warning counts both. ``"refuse"`` raises.
        require_answers: raise for a row without ``answers``, as training needs them. A row with an
            empty list of answers is accepted: its question is unanswerable.
        load_dataset_kwargs: arguments of ``datasets.load_dataset`` for a hub id, such as
            ``cache_dir``, ``token`` or ``revision``.

    Returns:
        A data set with the columns ``id`` (str), ``title`` (str, "" if missing), ``context`` (str),
        ``question`` (str) and ``answers`` (``text``: list of str; ``answer_start``: list of int32,
        in code points from the start of the context). Other columns are dropped. Ids are converted
        to strings; a row without an id gets ``"row-<n>"``, where n is its row number from 0.

    Raises:
        FileNotFoundError: ``source`` looks like a path, but there is no such file.
        ExampleError: the data cannot be read, or rows are invalid. The message lists every kind of
            problem with the ids of the rows.
        ValueError: ``misaligned`` is none of the values above.

    Example:
        >>> from qa_flax import load_examples
        >>> examples = load_examples("dev-v1.1.json")
        >>> len(examples), examples["id"][0]
        (12, 'q0')
        >>> row = {"question": "Who?", "context": "Ada did.", "answers": []}
        >>> load_examples([row])[0]["answers"]
        {'text': [], 'answer_start': []}
    """
    if misaligned not in MISALIGNED:
        raise ValueError(f"misaligned must be one of {MISALIGNED}, got {misaligned!r}.")
    name, rows, _ = read(source, split, config_name, load_dataset_kwargs, bad_rows="refuse")
    return check_rows(name, rows, misaligned=misaligned, require_answers=require_answers)


def check_rows(
    name: str,
    rows: list[Row],
    *,
    misaligned: str = "keep",
    require_answers: bool = False,
    warn: Callable[..., None] = logger.warning,
) -> datasets.Dataset:
    """Convert rows to the examples that `load_examples` returns.

    Args:
        name: what messages call the source of the rows.
        rows: the rows, with any of the columns that `load_examples` reads.
        misaligned, require_answers: see `load_examples`.
        warn: logs a warning.

    Raises:
        ExampleError: rows are invalid.
    """
    if not rows:
        raise ExampleError(f"{name}: contains no examples. Check the path and the split.")
    _require_columns(name, rows, require_answers)
    report = _Report(name, len(rows))
    columns: dict[str, list[Any]] = {key: [] for key in FEATURES}
    for number, row in enumerate(rows):
        for key, value in _example(row, number, report, misaligned, require_answers).items():
            columns[key].append(value)
    report.add_duplicates(columns["id"])
    report.finish(misaligned, warn)
    return datasets.Dataset(pa.table(columns, schema=FEATURES.arrow_schema))


# --- One row -------------------------------------------------------------------------------------


def _example(row: Row, number: int, report: "_Report", misaligned: str, required: bool) -> Row:
    """Convert a row to the columns of `FEATURES`, and add its problems to `report`."""
    id_ = row.get("id")
    id_ = f"row-{number}" if is_missing(id_) or id_ == "" else _id_text(id_)
    context = _text(row.get("context"), "context", id_, report)
    question = _text(row.get("question"), "question", id_, report)
    raw_answers = _raw_answers(row)
    if required and is_missing(raw_answers):
        report.add("no answers (for training, an unanswerable question needs an empty list)", id_)
    texts, starts = _parse_answers(raw_answers, id_, report)
    for k, (text, start) in enumerate(zip(texts, starts, strict=True)):
        starts[k] = _aligned_start(context, text, start, id_, report, misaligned)
    return {
        "id": id_,
        "title": _title(row.get("title")),
        "context": context,
        "question": question,
        "answers": {"text": texts, "answer_start": starts},
    }


def _is_unicode(text: str) -> bool:
    """Return False for unpaired surrogates: JSON can contain them, but Arrow's UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _id_text(value: object) -> str:
    # pandas stores a column of integers with missing values as floats: 7.0 is the id "7".
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text if _is_unicode(text) else text.encode("unicode_escape").decode("ascii")


def _title(value: object) -> str:
    """Return a title, which may be a number; "" if there is none that can be stored."""
    if isinstance(value, int | float) and not is_missing(value):
        return _id_text(value)
    return value if isinstance(value, str) and _is_unicode(value) else ""


def _text(value: object, column: str, id_: str, report: "_Report") -> str:
    if is_missing(value):
        report.add(f"{column} is missing", id_)
    elif not isinstance(value, str):
        report.add(f"{column} must be a string, got {type(value).__name__}", id_)
    elif not value.strip():
        report.add(f"{column} is empty or only white space", id_)
    elif not _is_unicode(value):
        report.add(f"{column} contains an unpaired surrogate, which is not valid Unicode", id_)
    else:
        return value
    return ""


def _raw_answers(row: Row) -> Any:
    """Return the `answers` value, or build it from the columns `answer_text` and `answer_start`."""
    if "answers" in row or "answer_text" not in row:
        return row.get("answers")
    text, start = parse_cell(row["answer_text"]), parse_cell(row.get("answer_start"))
    if is_missing(text) and is_missing(start):
        return None
    return {"text": text, "answer_start": start}


def _parse_answers(raw: Any, id_: str, report: "_Report") -> tuple[list[str], list[int]]:
    """Return the texts and starts of the answers, from any of the supported layouts."""
    if isinstance(raw, str):
        raw = parse_literal(raw) if raw.strip() else None
    if is_missing(raw):
        return [], []
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        if not all(isinstance(a, Mapping) and {"text", "answer_start"} <= a.keys() for a in raw):
            report.add(_MALFORMED, id_)
            return [], []
        raw = {key: [a[key] for a in raw] for key in ("text", "answer_start")}
    if not isinstance(raw, Mapping) or not {"text", "answer_start"} <= raw.keys():
        report.add(_MALFORMED, id_)
        return [], []
    texts, raw_starts = _as_list(raw["text"]), _as_list(raw["answer_start"])
    if len(texts) != len(raw_starts):
        report.add("answers.text and answers.answer_start differ in length", id_)
        return [], []
    starts = [_int32(start) for start in raw_starts]
    if not all(isinstance(t, str) and _is_unicode(t) for t in texts) or None in starts:
        report.add(
            "an answer's text is not a valid string or its answer_start is not a 32-bit integer",
            id_,
        )
        return [], []
    return texts, [start for start in starts if start is not None]


_MALFORMED = (
    "answers is neither {text: [...], answer_start: [...]} nor a list of {text, answer_start}"
)


def _as_list(value: Any) -> list[Any]:
    if is_missing(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _int32(value: Any) -> int | None:
    """Convert a value such as 7, 7.0 or "7" to an int in the range of int32; else return None."""
    try:
        number = int(value)
        return number if number == float(value) and abs(number) <= INT32_MAX else None
    except (TypeError, ValueError, OverflowError):
        return None


def _aligned_start(
    context: str, text: str, start: int, id_: str, report: "_Report", misaligned: str
) -> int:
    """Return `start`, or the nearest occurrence of the text if a wrong start is to be repaired."""
    if start >= 0 and context.startswith(text, start):
        return start
    if not context:  # already reported
        return start
    if misaligned == "repair" and (nearest := _nearest(context, text, start)) is not None:
        report.repaired.append(id_)
        return nearest
    if start < 0:
        report.add("answer_start is negative (an unanswerable question has no answers)", id_)
    elif misaligned == "refuse":
        report.add("an answer is not in the context at its answer_start", id_)
    else:
        report.misaligned.append(id_)
    return start


def _nearest(context: str, text: str, start: int) -> int | None:
    """Return the start of the occurrence of `text` that is nearest to `start`, or None."""
    before = context.rfind(text, 0, max(start, 0) + len(text))
    after = context.find(text, max(start, 0))
    occurrences = [begin for begin in (before, after) if begin >= 0]
    return min(occurrences, key=lambda b: abs(b - start)) if text and occurrences else None


# --- Problems ------------------------------------------------------------------------------------


class _Report:
    """Collects the problems of a source, to report all of them in one message."""

    def __init__(self, name: str, rows: int):
        self.name, self.rows = name, rows
        self.problems: dict[str, list[str]] = {}  # problem -> ids of its rows
        self.misaligned: list[str] = []
        self.repaired: list[str] = []

    def add(self, problem: str, id_: str) -> None:
        self.problems.setdefault(problem, []).append(id_)

    def add_duplicates(self, ids: list[str]) -> None:
        if len(set(ids)) == len(ids):
            return
        earlier: set[str] = set()
        repeated = [id_ for id_ in ids if id_ in earlier or earlier.add(id_)]
        self.problems["id was already used by an earlier row"] = repeated

    def finish(self, misaligned: str, warn: Callable[..., None]) -> None:
        """Raise if any row is invalid, and warn about misaligned answers.

        Raises:
            ExampleError: rows are invalid.
        """
        if self.problems:
            lines = [f"  - {problem}: {_summary(ids)}" for problem, ids in self.problems.items()]
            hint = ""
            if any("answer_start" in problem for problem in self.problems):
                hint = "" if misaligned == "repair" else f" {_REPAIR}."
            raise ExampleError(
                f"{self.name}: some of the {self.rows} examples cannot be used:\n"
                + "\n".join(lines)
                + f"\nCorrect or remove these rows.{hint}"
            )
        if self.repaired:
            warn(
                "%s: answers moved to where their text occurs in the context: %s",
                self.name,
                _summary(self.repaired),
            )
        if self.misaligned:
            tail = (
                "Their text occurs nowhere in the context; they are left unchanged."
                if misaligned == "repair"
                else f"They are left unchanged. {_REPAIR}."
            )
            ids = _summary(self.misaligned)
            warn("%s: answers not at their answer_start: %s. %s", self.name, ids, tail)


_REPAIR = (
    'misaligned="repair" (command line: --misaligned_answers repair) moves answers to where their '
    "text occurs"
)


def _summary(ids: list[str]) -> str:
    """Format the number of ids and the first few, as in `3 (ids "a", "b", "c")`."""
    distinct = list(dict.fromkeys(ids))
    names = first_few(distinct, lambda id_: json.dumps(id_, ensure_ascii=False))
    return f"{len(ids)} (ids {names})"


def _require_columns(name: str, rows: list[Row], require_answers: bool) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in ("question", "context") if column not in columns]
    if require_answers and not {"answers", "answer_text"} & set(columns):
        missing.append("answers")
    if "answer_text" in columns and "answers" not in columns and "answer_start" not in columns:
        missing.append("answer_start")
    if missing:
        raise ExampleError(
            f"{name}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}. "
            f"Columns found: {', '.join(map(str, columns)) or 'none'}. "
            "Required: question and context, and answers for training. Optional: id and title."
        )
