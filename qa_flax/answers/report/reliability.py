"""How often answers of each confidence are right (host, NumPy). Dimensions: E questions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qa_flax.answers.confidence import BINS, coverage, expected_calibration_error


class Reliability(NamedTuple):
    """A reliability diagram with 10 bins of equal width, and what it amounts to."""

    counts: Int[np.ndarray, " 10"]
    confidence: Float[np.ndarray, " 10"]
    """The mean confidence in each bin; NaN without questions."""
    accuracy: Float[np.ndarray, " 10"]
    """The share of right answers in each bin; NaN without questions."""
    ece: float
    """The expected calibration error, from 0 to 1."""
    coverage_at_80: float
    """The largest share of questions, from the most confident on, with at least 80% right."""


def reliability(confidence: Float[np.ndarray, " e"], right: Bool[np.ndarray, " e"]) -> Reliability:
    """Return the reliability diagram of E answers (DeGroot and Fienberg, 1983).

    Args:
        confidence: the probability of each answer, from 0 to 1.
        right: whether it is right.

    Raises:
        ValueError: there are no questions.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.report.reliability import reliability
        >>> diagram = reliability(np.array([0.9, 0.85, 0.3]), np.array([True, False, False]))
        >>> diagram.counts.tolist(), round(diagram.ece, 3)
        ([0, 0, 1, 0, 0, 0, 0, 0, 2, 0], 0.35)
    """
    ece = expected_calibration_error(confidence, right)
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, weights=confidence, minlength=BINS) / counts
        accuracy = np.bincount(bins, weights=right.astype(float), minlength=BINS) / counts
    return Reliability(counts, mean, accuracy, ece, coverage(confidence, right).share)
