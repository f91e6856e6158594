"""Recurring spans, compared with a search over all spans."""

import itertools
from collections import defaultdict

import numpy as np

from qa_flax.data.recurring import MAX_COUNT, MAX_WORDS, MIN_COUNT, WORD, recurring_spans

GAP = -1


def all_spans(words, can_begin, weights):
    """The definition, by brute force: every span by its words."""
    places = defaultdict(list)
    for begin in range(len(words)):
        for end in range(begin + 1, len(words) + 1):
            if GAP in words[begin:end]:
                break
            places[tuple(words[begin:end])].append(begin)
    whole = {
        span: found
        for span, found in places.items()
        if can_begin[span[0]]
        and can_begin[span[-1]]
        and MIN_COUNT <= len(found) <= MAX_COUNT
        and all(b - a >= len(span) for a, b in itertools.pairwise(found))
    }
    # Only one word more than is allowed can hide a span that is.
    sizes = {span: sum(weights[word] for word in span) for span in whole}
    limit = WORD * MAX_WORDS
    whole = {s: f for s, f in whole.items() if sizes[s] - weights[s[-1]] <= limit}

    def is_inside(inner, outer):
        starts = range(len(outer) - len(inner) + 1)
        return any(outer[k : k + len(inner)] == inner for k in starts)

    return sorted(
        (found, len(span))
        for span, found in whole.items()
        if sizes[span] <= limit
        and not any(
            len(outer) > len(span) and len(whole[outer]) == len(found) and is_inside(span, outer)
            for outer in whole
        )
    )


def test_the_spans_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    found_any = 0
    for _ in range(400):
        kinds = int(rng.integers(2, 12))
        words = rng.integers(-1, kinds, rng.integers(1, 60)).tolist()
        if rng.random() < 0.5:  # a long part that occurs again
            words += [GAP, *words[: len(words) // 2]]
        words.append(GAP)
        can_begin = (rng.random(kinds) < 0.7).tolist()
        weights = [WORD] * kinds
        expected = all_spans(words, can_begin, weights)
        spans = [(s.places, s.length) for s in recurring_spans(words, GAP, can_begin, weights)]
        assert spans == expected
        found_any += len(expected)
    assert found_any > 400


def test_a_span_of_characters_is_a_whole_word():
    """Where the same character always follows, the span is a part of what recurs."""
    words = [*map(ord, "xabcy"), GAP, *map(ord, "zabcw"), GAP]
    can_begin = [True] * 128
    can_begin[ord("c")] = False
    characters, spaced = [WORD // 2] * 128, [WORD] * 128
    assert recurring_spans(words, GAP, can_begin, characters) == []
    (span,) = recurring_spans(words, GAP, can_begin, spaced)
    assert (span.places, span.length) == ([1, 7], 2)
    can_begin[ord("c")] = True
    (span,) = recurring_spans(words, GAP, can_begin, characters)
    assert (span.places, span.length) == ([1, 7], 3)


def test_a_span_of_characters_may_have_twice_as_many():
    text = "abcdefghij"
    words = [*map(ord, text), GAP, *map(ord, text), GAP]
    lengths = {
        size: [s.length for s in recurring_spans(words, GAP, [True] * 128, [size] * 128)]
        for size in (WORD // 2, WORD)
    }
    assert lengths[WORD // 2] == [10]
    assert all(length <= 5 for length in lengths[WORD])
