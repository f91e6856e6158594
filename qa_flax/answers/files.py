"""Stage 6 of 7: answers -> the JSON files that Hugging Face's scripts write (host, strings).

A file is one entry of `FILES`. Its bytes are those of `json.dumps(..., indent=4)` and a new line.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from qa_flax import storage
from qa_flax.answers.spans import Chunk

_quoted = json.encoder.encode_basestring_ascii


class Choice(NamedTuple):
    """What is answered for each example of a chunk."""

    answers: list[str]
    best_texts: list[str]
    null_odds: list[float] | None
    has_word: Bool[np.ndarray, " e"]  # where Hugging Face puts the word "empty" in front
    strip: bool  # no space around a text
    has_blank: bool  # a span, not the null, has no text


class OutputFile(NamedTuple):
    """One of the files: an object with a value for each example's id."""

    name: str
    """Without prefix and ending."""

    only_v2: bool

    values: Callable[[Chunk, list[str], Choice], Iterable[str]]
    """The values of a chunk's examples as JSON, from their spans, contexts and answers."""


def _answers(chunk: Chunk, contexts: list[str], chosen: Choice) -> Iterator[str]:
    """The answer of each example."""
    return map(_quoted, chosen.answers)


def _nbest_lists(chunk: Chunk, contexts: list[str], chosen: Choice) -> Iterator[str]:
    """The n-best list of each example."""
    spans, bounds = chunk.spans, chunk.bounds.tolist()
    probabilities = _probabilities(spans.scores, chunk.bounds).tolist()
    invented = dict.fromkeys(np.flatnonzero(chosen.has_word).tolist(), "")
    for i in invented:
        lo, hi = bounds[i : i + 2]
        share, *probabilities[lo:hi] = _probabilities_with_empty(spans.scores[lo:hi])
        invented[i] = _EMPTY % _numbers([share])[0]
    texts = [
        contexts[owner][first:last]
        for owner, first, last in zip(spans.owner.tolist(), *spans.chars.T.tolist(), strict=True)
    ]
    if chosen.strip:
        texts = map(str.strip, texts)
    entries = [
        _ENTRY % entry
        for entry in zip(
            _repeated_numbers(spans.start_logits),
            _repeated_numbers(spans.end_logits),
            map(_quoted, texts),
            _numbers(probabilities),
            strict=True,
        )
    ]
    for i, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        block = ",\n".join([invented[i], *entries[lo:hi]] if i in invented else entries[lo:hi])
        yield f"[\n{block}\n    ]" if block else "[]"


def _null_odds(chunk: Chunk, contexts: list[str], chosen: Choice) -> list[str]:
    """How much more the null scores than the best span of each example."""
    assert chosen.null_odds is not None
    return _numbers(chosen.null_odds)


FILES = (
    OutputFile("predictions", False, _answers),
    OutputFile("nbest_predictions", False, _nbest_lists),
    OutputFile("null_odds", True, _null_odds),
)

Write = Callable[[list, Chunk, list[str], Choice], None]


@contextmanager
def answer_files(folder: str | os.PathLike, prefix: str | None, v2: bool) -> Iterator[Write]:
    """A function that adds the examples of a chunk, given with their ids, to all files of `folder`.

    The files appear at the end, and none after an error.
    """
    start = "" if prefix is None else f"{prefix}_"
    with ExitStack() as stack:
        objects = [
            (file, stack.enter_context(_json_object(Path(folder) / f"{start}{file.name}.json")))
            for file in FILES
            if v2 or not file.only_v2
        ]

        def write(ids: list, chunk: Chunk, contexts: list[str], chosen: Choice) -> None:
            keys = [_quoted(id_ if isinstance(id_, str) else json.dumps(id_)) for id_ in ids]
            for file, add in objects:
                values = file.values(chunk, contexts, chosen)
                add(f"    {key}: {value}" for key, value in zip(keys, values, strict=True))

        yield write


@contextmanager
def _json_object(path: Path) -> Iterator[Callable[[Iterable[str]], None]]:
    """A function that adds entries, each `"key": value` in JSON, to a file of one object."""
    separator = "{\n"

    def add(entries: Iterable[str]) -> None:
        nonlocal separator
        if text := ",\n".join(entries):
            file.write(separator + text)
            separator = ",\n"

    with storage.replacing(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        yield add
        file.write("{}\n" if separator == "{\n" else "\n}\n")


def spliced(parts: Sequence[bytes]) -> bytes:
    """One of these files for all, from those that several hosts have written of their examples."""
    bodies = [part[2:-3] for part in parts if part != b"{}\n"]  # without {\n and \n}\n
    return b"{\n" + b",\n".join(bodies) + b"\n}\n" if bodies else b"{}\n"


# --- Parts of a file -----------------------------------------------------------------------------


_ENTRY = """\
        {
            "start_logit": %s,
            "end_logit": %s,
            "text": %s,
            "probability": %s
        }"""
_EMPTY = """\
        {
            "text": "empty",
            "start_logit": 0.0,
            "end_logit": 0.0,
            "probability": %s
        }"""


def _probabilities(scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Softmax over the spans of each example, in the scores' dtype.

    Examples with the same number of spans go together, so that each row is added up in the order in
    which NumPy adds up that many numbers: padding a row would change its last digit.
    """
    result = np.empty_like(scores)
    counts = np.diff(bounds)
    for count in np.unique(counts[counts > 0]):
        rows = bounds[:-1][counts == count][:, None] + np.arange(count)
        exponentials = np.exp(scores[rows] - scores[rows].max(axis=1, keepdims=True))
        result[rows] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def _probabilities_with_empty(scores: np.ndarray) -> list[float]:
    """Hugging Face's softmax over its invented entry, a Python 0.0, and the real ones: float64."""
    values = np.array([0.0, *scores.astype(np.float64)])
    exponentials = np.exp(values - np.max(values))
    return (exponentials / exponentials.sum()).tolist()


def _numbers(values: list[float]) -> list[str]:
    """Floats as the json module writes them."""
    if all(map(math.isfinite, values)):
        return list(map(float.__repr__, values))
    return [json.dumps(value) for value in values]


def _repeated_numbers(values: np.ndarray) -> list[str]:
    """`_numbers` of values among which a few come again and again, as a window's best logits do."""
    # Compared as bits: 0.0 and -0.0 are two texts.
    bits, place = np.unique(values.view(f"i{values.itemsize}"), return_inverse=True)
    texts = np.array(_numbers(bits.view(values.dtype).tolist()), object)
    return texts[place].tolist()
