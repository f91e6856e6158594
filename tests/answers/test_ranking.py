"""Merging spans with the same text, and choosing separate ones."""

from qa_flax.answers.ranking import CANDIDATES, competing_logits, merged, separate

CONTEXT = "Oslo, OSLO and Bergen"


def test_spans_with_the_same_text_in_any_case_are_one_answer_with_the_sum_of_their_scores():
    windows = [[(0, 4, 0.5, 3.0), (15, 21, 0.25, 1.0)], [(6, 10, 0.125, 4.0), (0, 4, 0.0625, 3.0)]]
    oslo, bergen = merged(CONTEXT, windows)
    assert (oslo.text, oslo.start, oslo.end) == ("Oslo", 0, 4)
    assert (oslo.score, oslo.logit) == (0.6875, 4.0)
    assert (bergen.text, bergen.score, bergen.logit) == ("Bergen", 0.25, 1.0)
    assert merged(CONTEXT, [[], []]) == []


def test_separate_answers_neither_overlap_nor_repeat_a_text_nor_are_blank():
    spans = [(0, 4, 0.5, 3.0), (6, 10, 0.4, 2.9), (0, 10, 0.3, 2.8), (5, 6, 0.2, 2.7)]
    spans += [(15, 21, 0.1, 2.6), (11, 14, 0.1, 2.5)]
    assert [answer.text for answer in separate(CONTEXT, [spans[3:], spans[:3]], 9)] == [
        "Oslo",
        "Bergen",
        "and",
    ]
    assert [answer.text for answer in separate(CONTEXT, [spans], 2)] == ["Oslo", "Bergen"]


def test_only_the_best_answers_compete():
    text = "".join(map(chr, range(0x4E00, 0x4E20)))
    answers = merged(text, [[(n, n + 1, 0.1, float(n)) for n in range(len(text))]])
    logits = competing_logits(answers)
    assert logits == [float(n) for n in range(31, 31 - CANDIDATES, -1)]
