"""Paragraphs, sentences and words, in several languages and scripts."""

import pytest

from qa_flax.data.sentences import LONGEST, WORDS, paragraph_spans, sentence_spans


def sentences(text: str) -> list[str]:
    return [text[slice(*span)] for span in sentence_spans(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["Mr. Smith paid 3.5 pounds.", "J. R. R. Tolkien wrote it.", "Then he left!"],
        ["The U.S. Army came... and went.", "What?", '"Yes."', "It had 1,000 men e.g. these."],
        ["Am 3. Mai kam er z. B. nach Berlin.", "„Das ist gut.“", "Er blieb."],
        ["هل ذهبت؟", "نعم ذهبت.", "ثم عدت."],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["¿Quién vino?", "¡Nadie!", "Se fue el Sr. Paz."],
    ],
    ids=["en", "marks", "de", "ar", "hi", "es"],
)
def test_sentences_end_at_marks_but_not_at_abbreviations_and_numbers(expected):
    assert sentences(" ".join(expected)) == expected


def test_scripts_without_blanks_have_sentences_too():
    parts = ["他来了。", "“他走了！”", "真的？"]  # noqa: RUF001
    assert sentences("".join(parts)) == parts
    assert sentences("「そうです。」と言った。") == ["「そうです。」", "と言った。"]
    thai = "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์ และออกเสียงแยกคำต่อคำ"
    assert sentences(thai) == thai.split(" ")


def test_texts_without_capital_letters_have_sentences():
    parts = ["i went home.", "then i slept, e.g. all day.", "nice"]
    assert sentences(" ".join(parts)) == parts


def test_line_breaks_end_sentences_and_blank_lines_paragraphs():
    text = "one\ntwo\r\n\r\nthree\n \t\n\nfour\n"
    assert sentences(text) == ["one", "two", "three", "four"]
    assert [text[slice(*span)] for span in paragraph_spans(text)] == ["one\ntwo", "three", "four\n"]


def test_a_sentence_without_end_is_cut():
    for text in ("x" * 10_000, "word " * 3_000):
        parts = sentences(text)
        assert max(map(len, parts)) <= LONGEST
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")


def test_words_keep_what_joins_them():
    text = "O'Neill's co-op, 3.5 and 1,000 at 12:30 (AT&T) 2010年北京 naïve ภาษาไทย и школа 50%"
    words = [m[0] for m in WORDS.finditer(text) if m.lastgroup != "gap"]
    expected = "O'Neill's co-op 3.5 and 1,000 at 12:30 AT&T 2010 年北京 naïve ภาษาไทย и школа 50"
    assert words == expected.split()
    assert [m[0] for m in WORDS.finditer(text) if m.lastgroup == "unspaced"] == [
        "年北京",
        "ภาษาไทย",
    ]
