"""Stage 6 of 7: the best spans -> answers (host, NumPy and strings).

`postprocess_qa_predictions` gives the result of the last function of this name in Hugging Face's
`utils_qa.py`, byte for byte, its defects included; with `hf_compatible=False`, and wherever this
package works on its own account, they are mended. Python sees a row only to cut its text out of the
context and to write it down.

| case | Hugging Face | `hf_compatible=True` | `hf_compatible=False` |
|---|---|---|---|
| example without any span | the word "empty" | the same | "", null odds the largest float |
| one span, without a text | "empty" goes in front of it | the same | "", largest float |
| v1, the best span has no text | answer "" | the same | the first with a text |
| example without windows, v2 | null score of the example before it | the same | "", largest float |
| ... and none before it | UnboundLocalError | "", largest float | "", largest float |
| the null's logits | the first token's, padding or not | the same | the CLS token's (`cls_index`) |
| NaN logits | NaN first, then as Python sorts | the same; all NaN are equal | take no part |
| infinite logits | NaN probabilities | the same | count as +-10000 |
| duplicate example ids | windows go to the last, place of the first | the same | ValueError |
| space around a text | stays | stays | is stripped |
| no span has a text, v2 | IndexError | "", null odds against the best | "", largest float |
| equal logits in a row | order of an unstable sort | left to right, as `jax.lax.top_k` | the same |
| equal span scores | by window, start rank, end rank; null last | the same | the same |
| integer or bfloat16 logits | TypeError when writing | in float32 | in float32 |
| offsets (-1, -1) | a span without text | outside the context | outside the context |
| window of an unknown example | KeyError | ValueError with the ids | the same |
| `n_best_size`, `max_answer_length` < 1 | no spans | ValueError | ValueError |
"""

import logging
import os
from collections import Counter, OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_flax import storage
from qa_flax.answers.files import Choice, answer_files
from qa_flax.answers.spans import Candidates, Chunk, Logits, SearchSettings, searches
from qa_flax.data.messages import first_few
from qa_flax.data.tables import ExampleRows, FeatureRows, example_source, span_source

logger = logging.getLogger(__name__)


def postprocess_qa_predictions(
    examples: ExampleRows,
    features: FeatureRows,
    predictions: Any,
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
    output_dir: str | os.PathLike | None = None,
    prefix: str | None = None,
    log_level: int = logging.WARNING,
    is_world_process_zero: bool = True,
    hf_compatible: bool = True,
) -> "OrderedDict[Any, str]":
    """Turn the logits of all windows into one answer an example, and write Hugging Face's files.

    Args:
        examples: rows with `id` and `context`.
        features: the windows, N of them, in any order: `Windows`, or rows with `example_id`,
            `offset_mapping` (None, [] or (-1, -1) outside the context; rows may be shorter than
            the logits) and perhaps `token_is_max_context` ({"token": bool}, asked of starts).
        predictions: start and end logits, two arrays [N, L], or `Candidates`. float16, float32 and
            float64 are computed in their own dtype as Hugging Face does, anything else in float32.
        version_2_with_negative: some questions have no answer: "" competes with the spans.
        n_best_size: starts and ends looked at in a window, and spans kept for an example.
        max_answer_length: longest span, in tokens.
        null_score_diff_threshold: the answer is "" when the null score exceeds the best span's
            score by more than this (logits).
        output_dir: an existing folder for `predictions.json`, `nbest_predictions.json` and, in v2,
            `null_odds.json`; None writes nothing. Each appears whole or not at all.
        prefix: puts `{prefix}_` before the file names.
        log_level: level set on this module's logger, as Hugging Face does.
        is_world_process_zero: False raises the log level to WARNING (the older keyword), and
            writes nothing, where Hugging Face has every process write the same files.
        hf_compatible: keep Hugging Face's result where it is defective; the module's table tells.

    Returns:
        id -> answer, in the order of `examples`.

    Raises:
        ValueError: counts, shapes or columns do not fit together.
        OSError: `output_dir` is not a folder.
    """
    return find_answers(
        examples,
        features,
        predictions,
        SearchSettings(version_2_with_negative, n_best_size, max_answer_length, hf_compatible),
        null_score_diff_threshold,
        output_dir=output_dir if is_world_process_zero else None,
        prefix=prefix,
        log_level=log_level if is_world_process_zero else max(log_level, logging.WARNING),
    ).texts


class Answers(NamedTuple):
    """What was found for every example, by id, in the order of the examples."""

    texts: "OrderedDict[Any, str]"
    """The answer; "" where the null won."""

    best_texts: dict[Any, str]
    """v2: the best span's text, whether or not the null won."""

    null_odds: dict[Any, float]
    """v2: the null's score less the best span's; it grows with the belief in no answer."""


def find_answers(
    examples: ExampleRows,
    features: FeatureRows,
    predictions: Any,
    settings: SearchSettings,
    null_score_diff_threshold: float = 0.0,
    *,
    output_dir: str | os.PathLike | None = None,
    prefix: str | None = None,
    log_level: int = logging.WARNING,
) -> Answers:
    """`postprocess_qa_predictions`, with all that it finds out."""
    logger.setLevel(log_level)
    _check_arguments(settings, output_dir)
    windows, texts = span_source(features), example_source(examples)
    predictions = _checked(predictions, len(windows), settings)
    ids = texts.ids()
    if not settings.hf_compatible:
        _check_distinct(ids)
    logger.info(
        "Post-processing %d example predictions split into %d features.", len(ids), len(windows)
    )
    found = Answers(OrderedDict(), {}, {})
    with ExitStack() as stack:
        stack.enter_context(np.errstate(invalid="ignore", over="ignore"))
        write = None
        if output_dir is not None:
            folder = stack.enter_context(storage.output_folder(output_dir))
            files = answer_files(folder, prefix, settings.version_2_with_negative)
            write = stack.enter_context(files)
        for search in searches(ids, windows, predictions, settings):
            contexts = texts.contexts(search.examples)
            keys = [ids[row] for row in search.examples.tolist()]
            chunk = search.n_best() if write else search.best()
            chosen = _choose(chunk, contexts, settings, null_score_diff_threshold)
            if not write and chosen.has_blank:  # a best span is blank; others may not be
                chunk = search.n_best()
                chosen = _choose(chunk, contexts, settings, null_score_diff_threshold)
            found.texts.update(zip(keys, chosen.answers, strict=True))
            if chosen.null_odds is not None:
                found.best_texts.update(zip(keys, chosen.best_texts, strict=True))
                found.null_odds.update(zip(keys, chosen.null_odds, strict=True))
            if write:
                write(keys, chunk, contexts, chosen)
    return found


# ------------------------------------------------------------------------------------ answers


def _choose(
    chunk: Chunk, contexts: list[str], settings: SearchSettings, threshold: float
) -> Choice:
    """The answer of each example: the first span (v1), or the first with a text, or "" (v2)."""
    spans, counts = chunk.spans, np.diff(chunk.bounds)
    lengths = np.fromiter(map(len, contexts), np.int64, len(contexts))
    has_text = spans.chars[:, 0] < np.minimum(spans.chars[:, 1], lengths[spans.owner])
    nulls = int(settings.version_2_with_negative)
    has_blank = bool((np.bincount(spans.owner[~has_text], minlength=1) > nulls).any())
    best = _first_of_examples(chunk, has_text)
    texts = _texts(chunk, contexts, best)
    has_word = np.zeros(len(counts), bool)
    if settings.hf_compatible:
        first = chunk.bounds[:-1]
        has_word = counts == 0
        has_word[counts == 1] = ~has_text[first[counts == 1]]
        if not settings.version_2_with_negative:
            texts = _texts(chunk, contexts, np.where(counts > 0, first, -1))
        for i in np.flatnonzero(has_word):
            texts[i] = "empty"
    else:
        texts = [text.strip() for text in texts]
        for i in np.flatnonzero(best >= 0):
            if not texts[i]:  # nothing but space: look further
                has_blank = True
                best[i], texts[i] = _first_not_blank(chunk, contexts[i], int(i))
    if not settings.version_2_with_negative:
        return Choice(texts, texts, None, has_word, not settings.hf_compatible, has_blank)
    odds = _null_odds(chunk, best, has_word, settings)
    is_null = (odds > threshold) | ((best < 0) & ~has_word)
    answers = ["" if null else text for null, text in zip(is_null.tolist(), texts, strict=True)]
    strip = not settings.hf_compatible
    return Choice(answers, texts, odds.tolist(), has_word, strip, has_blank)


def _null_odds(
    chunk: Chunk, best: np.ndarray, has_word: np.ndarray, settings: SearchSettings
) -> np.ndarray:
    """The null's score less that of the best span with a text, in this order of subtractions."""
    counts = np.diff(chunk.bounds)
    at = np.where(best < 0, chunk.bounds[:-1], best)
    logits = np.zeros((2, len(at)), chunk.spans.scores.dtype)
    real = (counts > 0) & ~has_word  # Hugging Face's word has the logits 0
    logits[:, real] = chunk.spans.start_logits[at[real]], chunk.spans.end_logits[at[real]]
    odds = (chunk.null_scores - logits[0]) - logits[1]
    if not settings.hf_compatible:
        odds[best < 0] = np.finfo(odds.dtype).max  # there is nothing to compare the null with
    return odds


def _first_of_examples(chunk: Chunk, chosen: np.ndarray) -> np.ndarray:
    """The first chosen span of each example [E], -1 if there is none."""
    first = np.full(len(chunk.examples), -1)
    rows = np.flatnonzero(chosen)[::-1]
    first[chunk.spans.owner[rows]] = rows  # written backwards: the first of each example stays
    return first


def _first_not_blank(chunk: Chunk, context: str, example: int) -> tuple[int, str]:
    for row in range(*chunk.bounds[example : example + 2].tolist()):
        first, last = chunk.spans.chars[row].tolist()
        if text := context[first:last].strip():
            return row, text
    return -1, ""


def _texts(chunk: Chunk, contexts: list[str], spans: np.ndarray) -> list[str]:
    """The text of one span an example; "" where there is none (-1)."""
    chars = np.zeros((len(contexts), 2), np.int64)
    chars[spans >= 0] = chunk.spans.chars[spans[spans >= 0]]
    return [text[a:b] for text, (a, b) in zip(contexts, chars.tolist(), strict=True)]


# ------------------------------------------------------------------------------------- checks


def _check_arguments(settings: SearchSettings, output_dir: str | os.PathLike | None) -> None:
    for name in ("n_best_size", "max_answer_length"):
        value = getattr(settings, name)
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1: give a positive number")
    if output_dir is None or storage.is_remote(output_dir):
        return  # a bucket's folders are there when a file is
    if not Path(output_dir).is_dir():
        raise OSError(f"output_dir {str(output_dir)!r} is not a folder: create it first")


def _check_distinct(ids: list) -> None:
    repeated = [id_ for id_, count in Counter(map(str, ids)).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} ids stand for several of the {len(ids)} examples "
            f"(first: {first_few(repeated)}): give each example an id of its own"
        )


def _checked(predictions: Any, windows: int, settings: SearchSettings) -> Logits | Candidates:
    """Candidates, or start and end logits [N, L] in one dtype."""
    if isinstance(predictions, Candidates):
        checked, found = predictions, len(predictions)
        kept = predictions.tokens.starts.shape[1]
        if kept < min(settings.n_best_size, predictions.padded_length):
            raise ValueError(
                f"n_best_size is {settings.n_best_size}, but only the {kept} best starts and ends "
                "of each window were gathered: gather as many, or all logits"
            )
    else:
        checked = _logits(predictions)
        found = len(checked[0])
    if found != windows:
        raise ValueError(
            f"predictions hold the logits of {found} windows, but there are {windows} "
            "features: pass the features that the predictions were made from, all of them"
        )
    return checked


def _logits(predictions: Any) -> Logits:
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
    dtype = np.result_type(starts, ends)
    return starts.astype(dtype, copy=False), ends.astype(dtype, copy=False)
