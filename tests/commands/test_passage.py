"""The passage around an answer: marked, cut at words, wrapped to the terminal's columns."""

import re

import pytest

from qa_flax.commands.answer.passage import HIGHLIGHT, columns, passage, shown

STORY = "One. " * 40 + "The treasure\r\n lies under the\told oak tree. " + "Two. " * 40
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
FLAGS = "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7"


def around(text, answer, width, **settings):
    start = text.index(answer)
    return passage(text, start, start + len(answer), width, **settings)


def test_the_answer_is_marked_in_lines_of_whole_words():
    lines = around(STORY, "under the\told oak", 40)
    assert all(columns(line) <= 40 for line in lines)
    assert len(lines) <= 5
    text = " ".join(lines)
    assert "The treasure lies [[under the old oak]] tree. Two." in text
    assert text.startswith("... One. ")
    assert text.endswith(" Two. ...")
    assert set(re.findall(r"\w+", text)) <= set(re.findall(r"\w+", STORY))


def test_a_short_text_is_shown_whole():
    assert around("Ada wrote it.", "Ada", 40) == ["[[Ada]] wrote it."]
    assert around("Ada", "Ada", 40) == ["[[Ada]]"]
    assert passage("Ada", 0, 0, 40) == ["Ada"]


def test_a_highlight_takes_no_columns_and_is_ended_in_each_line():
    on, off, _ = HIGHLIGHT
    lines = around(STORY, "under the\told oak", 20, marks=HIGHLIGHT)
    assert [line for line in lines if on in line] == [
        f"treasure lies {on}under{off}",
        f"{on}the old oak{off} tree.",
    ]
    assert all(line.count(on) == line.count(off) for line in lines)


@pytest.mark.parametrize("width", range(20, 31))
def test_wide_characters_take_two_columns_and_need_no_blanks(width):
    text = "東京は日本の首都です。" * 30 + "答え" + "東京は日本の首都です。" * 30
    lines = around(text, "答え", width)
    assert all(width - 5 <= columns(line) <= width for line in lines[:-1])
    assert "[[答え]]" in "".join(lines)
    assert "".join(lines).strip(".").replace("[[", "").replace("]]", "") in text
    assert not any(line.startswith("。") for line in lines)


@pytest.mark.parametrize("width", range(20, 24))
@pytest.mark.parametrize(
    "cluster", [FAMILY, "e\u0301", "👍\U0001f3fd", "क्षि", "\u1112\u1161\u11ab"]
)
def test_characters_that_are_drawn_together_stay_together(width, cluster):
    text = cluster * 200
    middle = 100 * len(cluster)
    lines = passage(text, middle, middle + len(cluster), width)
    whole = "".join(lines).strip(".").replace("[[", "").replace("]]", "")
    assert whole == cluster * (len(whole) // len(cluster))
    for line in lines:
        assert len(re.sub(r"\.\.\.|\[\[|\]\]", "", line)) % len(cluster) == 0


def test_an_answer_that_ends_inside_a_character_is_marked_with_all_of_it():
    text = f"a {FAMILY} b"
    assert passage(text, 3, 4, 30) == [f"a [[{FAMILY}]] b"]
    assert passage(FLAGS, 0, 2, 30) == [f"[[{FLAGS[:2]}]]{FLAGS[2:]}"]


def test_right_to_left_text_keeps_its_order():
    text = "القاهرة هي عاصمة مصر وأكبر مدنها. " * 9 + "بغداد عاصمة العراق."
    lines = around(text, "بغداد", 40)
    assert "".join(lines).startswith("...")
    assert " ".join(lines).removeprefix("... ").replace("[[", "").replace("]]", "") in text


def test_nothing_in_a_text_can_disturb_the_terminal():
    text = "The \x1b[31mred\x1b[0m \x07bell\x9b and \u202eturned\u202c text."
    assert around(text, "bell", 60) == ["The red [[bell]] and turned text."]
    assert shown(" a\n\tb\x1b]0;x ") == "a b]0;x"
