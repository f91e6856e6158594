"""Stage 6 of 7: logits -> how unlikely the labelled answer of each question is (host, NumPy).

A question's spans are those of all its windows. Their probabilities are a softmax over the sum of
the start's and the end's logit, as if they were of one window; the model chooses between the
windows by the same scores. Where questions may have no answer, "no answer" takes part, with the
smallest score of the windows, as in SQuAD 2.0. The suspicion is minus the logarithm of the label's
probability. Of the measures that were tried it found most of the labels that were moved at random,
`tests/benchmarks/label_check.py`; the expected overlap of the model's answer with the label, for
example, found far fewer, because a weak model spreads its probability over long spans.

Dimensions: W windows of a question, C tokens of a context, S spans.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qa_flax.answers.spans import Logits, null_positions
from qa_flax.answers.window_spans import WindowLogits, window_logits
from qa_flax.data.labels import UNKNOWN_PLACE, answer_span
from qa_flax.data.windows import LazyWindows

HIGHEST = 100.0
"""The highest suspicion, also of an answer whose text does not occur in the context."""
LATER_MARGIN = 3.0
"""Later answers of a question are not trained on, and those of several annotators differ. So one of
them counts only if its suspicion is higher than the first's by more than this."""


class Label(NamedTuple):
    """What the model thinks of one labelled answer."""

    span: tuple[int, int] | None
    """Its part [start, end) of the context, in code points; None: its text does not occur there."""
    suspicion: float
    """Minus the natural logarithm of the probability, from 0 to `HIGHEST`."""
    probability: float
    """Of the span, or of the one that comes nearest to it, from 0 to 1."""
    is_reachable: bool
    """Whether the model may answer the whole span: False if it is too long, or in no window."""


class Judgement(NamedTuple):
    """What the model thinks of the labels of one question."""

    suspicion: float
    """That of the label `worst`; of a question without an answer, that there is none."""
    labels: list[Label]
    """Of each answer, in their order; [] for a question without an answer."""
    worst: int | None
    """The number of the most suspicious label; None: the question has no answer."""
    prediction: tuple[int, int] | None
    """The part of the context that the model answers; None: it gives no answer."""
    probability: float
    """Of the prediction, from 0 to 1."""
    null_probability: float | None
    """Of "no answer"; None where every question has one."""


def judge_labels(
    examples: Sequence[Mapping[str, Any]],
    windows: LazyWindows,
    logits: Logits,
    *,
    max_answer_length: int,
    has_null: bool,
    misaligned: str = "drop",
) -> list[Judgement]:
    """Judge the labels of E questions.

    Args:
        examples: rows with `context` and `answers`, a result of `load_examples`.
        windows: their N windows, in the order of the examples.
        logits: of starts and ends, float32 [N, L] each.
        max_answer_length: the longest span that the model may answer, in tokens.
        has_null: whether questions may have no answer.
        misaligned: see `load_examples`: where an answer is that is not at its `answer_start`.

    Raises:
        FloatingPointError: a logit of a token is NaN or infinite.
    """
    nulls = np.broadcast_to(null_positions(windows.cls_index, False), len(windows))
    selected = window_logits(windows, logits, nulls)
    are_finite = np.isfinite(selected.starts) & np.isfinite(selected.ends) | ~selected.in_context
    is_finite = are_finite.all(axis=1)
    if has_null:
        is_finite &= np.isfinite(selected.null_starts) & np.isfinite(selected.null_ends)
    if not is_finite.all():
        raise FloatingPointError(
            f"the logits of {int((~is_finite).sum())} of {len(windows)} windows are NaN "
            "or infinite, so nothing can be said about their questions. Lower the learning rate, "
            "and look for NaN in the model's parameters"
        )
    offsets = _offsets(windows, selected.in_context)
    return [
        _judge(row, WindowLogits(*(part[rows] for part in selected)), offsets[rows], **settings)
        for row, rows in zip(examples, _rows(windows, len(examples)), strict=True)
        for settings in [
            {"longest": max_answer_length, "has_null": has_null, "misaligned": misaligned}
        ]
    ]


def _rows(windows: LazyWindows, examples: int) -> Iterator[slice]:
    """Yield the windows of each example."""
    bounds = np.searchsorted(windows.slices.example, np.arange(examples + 1))
    return (slice(first, last) for first, last in itertools.pairwise(bounds.tolist()))


def _offsets(windows: LazyWindows, in_context: Bool[np.ndarray, "n c"]) -> np.ndarray:
    """Return the characters [N, C, 2] of the context's tokens, counted from its first token."""
    tokens = windows.contexts.first[windows.slices.example] + windows.slices.start
    places = tokens[:, None] + np.arange(in_context.shape[1])
    offsets = np.zeros((*in_context.shape, 2), np.int64)
    offsets[in_context] = windows.contexts.offsets[places[in_context]]
    return offsets


def _judge(
    row: Mapping[str, Any],
    logits: WindowLogits,
    offsets: Int[np.ndarray, "w c 2"],
    longest: int,
    has_null: bool,
    misaligned: str,
) -> Judgement:
    spans, scores = _all_spans(logits, offsets, longest)
    nulls = logits.null_starts.astype(np.float64) + logits.null_ends
    null = float(nulls.min()) if has_null else -np.inf
    logs = scores - np.logaddexp(null, np.logaddexp.reduce(scores, initial=-np.inf))
    null_log = null - np.logaddexp(null, np.logaddexp.reduce(scores, initial=-np.inf))
    labels = [_label(place, spans, logs) for place in _places(row, misaligned=misaligned)]
    counted = [label.suspicion - (LATER_MARGIN if n else 0.0) for n, label in enumerate(labels)]
    worst = int(np.argmax(counted)) if labels else None
    prediction, log = None, null_log
    if len(scores) and scores.max() >= null:
        best = spans[int(scores.argmax())]
        prediction = (int(best[0]), int(best[1]))
        log = np.logaddexp.reduce(logs[(spans == best).all(axis=1)])
    return Judgement(
        _suspicion(null_log) if worst is None else labels[worst].suspicion,
        labels,
        worst,
        prediction,
        min(float(np.exp(log)), 1.0),
        min(float(np.exp(null_log)), 1.0) if has_null else None,
    )


def _suspicion(log: float) -> float:
    return float(min(max(-log, 0.0), HIGHEST))


def _all_spans(
    logits: WindowLogits, offsets: Int[np.ndarray, "w c 2"], longest: int
) -> tuple[Int[np.ndarray, "s 2"], Float[np.ndarray, " s"]]:
    """Return the characters and the score of every span of up to `longest` tokens."""
    width = logits.starts.shape[1]
    spans, scores = [], []
    for shift in range(min(longest, width)):
        is_span = logits.in_context[:, : width - shift] & logits.in_context[:, shift:]
        starts = logits.starts[:, : width - shift].astype(np.float64)
        scores.append((starts + logits.ends[:, shift:])[is_span])
        begin, end = offsets[:, : width - shift, 0], offsets[:, shift:, 1]
        spans.append(np.stack([begin[is_span], end[is_span]], axis=1))
    if not scores:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    return np.concatenate(spans), np.concatenate(scores)


def _places(row: Mapping[str, Any], *, misaligned: str) -> list[tuple[int, int] | None]:
    """Return the part of the context of each answer; None: its text does not occur there."""
    answers = row["answers"]
    places = [
        answer_span(
            row["context"], {"text": [text], "answer_start": [start]}, misaligned=misaligned
        )
        for text, start in zip(answers["text"], answers["answer_start"], strict=True)
    ]
    return [None if place == UNKNOWN_PLACE else place for place in places]


def _label(
    place: tuple[int, int] | None,
    spans: Int[np.ndarray, "s 2"],
    logs: Float[np.ndarray, " s"],
) -> Label:
    """Judge one label by the span itself.

    A label may be longer than any span, or end within a token. Then it is judged by the spans that
    overlap with it most (F1 of the characters).
    """
    if place is None or not len(spans):
        return Label(place, HIGHEST, 0.0, is_reachable=False)
    begin, end = place
    common = np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], begin)
    lengths = np.diff(spans, axis=1)[:, 0] + (end - begin)
    overlap = 2.0 * np.maximum(common, 0) / np.maximum(lengths, 1)
    nearest = float(overlap.max())
    if not nearest:
        return Label(place, HIGHEST, 0.0, is_reachable=False)
    log = float(np.logaddexp.reduce(logs[overlap == nearest]))
    covers = ((spans[:, 0] <= begin) & (spans[:, 1] >= end)).any()
    return Label(place, _suspicion(log), min(float(np.exp(log)), 1.0), bool(covers))
