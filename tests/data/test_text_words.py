"""Sentences and words of texts in several scripts."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_flax.data.text_words import merged, sentence_spans, word_spans


def sentences(text):
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada wrote it. Who built it? He did!", ["Ada wrote it.", "Who built it?", "He did!"]),
        ('He said "no." Then he left…  End', ['He said "no."', "Then he left…", "End"]),
        ("It costs 3.50 euros. Mr. Smith paid.", ["It costs 3.50 euros.", "Mr. Smith paid."]),
        ("Am 3. Oktober kam z. B. Dr. K. an.", ["Am 3. Oktober kam z. B. Dr. K. an."]),
        ("The U.S. Army left. so did we.", ["The U.S. Army left. so did we."]),
        ("东京是首都。京都以前是。你好", ["东京是首都。", "京都以前是。", "你好"]),
        ("「はい。」と言った。", ["「はい。」", "と言った。"]),
        ("ما هو؟ هذا كتاب. نعم", ["ما هو؟", "هذا كتاب.", "نعم"]),
        ("यह है। वह था।", ["यह है।", "वह था।"]),
        ("A heading\n\nIts text", ["A heading", "Its text"]),
        ("one line\nof a paragraph", ["one line\nof a paragraph"]),
        (" \n ", []),
    ],
)
def test_sentences_of_several_scripts(text, expected):
    assert sentences(text) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='aB é.!?。؟\n"3 中').filter(lambda t: t))
def test_everything_but_white_space_is_in_one_sentence(text):
    spans = sentence_spans(text)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    inside = {n for start, end in spans for n in range(start, end)}
    assert all(n in inside for n, character in enumerate(text) if not character.isspace())
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)


def test_words_have_their_marks_and_apostrophes_but_no_punctuation():
    text = "Wasn't “naïve” cafe\u0301 हिन्दी 東京 3.5, (x)?"
    words = [text[start:end] for start, end in word_spans(text)]
    assert words == ["Wasn't", "naïve", "cafe\u0301", "हिन्दी", "東", "京", "3.5", "x"]


def test_spans_that_overlap_are_merged_and_neighbours_are_not():
    assert merged([(5, 9), (0, 5), (4, 6), (9, 12)]) == [(0, 9), (9, 12)]
