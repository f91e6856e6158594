"""What an evaluation leaves beside its answers: where the data came from, and scores by question.

`{prefix}_report.json` lets `qa-flax report` find the questions, contexts and gold answers again
without a copy of them, and says whether they have changed since. It has these keys:

    format      "qa_flax evaluation 1"
    source      the data: file, bytes and sha256, or dataset_name, dataset_config_name and split,
                or arrow_files; read: how its rows were read; part: which of them were evaluated
    settings    the model and how the answers were found and scored
    metrics     the number of questions and, if they have gold answers, exact match and F1
    questions   id -> answers: the gold answers; windows: how many the question was cut into;
                and, if the data has gold answers, exact (0 or 1) and f1 (0 to 1)
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qa_flax import messages, storage
from qa_flax.answers.metrics import question_scores
from qa_flax.messages import first_few

logger = messages.logger(__name__)

FORMAT = "qa_flax evaluation 1"
_encode = json.JSONEncoder().encode  # made once: `json.dumps` is slower for small values
_KEYS = ("source", "settings", "metrics", "questions")


def record_name(prefix: str) -> str:
    """Return the file's name; `prefix` is that of the answers, "" for none."""
    return f"{prefix}_report.json" if prefix else "report.json"


def question_records(
    answers: Mapping[Any, str],
    golds: Mapping[Any, Sequence[str]],
    windows: Mapping[str, int],
    *,
    version_2_with_negative: bool,
    language: str | None,
) -> dict[str, dict[str, Any]]:
    """Return what the file says of each question.

    Args:
        answers: the answer to each question, by id.
        golds: its gold answers. If no question has one, the data is taken for unlabelled.
        windows: how many windows each question was cut into.
        version_2_with_negative, language: how to score, as in `squad_metric`.

    Example:
        >>> question_records({"q0": "Elbe"}, {"q0": ["the Elbe"]}, {"q0": 2},
        ...     version_2_with_negative=False, language=None)
        {'q0': {'answers': ['the Elbe'], 'windows': 2, 'exact': 1, 'f1': 1.0}}
    """
    gold_lists = [list(golds.get(id_, ())) for id_ in answers]
    records = {
        str(id_): {"answers": texts, "windows": windows.get(str(id_), 0)}
        for id_, texts in zip(answers, gold_lists, strict=True)
    }
    if any(gold_lists):
        exact, f1 = question_scores(
            list(answers.values()),
            gold_lists,
            version_2_with_negative=version_2_with_negative,
            language=language,
        )
        scores = zip(answers, exact.astype(int).tolist(), f1.tolist(), strict=True)
        for id_, is_exact, score in scores:
            records[str(id_)] |= {"exact": is_exact, "f1": score}
    return records


def file_source(file: str | os.PathLike) -> dict[str, Any]:
    """Return which file the data is: its address, and size and SHA-256 of one on this machine."""
    if storage.is_remote(file):
        return {"file": os.fspath(file)}
    path = Path(os.path.abspath(os.fspath(file)))
    status = path.stat()
    return {
        "file": str(path),
        "bytes": status.st_size,
        "sha256": _sha256(path, status.st_size, status.st_mtime_ns),
    }


def described(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return an origin of `qa_flax.data.origin` with what identifies its file.

    A file that was moved since it was read is not identified: the answers are not lost for it.
    """
    if "file" not in origin:
        return dict(origin)
    try:
        return dict(origin) | file_source(origin["file"])
    except OSError as error:
        logger.warning("the data file cannot be noted for qa-flax report: %s", error)
        return dict(origin)


@lru_cache(maxsize=8)  # an evaluation in each epoch has the same file
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(
    folder: str | os.PathLike,
    prefix: str,
    source: Mapping[str, Any],
    settings: Mapping[str, Any],
    questions: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the file into a folder or bucket, atomically; a question is a line of it.

    Raises:
        OSError: it cannot be written.
    """
    scored = [record for record in questions.values() if "f1" in record]
    metrics: dict[str, Any] = {"total": len(questions)}
    if scored:
        for name in ("exact", "f1"):
            metrics[name] = 100.0 * sum(record[name] for record in scored) / len(scored)
    head = {"format": FORMAT, "source": source, "settings": settings, "metrics": metrics}
    storage.write_texts(storage.path(folder) / record_name(prefix), _lines(head, questions))


def _lines(head: Mapping[str, Any], questions: Mapping[str, Any]) -> Iterator[str]:
    yield storage.json_text(head, indent=2).removesuffix("\n}") + ',\n  "questions": {'
    separator = "\n"
    for id_, record in questions.items():
        yield f"{separator}    {_encode(id_)}: {_encode(record)}"
        separator = ",\n"
    yield "\n  }\n}\n"


def read_record(folder: str | os.PathLike, prefix: str) -> dict[str, Any] | None:
    """Return the content of the file; None if there is none.

    Raises:
        ValueError: the file is damaged, or of another program or version.
    """
    path = storage.path(folder) / record_name(prefix)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(_unusable(path, f"is not JSON ({error})")) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(_unusable(path, f'has no "format": "{FORMAT}"'))
    wrong = [key for key in _KEYS if not isinstance(values.get(key), dict)]
    wrong += [] if wrong else _wrong_questions(values["questions"])
    if wrong:
        raise ValueError(_unusable(path, f"has a missing or wrong value: {first_few(wrong)}"))
    return values


def _wrong_questions(questions: dict[str, Any]) -> list[str]:
    return [
        id_
        for id_, record in questions.items()
        if not isinstance(record, dict)
        or not isinstance(record.get("answers"), list)
        or not isinstance(record.get("windows"), int)
    ]


def _unusable(path: storage.AnyPath, problem: str) -> str:
    return (
        f"{path} {problem}; repeat the evaluation, or delete the file and name its data: "
        "qa-flax report DIR --data FILE"
    )
