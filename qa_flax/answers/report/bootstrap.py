"""Means with intervals by resampling contexts, for groups of questions (host, NumPy).

Questions about one context are right or wrong together, so that resampling single questions would
give intervals that are too narrow. The cluster bootstrap draws whole contexts instead (Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8): as many as there are, with
replacement. An interval has the central 95% of the resampled means (the percentile method, section
5.3.1).

Dimensions: E questions, G groups, M measures, B resamples.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

RESAMPLES = 1000
MIN_CLUSTERS = 5
"""The fewest contexts of a group that an interval is given for."""
LEVEL = 0.95
_AT_ONCE = 50  # resamples; their weights for 100,000 contexts take 40 MB


class Means(NamedTuple):
    """The mean of each measure in each group, with its interval."""

    values: Float[np.ndarray, "g m"]
    """NaN in a group without questions."""
    # NaN where there is no interval:
    low: Float[np.ndarray, "g m"]
    high: Float[np.ndarray, "g m"]
    p_values: Float[np.ndarray, "g m"]
    """How surprising the data were if the mean were 0, two-sided, at least 1/B: twice the smaller
    share of resampled means at or beyond 0."""


def means(
    measures: Float[np.ndarray, "e m"],
    members: Bool[np.ndarray, "e g"],
    clusters: Int[np.ndarray, " e"],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Means:
    """Return means with 95% intervals. All groups and measures have the same resamples.

    A group gets no interval if it has fewer than 5 contexts, of which resamples are too much alike,
    or if all its questions have the same value.

    Args:
        measures: the values of each question.
        members: which questions are in which groups.
        clusters: the number of each question's context, from 0. If there are fewer than 5 in all,
            single questions are resampled.
        seed: of the resampling.
        resamples: how many.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.report.bootstrap import means
        >>> right = np.array([[1.0], [1.0], [1.0], [0.0], [1.0], [1.0], [0.0], [1.0]])
        >>> contexts = np.array([0, 0, 1, 2, 2, 3, 4, 5])
        >>> result = means(right, np.ones((8, 1), bool), contexts)
        >>> float(result.values[0, 0]), float(result.high[0, 0])
        (0.75, 1.0)
    """
    if len(np.unique(clusters)) < MIN_CLUSTERS:
        clusters = np.arange(len(clusters))
    sums, counts = _cluster_sums(measures, members, clusters)
    groups, size = members.shape[1], sums.shape[1]
    shape = (groups, measures.shape[1])
    total = np.asarray(counts.sum(axis=1)).reshape(groups, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.asarray(sums.sum(axis=1)).reshape(shape) / total
        resampled = np.empty((resamples, *shape))
        rng = np.random.default_rng(seed)
        for first in range(0, resamples, _AT_ONCE):
            rows = resampled[first : first + _AT_ONCE]
            weights = _weights(rng, size, len(rows))
            numerators = (sums @ weights).T.reshape(len(rows), *shape)
            rows[:] = numerators / (counts @ weights).T[:, :, None]
    has_interval = np.asarray((counts > 0).sum(axis=1)).reshape(groups, 1) >= MIN_CLUSTERS
    return _summary(values, resampled, has_interval)


def _cluster_sums(
    measures: np.ndarray, members: np.ndarray, clusters: np.ndarray
) -> tuple[Any, Any]:
    """Return sparse sums of measures [G*M, C] and numbers of questions [G, C] by cluster."""
    size = int(clusters.max()) + 1 if len(clusters) else 0
    groups, kinds = members.shape[1], measures.shape[1]
    questions, group = np.nonzero(members)
    columns = clusters[questions]
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(group)), (group, columns)), shape=(groups, size), dtype=np.float64
    )
    rows = (group[:, None] * kinds + np.arange(kinds)).ravel()
    entries = (measures[questions].ravel(), (rows, np.repeat(columns, kinds)))
    sums = scipy.sparse.csr_matrix(entries, shape=(groups * kinds, size), dtype=np.float64)
    return sums, counts


def _weights(rng: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """Return how often each resample has each cluster [C, B]."""
    drawn = rng.integers(0, max(size, 1), (resamples, size))
    drawn += np.arange(resamples)[:, None] * size
    counts = np.bincount(drawn.ravel(), minlength=resamples * size)
    return np.ascontiguousarray(counts.reshape(resamples, size).T, np.float64)


def _summary(values: np.ndarray, resampled: np.ndarray, has_interval: np.ndarray) -> Means:
    """Return the intervals and p-values of resampled means [B, G, M]."""
    # A small group may be missing in a resample.
    present = np.isfinite(resampled)
    count = np.maximum(present.sum(axis=0), 1)
    ordered = np.sort(resampled, axis=0)  # NaN comes last
    tail = (1 - LEVEL) / 2

    def quantile(share: float) -> np.ndarray:
        index = np.rint(share * (count - 1)).astype(np.int64)
        return np.take_along_axis(ordered, index[None], axis=0)[0]

    with np.errstate(invalid="ignore"):
        below, above = (resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0)
    p_values = np.clip(2 * np.minimum(below, above) / count, 1 / len(resampled), 1.0)
    bounds = (quantile(tail), quantile(1 - tail), p_values)
    # Where all questions have the same score, all resamples have, which says nothing.
    has_interval = has_interval & (bounds[0] < bounds[1])
    return Means(values, *(np.where(has_interval, part, np.nan) for part in bounds))
