"""`qa-flax score`: files in, what the official scorers print out (host)."""

import argparse
import json
import os
from typing import Any

from qa_flax.commands.errors import usage_errors

SUMMARY = "EM and F1 of a file of answers, as the official SQuAD scorers print them"


def parser() -> argparse.ArgumentParser:
    """The arguments of the official scorers, and of MLQA's."""
    parser = argparse.ArgumentParser(prog="qa-flax score", description=f"{SUMMARY}.")
    parser.add_argument("dataset", metavar="DATASET", help="SQuAD JSON, JSONL, CSV or Parquet")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON, {id: answer}")
    parser.add_argument("--na-prob-file", "-n", help="JSON, {id: number}, such as null_odds.json")
    parser.add_argument(
        "--na-prob-thresh", "-t", type=float, default=1.0, help='a greater number counts as "" (1)'
    )
    parser.add_argument("--out-file", "-o", help="write there instead of printing")
    parser.add_argument(
        "--version_2_with_negative",
        action="store_true",
        help="score as SQuAD v2.0 (default where a question has no answer)",
    )
    parser.add_argument("--language", help="MLQA's rules for ar, de, en, es, hi, vi or zh")
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Print the scores, or write them.

    Raises:
        UsageError: a file cannot be read, or does not hold what it should.
    """
    from qa_flax import storage

    arguments = vars(parsed)
    out_file = arguments.pop("out_file")
    with usage_errors(ValueError, OSError):
        text = as_printed(score(**arguments))
        if out_file is None:
            print(text)
        else:
            storage.write_text(storage.path(out_file), text + "\n")


def score(
    dataset: str | os.PathLike,
    predictions: str | os.PathLike,
    *,
    na_prob_file: str | os.PathLike | None = None,
    na_prob_thresh: float = 1.0,
    version_2_with_negative: bool = False,
    language: str | None = None,
) -> dict[str, float]:
    """Score a file of answers against a data set, with the official scorers' keys in their order.

    Args:
        dataset: any file that `load_examples` reads. It is scored as SQuAD v2.0 if a question of it
            has no answer, or `version_2_with_negative` or a `na_prob_file` says so.
        predictions: JSON, {id: answer}.
        na_prob_file: JSON, {id: number}: how far to believe that there is no answer, such as
            `null_odds.json`. The best thresholds are looked for only with it.
        na_prob_thresh: an answer with a greater number counts as "".
        language: MLQA's rules for this language in place of SQuAD's.

    Raises:
        ValueError: a file does not hold what it should, or rows cannot be scored.
        OSError: a file cannot be read.
    """
    from qa_flax.answers.metrics import squad_metric
    from qa_flax.data.examples import load_examples
    from qa_flax.data.messages import first_few

    examples = load_examples(dataset, require_answers=False)
    references = [{"id": row["id"], "answers": row["answers"]} for row in _rows(examples)]
    answers = _read(predictions, str, "string")
    odds = {} if na_prob_file is None else _read(na_prob_file, (int, float), "number")
    without = any(not row["answers"]["text"] for row in references)
    version_2 = version_2_with_negative or na_prob_file is not None or without
    missing = [row["id"] for row in references if row["id"] not in odds]
    if na_prob_file is not None and missing:
        raise ValueError(
            f"{na_prob_file} has no number for {len(missing)} of the {len(references)} questions "
            f"(first: {first_few(missing)}): give one for each"
        )
    # Equal numbers are looked at in the order of their file, as by the official scorer.
    order = answers if na_prob_file is None else [id_ for id_ in odds if id_ in answers]
    scores = squad_metric(
        [
            {
                "id": id_,
                "prediction_text": answers[id_],
                "no_answer_probability": odds.get(id_, 0.0),
            }
            for id_ in order
        ],
        references,
        version_2_with_negative=version_2,
        no_answer_threshold=na_prob_thresh,
        language=language,
    )
    has_odds = na_prob_file is not None
    return {k: v for k, v in scores.items() if has_odds or not k.startswith("best_")}


def as_printed(scores: dict[str, float]) -> str:
    """The text that the official scorer of this version prints."""
    return json.dumps(scores, indent=2 if "exact" in scores else None)


def _rows(examples: Any) -> list[dict[str, Any]]:
    return examples.select_columns(["id", "answers"]).to_list()


def _read(path: str | os.PathLike, kind: type | tuple[type, ...], what: str) -> dict[str, Any]:
    from qa_flax import storage
    from qa_flax.data.messages import first_few

    try:
        values = json.loads(storage.path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; it must be {{id: {what}}}")
    bad = [id_ for id_, value in values.items() if not isinstance(value, kind)]
    if bad:
        raise ValueError(
            f"{path}: {len(bad)} of {len(values)} ids have no {what} (first: {first_few(bad)})"
        )
    return values
