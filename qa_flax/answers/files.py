"""Stage 6 of 7: answers -> the JSON files that Hugging Face's scripts write (host, strings).

Each file is an entry of `FILES`. Its bytes are those of `json.dumps(..., indent=4)` plus a newline.
The spans with their characters are in a file of their own (`spans.json`), because Hugging Face's
n-best list has none and its bytes are compared.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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

    entries: Callable[["_Columns"], Iterator[bytes | memoryview]]
    """Yield a chunk's entries of the object in parts; a comma precedes each entry."""


def _answers(columns: "_Columns") -> Iterator[bytes | memoryview]:
    """Yield the answer to each example."""
    yield _joined(
        [",\n    ", _strings(columns.keys), ": ", _strings(map(_quote, columns.answers.texts))]
    )


def _nbest_lists(columns: "_Columns") -> Iterator[bytes | memoryview]:
    """Yield the n-best list of each example."""
    spans, (probabilities, placeholders) = columns.chunk.spans, columns.probabilities
    fields = {
        "start_logit": _numbers(spans.start_logits),
        "end_logit": _numbers(spans.end_logits),
        "text": columns.quoted_texts,
        "probability": probabilities,
    }
    return _lists(columns, fields, {i: _PLACEHOLDER % text for i, text in placeholders.items()})


def _span_lists(columns: "_Columns") -> Iterator[bytes | memoryview]:
    """Yield the spans of each example's n-best list with their characters.

    The null prediction is "" at 0. Hugging Face's placeholder "empty", which stands for no span, is
    left out.
    """
    starts = columns.start_chars()
    ends = starts + np.fromiter(map(len, columns.texts), np.int64, len(starts))
    fields = {
        "text": columns.quoted_texts,
        "start": pa.array(starts).cast(_STRING),
        "end": pa.array(ends).cast(_STRING),
        "score": columns.probabilities[0],
    }
    return _lists(columns, fields, {})


def _null_odds(columns: "_Columns") -> Iterator[bytes | memoryview]:
    """Yield the null odds of each example."""
    odds = columns.answers.null_odds
    assert odds is not None
    yield _joined([",\n    ", _strings(columns.keys), ": ", _numbers(np.array(odds, np.float64))])


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
            columns = _Columns(ids, chunk, contexts, answers)
            for file, add in objects:
                add(file.entries(columns))

        yield write


@contextmanager
def _json_object(path: Path) -> Iterator[Callable[[Iterable[bytes | memoryview]], None]]:
    """Open a file for one JSON object and yield a function that adds `,\n    "key": value`."""
    is_empty = True

    def add(parts: Iterable[bytes | memoryview]) -> None:
        nonlocal is_empty
        for part in filter(len, parts):
            if is_empty:
                file.write(b"{")
            file.write(part[1:] if is_empty else part)  # no comma precedes the first entry
            is_empty = False

    with storage.replacing(path) as temporary, open(temporary, "wb") as file:
        yield add
        file.write(b"{}\n" if is_empty else b"\n}\n")


def merge_files(parts: Sequence[bytes]) -> bytes:
    """Merge the versions of one file that several processes wrote, each for its own examples."""
    bodies = [part[2:-3] for part in parts if part != b"{}\n"]  # without "{\n" and "\n}\n"
    return b"{\n" + b",\n".join(bodies) + b"\n}\n" if bodies else b"{}\n"


# --- Parts of a file -----------------------------------------------------------------------------

# Texts are built as Arrow columns, all rows of a chunk at once, because formatting each number and
# each row in Python took three fifths of the time of answers and files.

_STRING = pa.large_string()  # its text may be longer than 2 GiB
_PLACEHOLDER = """\

        {
            "text": "empty",
            "start_logit": 0.0,
            "end_logit": 0.0,
            "probability": %s
        }"""


class _Columns:
    """A chunk's examples and spans as JSON. What several files contain is computed once."""

    def __init__(self, ids: list, chunk: Chunk, contexts: list[str], answers: ChunkAnswers):
        self.keys = [_quote(id_ if isinstance(id_, str) else json.dumps(id_)) for id_ in ids]
        self.chunk, self.contexts, self.answers = chunk, contexts, answers

    @cached_property
    def texts(self) -> list[str]:
        """The text of every span."""
        # Two lists of numbers, because a list of pairs would keep the garbage collector busy.
        firsts, lasts = self.chunk.spans.chars.T.tolist()
        places = zip(self.chunk.spans.owner.tolist(), firsts, lasts, strict=True)
        texts = [self.contexts[i][first:last] for i, first, last in places]
        return list(map(str.strip, texts)) if self.answers.strip else texts

    @cached_property
    def quoted_texts(self) -> pa.Array:
        """The text of every span as JSON."""
        return _strings(map(_quote, self.texts))

    @cached_property
    def probabilities(self) -> tuple[pa.Array, dict[int, str]]:
        """The probability of every span, and those of the placeholders by example, as JSON."""
        scores, bounds = self.chunk.spans.scores, self.chunk.bounds
        probabilities, placeholders = _probabilities(scores, bounds).astype(np.float64), {}
        for i in np.flatnonzero(self.answers.has_placeholder).tolist():
            lo, hi = bounds[i : i + 2].tolist()
            first, *probabilities[lo:hi] = _probabilities_with_placeholder(scores[lo:hi])
            placeholders[i] = json.dumps(first)
        return _numbers(probabilities), placeholders

    def start_chars(self) -> np.ndarray:
        """Return where every span's text begins in its context, after whitespace if stripped."""
        owners, chars = self.chunk.spans.owner.tolist(), self.chunk.spans.chars.tolist()
        starts = []
        for i, (first, last) in zip(owners, chars, strict=True):
            start = min(first, len(self.contexts[i]))  # offsets of a script may be beyond the text
            if self.answers.strip:
                text = self.contexts[i][start:last]
                rest = text.lstrip()
                start += len(text) - len(rest) if rest else 0
            starts.append(start)
        return np.array(starts, np.int64)


def _lists(
    columns: _Columns, fields: Mapping[str, pa.Array], placeholders: Mapping[int, str]
) -> Iterator[bytes | memoryview]:
    """Yield each example's list of spans.

    Args:
        columns: of a chunk.
        fields: the fields of every span's object, in their order: name and values as JSON.
        placeholders: what comes before the first span, by example.
    """
    separators = [","] * len(columns.chunk.spans.owner)  # what comes before each span
    text = ""
    for i, (first, last) in enumerate(itertools.pairwise(columns.chunk.bounds.tolist())):
        text += f",\n    {columns.keys[i]}: [{placeholders.get(i, '')}"
        if first < last:
            separators[first] = text + "," if i in placeholders else text
            text = "\n    ]"
        else:
            text += "\n    ]" if i in placeholders else "]"
    parts: list[str | pa.Array] = [_strings(separators), "\n        {"]
    for n, (name, values) in enumerate(fields.items()):
        parts += [f"{',' if n else ''}\n            {_quote(name)}: ", values]
    yield _joined([*parts, "\n        }"])
    yield text.encode()


def _strings(texts: Iterable[str]) -> pa.Array:
    return pa.array(list(texts), _STRING)


def _joined(parts: Sequence[str | pa.Array]) -> memoryview:
    """Join the parts of every row, and the rows; a part that is a string is in every row."""
    columns = [pa.scalar(part, _STRING) if isinstance(part, str) else part for part in parts]
    rows = pc.call_function("binary_join_element_wise", [*columns, pa.scalar("", _STRING)])
    _, offsets, text = rows.buffers()
    return memoryview(text)[: np.frombuffer(offsets, np.int64)[len(rows)]]


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


def _numbers(values: np.ndarray) -> pa.Array:
    """Format floats as the json module does."""
    # Arrow finds the same digits as Python several times as fast: the fewest that are read as the
    # same number, and of these the nearest. Its notation is another one for integers and for very
    # small, very large and infinite numbers.
    values = values.astype(np.float64)
    texts = pa.array(values).cast(_STRING)
    sizes = np.abs(values)
    is_same = (sizes >= 1e-4) & (sizes < 1e10) & (values != np.rint(values))
    others = values[~is_same].tolist()
    form = float.__repr__ if all(map(math.isfinite, others)) else json.dumps
    arguments = [texts, pa.array(~is_same), _strings(map(form, others))]
    return pc.call_function("replace_with_mask", arguments)
