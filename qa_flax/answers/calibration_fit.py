"""Stage 6 of 7: scores and gold answers -> a fitted `Calibration` (host, NumPy and SciPy).

The temperature minimises the log loss of "the top answer is right" (temperature scaling, Guo et
al., 2017, arXiv:1706.04599). The no-answer threshold maximises the number of right decisions. How
well they do is measured by cross-fitting: the contexts are divided into folds, and the questions of
each fold are measured with the values fitted on the other folds. Questions about the same context
stay together, because a model that is right about one is often right about the others. The final
values are fitted on all questions.

Dimensions: E questions, C distinct answers to each, D = C + 1 decisions: these and "no answer".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from qa_flax.answers.calibration import Calibration
from qa_flax.answers.confidence import (
    AnswerScores,
    competing_scores,
    confidences,
    coverage,
    expected_calibration_error,
)
from qa_flax.answers.metrics import exact_matches

FOLDS = 5
MIN_QUESTIONS = 10
"""Below this nothing is fitted: a handful of questions would give any temperature."""
ROUGH_BELOW = 100
"""Below this number of questions the figures are called rough."""
TEMPERATURES = (0.01, 100.0)
"""The lowest and highest temperature that is tried."""

_GRID_SIZE = 47
_ACCURACY = 0.8


def correct_answers(
    texts: Sequence[Sequence[str]],
    golds: Sequence[Sequence[str]],
    language: str | None = None,
    width: int | None = None,
) -> Bool[np.ndarray, "e d"]:
    """Return which candidate answers are right, by exact match as SQuAD's scorer v2.0 counts it.

    Args:
        texts: the candidate answers to each of E questions, best first.
        golds: the gold answers to each; [] for a question without answer.
        language: normalise texts as MLQA's scorer does for this language; None: as SQuAD's.
        width: C, if it is more than the largest number of candidates.

    Returns:
        [e, d]; columns beyond a question's candidates are False. The last column says whether the
        question has no answer.

    Raises:
        ValueError: `language` is not supported.

    Example:
        >>> from qa_flax.answers.calibration_fit import correct_answers
        >>> correct_answers([["the Elbe", "Elbe and Oder"], ["Prague"]], [["Elbe"], []]).tolist()
        [[True, False, False], [False, False, True]]
    """
    count = max([width or 0, *map(len, texts)])
    correct = np.zeros((len(texts), count + 1), bool)
    matches = exact_matches(texts, golds, language)
    for row, (question_golds, question_matches) in enumerate(zip(golds, matches, strict=True)):
        correct[row, : len(question_matches)] = question_matches
        correct[row, -1] = len(question_golds) == 0
    return correct


def fit_calibration(
    answers: AnswerScores,
    correct: Bool[np.ndarray, "e d"],
    groups: Shaped[np.ndarray, " e"],
    *,
    fingerprint: str | None = None,
) -> Calibration:
    """Fit a temperature and a no-answer threshold, and measure them on questions not fitted on.

    The result does not depend on the order of the questions, except for rounding. What could not be
    fitted or measured is left at its default, and `notes` say so.

    Args:
        answers: the scores of E questions.
        correct: whether each answer is right, from `correct_answers`.
        groups: the context that each question is about: a number or text for each context.
        fingerprint: which weights gave the scores.

    Raises:
        ValueError: there are no questions, the arrays do not fit together, or scores are NaN or
            infinite.

    Example:
        >>> import numpy as np
        >>> from qa_flax.answers.calibration_fit import fit_calibration
        >>> from qa_flax.answers.confidence import AnswerScores
        >>> scores = np.sort(np.random.default_rng(0).normal(0, 9, (400, 3)))[:, ::-1]
        >>> is_right = np.tile([True, True, True, False], 100)
        >>> correct = np.stack([is_right, ~is_right, is_right & False, is_right & False], axis=1)
        >>> groups = np.arange(400) // 4
        >>> fitted = fit_calibration(AnswerScores(scores, np.zeros(400)), correct, groups)
        >>> fitted.temperature > 1, fitted.held_out_ece_after < fitted.held_out_ece_before
        (True, True)
    """
    _check(answers, correct, groups)
    has_null = bool(correct[:, -1].any())
    folds = _folds(groups)
    count = int(folds.max()) + 1
    is_enough = len(correct) >= MIN_QUESTIONS
    fitted = fit_values(answers, correct) if is_enough else _unfitted(correct)
    before = measure(answers, correct, Calibration(), has_null)
    after = None
    if count > 1:
        after = _cross_fitted(answers, correct, folds, None if is_enough else fitted, has_null)
    return Calibration(
        temperature=fitted.temperature,
        no_answer_threshold=fitted.no_answer_threshold,
        fingerprint=fingerprint,
        fitted_questions=len(correct),
        fitted_questions_without_answer=int(correct[:, -1].sum()),
        fitted_contexts=len(np.unique(groups)),
        held_out_folds=count if count > 1 else 0,
        held_out_ece_before=before.ece,
        held_out_accuracy_before=before.accuracy,
        held_out_coverage_at_80_before=before.coverage_at_80,
        held_out_ece_after=after and after.ece,
        held_out_accuracy_after=after and after.accuracy,
        held_out_coverage_at_80_after=after and after.coverage_at_80,
        held_out_confidence_at_80=after and after.confidence_at_80,
        notes=(*fitted.notes, *_notes_on_size(len(correct), count)),
    )


def _unfitted(correct: np.ndarray) -> "Fitted":
    """Return the values for too few questions: those that change nothing."""
    is_mixed = correct[:, -1].any() and not correct[:, -1].all()
    note = (
        f"{len(correct)} questions are too few to fit on, so nothing was fitted; calibrate with at "
        f"least {MIN_QUESTIONS}, better several hundred"
    )
    return Fitted(1.0, 0.0 if is_mixed else None, (note,))


def _notes_on_size(questions: int, folds: int) -> list[str]:
    notes = []
    if folds == 1:
        notes.append(
            "all questions are about one context, so what was fitted could not be measured on "
            "others; calibrate on questions about several contexts"
        )
    if MIN_QUESTIONS <= questions < ROUGH_BELOW:
        notes.append(
            f"with {questions} questions all figures are rough; {ROUGH_BELOW} and more are better"
        )
    return notes


# ---- measuring -----------------------------------------------------------------------------------


class Figures(NamedTuple):
    """What the confidences in the top answers to some questions are worth; see `Calibration`."""

    ece: float
    accuracy: float
    coverage_at_80: float
    confidence_at_80: float | None


def measure(
    answers: AnswerScores,
    correct: Bool[np.ndarray, "e d"],
    calibration: Calibration,
    has_null: bool,
) -> Figures:
    """Measure a calibration on E questions; the arguments are those of `confidences`.

    Raises:
        ValueError: there are no questions.
    """
    return _figures(*_top_answers(answers, correct, calibration, has_null))


def _top_answers(
    answers: AnswerScores, correct: np.ndarray, calibration: Calibration, has_null: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence in each question's top answer [E], and whether it is right [E]."""
    shares = confidences(answers, calibration, has_null)
    # Not by the shares, among which rounding makes ties.
    scores = competing_scores(answers, calibration.no_answer_threshold, has_null)
    top = scores.argmax(axis=1)
    rows = np.arange(len(top))
    return shares[rows, top], correct[rows, top] & np.isfinite(scores[rows, top])


def _figures(confidence: np.ndarray, right: np.ndarray) -> Figures:
    ece = expected_calibration_error(confidence, right)
    return Figures(ece, float(right.mean()), *coverage(confidence, right, _ACCURACY))


def _cross_fitted(
    answers: AnswerScores,
    correct: np.ndarray,
    folds: Int[np.ndarray, " e"],
    fixed: "Fitted | None",
    has_null: bool,
) -> Figures:
    """Measure each fold's questions with what is fitted on the others; `fixed`: with this."""
    confidence, right = np.zeros(len(correct)), np.zeros(len(correct), bool)
    for fold in range(int(folds.max()) + 1):
        inside = folds == fold
        fitted = fixed or fit_values(_rows(answers, ~inside), correct[~inside])
        calibration = Calibration(fitted.temperature, fitted.no_answer_threshold)
        confidence[inside], right[inside] = _top_answers(
            _rows(answers, inside), correct[inside], calibration, has_null
        )
    return _figures(confidence, right)


def _rows(answers: AnswerScores, rows: np.ndarray) -> AnswerScores:
    return AnswerScores(*(column[rows] for column in answers))


def _folds(groups: np.ndarray) -> Int[np.ndarray, " e"]:
    """Return the fold of each question: groups stay together, folds have about the same sizes.

    The largest group goes first, each into the smallest fold so far. Equal groups are ordered by
    their labels, so that the order of the questions does not matter.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    totals = np.zeros(min(FOLDS, len(sizes)), int)
    fold_of_group = np.zeros(len(sizes), int)
    for group in np.argsort(-sizes, kind="stable"):
        fold_of_group[group] = fold = totals.argmin()
        totals[fold] += sizes[group]
    return fold_of_group[group_of.reshape(-1)]


# ---- fitting -------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """The values that are fitted, and what to know about them."""

    temperature: float
    no_answer_threshold: float | None
    notes: tuple[str, ...]


def fit_values(answers: AnswerScores, correct: Bool[np.ndarray, "e d"]) -> Fitted:
    """Fit the no-answer threshold, then the temperature of what competes with it."""
    threshold, notes = None, []
    has_null, all_null = correct[:, -1].any(), correct[:, -1].all()
    if has_null and not all_null:
        threshold = fit_threshold(answers, correct)
    elif has_null:
        notes.append("no question has an answer, so no no-answer threshold was fitted")
    scores = competing_scores(answers, threshold, bool(has_null))
    top = scores.argmax(axis=1)
    temperature, note = fit_temperature(scores, correct[np.arange(len(top)), top])
    return Fitted(temperature, threshold, (*notes, *note))


def fit_threshold(answers: AnswerScores, correct: Bool[np.ndarray, "e d"]) -> float:
    """Return the threshold on null score minus best score with the most right decisions.

    It is midway between two neighbouring differences, or 1 beyond the outermost ones. Of several
    equally good ones it is that nearest to 0, Hugging Face's default.
    """
    scores = competing_scores(answers, 0.0, True)
    if scores.shape[1] == 1:
        return 0.0  # there are no answers to choose from
    best = scores[:, :-1].argmax(axis=1)
    rows = np.arange(len(best))
    # Where one of the two is missing, the decision does not depend on the threshold.
    usable = np.isfinite(scores[:, -1]) & np.isfinite(scores[rows, best])
    rows, best = rows[usable], best[usable]
    if not len(rows):
        return 0.0
    differences = scores[rows, -1] - scores[rows, best]
    order = np.argsort(differences, kind="stable")
    # What each question gains if its best answer is given instead of none.
    gains = correct[rows, best].astype(int) - correct[rows, -1]
    values, first = np.unique(differences[order], return_index=True)
    gain_below = np.concatenate([[0], np.cumsum(np.add.reduceat(gains[order], first))])
    middles = (values[:-1] + values[1:]) / 2
    thresholds = np.concatenate([[values[0] - 1], middles, [values[-1] + 1]])
    equally_good = thresholds[gain_below == gain_below.max()]
    return float(equally_good[np.abs(equally_good).argmin()])


def fit_temperature(
    scores: Float[np.ndarray, "e c"], right: Bool[np.ndarray, " e"]
) -> tuple[float, list[str]]:
    """Return the temperature with the smallest log loss, and notes on it.

    Args:
        scores: what competes; -inf: nothing.
        right: whether the top answer to each question is right.
    """
    from scipy.optimize import minimize_scalar  # imported here because it is slow

    top = scores.argmax(axis=1)[:, None]
    gaps = np.take_along_axis(scores, top, axis=1) - np.where(np.isneginf(scores), np.nan, scores)
    np.put_along_axis(gaps, top, np.nan, axis=1)
    has_rival = ~np.isnan(gaps).all(axis=1)
    gaps, right = np.where(np.isnan(gaps), np.inf, gaps)[has_rival], right[has_rival]
    if not len(right):
        return 1.0, ["no question has two answers to choose from: the temperature stays 1"]
    if right.all() or not right.any():
        what = "right" if right.all() else "wrong"
        return 1.0, [f"every top answer is {what}, so the temperature could not be fitted: it is 1"]

    def loss(log_temperature: Any) -> float:
        return _log_loss(gaps / np.exp(log_temperature), right)

    # The loss may have several local minima: search the neighbourhood of the best of a grid.
    grid = np.log(np.geomspace(*TEMPERATURES, _GRID_SIZE))
    losses = np.array([loss(value) for value in grid])
    lowest = np.flatnonzero(losses <= losses.min() + 1e-12)
    best = lowest[np.abs(grid[lowest]).argmin()]
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID_SIZE - 1)])
    result = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    value = result.x if result.fun <= losses[best] else grid[best]
    temperature = float(np.exp(value))
    if best not in (0, _GRID_SIZE - 1):
        return temperature, []
    end = TEMPERATURES[0 if best == 0 else 1]
    side = "lowest" if best == 0 else "highest"
    return end, [
        f"the temperature is {end:g}, the {side} that is tried: the scores hardly say which "
        "answers are right, so take confidences with care"
    ]


def _log_loss(gaps: Float[np.ndarray, "e c"], right: Bool[np.ndarray, " e"]) -> float:
    """Return the mean log loss of "the top answer is right".

    `gaps` are the top score minus the others, divided by the temperature; at least one is finite.
    """
    smallest = gaps.min(axis=1, keepdims=True)
    # The logarithm of the rivals' total, relative to the top answer; exact also where it is tiny.
    log_rivals = np.log(np.exp(smallest - gaps).sum(axis=1)) - smallest[:, 0]
    log_top = -np.logaddexp(0.0, log_rivals)
    return float(-np.where(right, log_top, log_rivals + log_top).mean())


def _check(answers: AnswerScores, correct: np.ndarray, groups: np.ndarray) -> None:
    """Raise `ValueError` if there is nothing to fit on, or the arrays do not fit together."""
    shape = answers.scores.shape
    expected = {"null_scores": shape[:1], "correct": (shape[0], shape[1] + 1), "groups": shape[:1]}
    arrays = {"null_scores": answers.null_scores, "correct": correct, "groups": groups}
    if wrong := [n for n, array in arrays.items() if array.shape != expected[n]]:
        raise ValueError(
            f"scores have shape {shape}, so {wrong[0]} must have shape {expected[wrong[0]]}, got "
            f"{arrays[wrong[0]].shape}"
        )
    if not shape[0]:
        raise ValueError("there are no questions to calibrate on; pass at least one")
    is_bad = np.isnan(answers.scores).any(axis=1) | np.isposinf(answers.scores).any(axis=1)
    is_bad |= ~np.isfinite(answers.null_scores)
    if is_bad.any():
        raise ValueError(
            f"the scores of {is_bad.sum()} of {len(is_bad)} questions are NaN or infinite, so the "
            "model cannot be calibrated; look for NaN in its parameters, and compute in float32"
        )
