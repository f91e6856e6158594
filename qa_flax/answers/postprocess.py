"""Stage 6 of 7: the best spans -> answers (host, NumPy and strings).

With `hf_compatible=True`, `postprocess_qa_predictions` returns and writes the same bytes as the
newest function of this name in Hugging Face's `utils_qa.py`, including that function's defects.
Where that function raises an unhelpful error, this one returns an answer or raises a ValueError.
With `hf_compatible=False`, the default of `qa-flax run`, the defects are fixed.

The table lists the cases that differ. "v2" means `version_2_with_negative=True`, "v1" False.
"Largest float": the answer is "", and in v2 its null odds are the largest float of the dtype.

| case | Hugging Face | `hf_compatible=True` | `hf_compatible=False` |
|---|---|---|---|
| an example has no span | answer "empty" | the same | largest float |
| its only span has no text | "empty" is inserted before it | the same | largest float |
| v1, the best span has no text | answer "" | the same | the best span with a text |
| v2, an example has no windows | previous example's null score | the same | largest float |
| v2, the first example has no windows | UnboundLocalError | largest float | largest float |
| null prediction's logits | token 0's, even if it is padding | the same | the CLS token's |
| NaN logits | NaN first, then Python's sort | the same; all NaN are equal | replaced by -10000 |
| no logit of an example is finite | the text of token 0 | the same | largest float |
| infinite logits | NaN probabilities | the same | replaced by +-10000 |
| duplicate example ids | the last one's answer, in the first one's place | the same | ValueError |
| whitespace around a text | unchanged | unchanged | removed |
| v2, no span has a text | IndexError | "", null odds of the best span | largest float |
| equal logits in a window | unstable sort | left to right, as `jax.lax.top_k` | left to right |
| equal scores of spans | by window, start rank, end rank; null last | the same | the same |
| integer or bfloat16 logits | TypeError when writing | computed in float32 | computed in float32 |
| offsets (-1, -1) | a span without text | outside the context | outside the context |
| a window's example is unknown | KeyError | ValueError with the ids | the same |
| `n_best_size`, `max_answer_length` < 1 | no spans | ValueError | ValueError |

Everything except the texts is computed on NumPy arrays.
"""

import logging
import os
from collections import Counter, OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_flax import messages, storage
from qa_flax.answers.files import ChunkAnswers, answer_files
from qa_flax.answers.spans import (
    PADDING_LOGIT,
    Candidates,
    Chunk,
    Logits,
    SearchSettings,
    make_searches,
)
from qa_flax.answers.written import WrittenAnswers, note_answers
from qa_flax.data.tables import ExampleRows, FeatureRows, example_source, span_source
from qa_flax.messages import first_few, quoted
from qa_flax.ranges import NUMBER, at_least

logger = messages.logger(__name__)


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
    save_spans: bool = False,
) -> "OrderedDict[Any, str]":
    """Turn the logits of all windows into one answer per example; optionally write HF's files.

    Args:
        examples: rows with the columns `id` and `context`.
        features: N windows in any order: `Windows`, or rows with the columns `example_id` and
            `offset_mapping` (None, [] or (-1, -1) outside the context; rows may be shorter than
            the logits). Optional columns: `token_is_max_context`, {"token": bool}: an answer may
            start only at tokens that are True; `cls_index`: the position of the CLS token, used
            with `hf_compatible=False`.
        predictions: start logits and end logits, two arrays [N, L], or `Candidates`. float16,
            float32 and float64 are computed in their own dtype, all others in float32.
        version_2_with_negative: questions may have no answer (SQuAD v2.0): the empty answer
            competes with the spans.
        n_best_size: number of starts and of ends that are combined in each window, and of spans
            in an example's n-best list.
        max_answer_length: length of the longest span, in tokens.
        null_score_diff_threshold: the answer is "" if the null score (the sum of the null
            prediction's two logits) exceeds the best span's score by more than this.
        output_dir: an existing folder. `predictions.json`, `nbest_predictions.json` and, in v2,
            `null_odds.json` are written there, all or none of them. None: no files.
        prefix: prepends `{prefix}_` to the file names.
        log_level: level of this module's logger.
        is_world_process_zero: whether this is the main process, an argument of older versions of
            Hugging Face's function. If False, the log level is at least WARNING and no files are
            written; Hugging Face's function writes them in every process.
        hf_compatible: reproduce the defects of Hugging Face's function, listed in the docstring
            of this module.
        save_spans: also write `spans.json`, the n-best lists as `{"text", "start", "end", "score"}`
            by id: `context[start:end]` is the text, in code points; the score is the probability.

    Returns:
        The answer to each example by id, in the order of `examples`.

    Raises:
        ValueError: the number of windows, a shape, a column or an id does not match the others,
            `n_best_size` or `max_answer_length` is below 1, or `save_spans` has no `output_dir`.
        OSError: `output_dir` is not a folder.

    Example:
        >>> import numpy as np
        >>> from qa_flax import postprocess_qa_predictions
        >>> examples = [{"id": "q0", "context": "Paris is big"}]
        >>> offsets = [None, (0, 5), (6, 8), (9, 12), None]  # [CLS] paris is big [SEP]
        >>> features = [{"example_id": "q0", "offset_mapping": offsets}]
        >>> start_logits = np.array([[0.0, 3.0, 1.0, 0.5, -1.0]])
        >>> end_logits = np.array([[0.0, 4.0, 1.0, 0.5, -1.0]])
        >>> postprocess_qa_predictions(examples, features, (start_logits, end_logits))["q0"]
        'Paris'
    """
    _check_save_spans(save_spans, output_dir)
    return find_answers(
        examples,
        features,
        predictions,
        SearchSettings(version_2_with_negative, n_best_size, max_answer_length, hf_compatible),
        null_score_diff_threshold,
        output_dir=output_dir if is_world_process_zero else None,
        save_spans=save_spans and is_world_process_zero,
        prefix=prefix,
        log_level=log_level if is_world_process_zero else max(log_level, logging.WARNING),
    ).texts


class Answers(NamedTuple):
    """The answers to all examples by id, in the order of the examples."""

    texts: "OrderedDict[Any, str]"
    """The answer; "" if the null prediction won."""

    best_texts: dict[Any, str]
    """v2: the text of the best span, even if the null prediction won. v1: empty."""

    null_odds: dict[Any, float]
    """v2: the null score minus the best span's score; high means no answer. v1: empty."""


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
    save_spans: bool = False,
) -> Answers:
    """Do the work of `postprocess_qa_predictions`; also return the best texts and null odds.

    Arguments and errors are those of `postprocess_qa_predictions`.
    """
    logger.setLevel(log_level)
    _check_arguments(settings, null_score_diff_threshold, output_dir)
    _check_save_spans(save_spans, output_dir)
    windows, example_table = span_source(features), example_source(examples)
    predictions = _check_predictions(predictions, len(windows), settings)
    ids = example_table.ids()
    if not settings.hf_compatible:
        _check_distinct(ids)
    logger.info(
        "Post-processing %d example predictions split into %d features.", len(ids), len(windows)
    )
    answers, missing = Answers(OrderedDict(), {}, {}), []
    with ExitStack() as stack:
        stack.enter_context(np.errstate(invalid="ignore", over="ignore"))
        write = None
        if output_dir is not None:
            folder = stack.enter_context(storage.output_folder(output_dir))
            chosen = settings._asdict() | {"save_spans": save_spans}
            arguments = [name for name, is_set in chosen.items() if is_set]
            write = stack.enter_context(answer_files(folder, prefix, arguments))
        for search in make_searches(ids, windows, predictions, settings):
            missing += [ids[row] for row in search.without_windows().tolist()]
            contexts = example_table.contexts(search.examples)
            keys = [ids[row] for row in search.examples.tolist()]
            chunk = _without_nan(search.n_best() if write else search.best(), settings)
            chunk_answers = _choose(chunk, contexts, settings, null_score_diff_threshold)
            if not write and chunk_answers.has_blank:
                # A best span has no text, so a later span of the n-best list may be the answer.
                chunk = _without_nan(search.n_best(), settings)
                chunk_answers = _choose(chunk, contexts, settings, null_score_diff_threshold)
            answers.texts.update(zip(keys, chunk_answers.texts, strict=True))
            if chunk_answers.null_odds is not None:
                answers.best_texts.update(zip(keys, chunk_answers.best_texts, strict=True))
                answers.null_odds.update(zip(keys, chunk_answers.null_odds, strict=True))
            if write:
                write(keys, chunk, contexts, chunk_answers)
    if missing:
        logger.warning(
            "%d of %d examples have no features, so they have no prediction and count as wrong if "
            "they have an answer: ids %s. Pass the examples that the features were made from.",
            len(missing),
            len(ids),
            first_few(missing, quoted),
        )
    if output_dir is not None:
        chosen = settings._asdict() | {"null_score_diff_threshold": null_score_diff_threshold}
        note_answers(WrittenAnswers(output_dir, prefix or "", chosen, answers.texts, features))
    return answers


# ------------------------------------------------------------------------------------ answers


def _without_nan(chunk: Chunk, settings: SearchSettings) -> Chunk:
    """Remove the spans of examples that have no finite logits: their order means nothing.

    Their answers are "". Nothing is removed with `hf_compatible`.
    """
    spans = chunk.spans
    is_replaced = (spans.start_logits == PADDING_LOGIT) & (spans.end_logits == PADDING_LOGIT)
    if settings.hf_compatible or not is_replaced.any():
        return chunk
    counts = np.diff(chunk.bounds)
    has_logits = np.bincount(spans.owner[~is_replaced], minlength=len(counts)) > 0
    bounds = np.concatenate([[0], np.cumsum(np.where(has_logits, counts, 0))])
    return chunk._replace(spans=spans.take(has_logits[spans.owner]), bounds=bounds)


def _choose(
    chunk: Chunk, contexts: list[str], settings: SearchSettings, threshold: float
) -> ChunkAnswers:
    """Choose the answers: the first span with a text, or "" where the null prediction wins (v2).

    With `hf_compatible`, v1 chooses the first span even if it has no text, and the answer is
    "empty" where Hugging Face inserts its placeholder.
    """
    spans, counts = chunk.spans, np.diff(chunk.bounds)
    lengths = np.fromiter(map(len, contexts), np.int64, len(contexts))
    has_text = spans.chars[:, 0] < np.minimum(spans.chars[:, 1], lengths[spans.owner])
    nulls = int(settings.version_2_with_negative)
    has_blank = bool((np.bincount(spans.owner[~has_text], minlength=1) > nulls).any())
    best = _first_of_examples(chunk, has_text)
    texts = _texts(chunk, contexts, best)
    has_placeholder = np.zeros(len(counts), bool)
    if settings.hf_compatible:
        first = chunk.bounds[:-1]
        has_placeholder = counts == 0
        has_placeholder[counts == 1] = ~has_text[first[counts == 1]]
        if not settings.version_2_with_negative:
            texts = _texts(chunk, contexts, np.where(counts > 0, first, -1))
        for i in np.flatnonzero(has_placeholder):
            texts[i] = "empty"
    else:
        texts = [text.strip() for text in texts]
        for i in np.flatnonzero(best >= 0):
            if not texts[i]:  # only whitespace
                has_blank = True
                best[i], texts[i] = _first_not_blank(chunk, contexts[i], int(i))
    strip = not settings.hf_compatible
    if not settings.version_2_with_negative:
        return ChunkAnswers(texts, texts, None, has_placeholder, strip, has_blank)
    odds = _null_odds(chunk, best, has_placeholder, settings)
    is_null = (odds > threshold) | ((best < 0) & ~has_placeholder)
    answers = ["" if null else text for null, text in zip(is_null.tolist(), texts, strict=True)]
    return ChunkAnswers(answers, texts, odds.tolist(), has_placeholder, strip, has_blank)


def _null_odds(
    chunk: Chunk, best: np.ndarray, has_placeholder: np.ndarray, settings: SearchSettings
) -> np.ndarray:
    """Return the null score minus the score of the best span with a text, for each example [E]."""
    counts = np.diff(chunk.bounds)
    rows = np.where(best < 0, chunk.bounds[:-1], best)
    logits = np.zeros((2, len(rows)), chunk.spans.scores.dtype)
    is_real = (counts > 0) & ~has_placeholder  # the placeholder's logits are 0
    real_rows = rows[is_real]
    logits[:, is_real] = chunk.spans.start_logits[real_rows], chunk.spans.end_logits[real_rows]
    # Two subtractions, as in Hugging Face's code: their order decides the last digit.
    odds = (chunk.null_scores - logits[0]) - logits[1]
    if not settings.hf_compatible:
        odds[best < 0] = np.finfo(odds.dtype).max  # no span has a text
    return odds


def _first_of_examples(chunk: Chunk, selected: np.ndarray) -> np.ndarray:
    """Return the row of each example's first selected span [E], -1 if there is none."""
    first = np.full(len(chunk.examples), -1)
    rows = np.flatnonzero(selected)[::-1]
    first[chunk.spans.owner[rows]] = rows  # reversed, so that the first span is written last
    return first


def _first_not_blank(chunk: Chunk, context: str, example: int) -> tuple[int, str]:
    """Return the row and text of an example's first span that is not blank, else -1 and ""."""
    for row in range(*chunk.bounds[example : example + 2].tolist()):
        first, last = chunk.spans.chars[row].tolist()
        if text := context[first:last].strip():
            return row, text
    return -1, ""


def _texts(chunk: Chunk, contexts: list[str], rows: np.ndarray) -> list[str]:
    """Return the text of one span per example, given its row [E]; "" where the row is -1."""
    chars = np.zeros((len(contexts), 2), np.int64)
    chars[rows >= 0] = chunk.spans.chars[rows[rows >= 0]]
    return [text[a:b] for text, (a, b) in zip(contexts, chars.tolist(), strict=True)]


# ------------------------------------------------------------------------------------- checks


_RANGES = {
    "n_best_size": at_least(1),
    "max_answer_length": at_least(1),
    # Infinity: every question is answered.
    "null_score_diff_threshold": NUMBER,
}


def _check_arguments(
    settings: SearchSettings, threshold: float, output_dir: str | os.PathLike | None
) -> None:
    values = settings._asdict() | {"null_score_diff_threshold": threshold}
    for name, range_ in _RANGES.items():
        if not range_.contains(values[name]):
            raise ValueError(f"{name} is {values[name]!r}; it must be {range_.allowed}")
    if output_dir is None or storage.is_remote(output_dir):
        return  # a bucket has no empty folders: writing a file creates its folder
    if not Path(output_dir).is_dir():
        raise OSError(f"output_dir {str(output_dir)!r} is not a folder: create it first")


def _check_save_spans(save_spans: bool, output_dir: str | os.PathLike | None) -> None:
    if save_spans and output_dir is None:
        raise ValueError(
            "save_spans=True writes spans.json, but output_dir is None; give output_dir a folder, "
            "or leave save_spans out"
        )


def _check_distinct(ids: list) -> None:
    repeated = [id_ for id_, count in Counter(map(str, ids)).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} ids are shared by several of the {len(ids)} examples "
            f"(first: {first_few(repeated)}): give each example a unique id"
        )


def _check_predictions(
    predictions: Any, windows: int, settings: SearchSettings
) -> Logits | Candidates:
    """Return `predictions` as `Candidates`, or as start and end logits [N, L] of one dtype.

    Raises:
        ValueError: they do not fit N windows or the settings.
    """
    if isinstance(predictions, Candidates):
        checked, count = predictions, len(predictions)
        gathered = predictions.tokens.starts.shape[1]
        if gathered < min(settings.n_best_size, predictions.padded_length):
            raise ValueError(
                f"n_best_size is {settings.n_best_size}, but only the {gathered} best starts and "
                "ends of each window were gathered from the device: reduce n_best_size, or gather "
                "more candidates or all logits"
            )
    else:
        checked = _logits(predictions)
        count = len(checked[0])
    if count != windows:
        raise ValueError(
            f"predictions hold the logits of {count} windows, but there are {windows} "
            "features: pass all features that the predictions were computed from, and no others"
        )
    return checked


def _logits(predictions: Any) -> Logits:
    """Return start and end logits [N, L] of one float dtype.

    Raises:
        ValueError: there are not two arrays, or their shapes are not the same [N, L].
    """
    if len(predictions) != 2:
        raise ValueError(
            f"predictions has {len(predictions)} parts; pass a pair (start_logits, end_logits)"
        )
    arrays = [np.asarray(part) for part in predictions]
    supported = (np.float16, np.float32, np.float64)
    starts, ends = (a if a.dtype in supported else a.astype(np.float32) for a in arrays)
    if starts.shape != ends.shape or starts.ndim != 2:
        raise ValueError(
            f"start logits have shape {starts.shape} and end logits {ends.shape}; both must be "
            "[windows, tokens]: pass the model's logits for all windows"
        )
    dtype = np.result_type(starts, ends)
    return starts.astype(dtype, copy=False), ends.astype(dtype, copy=False)
