"""Means and intervals, against resampling written out and against known standard errors."""

import numpy as np
import pytest

from qa_flax.answers.report.bootstrap import MIN_CLUSTERS, means


def test_means_of_groups_are_those_of_their_questions():
    rng = np.random.default_rng(0)
    measures, members = rng.random((60, 2)), rng.random((60, 3)) < 0.5
    result = means(measures, members, rng.integers(0, 12, 60), resamples=20)
    for group in range(3):
        np.testing.assert_allclose(result.values[group], measures[members[:, group]].mean(axis=0))


def test_intervals_are_those_of_resampled_contexts():
    """The same draws, resampled one by one, question by question."""
    rng = np.random.default_rng(1)
    clusters = np.sort(rng.integers(0, 9, 40))
    values = rng.random(40)
    result = means(values[:, None], np.ones((40, 1), bool), clusters, seed=5, resamples=40)
    drawn = np.random.default_rng(5).integers(0, 9, (40, 9))
    resampled = [np.concatenate([values[clusters == c] for c in row]).mean() for row in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")
    np.testing.assert_allclose([result.low[0, 0], result.high[0, 0]], [low, high])
    share = np.mean(np.array(resampled) <= 0.5)
    half = means(values[:, None] - 0.5, np.ones((40, 1), bool), clusters, seed=5, resamples=40)
    assert half.p_values[0, 0] == pytest.approx(max(2 * min(share, 1 - share), 1 / 40))


def test_an_interval_is_as_wide_as_the_standard_error_says():
    rng = np.random.default_rng(2)
    right = (rng.random(4000) < 0.7).astype(float)[:, None]
    everything = np.ones((4000, 1), bool)
    alone = means(right, everything, np.arange(4000))
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 4000)
    assert alone.high[0, 0] - alone.low[0, 0] == pytest.approx(expected, rel=0.1)
    # Ten copies of each question about one context know no more than one.
    copies = means(np.repeat(right[:400], 10, axis=0), everything, np.repeat(np.arange(400), 10))
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert copies.high[0, 0] - copies.low[0, 0] == pytest.approx(expected, rel=0.15)


def test_no_interval_where_resamples_say_nothing():
    values = np.array([0.0, 1.0] * 12)[:, None]
    members = np.zeros((24, 4), bool)
    members[:, 0], members[:6, 1], members[::2, 2] = True, True, True  # 2: all 0; 3: no questions
    contexts = np.arange(24) // 3
    result = means(values, members, contexts)
    assert np.isfinite(result.low[0, 0])
    assert np.isnan(result.low[1:, 0]).all(), "2 contexts; equal scores; no questions"
    assert result.values[:3, 0].tolist() == [0.5, 0.5, 0.0]
    assert np.isnan(result.values[3, 0])
    few = means(values, members, contexts % (MIN_CLUSTERS - 1))
    assert np.isfinite(few.low[0, 0]), "questions are resampled where contexts are too few"


def test_one_seed_gives_one_interval():
    values, members = np.random.default_rng(3).random((50, 1)), np.ones((50, 1), bool)
    first, again, other = (means(values, members, np.arange(50), seed).low for seed in (0, 0, 1))
    assert first == again != other
