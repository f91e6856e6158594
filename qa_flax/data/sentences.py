"""Texts -> paragraphs, sentences and words, without a word list of any language (host, text).

A sentence ends at a mark with Unicode's property Sentence_Terminal, or at a line break. After a
full stop the next sentence must not begin with a small letter, unless this one does, and the stop
must not belong to an abbreviation, an initial, or a number.
"""

from collections.abc import Iterator

import regex

BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Characters that end a line."""

Span = tuple[int, int]
"""The first character and the one after the last, in code points."""

LONGEST = 600
"""Characters of a sentence; a longer one, of a text without marks, is cut."""
CUT = 300
"""Where a longer one is cut: at the last blank before, if there is one."""
SHORTEST_PHRASE = 40
"""Characters of a phrase in a script that separates neither words nor sentences, such as Thai."""

# Scripts without blanks between words: Chinese, Japanese, and those of Southeast Asia.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{LB=SA}"
_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}_\u200c\u200d]--[{UNSPACED}]]"
# "O'Neill", "co-operate", "U.S", "3.5", "1,000" and "12:30" are words.
_JOINED = r"(?:['\u2019.\-\u2010\u2011\u00b7&@]|(?<=\p{N})[,:/](?=\p{N}))"
WORDS = regex.compile(
    rf"{_LETTERS}+(?:{_JOINED}{_LETTERS}+)*"
    rf"|(?P<unspaced>[{UNSPACED}]+)"
    rf"|(?P<gap>[^\s\p{{L}}\p{{M}}\p{{N}}_\u200c\u200d{UNSPACED}]+)",
    regex.V1,
)
"""Matches a word, a run of words in a script without blanks between them, or punctuation."""
MARK = regex.compile(r"\p{M}")
"""Matches a character that is drawn together with the one before it."""
ALPHABETIC = regex.compile(r"\p{LB=SA}")
"""Matches a letter of a script that has neither blanks between words nor signs for whole words."""

_CLOSING = r"[\p{Pe}\p{Pf}\p{Pi}\"'*_]*"
_END = regex.compile(
    rf"(?P<stop>[.\u2026]+){_CLOSING}(?=\s|$)"
    rf"|(?P<mark>[[\p{{STerm}}]--[.]][\p{{STerm}}]*){_CLOSING}(?=\s|$)"
    rf"|(?P<wide>[[\p{{STerm}}]--[.!?]]+)[\p{{Pe}}\p{{Pf}}\"]*"
    r"|(?P<phrase>(?<=\p{LB=SA})\s+(?=\p{LB=SA}))"
    rf"|(?P<line>[{BREAKS}])",
    regex.V1,
)
_NEXT = regex.compile(r"\s*(?P<closed>[\p{Pi}\p{Ps}\"']*)(?P<letter>\S?)", regex.V1)
_LAST_WORD = regex.compile(r"[^\s\p{Ps}\p{Pi}\"']*\Z", regex.V1)
_ABBREVIATION = regex.compile(
    r"\p{L}\p{M}*"  # an initial
    r"|\p{N}{1,2}"  # an ordinal, as in "am 3. Mai"
    r"|\p{Lu}(?:(?![aeiou])\p{Ll}){1,3}"  # Mr, Dr, St
    r"|\p{L}\p{M}*(?:\.\p{L}\p{M}*)+",  # e.g, U.S
    regex.V1,
)
_LINE_END = rf"(?>\r\n|[{BREAKS}])"
_BLANK_LINES = regex.compile(rf"{_LINE_END}(?:[^\S{BREAKS}]*{_LINE_END})+", regex.V1)
_BLANKS = regex.compile(r"\s+")


def paragraph_spans(text: str) -> Iterator[Span]:
    r"""Yield the paragraphs of a text, which blank lines separate.

    Example:
        >>> list(paragraph_spans("One.\nTwo.\n\nThree."))
        [(0, 9), (11, 17)]
    """
    begin = 0
    for match in _BLANK_LINES.finditer(text):
        if match.start() > begin:
            yield begin, match.start()
        begin = match.end()
    if begin < len(text):
        yield begin, len(text)


def sentence_spans(
    text: str, start: int = 0, end: int | None = None, *, has_lines: bool = True
) -> Iterator[Span]:
    """Yield the sentences of a part of a text, without white space around them.

    Args:
        text: the text.
        start: where the part begins.
        end: where it ends; None: at the end of the text.
        has_lines: whether a line break ends a sentence.

    Example:
        >>> text = "Mr. Smith paid 3.5 pounds. 他来了。他走了。"
        >>> [text[slice(*span)] for span in sentence_spans(text)]
        ['Mr. Smith paid 3.5 pounds.', '他来了。', '他走了。']
    """
    end = len(text) if end is None else end
    begin = start
    for match in _END.finditer(text, start, end):
        if (has_lines or match["line"] is None) and _is_end(text, begin, match, end, has_lines):
            yield from _cut(text, begin, match.end())
            begin = match.end()
    yield from _cut(text, begin, end)


def _is_end(text: str, begin: int, match: regex.Match[str], end: int, has_lines: bool) -> bool:
    if match["phrase"] is not None:
        return match.start() - begin >= SHORTEST_PHRASE
    if match["stop"] is None or match.end() == end:
        return True
    following = _NEXT.match(text, match.end(), end)
    assert following is not None  # every part of it is optional
    between = text[match.end() : following.start("closed")]
    if has_lines and any(letter in BREAKS for letter in between):
        return True
    # Some people write no capital letters.
    continues = following["letter"].islower() and not _begins_small(text, begin)
    if continues or following["letter"] in {",", ";", ":"}:
        return False
    word = _LAST_WORD.search(text, max(begin, match.start() - 24), match.start())
    return word is None or _ABBREVIATION.fullmatch(word[0]) is None


def _begins_small(text: str, begin: int) -> bool:
    letter = _NEXT.match(text, begin)
    return letter is not None and letter["letter"].islower()


def _cut(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield a sentence without white space around it; in parts, if it is too long."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    while end - start > LONGEST:
        blanks = [m.start() for m in _BLANKS.finditer(text, start + CUT // 2, start + CUT)]
        cut = blanks[-1] if blanks else start + CUT
        yield start, cut
        start = cut
        while text[start].isspace():
            start += 1
    if start < end:
        yield start, end
