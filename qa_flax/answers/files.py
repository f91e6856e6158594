"""Stage 6 of 7: answers -> the JSON files that Hugging Face's scripts write (host, strings).

Each file is an entry of `FILES`. Its bytes are those of `json.dumps(..., indent=4)` plus a newline.
The spans with their characters are in a file of their own (`spans.json`), because Hugging Face's
n-best list has none and its bytes are compared.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from qa_flax import storage
from qa_flax.answers.spans import Chunk

_quote = json.encoder.encode_basestring_ascii


class ChunkAnswers(NamedTuple):
    """The answers to the E examples of a chunk."""

    texts: list[str]
    best_texts: list[str]  # the best span's text, even if the null prediction won
    null_odds: list[float] | None  # v2: the null score minus the best span's score
    has_placeholder: Bool[np.ndarray, " e"]  # where Hugging Face inserts the prediction "empty"
    strip: bool  # whether whitespace around texts is removed
    has_blank: bool  # whether a span other than a null prediction has no text


class OutputFile(NamedTuple):
    """One of the files: a JSON object that maps each example's id to a value."""

    name: str
    """The file name without prefix and `.json`."""

    argument: str | None
    """The argument of `postprocess_qa_predictions` that it is written with; None: always."""

    values: Callable[[Chunk, list[str], ChunkAnswers], Iterable[str]]
    """Return the values of a chunk's examples as JSON, from their spans, contexts and answers."""


def _answers(chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> Iterator[str]:
    """Return the answer to each example as JSON."""
    return map(_quote, answers.texts)


def _nbest_lists(chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> Iterator[str]:
    """Yield the n-best list of each example as JSON."""
    spans = chunk.spans
    probabilities, placeholders = _probability_texts(chunk, answers)
    columns = (
        _repeated_numbers(spans.start_logits),
        _repeated_numbers(spans.end_logits),
        map(_quote, _texts(chunk, contexts, answers)),
        probabilities,
    )
    entries = [_ENTRY % entry for entry in zip(*columns, strict=True)]
    for i, example_entries in enumerate(_by_example(entries, chunk)):
        if i in placeholders:
            example_entries.insert(0, _PLACEHOLDER % placeholders[i])
        yield _json_list(example_entries)


def _span_lists(chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> Iterator[str]:
    """Yield the spans of each example's n-best list with their characters, as JSON.

    The null prediction is "" at 0. Hugging Face's placeholder "empty", which stands for no span, is
    left out.
    """
    texts, starts = _texts(chunk, contexts, answers), _start_chars(chunk, contexts, answers)
    ends = [start + len(text) for start, text in zip(starts, texts, strict=True)]
    probabilities, _ = _probability_texts(chunk, answers)
    columns = (map(_quote, texts), starts, ends, probabilities)
    entries = [_SPAN % entry for entry in zip(*columns, strict=True)]
    return map(_json_list, _by_example(entries, chunk))


def _null_odds(chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> list[str]:
    """Return the null odds of each example as JSON."""
    assert answers.null_odds is not None
    return _numbers(answers.null_odds)


FILES = (
    OutputFile("predictions", None, _answers),
    OutputFile("nbest_predictions", None, _nbest_lists),
    OutputFile("null_odds", "version_2_with_negative", _null_odds),
    OutputFile("spans", "save_spans", _span_lists),
)

Write = Callable[[list, Chunk, list[str], ChunkAnswers], None]
"""Add a chunk to all files: its examples' ids, spans, contexts and answers."""


@contextmanager
def answer_files(
    folder: str | os.PathLike, prefix: str | None, arguments: Collection[str]
) -> Iterator[Write]:
    """Open the output files in `folder` and yield a function that adds a chunk to all of them.

    The files appear when the context exits. After an error, existing files are unchanged.

    Args:
        folder: an existing local folder.
        prefix: prepends `{prefix}_` to the names of the files.
        arguments: which of the arguments that decide about a file (`OutputFile.argument`) are set.
    """
    stem = "" if prefix is None else f"{prefix}_"
    with ExitStack() as stack:
        objects = [
            (file, stack.enter_context(_json_object(Path(folder) / f"{stem}{file.name}.json")))
            for file in FILES
            if file.argument is None or file.argument in arguments
        ]

        def write(ids: list, chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> None:
            keys = [_quote(id_ if isinstance(id_, str) else json.dumps(id_)) for id_ in ids]
            for file, add in objects:
                values = file.values(chunk, contexts, answers)
                add(f"    {key}: {value}" for key, value in zip(keys, values, strict=True))

        yield write


@contextmanager
def _json_object(path: Path) -> Iterator[Callable[[Iterable[str]], None]]:
    """Open a file for one JSON object and yield a function that adds `"key": value` entries."""
    separator = "{\n"

    def add(entries: Iterable[str]) -> None:
        nonlocal separator
        if text := ",\n".join(entries):
            file.write(separator + text)
            separator = ",\n"

    with storage.replacing(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        yield add
        file.write("{}\n" if separator == "{\n" else "\n}\n")


def merge_files(parts: Sequence[bytes]) -> bytes:
    """Merge the versions of one file that several processes wrote, each for its own examples."""
    bodies = [part[2:-3] for part in parts if part != b"{}\n"]  # without "{\n" and "\n}\n"
    return b"{\n" + b",\n".join(bodies) + b"\n}\n" if bodies else b"{}\n"


# --- Parts of a file -----------------------------------------------------------------------------


_ENTRY = """\
        {
            "start_logit": %s,
            "end_logit": %s,
            "text": %s,
            "probability": %s
        }"""
_PLACEHOLDER = """\
        {
            "text": "empty",
            "start_logit": 0.0,
            "end_logit": 0.0,
            "probability": %s
        }"""
_SPAN = """\
        {
            "text": %s,
            "start": %d,
            "end": %d,
            "score": %s
        }"""


def _by_example(entries: list[str], chunk: Chunk) -> Iterator[list[str]]:
    """Yield the entries of each example's spans."""
    return (entries[lo:hi] for lo, hi in itertools.pairwise(chunk.bounds.tolist()))


def _json_list(entries: list[str]) -> str:
    """Join the entries of an example as a JSON list."""
    block = ",\n".join(entries)
    return f"[\n{block}\n    ]" if block else "[]"


def _texts(chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> list[str]:
    """Return the text of every span."""
    owners, chars = chunk.spans.owner.tolist(), chunk.spans.chars.tolist()
    texts = [contexts[i][first:last] for i, (first, last) in zip(owners, chars, strict=True)]
    return list(map(str.strip, texts)) if answers.strip else texts


def _start_chars(chunk: Chunk, contexts: list[str], answers: ChunkAnswers) -> list[int]:
    """Return where the text of every span begins in its context, after whitespace if stripped."""
    owners, chars = chunk.spans.owner.tolist(), chunk.spans.chars.tolist()
    starts = []
    for i, (first, last) in zip(owners, chars, strict=True):
        start = min(first, len(contexts[i]))  # offsets of a script may be beyond the text
        if answers.strip:
            text = contexts[i][start:last]
            rest = text.lstrip()
            start += len(text) - len(rest) if rest else 0
        starts.append(start)
    return starts


def _probability_texts(chunk: Chunk, answers: ChunkAnswers) -> tuple[list[str], dict[int, str]]:
    """Return every span's probability as JSON, and those of the placeholders by example."""
    scores, bounds = chunk.spans.scores, chunk.bounds
    probabilities, placeholders = _probabilities(scores, bounds).tolist(), {}
    for i in np.flatnonzero(answers.has_placeholder).tolist():
        lo, hi = bounds[i : i + 2].tolist()
        probability, *probabilities[lo:hi] = _probabilities_with_placeholder(scores[lo:hi])
        placeholders[i] = _numbers([probability])[0]
    return _numbers(probabilities), placeholders


def _probabilities(scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the softmax over the spans of each example, in the scores' dtype."""
    result = np.empty_like(scores)
    counts = np.diff(bounds)
    # Examples with the same number of spans are computed together. Padding them all to one length
    # would change the order in which NumPy sums a row, and so the last digit.
    for count in np.unique(counts[counts > 0]):
        rows = bounds[:-1][counts == count][:, None] + np.arange(count)
        exponentials = np.exp(scores[rows] - scores[rows].max(axis=1, keepdims=True))
        result[rows] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def _probabilities_with_placeholder(scores: np.ndarray) -> list[float]:
    """Return the softmax over the placeholder's score 0.0 and `scores`.

    The softmax is computed in float64, as in Hugging Face's code, because the placeholder's score
    is a Python float there.
    """
    values = np.array([0.0, *scores.astype(np.float64)])
    exponentials = np.exp(values - np.max(values))
    return (exponentials / exponentials.sum()).tolist()


def _numbers(values: list[float]) -> list[str]:
    """Format floats as the json module does."""
    if all(map(math.isfinite, values)):
        return list(map(float.__repr__, values))
    return [json.dumps(value) for value in values]


def _repeated_numbers(values: np.ndarray) -> list[str]:
    """Format floats as `_numbers` does, but each distinct value only once.

    This is faster for the logits of spans: a window's best logits are in many of its spans.
    """
    # Compare bits, because 0.0 and -0.0 are equal but have different texts.
    bits, index = np.unique(values.view(f"i{values.itemsize}"), return_inverse=True)
    texts = np.array(_numbers(bits.view(values.dtype).tolist()), object)
    return texts[index].tolist()
