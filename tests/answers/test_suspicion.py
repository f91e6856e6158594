"""How unlikely labels are: compared with a plain loop over all spans, and known cases."""

import numpy as np
import pytest
import tiny

from qa_flax import load_examples
from qa_flax.answers.suspicion import HIGHEST, judge_labels
from qa_flax.data.features import make_windows

WINDOW = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}
LONGEST = 8


@pytest.fixture(scope="module")
def judged():
    """All examples with random logits, and their judgements with and without "no answer"."""
    examples = tiny.examples()
    windows = make_windows(examples, tiny.tokenizer(), labels=False, **WINDOW)
    rng = np.random.default_rng(0)
    shape = (len(windows), windows.padded_length)
    logits = tuple(rng.normal(0, 2, shape).astype(np.float32) for _ in range(2))
    results = {
        has_null: judge_labels(
            list(examples), windows, logits, max_answer_length=LONGEST, has_null=has_null
        )
        for has_null in (False, True)
    }
    return examples, windows, logits, results


def oracle(example, rows, windows, logits, has_null):
    """Every span's probability, by its characters; None stands for no answer."""
    offsets = windows.features().offsets
    scores, nulls = {}, []
    for row in rows:
        nulls.append(float(logits[0][row, 0]) + float(logits[1][row, 0]))
        tokens = [t for t in range(windows.padded_length) if offsets[row, t, 0] >= 0]
        for first in tokens:
            for last in tokens:
                if first <= last < first + LONGEST:
                    span = int(offsets[row, first, 0]), int(offsets[row, last, 1])
                    score = float(logits[0][row, first]) + float(logits[1][row, last])
                    scores.setdefault(span, []).append(score)
    weights = {span: sum(np.exp(values)) for span, values in scores.items()}
    if has_null:
        weights[None] = np.exp(min(nulls))
    total = sum(weights.values())
    return {span: weight / total for span, weight in weights.items()}


@pytest.mark.parametrize("has_null", [False, True])
def test_judgements_are_those_of_a_loop_over_all_spans(judged, has_null):
    examples, windows, logits, results = judged
    ids = np.array(windows.example_ids)
    assert max(np.sum(ids == id_) for id_ in ids) > 1, "a question with several windows"
    checked = []
    for example, judgement in zip(examples, results[has_null], strict=True):
        rows = np.flatnonzero(ids == example["id"])
        chances = oracle(example, rows, windows, logits, has_null)
        assert judgement.null_probability == pytest.approx(chances.get(None), abs=1e-9)
        assert judgement.probability == pytest.approx(chances[judgement.prediction], rel=1e-6)
        if not example["answers"]["text"]:
            assert (judgement.labels, judgement.worst) == ([], None)
            expected = min(-np.log(chances[None]), HIGHEST) if has_null else HIGHEST
            assert judgement.suspicion == pytest.approx(expected, rel=1e-6)
            continue
        begin = example["answers"]["answer_start"][0]
        end = begin + len(example["answers"]["text"][0])
        overlap = {
            (a, b): 2 * max(0, min(b, end) - max(a, begin)) / (b - a + end - begin)
            for a, b in (span for span in chances if span is not None)
        }
        nearest = max(overlap.values())
        expected = sum(chances[span] for span, value in overlap.items() if value == nearest)
        (label,) = judgement.labels
        assert label.span == (begin, end)
        assert label.probability == pytest.approx(expected, rel=1e-6)
        assert judgement.suspicion == pytest.approx(-np.log(expected), rel=1e-6)
        assert label.is_reachable == any(a <= begin and end <= b for a, b in overlap)
        checked.append(nearest)
    assert 1.0 in checked
    assert min(checked) < 1.0, "a label that is no span"


def judge(answers, favoured, *, context="Ada wrote it in 1843, and Charles read it.", **settings):
    """Judge the labels of one question by a model that is sure of the span `favoured`."""
    row = {"id": "q", "question": "Who?", "context": context, "answers": answers}
    examples = load_examples([row])
    windows = make_windows(examples, tiny.tokenizer(), labels=False, **WINDOW)
    offsets = windows.features().offsets
    begin = context.index(favoured)
    logits = np.zeros((2, len(windows), windows.padded_length), np.float32)
    logits[0][offsets[..., 0] == begin] = 20
    logits[1][offsets[..., 1] == begin + len(favoured)] = 20
    settings = {"max_answer_length": 30, "has_null": False} | settings
    (judgement,) = judge_labels(list(examples), windows, tuple(logits), **settings)
    return judgement


def answers(*pairs):
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def test_a_label_that_the_model_gives_is_not_suspicious_and_a_moved_one_is():
    assert judge(answers(("Ada", 0)), "Ada").suspicion < 0.1
    moved = judge(answers(("Charles", 26)), "Ada")
    assert moved.suspicion > 20
    assert moved.prediction == (0, 3)
    assert moved.probability > 0.9
    assert moved.labels[0].probability < 1e-9


def test_a_later_label_counts_if_it_is_far_less_probable():
    judgement = judge(answers(("Ada", 0), ("read it", 34)), "Ada")
    assert (judgement.worst, judgement.suspicion) == (1, judgement.labels[1].suspicion)
    assert judgement.suspicion > 20
    similar = judge(answers(("read it", 34), ("in 1843", 13)), "Ada")
    assert similar.worst == 0


def test_a_label_that_is_nowhere_or_beyond_every_span_is_no_error():
    gone = judge(answers(("nowhere", 3)), "Ada")
    assert (gone.suspicion, gone.labels[0].span) == (HIGHEST, None)
    long = judge(answers(("Ada wrote it in 1843", 0)), "Ada", max_answer_length=3)
    assert not long.labels[0].is_reachable
    assert 0 < long.suspicion < HIGHEST, "judged by the spans that come nearest to it"


def test_questions_without_an_answer_are_judged_by_its_probability():
    sure = judge(answers(), "Ada", has_null=True)
    assert sure.suspicion > 20
    assert sure.prediction == (0, 3)


def test_logits_that_are_not_finite_are_refused(judged):
    examples, windows, logits, _ = judged
    broken = (logits[0].copy(), logits[1])
    broken[0][3, windows.context_begins()[3]] = np.nan
    with pytest.raises(FloatingPointError, match=f"1 of {len(windows)} windows"):
        judge_labels(list(examples), windows, broken, max_answer_length=5, has_null=True)
