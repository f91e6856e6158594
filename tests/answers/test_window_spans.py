"""The most probable spans of windows, against a search through all pairs of tokens."""

import numpy as np
import pytest

from qa_flax.answers import window_spans
from qa_flax.answers.window_spans import WindowLogits, probable_spans, separate_spans


def random_logits(rng, windows=5, width=24, loud=3.0) -> WindowLogits:
    counts = rng.integers(1, width + 1, windows)
    counts[0] = width
    starts, ends = rng.normal(0, loud, (2, windows, width)).astype(np.float32)
    nulls = rng.normal(0, loud, (2, windows)).astype(np.float32)
    return WindowLogits(starts, ends, np.arange(width) < counts[:, None], *nulls)


def all_spans(logits: WindowLogits, row: int, longest: int) -> list[tuple[float, int, int]]:
    """Every span of a window with its probability, in float64; the best first."""
    count = int(logits.in_context[row].sum())
    p = []
    for values, null in ((logits.starts, logits.null_starts), (logits.ends, logits.null_ends)):
        row_values = np.append(values[row, :count], null[row]).astype(np.float64)
        exponentials = np.exp(row_values - row_values.max())
        p.append(exponentials / exponentials.sum())
    spans = [
        (p[0][i] * p[1][j], i, j) for i in range(count) for j in range(i, min(count, i + longest))
    ]
    return sorted(spans, key=lambda span: -span[0])


def null_probability(logits: WindowLogits, row: int) -> float:
    count = int(logits.in_context[row].sum())
    result = 1.0
    for values, null in ((logits.starts, logits.null_starts), (logits.ends, logits.null_ends)):
        exponentials = np.exp(np.append(values[row, :count], null[row]).astype(np.float64))
        result *= exponentials[-1] / exponentials.sum()
    return result


@pytest.mark.parametrize(("count", "longest"), [(1, 15), (12, 15), (12, 1), (30, 40), (900, 24)])
def test_the_most_probable_spans_are_those_of_a_search_through_all_pairs(rng, count, longest):
    logits = random_logits(rng)
    spans = probable_spans(logits, count, longest)
    for row in range(len(logits.starts)):
        expected = all_spans(logits, row, longest)[:count]
        n = len(expected)
        assert list(zip(spans.starts[row, :n], spans.ends[row, :n], strict=True)) == [
            (i, j) for _, i, j in expected
        ]
        np.testing.assert_allclose(
            spans.probabilities[row, :n], [p for p, _, _ in expected], rtol=1e-5
        )
        assert (spans.probabilities[row, n:] == -1).all()
        i, j = spans.starts[row, :n], spans.ends[row, :n]
        np.testing.assert_array_equal(
            spans.scores[row, :n], logits.starts[row, i] + logits.ends[row, j]
        )
        assert spans.null_probabilities[row] == pytest.approx(null_probability(logits, row), 1e-5)
        assert spans.null_scores[row] == logits.null_starts[row] + logits.null_ends[row]


@pytest.mark.parametrize("longest", [2, 5, 24])
def test_a_span_may_be_as_long_as_allowed_and_no_longer(longest):
    width = 24
    row = np.arange(width)
    starts = np.where(row[:, None] == row, np.float32(40), np.float32(0))  # window i starts at i
    ends = np.tile(row * np.float32(0.5), (width, 1))  # the later, the better
    null = np.zeros(width, np.float32)
    logits = WindowLogits(starts, ends, np.ones_like(starts, bool), null, null)
    spans = probable_spans(logits, 1, longest)
    assert spans.starts[:, 0].tolist() == row.tolist()
    assert spans.ends[:, 0].tolist() == np.minimum(row + longest - 1, width - 1).tolist()


def test_the_result_does_not_depend_on_the_chunks(rng, monkeypatch):
    logits = random_logits(rng, windows=40)
    expected = probable_spans(logits, 12, 15)
    monkeypatch.setattr(window_spans, "CHUNK_SPANS", 700)
    for actual, whole in zip(probable_spans(logits, 12, 15), expected, strict=True):
        np.testing.assert_array_equal(actual, whole)


def test_a_window_with_a_logit_that_is_not_finite_has_no_spans(rng):
    logits = random_logits(rng, windows=6)
    logits.starts[1, 0], logits.ends[2, 0], logits.null_ends[3] = np.nan, np.inf, -np.inf
    logits.starts[4][~logits.in_context[4]] = np.nan  # padding
    spans = probable_spans(logits, 3, 15)
    assert (spans.probabilities[:, 0] >= 0).tolist() == [True, False, False, False, True, True]
    assert np.isinf(spans.null_probabilities).tolist() == [False, True, True, True, False, False]
    assert np.isinf(spans.null_scores).tolist() == [False, True, True, True, False, False]


def test_equal_spans_come_from_left_to_right():
    zeros, null = np.zeros((1, 4), np.float32), np.zeros(1, np.float32)
    spans = probable_spans(WindowLogits(zeros, zeros, np.ones((1, 4), bool), null, null), 4, 2)
    assert spans.starts[0].tolist() == [0, 0, 1, 1]
    assert spans.ends[0].tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("windows", [0, 2])
def test_no_windows_and_windows_without_context_have_no_spans(windows):
    empty, null = np.zeros((windows, 0), np.float32), np.zeros(windows, np.float32)
    logits = WindowLogits(empty, empty, np.zeros((windows, 0), bool), null, null)
    for spans in (probable_spans(logits, 12, 15), separate_spans(logits, 3, 15, as_they_are)):
        assert len(spans.starts) == windows
        assert not (spans.probabilities >= 0).any()
        np.testing.assert_array_equal(spans.null_probabilities, 1.0)


def as_they_are(starts, ends):
    return starts, ends


def in_words_of_three(starts, ends):
    return starts // 3 * 3, ends // 3 * 3 + 2


@pytest.mark.parametrize("widen", [as_they_are, in_words_of_three])
@pytest.mark.parametrize("longest", [1, 4, 40])
def test_separate_spans_are_the_best_of_what_the_better_ones_leave(rng, widen, longest):
    logits = random_logits(rng)
    spans = separate_spans(logits, 6, longest, widen)
    for row in range(len(logits.starts)):
        taken: set[int] = set()
        expected = []
        for _, i, j in all_spans(logits, row, longest):
            tokens = set(range(i, j + 1))
            if tokens & taken or len(expected) == 6:
                continue
            expected.append((i, j))
            first, last = widen(np.array(i), np.array(j))
            taken |= set(range(int(first), int(last) + 1))
        valid = spans.probabilities[row] >= 0
        actual = zip(spans.starts[row, valid], spans.ends[row, valid], strict=True)
        assert list(actual) == expected
