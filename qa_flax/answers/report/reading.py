"""An evaluation's folder -> its answers, n-best lists, null odds and record (host)."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qa_flax import messages, storage
from qa_flax.answers.answer_maps import iterate_lists, read_answer_map
from qa_flax.answers.record import read_record
from qa_flax.messages import first_few, short

logger = messages.logger(__name__)

N_BEST = 5  # spans of a question that the page shows
_ENDING = "predictions.json"
_FOLDS_ENTRY = "fold-"


@dataclass
class Answered:
    """What an evaluation answered; the dicts have the questions' ids as keys."""

    folder: str
    prefix: str
    """That of the files: "eval" for `eval_predictions.json`, "" for `predictions.json`."""
    answers: dict[str, str]
    n_best: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """The first spans and their probabilities; empty without an n-best file."""
    confidence: dict[str, float] = field(default_factory=dict)
    """The probability of the answer; 0 if it is not in the n-best list."""
    best_texts: dict[str, str] = field(default_factory=dict)
    """The first span with a text, also where the answer is ""."""
    null_odds: dict[str, float] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    """The answers' first characters; empty without `spans.json`."""
    record: dict[str, Any] | None = None
    """See `answers/record.py`; None in a folder of another program or an older version."""


def read_evaluation(folder: str | os.PathLike, prefix: str | None = None) -> Answered:
    """Read the files of an evaluation.

    Args:
        folder: where `eval_predictions.json` is, here or in a bucket.
        prefix: that of the files; "" for `predictions.json`. None: "eval", or the only one.

    Raises:
        FileNotFoundError: there are no answers; the message says what there is.
        ValueError: a file is damaged, or does not go with the others.
        OSError: a file cannot be read.
    """
    location = storage.path(folder)
    prefixes = _prefixes(location)
    prefix = _chosen(str(folder), prefixes, prefix, location)
    stem = f"{prefix}_" if prefix else ""
    answered = Answered(
        str(folder), prefix, read_answer_map(location / f"{stem}{_ENDING}", str, "string")
    )
    if not answered.answers:
        raise ValueError(f"{location / (stem + _ENDING)} has no questions; repeat the evaluation")
    n_best, odds, spans = (
        location / f"{stem}{name}.json" for name in ("nbest_predictions", "null_odds", "spans")
    )
    if n_best.is_file():
        _read_n_best(n_best, answered)
    if odds.is_file():
        answered.null_odds = read_answer_map(odds, (int, float), "number")
        _check_complete(odds, answered.null_odds, answered.answers)
    if spans.is_file():
        for id_, rows in iterate_lists(spans):
            starts = (r["start"] for r in rows if r.get("text") == answered.answers.get(id_))
            answered.starts[id_] = next(starts, -1)
        _check_complete(spans, answered.starts, answered.answers)
    answered.record = read_record(folder, prefix)
    if answered.record is not None:
        name = location / f"{stem}report.json"
        _check_complete(name, answered.record["questions"], answered.answers)
    return answered


def _prefixes(folder: storage.AnyPath) -> list[str]:
    """Return the prefixes of the answer files in a folder."""
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_ENDING))
    stems = (name.removesuffix(_ENDING) for name in names if not _is_n_best(name))
    return [stem.removesuffix("_") for stem in stems if not stem or stem.endswith("_")]


def _is_n_best(name: str) -> bool:
    return name == f"nbest_{_ENDING}" or name.endswith(f"_nbest_{_ENDING}")


def _chosen(folder: str, prefixes: list[str], prefix: str | None, location: storage.AnyPath) -> str:
    if prefix is None and "eval" in prefixes:
        return "eval"
    if prefix is None and len(prefixes) == 1:
        return prefixes[0]
    if prefix is not None and prefix in prefixes:
        return prefix
    wanted = f"{prefix}_{_ENDING}" if prefix else _ENDING if prefix == "" else f"eval_{_ENDING}"
    if prefixes:
        shown = first_few([f"--prefix {name or repr('')}" for name in prefixes], separator=" or ")
        raise FileNotFoundError(f"{folder} has no {wanted}; it has other answers: give {shown}")
    raise FileNotFoundError(f"{folder} has no {wanted}{_what_is_there(location)}")


def _what_is_there(folder: storage.AnyPath) -> str:
    """Say what a folder without answers holds, and what to do."""
    evaluate = (
        "evaluate a model first: qa-flax run --model_name_or_path DIR --do_eval "
        "--validation_file FILE --output_dir DIR"
    )
    if not folder.exists():
        return f": there is no such folder; {evaluate}"
    if not folder.is_dir():
        return ": it is a file; give the folder of an evaluation"
    children = sorted(folder.iterdir(), key=lambda path: path.name)
    inside = [child.name for child in children if child.is_dir() and _prefixes(child)]
    if inside:
        example = Path(str(folder)) / inside[0]
        return f", but its folders {first_few(inside)} have answers: qa-flax report {example}"
    names = [short(child.name, 40) for child in children]
    return f"; it has {first_few(names) or 'no files'}; {evaluate}"


def _read_n_best(file: storage.AnyPath, answered: Answered) -> None:
    for id_, rows in iterate_lists(file):
        if id_ not in answered.answers:
            continue
        spans = [_span(row, file, id_) for row in rows]
        answered.n_best[id_] = spans[:N_BEST]
        answer = answered.answers[id_]
        answered.confidence[id_] = next((p for text, p in spans if text == answer), 0.0)
        answered.best_texts[id_] = next((text for text, _ in spans if text.strip()), "")
    _check_complete(file, answered.n_best, answered.answers)


def _span(row: dict[str, Any], file: storage.AnyPath, id_: str) -> tuple[str, float]:
    text, probability = row.get("text"), row.get("probability")
    if not isinstance(text, str) or not isinstance(probability, int | float):
        raise ValueError(
            f"{file}: a span of id {short(id_)} has no text and probability; repeat the "
            "evaluation, or delete the file"
        )
    return text, probability if math.isfinite(probability) else 0.0


def _check_complete(file: storage.AnyPath, found: Collection[str], answers: dict[str, str]) -> None:
    missing = [id_ for id_ in answers if id_ not in found]
    if missing:
        raise ValueError(
            f"{file} has nothing for {len(missing):,} of the {len(answers):,} questions of "
            f"{_ENDING} beside it ({first_few(missing)}), so it is of another evaluation; repeat "
            "the evaluation, or delete the file"
        )
