"""Confidences: the softmax of the answers' scores, and what it is worth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_flax.answers.calibration import Calibration
from qa_flax.answers.confidence import (
    AnswerScores,
    confidences,
    coverage,
    expected_calibration_error,
)

INF = np.inf


def random_scores(rng, questions=50, candidates=6):
    """Scores, best first; some questions have fewer candidates."""
    scores = -np.sort(-rng.normal(0, 5, (questions, candidates)), axis=1)
    counts = rng.integers(1, candidates + 1, questions)
    scores[np.arange(candidates) >= counts[:, None]] = -INF
    return AnswerScores(scores.astype(np.float32), rng.normal(0, 5, questions).astype(np.float32))


@pytest.mark.parametrize("has_null", [True, False])
@pytest.mark.parametrize("threshold", [None, -1.5])
def test_they_are_the_softmax_of_the_scores_by_hand(rng, has_null, threshold):
    answers = random_scores(rng)
    got = confidences(answers, Calibration(2.5, threshold), has_null)
    for row, (scores, null) in enumerate(zip(*answers, strict=True)):
        values = [np.exp(float(x) / 2.5) if x > -INF else 0.0 for x in scores]
        competes = has_null or threshold is not None
        values.append(np.exp((float(null) - (threshold or 0)) / 2.5) if competes else 0.0)
        np.testing.assert_allclose(got[row], np.array(values) / sum(values), rtol=1e-12)


@given(st.floats(-40, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_no_answer_is_the_most_confident_exactly_above_the_threshold(threshold, seed):
    answers = random_scores(np.random.default_rng(seed))
    shares = confidences(answers, Calibration(1.7, threshold), has_null=True)
    wins = answers.null_scores.astype(float) - answers.scores[:, 0].astype(float) > threshold
    # Far from each other both are 0 or 1; equal ones are no win.
    np.testing.assert_array_equal(shares[:, -1] > shares[:, :-1].max(axis=1), wins)


def test_extreme_and_missing_scores_are_stable():
    largest = np.finfo(np.float32).max
    scores = [
        [largest, -largest],
        [1e4, 1e4],
        [5, -INF],
        [-INF, -INF],
        [np.nan, INF],
        [-1e30, -INF],
    ]
    answers = AnswerScores(np.array(scores, np.float32), np.array([0, 1e4, -INF, -INF, 0, 0]))
    with np.errstate(all="raise", under="ignore"):
        shares = confidences(answers, Calibration(0.01), has_null=True)
    third = 1 / 3
    expected = [[1, 0, 0], [third] * 3, [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(shares, expected)
    without = confidences(answers, Calibration(), has_null=False)
    assert (without[:, -1] == 0).all()
    np.testing.assert_array_equal(without.sum(axis=1), [1, 1, 1, 0, 0, 1])


def test_a_higher_temperature_makes_the_top_answer_less_sure(rng):
    answers = random_scores(rng)
    low, high = (confidences(answers, Calibration(t), False)[:, 0] for t in (1.0, 3.0))
    has_rivals = np.isfinite(answers.scores[:, 1])
    assert (high[has_rivals] < low[has_rivals]).all()
    assert (high[~has_rivals] == 1).all()


# ---- measures ------------------------------------------------------------------------------------


def test_the_calibration_error_of_a_case_by_hand():
    # Bins (0.2, 0.3]: 0.3, 0.25, one right; (0.3, 0.4]: 0.31; (0.9, 1]: 0.95, 1.0, both right.
    confidence = np.array([0.3, 0.25, 0.31, 0.95, 1.0, 0.0])
    right = np.array([True, False, False, True, True, False])
    expected = (2 * abs(0.5 - 0.275) + abs(0 - 0.31) + 2 * abs(1 - 0.975) + 0) / 6
    assert expected_calibration_error(confidence, right) == pytest.approx(expected, abs=1e-15)


def test_the_calibration_error_of_calibrated_data_is_small_and_of_wrong_sure_answers_1(rng):
    confidence = rng.random(50_000)
    right = rng.random(50_000) < confidence
    assert expected_calibration_error(confidence, right) < 0.01
    assert expected_calibration_error(np.ones(3), np.zeros(3, bool)) == 1
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.5, 0.9]), st.booleans()), min_size=1))
@settings(max_examples=60, deadline=None)
def test_the_coverage_is_that_of_the_best_threshold(rows):
    confidence, right = (np.array(column) for column in zip(*rows, strict=True))
    shares = {0.0: None}
    for threshold in set(confidence.tolist()):
        inside = confidence >= threshold
        if 10 * right[inside].sum() >= 8 * inside.sum():
            shares[float(inside.mean())] = threshold
    assert coverage(confidence, right) == (max(shares), shares[max(shares)])


def test_measures_need_questions():
    empty = np.zeros(0), np.zeros(0, bool)
    for measure in (expected_calibration_error, coverage):
        with pytest.raises(ValueError, match="no questions"):
            measure(*empty)
