"""What is returned for a question: a dict for each answer, best first (host)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qa_flax.answering.questions import Question
from qa_flax.answering.settings import Settings
from qa_flax.answers.calibration import Calibration
from qa_flax.answers.confidence import AnswerScores, confidences
from qa_flax.answers.ranking import Candidate, competing_logits


class Answer(dict):
    """An answer: a dict with `score`, `start`, `end`, `answer`, and perhaps more.

    `confidence` is there if the model is calibrated, and with `answers` and `contexts`.
    """

    def __missing__(self, name: Any) -> Any:
        if name == "confidence":
            raise KeyError(
                "confidence: this model is not calibrated, so there is no confidence beside the "
                "score; fit one with qa-flax run --calibrate, or QuestionAnswerer.calibrate(...)"
            )
        raise KeyError(name)


@dataclass(frozen=True)
class Found:
    """What was found for a question in one context.

    Attributes:
        answers: the answers to show.
        competing: all distinct answers, among which confidence is divided; [] if nobody asks.
        null_score: the pipeline's score of "no answer": its smallest probability in a window;
            infinity if no window has finite logits.
        null_logit: the smallest sum of the CLS token's logits.
    """

    answers: list[Candidate]
    competing: list[Candidate]
    null_score: float
    null_logit: float


def needs_confidence(
    question: Question, settings: Settings, calibration: Calibration | None
) -> bool:
    """Whether answers have a confidence, which all competing answers are needed for."""
    return calibration is not None or question.names is not None or settings.answers is not None


def result(
    question: Question, found: list[Found], settings: Settings, calibration: Calibration | None
) -> Any:
    """Return a question's answers: a dict, or a list of dicts if there are several or none.

    Args:
        question: the question.
        found: what was found in each of its contexts.
        settings: how many answers to return, and which.
        calibration: of the model; None: it is not calibrated.
    """
    has_several = question.names is not None
    names: tuple[Any, ...] = (None,) if question.names is None else question.names
    shows_confidence = needs_confidence(question, settings, calibration)
    scales, null_confidence = [None] * len(found), 0.0
    if shows_confidence:
        scales, null_confidence = _confidences(found, settings, calibration or Calibration())
    by_confidence = has_several or settings.answers is not None
    key = "confidence" if by_confidence else "score"
    answers = []
    for name, in_context, scale in zip(names, found, scales, strict=True):
        candidates = in_context.answers
        if not by_confidence:
            best_first = sorted(candidates, key=lambda candidate: candidate.score, reverse=True)
            candidates = best_first[: settings.top_k]
        for candidate in candidates:
            answer = Answer(
                score=candidate.score,
                start=candidate.start,
                end=candidate.end,
                answer=candidate.text,
            )
            if scale is not None:
                answer["confidence"] = scale(candidate.logit)
            if has_several:
                answer["context"] = name
            answers.append(answer)
    answers.sort(key=lambda answer: answer[key], reverse=True)
    if settings.handle_impossible_answer:
        null = _no_answer(found, has_several)
        if null is not None:
            if shows_confidence:
                null["confidence"] = null_confidence
            _insert(null, answers, found, settings, calibration, key)
    return _selected(answers, settings)


def _no_answer(found: list[Found], has_several: bool) -> Answer | None:
    score = min(in_context.null_score for in_context in found)
    if not np.isfinite(score):
        return None
    null = Answer(score=score, start=0, end=0, answer="")
    return Answer(null, context=None) if has_several else null


def _insert(
    null: Answer,
    answers: list[Answer],
    found: list[Found],
    settings: Settings,
    calibration: Calibration | None,
    key: str,
) -> None:
    """Insert "no answer" where it belongs among the sorted answers.

    The pipeline orders it by score. If a no-answer threshold was fitted, that decides whether it is
    the first answer.
    """
    place = sum(answer[key] >= null[key] for answer in answers)
    if key == "score" and calibration is not None and calibration.no_answer_threshold is not None:
        best = max((c.logit for f in found for c in f.competing), default=-np.inf)
        odds = min(in_context.null_logit for in_context in found) - best
        place = 0 if odds > calibration.no_answer_threshold else max(1, place)
    if settings.answers is None:
        answers.insert(place, null)
    elif place == 0:  # the question has no answer, so there are no separate ones
        answers[:] = [null]


def _selected(answers: list[Answer], settings: Settings) -> Any:
    if settings.answers is not None:
        kept = [answer for answer in answers if answer["confidence"] >= settings.threshold]
        return kept[: settings.answers]
    answers = answers[: settings.top_k]
    return answers[0] if len(answers) == 1 else answers


# ---- confidence ----------------------------------------------------------------------------------


class _Scale:
    """Turns logits into confidences, given how much all competing answers have."""

    def __init__(
        self, logits: list[float], null_logit: float, calibration: Calibration, null: bool
    ):
        scores = np.array([logits or [-np.inf]])
        shares = confidences(
            AnswerScores(scores, np.array([null_logit])), calibration, has_null=null
        )
        self._best, self._share = max(logits, default=0.0), float(shares[0, 0])
        self._temperature = calibration.temperature
        self.null = float(shares[0, -1])

    def __call__(self, logit: float) -> float:
        # An answer that is not among the best of all windows may be the best of one.
        return self._share * float(np.exp((logit - self._best) / self._temperature))


def _confidences(
    found: list[Found], settings: Settings, calibration: Calibration
) -> tuple[list[_Scale], float]:
    """Return the scale of each context, and the confidence that there is no answer."""
    has_null = settings.handle_impossible_answer
    logits = [competing_logits(in_context.competing) for in_context in found]
    nulls = [in_context.null_logit for in_context in found]
    if settings.normalize == "each":
        scales = [
            _Scale(own, null, calibration, has_null)
            for own, null in zip(logits, nulls, strict=True)
        ]
        return scales, min(scale.null for scale in scales)
    every = sorted((logit for own in logits for logit in own), reverse=True)
    scale = _Scale(every, min(nulls), calibration, has_null)
    return [scale] * len(found), scale.null
