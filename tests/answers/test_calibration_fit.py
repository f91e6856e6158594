"""Fitting a calibration: known values are recovered, and what cannot be fitted is reported."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_flax.answers.calibration import Calibration
from qa_flax.answers.calibration_fit import (
    FOLDS,
    TEMPERATURES,
    _folds,
    correct_answers,
    fit_calibration,
    fit_temperature,
    fit_threshold,
    measure,
)
from qa_flax.answers.confidence import AnswerScores, confidences


def simulated(rng, questions, temperature, threshold=None, candidates=8):
    """Scores, and right answers that are drawn with the confidences of these values."""
    scores = -np.sort(-rng.normal(0, 6, (questions, candidates)), axis=1)
    answers = AnswerScores(scores, rng.normal(4, 6, questions))
    shares = confidences(answers, Calibration(temperature, threshold), has_null=False)
    drawn = (shares.cumsum(axis=1) > rng.random((questions, 1))).argmax(axis=1)
    correct = np.zeros((questions, candidates + 1), bool)
    correct[np.arange(questions), drawn] = True
    return answers, correct


def groups_of(count, size=5):
    return np.array([f"context {n // size}" for n in range(count)])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_simulated_data_is_recovered(rng, temperature):
    answers, correct = simulated(rng, 4000, temperature)
    fitted = fit_calibration(answers, correct, groups_of(4000), fingerprint="abc")
    assert fitted.temperature == pytest.approx(temperature, rel=0.1)
    assert fitted.no_answer_threshold is None
    assert fitted.held_out_ece_after < 0.03
    if temperature != 1:
        assert fitted.held_out_ece_before > 0.08
    assert fitted.notes == ()
    assert (fitted.fingerprint, fitted.held_out_folds) == ("abc", FOLDS)
    assert (fitted.fitted_questions, fitted.fitted_contexts) == (4000, 800)


def test_questions_without_answers_give_a_threshold_that_does_better(rng):
    answers, correct = simulated(rng, 3000, 2.0, threshold=6.0)
    fitted = fit_calibration(answers, correct, groups_of(3000))
    assert fitted.no_answer_threshold == pytest.approx(6.0, abs=2.5)
    assert fitted.temperature == pytest.approx(2.0, rel=0.15)
    assert fitted.held_out_accuracy_after > fitted.held_out_accuracy_before + 0.01
    assert fitted.fitted_questions_without_answer == correct[:, -1].sum()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 9))
    # Whole numbers, so that differences are equal; one question may have no candidate.
    scores = -np.sort(-rng.integers(-4, 5, (count, 2)).astype(float), axis=1)
    scores[rng.random(count) < 0.1] = -np.inf
    answers = AnswerScores(scores, rng.integers(-4, 5, count).astype(float))
    correct = rng.random((count, 3)) < 0.5
    correct[:, -1] &= ~correct[:, :-1].any(axis=1)

    def right_decisions(threshold):
        none = answers.null_scores - scores[:, 0] > threshold
        return np.where(none, correct[:, -1], correct[:, 0] & np.isfinite(scores[:, 0])).sum()

    everywhere = np.arange(-10, 10, 0.25)  # also between the differences, and beyond them
    threshold = fit_threshold(answers, correct)
    assert right_decisions(threshold) == max(map(right_decisions, everywhere))
    # The middle of a gap, or 1 beyond the ends.
    assert (4 * threshold).is_integer()


def test_the_temperature_is_the_best_of_all(rng):
    answers, correct = simulated(rng, 300, 1.6)
    temperature, notes = fit_temperature(answers.scores, correct[:, 0])
    assert notes == []

    def loss(value):
        top = confidences(answers, Calibration(value), False)[:, 0]
        return -np.log(np.where(correct[:, 0], top, 1 - top)).mean()

    assert all(loss(temperature) <= loss(t) + 1e-9 for t in np.geomspace(0.3, 30, 200))


def test_the_order_of_the_questions_does_not_matter(rng):
    answers, correct = simulated(rng, 300, 2.0, threshold=0.0)
    groups = groups_of(300, size=7)
    order = rng.permutation(300)
    shuffled = AnswerScores(*(column[order] for column in answers))
    first = dataclasses.asdict(fit_calibration(answers, correct, groups))
    second = dataclasses.asdict(fit_calibration(shuffled, correct[order], groups[order]))
    assert first.pop("notes") == second.pop("notes")
    for name, value in first.items():
        assert second[name] == pytest.approx(value, abs=1e-6), name


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_questions_of_a_context_stay_together_and_folds_have_about_one_size(groups):
    folds = _folds(np.array(groups))
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))
    assert len(set(folds.tolist())) == folds.max() + 1 == min(FOLDS, len(set(groups)))
    sizes, largest = np.bincount(folds), max(map(groups.count, groups))
    assert sizes.max() - sizes.min() <= largest


def test_what_is_fitted_is_measured_on_other_contexts():
    """Two contexts with opposite accuracies, each measured with the temperature of the other."""
    scores, nulls = np.tile([8.0, 0.0], (40, 1)), np.zeros(40)
    correct = np.zeros((40, 3), bool)
    correct[:20, 0] = np.arange(20) > 0
    correct[20:, 0] = np.arange(20) == 0
    fitted = fit_calibration(AnswerScores(scores, nulls), correct, np.repeat([0, 1], 20))
    assert fitted.held_out_folds == 2
    # The first is right in 95% with a confidence of 0.52, the lowest that two candidates can have;
    # the second in 5% with a confidence of 0.95.
    assert fitted.held_out_ece_after == pytest.approx((0.43 + 0.9) / 2, abs=1e-3)
    figures = measure(AnswerScores(scores, nulls), correct, fitted, False)
    assert figures.ece == pytest.approx(0.02, abs=1e-3), "fitted on all, it would look better"


# ---- degenerate data -----------------------------------------------------------------------------


def fit(scores, correct, groups=None, nulls=None):
    scores, correct = np.array(scores, float), np.array(correct, bool)
    nulls = np.zeros(len(scores)) if nulls is None else nulls
    groups = np.arange(len(scores)) if groups is None else np.array(groups)
    return fit_calibration(AnswerScores(scores, nulls), correct, groups)


@pytest.mark.parametrize(("is_right", "word"), [(True, "right"), (False, "wrong")])
def test_only_right_or_wrong_answers_leave_the_temperature(is_right, word):
    fitted = fit([[3.0, 1.0]] * 200, [[is_right, False, False]] * 200)
    assert fitted.temperature == 1
    assert fitted.notes == (
        f"every top answer is {word}, so the temperature could not be fitted: it is 1",
    )
    assert fitted.held_out_ece_after == fitted.held_out_ece_before
    assert fitted.held_out_coverage_at_80_after == is_right


def test_few_questions_are_not_fitted_on():
    fitted = fit([[3.0, 1.0]] * 4, [[True, False, False]] * 2 + [[False, False, True]] * 2)
    assert (fitted.temperature, fitted.no_answer_threshold) == (1, 0)
    assert fitted.notes[0].startswith("4 questions are too few to fit on, so nothing was fitted")
    assert fitted.held_out_ece_after == fitted.held_out_ece_before


def test_up_to_100_questions_give_a_warning(rng):
    answers, correct = simulated(rng, 99, 2.0)
    fitted = fit_calibration(answers, correct, groups_of(99))
    assert fitted.notes == ("with 99 questions all figures are rough; 100 and more are better",)
    assert fitted.temperature != 1


def test_one_context_is_fitted_but_not_measured(rng):
    answers, correct = simulated(rng, 500, 2.0)
    fitted = fit_calibration(answers, correct, np.zeros(500, int))
    assert fitted.temperature == pytest.approx(2, rel=0.3)
    assert fitted.held_out_folds == 0
    assert fitted.held_out_ece_before > 0
    assert fitted.held_out_ece_after is fitted.held_out_coverage_at_80_after is None
    assert "could not be measured" in fitted.notes[0]


def test_questions_that_all_have_no_answer_give_no_threshold():
    fitted = fit([[3.0, 1.0]] * 200, [[False, False, True]] * 200, nulls=np.tile([9.0, 0.0], 100))
    assert fitted.no_answer_threshold is None
    assert fitted.notes == ("no question has an answer, so no no-answer threshold was fitted",)
    assert fitted.held_out_accuracy_before == 0.5, "no answer competes with threshold 0"


def test_single_candidates_and_no_candidates_at_all():
    fitted = fit([[3.0]] * 150, [[True, False]] * 100 + [[False, False]] * 50)
    assert fitted.temperature == 1
    assert fitted.notes == ("no question has two answers to choose from: the temperature stays 1",)
    fitted = fit([[-np.inf]] * 120, [[False, False]] * 120)
    assert fitted.held_out_ece_before == fitted.held_out_accuracy_before == 0
    fitted = fit(np.zeros((120, 0)), [[False]] * 60 + [[True]] * 60)
    assert fitted.no_answer_threshold == 0
    assert fitted.held_out_accuracy_after == 0.5, "without candidates the answer is none"


def test_a_temperature_at_the_end_of_the_range_is_said():
    # Wrong where the scores are far apart, right where they are close.
    scores = np.stack([np.tile([9.0, 0.1], 100), np.zeros(200)], axis=1)
    fitted = fit(scores, np.stack([np.tile([False, True], 100), *np.zeros((2, 200), bool)], axis=1))
    assert fitted.temperature == TEMPERATURES[1]
    assert "the highest that is tried" in fitted.notes[0]
    # Right by a tiny margin, and the wrong ones are ties.
    scores = np.stack([np.tile([1e-7, 0.0], 100), np.zeros(200)], axis=1)
    fitted = fit(scores, np.stack([np.tile([True, False], 100), *np.zeros((2, 200), bool)], axis=1))
    assert fitted.temperature == TEMPERATURES[0]
    assert "the lowest that is tried" in fitted.notes[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="the scores of 1 of 30 questions are NaN or infinite"):
        fit([[value, 1.0]] + [[2.0, 1.0]] * 29, [[True, False, False]] * 30)
    nulls = np.zeros(30)
    nulls[3] = value
    with pytest.raises(ValueError, match="the scores of 1 of 30 questions"):
        fit([[2.0, 1.0]] * 30, [[True, False, False]] * 30, nulls=nulls)


def test_arrays_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"correct must have shape \(3, 3\), got \(3, 2\)"):
        fit([[2.0, 1.0]] * 3, [[True, False]] * 3)
    with pytest.raises(ValueError, match="no questions to calibrate on"):
        fit(np.zeros((0, 2)), np.zeros((0, 3)))


# ---- right answers -------------------------------------------------------------------------------


def test_answers_are_right_by_the_normalisation_of_the_scorer():
    texts = [["The Elbe!", "elbe", "Oder"], ["no"], [], ["the", "x"]]
    golds = [["Elbe", "the river"], [], ["a"], ["the", "."]]
    correct = correct_answers(texts, golds, width=4)
    assert correct.tolist() == [
        [True, True, False, False, False],
        [False, False, False, False, True],
        [False] * 5,
        [True, False, False, False, False],
    ]


def test_answers_are_normalised_in_a_language():
    texts, golds = [["der Fluss"]], [["Fluss"]]
    assert not correct_answers(texts, golds)[0, 0]
    assert correct_answers(texts, golds, language="de")[0, 0]
    with pytest.raises(ValueError, match="language 'xx' is not supported"):
        correct_answers(texts, golds, language="xx")
