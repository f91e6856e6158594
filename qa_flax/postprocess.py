"""Stage 6 of 7: the best spans -> answers, and Hugging Face's files (host, NumPy and strings).

The result is that of the last `postprocess_qa_predictions` in Hugging Face's `utils_qa.py`, byte
for byte. Python sees a row only to cut its text out of the context and to write it down.

Where Hugging Face's result is odd, depends on the machine, or does not exist:

| case | Hugging Face | here |
|---|---|---|
| equal logits in a row | order of an unstable sort | from left to right, as `jax.lax.top_k` |
| equal span scores | by window, start rank, end rank; null last | the same |
| example without any span | the word "empty" | the same |
| example without windows, v2 | null score of the example before it | the same |
| ... and none before it | UnboundLocalError | answer "", null odds the largest float |
| several spans, none with a text, v2 | IndexError | answer "", null odds against the best |
| NaN logits | NaN first, then what Python's sort does | the same; several NaN are equal |
| duplicate example ids | windows go to the last, place of the first | the same |
| integer or bfloat16 logits | TypeError when writing | computed in float32 |
| offsets (-1, -1) | a span without text | outside the context |
| window of an unknown example | KeyError | ValueError with the ids |
| `n_best_size`, `max_answer_length` < 1 | no spans | ValueError |
"""

import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from jaxtyping import Bool

from qa_flax.features import Features
from qa_flax.spans import Chunk, Settings, best_spans, column

logger = logging.getLogger(__name__)


def postprocess_qa_predictions(
    examples: datasets.Dataset | Sequence[Mapping[str, Any]],
    features: Features | datasets.Dataset | Sequence[Mapping[str, Any]],
    predictions: Any,
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
    output_dir: str | os.PathLike | None = None,
    prefix: str | None = None,
    log_level: int = logging.WARNING,
    is_world_process_zero: bool = True,
) -> "OrderedDict[Any, str]":
    """Turn the logits of all windows into one answer an example, and write Hugging Face's files.

    Args:
        examples: rows with `id` and `context`.
        features: the windows, N of them, in any order: `Features`, or rows with `example_id`,
            `offset_mapping` (None, [] or (-1, -1) outside the context; rows may be shorter than
            the logits) and perhaps `token_is_max_context` ({"token": bool}, asked of starts).
        predictions: start and end logits, two arrays [N, L]. float16, float32 and float64 are
            computed in their own dtype as Hugging Face does, anything else in float32.
        version_2_with_negative: some questions have no answer: "" competes with the spans.
        n_best_size: starts and ends looked at in a window, and spans kept for an example.
        max_answer_length: longest span, in tokens.
        null_score_diff_threshold: the answer is "" when the null score exceeds the best span's
            score by more than this (logits).
        output_dir: an existing folder for `predictions.json`, `nbest_predictions.json` and, in v2,
            `null_odds.json`; None writes nothing. Each appears whole or not at all.
        prefix: puts `{prefix}_` before the file names.
        log_level: level set on this module's logger, as Hugging Face does.
        is_world_process_zero: False raises the log level to WARNING (the older keyword).

    Returns:
        id -> answer, in the order of `examples`. The module's table tells the odd cases.

    Raises:
        ValueError: counts, shapes or columns do not fit together.
        OSError: `output_dir` is not a folder.
    """
    logger.setLevel(log_level if is_world_process_zero else max(log_level, logging.WARNING))
    _check_arguments(n_best_size, max_answer_length, output_dir)
    settings = Settings(version_2_with_negative, n_best_size, max_answer_length)
    starts, ends = _logits(predictions, len(features))
    ids = column(examples, "id", None, "examples")
    logger.info(
        "Post-processing %d example predictions split into %d features.", len(ids), len(starts)
    )
    answers: OrderedDict[Any, str] = OrderedDict()
    with ExitStack() as stack:
        stack.enter_context(np.errstate(invalid="ignore", over="ignore"))
        names = ["predictions", "nbest_predictions"] + ["null_odds"] * version_2_with_negative
        files = [
            stack.enter_context(JsonObjectFile(_path(output_dir, prefix, name)))
            for name in (names if output_dir is not None else [])
        ]
        for chunk in best_spans(ids, features, starts, ends, settings):
            contexts = column(examples, "context", chunk.examples, "examples")
            keys = [ids[row] for row in chunk.examples.tolist()]
            chosen = _choose(chunk, contexts, settings, null_score_diff_threshold)
            answers.update(zip(keys, chosen.answers, strict=True))
            if files:
                _write(files, keys, chunk, contexts, chosen)
    return answers


# ------------------------------------------------------------------------------------ answers


class Choice(NamedTuple):
    """What is answered for each example of a chunk."""

    answers: list[str]
    null_odds: list[float] | None
    is_empty: Bool[np.ndarray, " e"]  # where Hugging Face puts the word "empty" in front


def _choose(chunk: Chunk, contexts: list[str], settings: Settings, threshold: float) -> Choice:
    """The answer of each example: the first span (v1), or the first with a text, or "" (v2)."""
    spans, first = chunk.spans, chunk.bounds[:-1]
    counts = np.diff(chunk.bounds)
    lengths = np.fromiter(map(len, contexts), np.int64, len(contexts))
    has_text = spans.chars[:, 0] < np.minimum(spans.chars[:, 1], lengths[spans.owner])
    is_empty = counts == 0
    is_empty[counts == 1] = ~has_text[first[counts == 1]]
    if not settings.version_2_with_negative:
        return Choice(_texts(chunk, contexts, first, is_empty), None, is_empty)
    best = np.minimum(first, max(len(has_text) - 1, 0))
    with_text = np.flatnonzero(has_text)[::-1]
    best[spans.owner[with_text]] = with_text  # written backwards: the first of each example stays
    logits = np.zeros((2, len(counts)), spans.scores.dtype)
    real = ~is_empty
    logits[:, real] = spans.start_logits[best[real]], spans.end_logits[best[real]]
    odds = (chunk.null_scores - logits[0]) - logits[1]
    textless = real.copy()
    textless[real] = ~has_text[best[real]]
    is_null = (odds > threshold) | textless
    texts = _texts(chunk, contexts, best, is_empty)
    answers = ["" if null else text for null, text in zip(is_null.tolist(), texts, strict=True)]
    return Choice(answers, odds.tolist(), is_empty)


def _texts(chunk: Chunk, contexts: list[str], spans: np.ndarray, is_empty: np.ndarray) -> list[str]:
    """The text of one span an example, or the word "empty"."""
    chars = np.zeros((len(contexts), 2), np.int64)
    chars[~is_empty] = chunk.spans.chars[spans[~is_empty]]
    texts = [text[a:b] for text, (a, b) in zip(contexts, chars.tolist(), strict=True)]
    for i in np.flatnonzero(is_empty):
        texts[i] = "empty"
    return texts


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


# -------------------------------------------------------------------------------------- files


class JsonObjectFile:
    """One JSON object, written entry by entry as `json.dumps(..., indent=4)` would write it.

    The file appears under its name when everything is written; after an error nothing is left.
    """

    def __init__(self, path: Path):
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._separator = "{\n"

    def __enter__(self) -> "JsonObjectFile":
        self._file = open(self._temporary, "w", encoding="ascii")
        return self

    def write(self, entries: Iterable[str]) -> None:
        """Add entries, each `"key": value` already in JSON."""
        text = ",\n".join(entries)
        if text:
            self._file.write(self._separator + text)
            self._separator = ",\n"

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        if error is None:
            self._file.write("{}\n" if self._separator == "{\n" else "\n}\n")
        self._file.close()
        if error is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink()


def _write(
    files: list[JsonObjectFile], keys: list, chunk: Chunk, contexts: list[str], chosen: Choice
) -> None:
    quote = json.encoder.encode_basestring_ascii
    names = [quote(key if isinstance(key, str) else json.dumps(key)) for key in keys]
    answers = zip(names, chosen.answers, strict=True)
    files[0].write(f"    {name}: {quote(answer)}" for name, answer in answers)
    blocks = zip(names, _nbest_blocks(chunk, contexts, chosen), strict=True)
    files[1].write(f"    {name}: [\n{block}\n    ]" for name, block in blocks)
    if chosen.null_odds is not None:
        odds = zip(names, _numbers(chosen.null_odds), strict=True)
        files[2].write(f"    {name}: {number}" for name, number in odds)


def _nbest_blocks(chunk: Chunk, contexts: list[str], chosen: Choice) -> Iterator[str]:
    """The n-best list of each example as JSON, without the brackets around it."""
    quote = json.encoder.encode_basestring_ascii
    spans, bounds = chunk.spans, chunk.bounds.tolist()
    probabilities = _probabilities(spans.scores, chunk.bounds).tolist()
    invented = dict.fromkeys(np.flatnonzero(chosen.is_empty).tolist(), "")
    for i in invented:
        lo, hi = bounds[i : i + 2]
        share, *probabilities[lo:hi] = _probabilities_with_empty(spans.scores[lo:hi])
        invented[i] = _EMPTY % _numbers([share])[0]
    entries = [
        _ENTRY % (start, end, quote(contexts[owner][first:last]), probability)
        for owner, first, last, start, end, probability in zip(
            spans.owner.tolist(),
            *spans.chars.T.tolist(),
            _numbers(spans.start_logits.tolist()),
            _numbers(spans.end_logits.tolist()),
            _numbers(probabilities),
            strict=True,
        )
    ]
    for i, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        yield ",\n".join([invented[i], *entries[lo:hi]] if i in invented else entries[lo:hi])


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


def _path(output_dir: str | os.PathLike | None, prefix: str | None, name: str) -> Path:
    assert output_dir is not None
    return Path(output_dir) / (f"{name}.json" if prefix is None else f"{prefix}_{name}.json")


# ------------------------------------------------------------------------------------- checks


def _check_arguments(
    n_best_size: int, max_answer_length: int, output_dir: str | os.PathLike | None
) -> None:
    for name, value in (("n_best_size", n_best_size), ("max_answer_length", max_answer_length)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1: give a positive number")
    if output_dir is not None and not Path(output_dir).is_dir():
        raise OSError(f"output_dir {str(output_dir)!r} is not a folder: create it first")


def _logits(predictions: Any, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits [N, L] in one dtype, checked."""
    if len(predictions) != 2:
        raise ValueError(
            f"predictions has {len(predictions)} parts; pass the pair (start_logits, end_logits)"
        )
    arrays = [np.asarray(part) for part in predictions]
    known = (np.float16, np.float32, np.float64)
    starts, ends = (a if a.dtype in known else a.astype(np.float32) for a in arrays)
    if starts.shape != ends.shape or starts.ndim != 2:
        raise ValueError(
            f"start logits have shape {starts.shape} and end logits {ends.shape}; both must be "
            "[windows, tokens]: pass the arrays that the model gave for all windows"
        )
    if len(starts) != windows:
        raise ValueError(
            f"predictions hold the logits of {len(starts)} windows, but there are {windows} "
            "features: pass the features that the predictions were made from, all of them"
        )
    dtype = np.result_type(starts, ends)
    return starts.astype(dtype, copy=False), ends.astype(dtype, copy=False)
