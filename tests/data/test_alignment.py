"""An answer's text is found where a reader would find it, with offsets in the original context."""

import unicodedata

import pytest

from qa_flax.data.alignment import find_nearest, find_only, find_similar

CONTEXT = (
    "Café  Müller & Söhne sagt “Guten\r\nTag” im Jahr 1912\u00a0m; AT&amp;T, ein 'bus' in den US "
    "ﬁndet İstanbul, 한국어 und e\u0301clair \u2013 so\u00adfort\u200b hier."
)


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (nfd("Café Müller"), "Café  Müller"),
        ("Müller &amp; Söhne", "Müller & Söhne"),
        ("M&#252;ller", "Müller"),
        ("AT&T", "AT&amp;T"),
        ('"Guten Tag"', "“Guten\r\nTag”"),
        ("guten\ntag", "Guten\r\nTag"),
        ("1912 m", "1912\u00a0m"),
        ("findet", "ﬁndet"),
        ("\uff11\uff19\uff11\uff12", "1912"),
        ("İSTANBUL", "İstanbul"),
        (nfd("한국어"), "한국어"),
        ("éclair", "e\u0301clair"),
        ("éclair - sofort hier", "e\u0301clair \u2013 so\u00adfort\u200b hier"),
        ("Us", "US"),  # and not the end of "bus"
        ("MÜLLER", "Müller"),
    ],
)
def test_other_spellings_are_found_with_the_offsets_of_the_context(text, expected):
    span = find_similar(CONTEXT, text, None)
    assert span is not None
    assert CONTEXT[slice(*span)] == expected


@pytest.mark.parametrize("text", ["Cafe", "eclair", "indet", "Uhr", "amp", " ", ""])
def test_a_part_of_a_letter_or_of_an_entity_is_not_found(text):
    assert find_similar(CONTEXT, text, None) is None


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_every_part_of_a_context_is_found_in_every_unicode_form(form):
    """The text that is found has the same plain spelling, and begins and ends with a letter."""
    words = CONTEXT.split()
    for n in range(len(words) - 1):
        text = " ".join(words[n : n + 2])
        span = find_similar(CONTEXT, unicodedata.normalize(form, text), CONTEXT.index(words[n]))
        assert span is not None, text
        found = " ".join(CONTEXT[slice(*span)].split()).replace("\u200b", "")
        text = text.replace("\u200b", "")
        assert unicodedata.normalize("NFKC", found) == unicodedata.normalize("NFKC", text)


def test_whole_words_come_before_parts_of_words():
    context = "The party of the art school makes art."
    assert find_nearest(context, "art", 0) == context.index("art school")
    assert find_nearest(context, "art", 99) == context.rindex("art")
    assert find_nearest(context, "part", 30) == context.index("party")
    assert find_nearest("東京は日本の首都。", "日本", 0) == 3
    assert find_nearest(context, "", 0) is find_nearest(context, "tea", 0) is None


def test_only_a_single_occurrence_is_taken():
    assert find_only("a party with art", "art") == (13, 1)
    assert find_only("art is art", "art") == (None, 2)
    assert find_only("party", "art") == (1, 1)
    assert find_only("party", "tea") == (None, 0)
    assert find_only("aaa", "aa") == (None, 2)
