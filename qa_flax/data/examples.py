"""Stage 1 of 7: rows -> checked examples; one message lists all problems with their ids (host)."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from qa_flax import messages, storage
from qa_flax.data import alignment
from qa_flax.data.answers import (
    ANSWER_COLUMNS,
    Answer,
    AnswerError,
    is_unicode,
    read_answers,
    read_is_impossible,
)
from qa_flax.data.cells import is_missing
from qa_flax.data.column_names import TEXTS
from qa_flax.data.origin import note_origin, source_of
from qa_flax.data.readers import ExampleError, Row, arrow_table, read
from qa_flax.data.rejected import RejectedRow, json_lines
from qa_flax.data.report import Note, Report, RowReport, counts_line, summary
from qa_flax.messages import first_few

logger = messages.logger(__name__)

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
MISALIGNED = ("drop", "keep", "repair", "refuse")
BAD_ROWS = ("refuse", "skip")

# In the description of the data set, which `select`, `filter`, `shuffle` and `map` preserve.
_CHECKED = "Examples checked by qa_flax.load_examples."
_KEEPS = (
    'Answers that are not at their answer_start are trained on as they are (misaligned="keep").'
)


def load_examples(
    source: Any,
    *,
    split: str | None = None,
    config_name: str | None = None,
    misaligned: str = "drop",
    bad_rows: str = "refuse",
    rejected_file: str | os.PathLike | None = None,
    require_answers: bool = False,
    question_column: str | None = None,
    context_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    **load_dataset_kwargs: Any,
) -> datasets.Dataset:
    """Load question answering examples from a file, the hub, a data set or a list of dicts.

    Args:
        source: a path to nested SQuAD v1.1/v2.0 JSON, flat JSON (``{"data": [...]}`` or a list),
            JSONL, CSV/TSV or Parquet, also compressed (``.gz``, ``.bz2``, ``.xz``), local or in a
            bucket (``gs://...``); a hub id; a ``datasets.Dataset`` or ``DatasetDict``; a pandas
            DataFrame; a dict of lists; or a list or generator of dicts.
        split: the split of a hub id or ``DatasetDict``; required if there are several.
        config_name: the configuration of a hub id.
        misaligned: what to do with an answer that is not in the context at its ``answer_start``.
            A warning has their share. ``"drop"`` leaves it unchanged, but windows to train on use
            the nearest place of its text, and leave out an example without an answer that occurs in
            its context. ``"keep"`` leaves it unchanged and trains on what is at ``answer_start``.
            ``"repair"`` moves it to its text, also in another spelling, which it then gets (Unicode
            form, case, quotes, HTML entities, white space). ``"refuse"`` raises.
        bad_rows: ``"refuse"`` raises if rows cannot be used; ``"skip"`` leaves them out and warns.
        rejected_file: a JSONL file for the rows that are left out, each with its reasons.
        require_answers: raise for a row without ``answers``, as training needs them. A row with an
            empty list of answers, or None, is accepted: its question is unanswerable.
        question_column, context_column, answer_column, id_column: the source's own names of
            ``question``, ``context``, ``answers`` (or their text, beside ``answer_start``) and
            ``id``. Names such as ``Context`` or ``answers.text`` are known without it.
        load_dataset_kwargs: arguments of ``datasets.load_dataset`` for a hub id, such as
            ``cache_dir``, ``token`` or ``revision``.

    Returns:
        A data set with the columns ``id`` (str), ``title`` (str, "" if missing), ``context`` (str),
        ``question`` (str) and ``answers`` (``text``: list of str; ``answer_start``: list of int32,
        in code points from the start of the context). Ids are converted to strings; a row without
        an id gets ``"row-<n>"``, where n is its row number from 0. Blank answers are left out. An
        answer without a start is placed where its text occurs once.

    Raises:
        FileNotFoundError: ``source`` looks like a path, but there is no such file.
        ExampleError: the data cannot be read, or rows are invalid, listed by problem with ids.
        ValueError: ``misaligned`` or ``bad_rows`` is none of the values above.

    Example:
        >>> from qa_flax import load_examples
        >>> examples = load_examples("dev-v1.1.json")
        >>> len(examples), examples["id"][0]
        (12, 'q0')
        >>> row = {"question": "Who?", "context": "Ada did.", "answers": []}
        >>> load_examples([row])[0]["answers"]
        {'text': [], 'answer_start': []}
    """
    _check_choices(misaligned, bad_rows, rejected_file)
    columns = (question_column, context_column, answer_column, id_column)
    loaded = read_examples(
        source,
        split=split,
        config_name=config_name,
        misaligned=misaligned,
        bad_rows=bad_rows,
        require_answers=require_answers,
        columns=dict(zip(("question", "context", "answers", "id"), columns, strict=True)),
        load_dataset_kwargs=load_dataset_kwargs,
    )
    _report_rejected(loaded, rejected_file)
    return loaded.examples


@dataclass(frozen=True)
class LoadedExamples:
    """The examples of a source, and what became of its rows."""

    name: str
    """What messages call the source."""
    examples: datasets.Dataset
    repaired: int
    """How many examples differ from their rows: answers were moved, placed or left out."""
    rejected: list[RejectedRow]
    """The rows that were left out."""
    says_none: bool
    """Whether a row says with `is_impossible` that it has no answer, and has none."""

    def counts(self) -> str:
        """Return one line: rows read = used + repaired + rejected."""
        rejected = len(self.rejected)
        read_rows = len(self.examples) + rejected
        return counts_line(self.name, read=read_rows, repaired=self.repaired, rejected=rejected)

    def rejected_lines(self) -> str:
        """Return the lines of `rejected.jsonl` for the rows that were left out."""
        return json_lines(self.rejected, self.name)


def _check_choices(misaligned: str, bad_rows: str, rejected_file: str | os.PathLike | None) -> None:
    if misaligned not in MISALIGNED:
        raise ValueError(f"misaligned must be one of {MISALIGNED}, got {misaligned!r}.")
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"bad_rows must be one of {BAD_ROWS}, got {bad_rows!r}.")
    if rejected_file is not None and bad_rows != "skip":
        raise ValueError('rejected_file is written only with bad_rows="skip"; add that.')


def _report_rejected(loaded: LoadedExamples, file: str | os.PathLike | None) -> None:
    """Log what became of the rows if some were left out, and write these to the file."""
    if file is not None:
        storage.write_text(storage.path(file), loaded.rejected_lines())
    if loaded.rejected:
        logger.warning("%s", loaded.counts())


def read_examples(
    source: Any,
    *,
    split: str | None = None,
    config_name: str | None = None,
    misaligned: str = "drop",
    bad_rows: str = "refuse",
    require_answers: bool = False,
    columns: Mapping[str, str | None] | None = None,
    optional_columns: Collection[str] = (),
    has_fallback: bool = False,
    load_dataset_kwargs: Mapping[str, Any] | None = None,
    warn: Callable[..., None] = logger.warning,
) -> LoadedExamples:
    """Do the work of `load_examples`; also return what became of the rows.

    Args:
        source, split, config_name, misaligned, bad_rows, require_answers: see `load_examples`.
        columns: the source's own names of the columns question, context, answers and id, by these.
        optional_columns: those of `columns` that the source need not have.
        has_fallback: whether such a column may have a known name instead.
        load_dataset_kwargs: see `load_examples`.
        warn: logs a warning.
    """
    name, rows, rejected = read(
        source,
        split,
        config_name,
        load_dataset_kwargs,
        columns=columns,
        optional_columns=optional_columns,
        has_fallback=has_fallback,
        bad_rows=bad_rows,
    )
    loaded = _check(name, rows, rejected, misaligned, bad_rows, require_answers, warn)
    if origin := source_of(source, split, config_name, load_dataset_kwargs or ()):
        names = None if columns is None else dict(columns)
        reading = {"misaligned": misaligned, "bad_rows": bad_rows, "columns": names}
        note_origin(loaded.examples, {"read": reading} | origin)
    return loaded


def read_questions(
    source: Any,
    *,
    needs_context: bool = True,
    bad_rows: str = "refuse",
    columns: Mapping[str, str | None] | None = None,
    warn: Callable[..., None] = logger.warning,
) -> LoadedExamples:
    """Read the questions of a source, to be answered; the answers that it has are not read.

    Args:
        source: see `load_examples`.
        needs_context: whether a row without a context is invalid. Otherwise it has the context "".
        bad_rows, columns, warn: see `read_examples`.

    Raises:
        FileNotFoundError: ``source`` looks like a path, but there is no such file.
        ExampleError: the source cannot be read, or rows are invalid.

    Example:
        >>> rows = [{"question": "Who?"}, {"question": "When?", "context": "In 1843."}]
        >>> read_questions(rows, needs_context=False).examples["context"][:]
        ['', 'In 1843.']
    """
    needs = TEXTS if needs_context else ("question",)
    optional = ("answers",) if needs_context else ("answers", "context")
    name, rows, rejected = read(
        source, columns=columns, optional_columns=optional, bad_rows=bad_rows, needs=needs
    )
    return _check(name, rows, rejected, None, bad_rows, False, warn, needs)


def check_rows(
    name: str,
    rows: list[Row],
    *,
    misaligned: str = "drop",
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
    return _check(name, rows, [], misaligned, None, require_answers, warn).examples


def read_references(
    source: Any, *, warn: Callable[..., None] = logger.warning
) -> list[dict[str, Any]]:
    """Read the ids and the texts of the answers of a source, all that scoring needs.

    As in the official scorers, `answer_start`, questions and contexts may be missing or wrong, and
    an id may be repeated.

    Args:
        source: see `load_examples`.
        warn: logs a warning.

    Returns:
        `{"id": str, "answers": {"text": [str, ...]}}` for each row.

    Raises:
        FileNotFoundError: ``source`` looks like a path, but there is no such file.
        ExampleError: the data cannot be read, or has no answers.
    """
    name, rows, _ = read(source, needs=())
    if not rows:
        raise ExampleError(f"{name}: contains no examples. Check the path.")
    if not any(column in row for row in rows for column in ANSWER_COLUMNS):
        columns = dict.fromkeys(str(key) for row in rows for key in row)
        raise ExampleError(
            f"{name}: there are no answers to compare with; columns found: "
            f"{first_few(list(columns)) or 'none'}. Give the data with its answers."
        )
    report = Report(name, len(rows))
    references, repeated = [], []
    ids: set[str] = set()
    for number, row in enumerate(rows):
        row_report = report.row(_id(row, number))
        answers = _answers(row, None, row_report, required=False)
        report.add(row, row_report)
        texts = [answer.text for answer in answers]
        references.append({"id": row_report.id, "answers": {"text": texts}})
        repeated += [row_report.id] if row_report.id in ids else []
        ids.add(row_report.id)
    report.finish("keep", warn)
    if repeated:
        message = "%s: ids that occur several times: %s. As in the official scorers, %s."
        rule = "v1.1 counts each of these questions, and v2.0 only the last one of an id"
        warn(message, name, summary(repeated), rule)
    return references


def checked_examples(table: pa.Table, *, keeps_misaligned: bool = False) -> datasets.Dataset:
    """Return a table as a result of `load_examples`, which is not checked again.

    Args:
        table: the columns of `FEATURES`, all of whose rows are valid.
        keeps_misaligned: see `keeps_misaligned`.
    """
    description = f"{_CHECKED} {_KEEPS}" if keeps_misaligned else _CHECKED
    return datasets.Dataset(table, info=datasets.DatasetInfo(description=description))


def is_checked(examples: Any) -> bool:
    """Return whether examples are the result of `load_examples`, or some of it."""
    return (
        isinstance(examples, datasets.Dataset)
        and examples.features == FEATURES
        and _CHECKED in (examples.info.description or "")
    )


def keeps_misaligned(examples: Any) -> bool:
    """Return whether examples were loaded with `misaligned="keep"`."""
    is_dataset = isinstance(examples, datasets.Dataset)
    return is_dataset and _KEEPS in (examples.info.description or "")


def has_answers(examples: datasets.Dataset) -> Bool[np.ndarray, " e"]:
    """Return whether each example has an answer; `examples` is a result of `load_examples`."""
    answers = arrow_table(examples.select_columns("answers"))["answers"].combine_chunks()
    compute: Any = pc  # its functions are made when it is imported
    counts = compute.list_value_length(compute.struct_field(answers, "text"))
    return counts.to_numpy(zero_copy_only=False) > 0


# --- All rows ------------------------------------------------------------------------------------


def _check(
    name: str,
    rows: list[Row],
    rejected: list[RejectedRow],
    misaligned: str | None,  # None: the answers are not read
    bad_rows: str | None,  # None: refused, and there is no choice
    require_answers: bool,
    warn: Callable[..., None],
    needs: Collection[str] = TEXTS,
) -> LoadedExamples:
    if not rows and not rejected:
        raise ExampleError(f"{name}: contains no examples. Check the path and the split.")
    if rows:
        _require_columns(name, rows, require_answers, needs)
    skips, can_skip = bad_rows == "skip", bad_rows is not None
    report = Report(name, len(rows), skips=skips, can_skip=can_skip, unread=rejected)
    columns: dict[str, list[Any]] = {key: [] for key in FEATURES}
    ids: set[str] = set()
    says_none = False
    for number, row in enumerate(rows):
        row_report = report.row(_id(row, number))
        example = _example(row, row_report, misaligned, require_answers, needs)
        if row_report.id in ids:
            row_report.problems.append("id was already used by an earlier row")
        if not report.add(row, row_report):
            continue
        ids.add(row_report.id)
        says_none |= row_report.says_none
        for key, value in example.items():
            columns[key].append(value)
    report.finish(misaligned or "drop", warn)
    table = pa.table(columns, schema=FEATURES.arrow_schema)
    examples = checked_examples(table, keeps_misaligned=misaligned == "keep")
    return LoadedExamples(name, examples, report.repaired, report.rejected, says_none)


def with_columns(examples: datasets.Dataset, columns: Mapping[str, list[Any]]) -> datasets.Dataset:
    """Return checked examples whose texts are replaced by others, which count as checked, too.

    Args:
        examples: a result of `load_examples`.
        columns: new values of some columns, one for each example.
    """
    table = arrow_table(examples)
    all_columns = {name: columns.get(name) or table[name].to_pylist() for name in FEATURES}
    table = pa.table(all_columns, schema=FEATURES.arrow_schema)
    return checked_examples(table, keeps_misaligned=keeps_misaligned(examples))


def _require_columns(
    name: str, rows: list[Row], require_answers: bool, needs: Collection[str]
) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    missing = [column for column in TEXTS if column in needs and column not in columns]
    if require_answers and not set(ANSWER_COLUMNS) & set(columns):
        missing.append("answers")
    if missing:
        raise ExampleError(
            f"{name}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}. "
            f"Columns found: {', '.join(map(str, columns)) or 'none'}. "
            "Required: question and context, and answers for training. Optional: id and title."
        )


# --- One row -------------------------------------------------------------------------------------


def _example(
    row: Row, report: RowReport, misaligned: str | None, required: bool, needs: Collection[str]
) -> Row:
    """Convert a row to the columns of `FEATURES`, and add what was found to `report`."""
    context = row.get("context")
    is_absent = is_missing(context) or (isinstance(context, str) and not context.strip())
    has_context = "context" in needs or not is_absent
    context = _text(context, "context", report) if has_context else ""
    question = _text(row.get("question"), "question", report)
    placed: list[Answer] = []
    if misaligned is not None:
        answers = _answers(row, context, report, required)
        placed = [_placed(context, answer, report, misaligned) for answer in answers if context]
    return {
        "id": report.id,
        "title": _title(row.get("title")),
        "context": context,
        "question": question,
        "answers": {
            "text": [answer.text for answer in placed],
            "answer_start": [-1 if answer.start is None else answer.start for answer in placed],
        },
    }


def _id(row: Row, number: int) -> str:
    id_ = row.get("id")
    return f"row-{number}" if is_missing(id_) or id_ == "" else id_text(id_)


def id_text(value: object) -> str:
    """Return an id as text: 7 and 7.0 are "7"."""
    # pandas stores a column of integers with missing values as floats.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text if is_unicode(text) else text.encode("unicode_escape").decode("ascii")


def _title(value: object) -> str:
    """Return a title, which may be a number; "" if there is none that can be stored."""
    if isinstance(value, int | float) and not is_missing(value):
        return id_text(value)
    return value if isinstance(value, str) and is_unicode(value) else ""


def _text(value: object, column: str, report: RowReport) -> str:
    if is_missing(value):
        report.problems.append(f"{column} is missing")
    elif not isinstance(value, str):
        report.problems.append(f"{column} must be a string, got {type(value).__name__}")
    elif not value.strip():
        report.problems.append(f"{column} is empty or only white space")
    elif not is_unicode(value):
        report.problems.append(f"{column} contains an unpaired surrogate, which is invalid Unicode")
    else:
        return value
    return ""


def _answers(row: Row, context: str | None, report: RowReport, required: bool) -> list[Answer]:
    """Return the answers of a row; without a context, only their texts are read."""
    if required and not any(column in row for column in ANSWER_COLUMNS):
        report.problems.append(
            "no answers (for training, an unanswerable question needs an empty list)"
        )
    try:
        answers = read_answers(row, context)
    except AnswerError as error:
        report.problems.append(str(error))
        return []
    report.notes += [Note.BLANK] * answers.has_blank + [Note.ANSWER] * len(answers.answers)
    is_impossible = None
    try:
        is_impossible = read_is_impossible(row)
    except AnswerError:
        report.notes.append(Note.UNREADABLE)
    report.says_none = is_impossible is True and not answers.answers
    if is_impossible and answers.answers:
        report.notes.append(Note.HAS_ANSWER)
    if is_impossible is False and not answers.answers:
        report.notes.append(Note.HAS_NONE)
    return answers.answers


def _placed(context: str, answer: Answer, report: RowReport, misaligned: str) -> Answer:
    """Return an answer with its start; if it is to be repaired, where its text occurs."""
    text, start = answer.text, answer.start
    if start is None:
        return _found(context, text, report, misaligned)
    if alignment.is_at(context, text, start):
        return answer
    if misaligned == "refuse":
        report.problems.append("an answer is not in the context at its answer_start")
        return answer
    nearest = alignment.find_nearest(context, text, start)
    similar = None
    if nearest is None and (misaligned == "repair" or report.tries_spellings):
        similar = alignment.find_similar(context, text, start)
    if misaligned == "repair" and nearest is not None:
        report.notes.append(Note.MOVED)
        return Answer(text, nearest)
    if misaligned == "repair" and similar is not None:
        report.notes += [Note.MOVED, Note.RESPELLED]
        return Answer(context[slice(*similar)], similar.start)
    report.notes += [Note.MISALIGNED] + [Note.NEGATIVE] * (start < 0)
    if nearest is None:
        report.notes += [Note.NOWHERE] + [Note.SIMILAR] * (similar is not None)
    return answer


def _found(context: str, text: str, report: RowReport, misaligned: str) -> Answer:
    """Place an answer without a start where its text occurs, if that is only one place."""
    start, count = alignment.find_only(context, text)
    if start is not None:
        report.notes.append(Note.PLACED)
        return Answer(text, start)
    if count == 0 and misaligned == "repair":
        similar = alignment.find_similar(context, text, None)
        if similar is not None:
            report.notes += [Note.PLACED, Note.RESPELLED]
            return Answer(context[slice(*similar)], similar.start)
    report.problems.append(
        "an answer without answer_start occurs several times in its context"
        if count
        else "an answer without answer_start does not occur in its context"
    )
    return Answer(text, None)
