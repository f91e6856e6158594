"""Examples -> SQuAD v1.1 JSON (host, text)."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from qa_flax.data.hub import arrow_table

ROWS_AT_ONCE = 1024
"""How many rows are converted at once, which bounds the memory."""


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
        {"title": "", "paragraphs": [
        {"context": "Ada.", "qas": [{"id": "row-0", "question": "Who?", "answers": []}]}]}
        ]}
    """
    batches = arrow_table(examples).to_batches(max_chunksize=ROWS_AT_ONCE)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    yield '{"version": "1.1", "data": ['
    before = "\n"
    for title, article in itertools.groupby(rows, key=lambda row: row["title"]):
        yield f'{before}{{"title": {_json(title)}, "paragraphs": ['
        before = ""
        for context, group in itertools.groupby(article, key=lambda row: row["context"]):
            paragraph = {"context": context, "qas": [_question(row) for row in group]}
            yield f"{before}\n{_json(paragraph)}"
            before = ","
        yield "]}"
        before = ",\n"
    yield "\n]}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    answers = [{"text": text, "answer_start": start} for text, start in pairs]
    return {"id": row["id"], "question": row["question"], "answers": answers}
