"""The no-answer threshold, against the official scorer and every threshold tried in turn."""

import numpy as np
import pytest

from qa_flax.answers.metrics import question_scores, squad_metric
from qa_flax.answers.report.thresholds import threshold_curve


def cases(seed, count=25):
    rng = np.random.default_rng(seed)
    odds = np.round(rng.normal(size=count), 1)  # with ties
    golds = [["the Elbe"] if has else [] for has in rng.random(count) < 0.6]
    texts = rng.choice(["Elbe", "Elbe river", "Oder"], count).tolist()
    return odds, golds, texts


@pytest.mark.parametrize("seed", range(3))
def test_every_threshold_has_the_scores_of_its_answers(seed):
    odds, golds, texts = cases(seed)
    scores = np.stack(question_scores(texts, golds, version_2_with_negative=True), axis=1)
    has_answer = np.array([bool(gold) for gold in golds])
    curve = threshold_curve(odds, scores, has_answer, used=0.25)
    references = [{"id": str(i), "answers": {"text": gold}} for i, gold in enumerate(golds)]

    def official(threshold):
        rows = [
            {"id": str(i), "prediction_text": text, "no_answer_probability": float(odd)}
            for i, (text, odd) in enumerate(zip(texts, odds, strict=True))
        ]
        return squad_metric(rows, references, True, no_answer_threshold=threshold)

    for threshold, exact, f1 in zip(curve.thresholds, curve.exact, curve.f1, strict=True):
        expected = official(float(threshold))
        np.testing.assert_allclose([exact, f1], [expected["exact"], expected["f1"]])
    used = official(0.25)
    np.testing.assert_allclose(curve.at_used, [used["exact"], used["f1"]])
    for best, column in ((curve.best_exact, "exact"), (curve.best_f1, "f1")):
        assert best[1] == pytest.approx(max(official(t)[column] for t in curve.thresholds))
        assert official(best[0])[column] == pytest.approx(best[1])


def test_the_used_threshold_is_the_best_where_no_other_is_better():
    curve = threshold_curve(
        np.array([-1.0, 1.0]), np.ones((2, 2)), np.array([True, False]), used=0.7
    )
    assert curve.best_f1 == curve.best_exact == (0.7, 100.0)


def test_odds_that_are_as_high_as_floats_go_give_finite_thresholds():
    odds = np.array([0.0, np.finfo(np.float32).max])
    curve = threshold_curve(odds, np.ones((2, 2)), np.array([True, False]), used=np.inf)
    assert np.isfinite(curve.thresholds).all()
    assert curve.best_f1[1] == 100.0
    with pytest.raises(ValueError, match="no questions"):
        threshold_curve(np.zeros(0), np.zeros((0, 2)), np.zeros(0, bool), 0.0)
