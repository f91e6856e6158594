"""The reliability diagram, against the expected calibration error of the same answers."""

import numpy as np
import pytest

from qa_flax.answers.confidence import expected_calibration_error
from qa_flax.answers.report.reliability import reliability


def test_the_bins_add_up_to_the_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(300)
    right = rng.random(300) < confidence**2
    diagram = reliability(confidence, right)
    present = diagram.counts > 0
    gaps = np.abs(diagram.confidence - diagram.accuracy)[present]
    assert diagram.counts.sum() == 300
    error = (gaps * diagram.counts[present]).sum() / 300
    assert diagram.ece == pytest.approx(error)
    assert diagram.ece == pytest.approx(expected_calibration_error(confidence, right))
    assert 0 < diagram.coverage_at_80 < 1


def test_a_bin_without_answers_has_no_accuracy():
    diagram = reliability(np.array([1.0, 0.95]), np.array([True, True]))
    assert np.isnan(diagram.accuracy[:9]).all()
    assert diagram.accuracy[9] == 1.0
