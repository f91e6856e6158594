"""Stage 6 of 7: the scores of a question's answers -> how sure the model is of each (host, NumPy).

The distinct answers to a question compete in a softmax. What the result is worth is measured by
the expected calibration error and by coverage.

Dimensions: E questions, C distinct answers to each, D = C + 1 decisions: these and "no answer".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from qa_flax.answers.calibration import Calibration

BINS = 10


class AnswerScores(NamedTuple):
    """The scores of the distinct answers to E questions."""

    scores: Float[np.ndarray, "e c"]
    """The start plus end logit of each distinct answer, best first; -inf: there are no more."""

    null_scores: Float[np.ndarray, " e"]
    """The CLS token's start plus end logit, the smallest of the question's windows."""


def confidences(
    answers: AnswerScores, calibration: Calibration, has_null: bool
) -> Float[np.ndarray, "e d"]:
    """Return how probable it is that each answer is right.

    This is the softmax of the scores divided by the temperature (Guo et al., 2017,
    arXiv:1706.04599, section 4.2). "No answer" competes with the null score minus the no-answer
    threshold, so that it has the largest confidence exactly where the null score exceeds the best
    score by more than the threshold.

    Args:
        answers: the scores of E questions. A score that is not finite is no answer.
        calibration: temperature and no-answer threshold.
        has_null: whether "no answer" may be given. It also competes if the calibration has a
            threshold, that is, if it was fitted on questions some of which have no answer. A
            threshold of None counts as 0.

    Returns:
        float64 [e, d]; the last column is that of "no answer", 0 if it does not compete. Rows sum
        to 1, or to 0 if nothing competes.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.calibration import Calibration
        >>> from qa_flax.answers.confidence import AnswerScores, confidences
        >>> answers = AnswerScores(np.log([[6.0, 2.0]]), np.log([2.0]))
        >>> confidences(answers, Calibration(), has_null=True).round(3).tolist()
        [[0.6, 0.2, 0.2]]
        >>> confidences(answers, Calibration(), has_null=False).round(3).tolist()
        [[0.75, 0.25, 0.0]]
    """
    scores = competing_scores(answers, calibration.no_answer_threshold, has_null)
    best = np.max(scores, axis=1, keepdims=True)
    is_empty = np.isneginf(best)
    shares = np.exp((scores - np.where(is_empty, 0.0, best)) / calibration.temperature)
    return shares / np.where(is_empty, 1.0, shares.sum(axis=1, keepdims=True))


def competing_scores(
    answers: AnswerScores, threshold: float | None, has_null: bool
) -> Float[np.ndarray, "e d"]:
    """Return the scores that compete in the softmax, as float64, before the temperature.

    The last column is that of "no answer". -inf: there is none.
    """
    null = np.full((len(answers.null_scores), 1), -np.inf)
    if has_null or threshold is not None:
        null[:, 0] = answers.null_scores.astype(np.float64) - (threshold or 0.0)
    scores = np.concatenate([answers.scores.astype(np.float64), null], axis=1)
    return np.where(np.isfinite(scores), scores, -np.inf)


def expected_calibration_error(
    confidence: Float[np.ndarray, " e"], right: Bool[np.ndarray, " e"]
) -> float:
    """Return by how much confidence and accuracy differ, on average over the questions.

    The questions are put into 10 bins of equal width, (0, 0.1], (0.1, 0.2] and so on, by the
    confidence in their top answer. The error is the mean over the bins of the absolute difference
    between a bin's accuracy and its mean confidence, weighted by its number of questions (Naeini,
    Cooper and Hauskrecht, AAAI 2015; equation 3 of Guo et al., 2017, arXiv:1706.04599).

    Args:
        confidence: the confidence in the top answer to each of E questions, from 0 to 1.
        right: whether it is right.

    Raises:
        ValueError: there are no questions.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.confidence import expected_calibration_error
        >>> confidence = np.array([0.9, 0.85, 0.3, 0.3])
        >>> right = np.array([True, False, False, False])
        >>> round(expected_calibration_error(confidence, right), 4)  # (0.75 + 0.6) / 4
        0.3375
    """
    _check_questions(len(confidence))
    edges = np.arange(1, BINS) / BINS
    bins = np.searchsorted(edges, confidence, side="left")
    differences = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(differences).sum() / len(confidence))


class Coverage(NamedTuple):
    """How many questions can be answered if a given share of the answers must be right."""

    share: float
    """The share of questions, from 0 to 1."""

    lowest_confidence: float | None
    """The lowest confidence among them; None if there are none."""


def coverage(
    confidence: Float[np.ndarray, " e"], right: Bool[np.ndarray, " e"], accuracy: float = 0.8
) -> Coverage:
    """Return the largest share of questions that can be answered with at least `accuracy` right.

    Questions are answered from the most confident on (the risk-coverage trade-off of El-Yaniv and
    Wiener, JMLR 2010, read at one risk). Of questions with equal confidence all are answered or
    none, because no threshold separates them.

    Args:
        confidence: the confidence in the top answer to each of E questions.
        right: whether it is right.
        accuracy: the share of answers that must be right, above 0 and up to 1.

    Raises:
        ValueError: there are no questions.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.confidence import coverage
        >>> confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
        >>> right = np.array([True, True, False, True, True, False])
        >>> coverage(confidence, right)
        Coverage(share=0.8333333333333334, lowest_confidence=0.5)
    """
    _check_questions(len(confidence))
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    counts = np.arange(1, len(order) + 1)
    is_last = np.append(ordered[1:] < ordered[:-1], True)
    # The tolerance is for shares such as 0.8, which is not exact.
    is_enough = np.cumsum(right[order]) >= accuracy * counts - 1e-9
    rows = np.flatnonzero(is_last & is_enough)
    if not len(rows):
        return Coverage(0.0, None)
    return Coverage(float(counts[rows[-1]] / len(order)), float(ordered[rows[-1]]))


def _check_questions(count: int) -> None:
    if not count:
        raise ValueError("there are no questions to measure on; pass at least one")
