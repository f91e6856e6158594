"""Examples -> SQuAD v1.1 JSON (host, text)."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import datasets

from qa_flax.data.hub import arrow_table

ROWS_AT_ONCE = 1024


def squad_json(examples: datasets.Dataset) -> Iterator[str]:
    """Yield examples as SQuAD v1.1 JSON, in pieces: articles with paragraphs with questions.

    Examples in a row with one title are an article, and those with one context are a paragraph.

    Args:
        examples: as of `load_examples`.

    Example:
        >>> from qa_flax import load_examples
        >>> row = {"question": "Who?", "context": "Ada.", "answers": []}
        >>> print("".join(squad_json(load_examples([row]))))
        {"version": "1.1", "data": [
        {"title": "", "paragraphs": [{"context": "Ada.", "qas": [{"id": "row-0", ...}]}]}
        ]}
    """
    batches = arrow_table(examples).to_batches(max_chunksize=ROWS_AT_ONCE)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    start = '{"version": "1.1", "data": [\n'
    for title, group in itertools.groupby(rows, key=lambda row: row["title"]):
        article = {"title": title, "paragraphs": _paragraphs(group)}
        yield start + json.dumps(article, ensure_ascii=False)
        start = ",\n"
    yield "\n]}\n"


def _paragraphs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"context": context, "qas": [_question(row) for row in group]}
        for context, group in itertools.groupby(rows, key=lambda row: row["context"])
    ]


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    answers = [{"text": text, "answer_start": start} for text, start in pairs]
    return {"id": row["id"], "question": row["question"], "answers": answers}
