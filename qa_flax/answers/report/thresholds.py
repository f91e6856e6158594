"""Scores at every no-answer threshold, from the null odds (host, NumPy).

At a threshold t the answer to a question is "" if its null odds exceed t, and its best span
otherwise, as `postprocess_qa_predictions` decides. Dimensions: E questions, T thresholds.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

MOST_POINTS = 400


class Curve(NamedTuple):
    """Mean exact match and F1 in percent at T thresholds, and the best of all thresholds."""

    thresholds: Float[np.ndarray, " t"]
    exact: Float[np.ndarray, " t"]
    f1: Float[np.ndarray, " t"]
    at_used: tuple[float, float]
    """Exact match and F1 at the threshold of the evaluation."""
    best_exact: tuple[float, float]
    """The threshold with the highest exact match, and that."""
    best_f1: tuple[float, float]
    """The threshold with the highest F1, and that."""


def threshold_curve(
    odds: Float[np.ndarray, " e"],
    scores: Float[np.ndarray, "e 2"],
    has_answer: Bool[np.ndarray, " e"],
    used: float,
) -> Curve:
    """Return the scores by threshold.

    Args:
        odds: the null odds of each question; higher means no answer.
        scores: exact match and F1 (0 to 1) of each question's best span.
        has_answer: whether the question has an answer; if not, "" is right.
        used: the threshold of the evaluation.

    Returns:
        At most about 400 thresholds, in ascending order, evenly spread over the questions. The
        best thresholds are searched among all, in the middle between the null odds that they
        separate, and of several equal ones nearest to `used`.

    Raises:
        ValueError: there are no questions.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.report.thresholds import threshold_curve
        >>> curve = threshold_curve(np.array([-2.0, 1.0, 3.0]),
        ...     np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), np.array([True, True, False]), 0.0)
        >>> curve.best_f1, round(curve.at_used[1], 1)
        ((2.0, 100.0), 66.7)
    """
    if not len(odds):
        raise ValueError("there are no questions to choose a threshold for; pass at least one")
    order = np.argsort(odds, kind="stable")
    ordered = odds[order]
    empty = (~has_answer[order]).astype(np.float64)
    # Row n: the n questions with the lowest odds are answered.
    answered = np.concatenate([np.zeros((1, 2)), np.cumsum(scores[order], axis=0)])
    left_empty = np.append(empty[::-1].cumsum()[::-1], 0.0)
    means = 100.0 * (answered + left_empty[:, None]) / len(odds)
    is_place = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    places = np.flatnonzero(is_place)
    thresholds = _between(ordered, places)
    means = means[places]
    at = int(np.searchsorted(ordered, used, side="right"))
    row = int(np.flatnonzero(places == at)[0])

    def best(column: int) -> tuple[float, float]:
        highest = means[:, column].max()
        rows = np.flatnonzero(means[:, column] >= highest - 1e-9)
        nearest = row if row in rows else rows[np.argmin(np.abs(thresholds[rows] - used))]
        return (used if nearest == row else float(thresholds[nearest])), float(highest)

    shown = np.unique(np.linspace(0, len(places) - 1, MOST_POINTS).astype(int))
    used_scores = float(means[row, 0]), float(means[row, 1])
    exact, f1 = means[shown].T
    return Curve(thresholds[shown], exact, f1, used_scores, best(0), best(1))


def _between(ordered: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return a threshold for each number of answered questions [T]."""
    span = ordered[-1] - ordered[0]
    margin = 0.02 * span if 0 < span < np.inf else 1.0
    low = np.concatenate([[ordered[0] - 2 * margin], ordered])[places]
    high = np.append(ordered, ordered[-1] + 2 * margin)[places]
    return low / 2 + high / 2
