"""The data of an evaluation: where it was, or another file with the same questions (host)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from qa_flax import storage
from qa_flax.answers.record import file_source, record_name
from qa_flax.answers.report.reading import Answered
from qa_flax.data.examples import read_examples
from qa_flax.data.rejected import RejectedRow
from qa_flax.messages import first_few

_COLUMNS = ("question", "context", "answers", "id")
_GIVE_DATA = "give the data that was evaluated: qa-flax report {folder} --data FILE"


class EvaluationData(NamedTuple):
    """The examples of the evaluated questions, in the order of the answers."""

    name: str
    """What the page calls the data."""
    examples: datasets.Dataset
    total: int
    """How many questions the source has."""
    notes: list[str]
    """What has changed since the evaluation."""


def load_data(answered: Answered, data: str | os.PathLike | None) -> EvaluationData:
    """Read the questions, contexts and gold answers of an evaluation.

    Args:
        answered: the evaluation.
        data: a file or Hub id; None: where the evaluation's record says.

    Raises:
        ValueError: nothing says where the data is, it is not there any more, or it lacks questions
            of the evaluation.
        OSError: it cannot be read.
    """
    source = None if answered.record is None else answered.record["source"]
    give_data = _GIVE_DATA.format(folder=answered.folder)
    if data is None and source is None:
        raise ValueError(
            f"{answered.folder} has no {record_name(answered.prefix)}, which says where the data "
            f"is (another program or an older version wrote the answers); {give_data}"
        )
    arguments, name = _arguments(source, data, give_data)
    try:
        loaded = read_examples(**arguments)
    except (ValueError, OSError) as error:
        if data is not None:
            raise
        raise ValueError(
            f"the data of the evaluation cannot be read again: {error}; {give_data}"
        ) from error
    examples = loaded.examples
    row_of = {id_: row for row, id_ in enumerate(examples["id"][:])}
    missing = [id_ for id_ in answered.answers if id_ not in row_of]
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing):,} of the {len(answered.answers):,} questions that were "
            f"evaluated (ids {first_few(missing)}){_reason(missing, loaded.rejected)}; it has "
            f"{len(row_of):,} questions (ids {first_few(list(row_of))}); {give_data}"
        )
    rows = [row_of[id_] for id_ in answered.answers]
    selected = examples.select(rows)
    notes = _changes(answered, source, arguments["source"], selected)
    return EvaluationData(name, selected, len(examples), notes)


def _reason(missing: list[str], rejected: list[RejectedRow]) -> str:
    """Say why the first of the missing questions that the source has cannot be used."""
    reasons = {row.id: row.reasons for row in rejected if row.id is not None}
    id_ = next((id_ for id_ in missing if id_ in reasons), None)
    return "" if id_ is None else f"; the row of {id_} cannot be used: {first_few(reasons[id_])}"


def _arguments(
    source: Mapping[str, Any] | None, data: str | os.PathLike | None, give_data: str
) -> tuple[dict[str, Any], str]:
    """Return the arguments of `read_examples`, and what to call the data."""
    source = source or {}
    reading = source.get("read") or {}
    arguments: dict[str, Any] = {
        "misaligned": reading.get("misaligned", "drop"),
        "bad_rows": "skip",  # if such a row was evaluated, it is missing, which is an error
        "columns": reading.get("columns") or dict.fromkeys(_COLUMNS),
    }
    if data is not None:
        arguments |= {"optional_columns": _COLUMNS, "has_fallback": True}
        is_same = os.fspath(data) == source.get("dataset_name")
        split = {"split": source.get("split")} if is_same else {}
        return arguments | {"source": data, **split}, os.fspath(data)
    arguments["optional_columns"] = ("answers",)
    if "file" in source:
        file = source["file"]
        if not storage.path(file).is_file():
            raise ValueError(
                f"the data of the evaluation, {file}, is not there any more; {give_data}"
            )
        return arguments | {"source": file}, file
    if "arrow_files" in source:
        files = [Path(file) for file in source["arrow_files"]]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                "the data of the evaluation is not in the cache of the library datasets any more "
                f"({first_few(missing)}); {give_data}"
            )
        tables = [datasets.Dataset.from_file(str(file)) for file in files]
        return arguments | {"source": datasets.concatenate_datasets(tables)}, first_few(
            [file.name for file in files]
        )
    name = source.get("dataset_name")
    if not isinstance(name, str):
        raise ValueError(
            f"the record of the evaluation does not say where its data is; {give_data}"
        )
    config = source.get("dataset_config_name")
    arguments |= {"source": name, "config_name": config, "split": source.get("split")}
    return arguments, " ".join(filter(None, [name, config, source.get("split")]))


def _changes(
    answered: Answered,
    source: Mapping[str, Any] | None,
    data: str | os.PathLike,
    examples: datasets.Dataset,
) -> list[str]:
    """Say whether the gold answers are those that the evaluation scored."""
    if answered.record is None or source is None:
        return []
    notes = []
    recorded = source.get("sha256")
    if recorded and Path(data).is_file() and file_source(data)["sha256"] != recorded:
        notes.append("The data file is not the one that was evaluated, or has changed since.")
    records = answered.record["questions"]
    golds = (answers["text"] for answers in examples["answers"][:])
    changed = [
        id_
        for id_, texts in zip(answered.answers, golds, strict=True)
        if texts != records[id_]["answers"]
    ]
    if changed:
        notes.append(
            f"The gold answers of {len(changed):,} of {len(answered.answers):,} questions are not "
            f"those of the evaluation ({first_few(changed)}); the page has the scores with the "
            "gold answers of now."
        )
    return notes
