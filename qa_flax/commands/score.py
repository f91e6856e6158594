"""`qa-flax score`: print the same scores as the official SQuAD scorers (host)."""

import argparse
import json
import os

from qa_flax.commands.errors import usage_errors

SUMMARY = "compute exact match and F1 of a file of answers, as the official SQuAD scorers do"


def parser() -> argparse.ArgumentParser:
    """Return the parser; the arguments are those of the official SQuAD and MLQA scorers."""
    parser = argparse.ArgumentParser(
        prog="qa-flax score",
        description="Compute exact match and F1 of a file of answers, and print them as the "
        "official SQuAD scorers do.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="SQuAD JSON, JSONL, CSV or Parquet")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON file {id: answer}")
    parser.add_argument(
        "--na-prob-file",
        "-n",
        help="JSON file {id: number}, such as null_odds.json: the higher the number, the more "
        "likely the question has no answer",
    )
    parser.add_argument(
        "--na-prob-thresh",
        "-t",
        type=float,
        default=1.0,
        help='an answer with a higher number counts as "" (default: 1)',
    )
    parser.add_argument("--out-file", "-o", help="write the scores to this file, print nothing")
    parser.add_argument(
        "--version_2_with_negative",
        action="store_true",
        help="score as SQuAD v2.0 (default if a question of DATASET has no answer, or with "
        "--na-prob-file)",
    )
    parser.add_argument(
        "--language",
        help="normalise answers as MLQA's scorer does for ar, de, en, es, hi, vi or zh",
    )
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Print the scores, or write them to `--out-file`.

    Raises:
        UsageError: a file cannot be read or has the wrong contents.
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
    """Score a file of answers against a data set.

    Args:
        dataset: any file that `load_examples` reads.
        predictions: JSON file {id: answer}.
        na_prob_file: JSON file {id: number}, such as `null_odds.json`: the higher the number, the
            more likely the question has no answer. Without it the result has no `best_...` scores.
        na_prob_thresh: an answer with a higher number counts as "".
        version_2_with_negative: score as SQuAD v2.0. This is also done if a question of `dataset`
            has no answer, or with a `na_prob_file`.
        language: normalise answers as MLQA's scorer does for this language.

    Returns:
        Scores with the keys of the official scorers, in their order; see `squad_metric`.

    Raises:
        ValueError: a file has the wrong contents, or its rows cannot be scored.
        OSError: a file cannot be read.
    """
    from qa_flax.answers.answer_maps import read_answer_map
    from qa_flax.answers.metrics import squad_metric
    from qa_flax.data.examples import read_references
    from qa_flax.messages import first_few

    references = read_references(dataset)
    answers = read_answer_map(predictions, str, "string")
    odds = {} if na_prob_file is None else read_answer_map(na_prob_file, (int, float), "number")
    has_unanswerable = any(not row["answers"]["text"] for row in references)
    version_2 = version_2_with_negative or na_prob_file is not None or has_unanswerable
    missing = [row["id"] for row in references if row["id"] not in odds]
    if na_prob_file is not None and missing:
        raise ValueError(
            f"{na_prob_file} has no number for {len(missing)} of the {len(references)} questions "
            f"(first: {first_few(missing)}): it needs one for each question"
        )
    # The official scorer sorts the numbers; equal ones stay in the order of the file. The best
    # thresholds depend on this order.
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
    """Format scores as the official v1.1 or v2.0 scorer prints them."""
    return json.dumps(scores, indent=2 if "exact" in scores else None)
