"""Where the sentences of a text are, in any script (host, text).

The rules need no list of words of a language. They rather leave two sentences together than split
one: "Dr. Ada met Bob. They spoke." is one piece, because "Bob." may be short for something.
"""

import re
import unicodedata
from functools import lru_cache

Span = tuple[int, int]
"""The part [start, end) of a text, in code points."""

_CLOSING = "\"'\u2019\u201d\u00bb)\\]\u300d\u300f\uff09\u3011\u300b\u203a"
# A full stop needs white space after it; those of scripts without spaces do not. A blank line ends
# a sentence without one.
_END = re.compile(
    rf"[.!?\u2026\u061f\u06d4\u0964\u0965]+[{_CLOSING}]*(?=\s)"
    rf"|[\u3002\uff01\uff1f\uff61]+[{_CLOSING}]*"
    r"|\n[^\S\n]*\n"
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'\u00ab\u201c]*\Z")
_NOT_BLANK = re.compile(r"\S")
_SHORT = 3  # letters of a word with a capital that may be an abbreviation: "Mrs."
# Scripts that are written without spaces between words: Thai to Myanmar, Khmer, Han and kana.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces between words."""
    return _UNSPACED.match(character) is not None


def sentence_spans(text: str) -> list[Span]:
    """Return the sentences of a text, without the white space around them.

    Everything but white space is in exactly one of them.

    Example:
        >>> text = "Ada wrote it in 1843. Who built it? Mr. Babbage."
        >>> [text[start:end] for start, end in sentence_spans(text)]
        ['Ada wrote it in 1843.', 'Who built it?', 'Mr. Babbage.']
    """
    return list(_sentence_spans(text))


@lru_cache(maxsize=1 << 10)  # the questions about a context follow each other
def _sentence_spans(text: str) -> tuple[Span, ...]:
    cuts = [m.end() for m in _END.finditer(text) if _is_end(text, m)]
    spans = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return tuple(span for span in (_stripped(text, *pair) for pair in spans) if span[0] < span[1])


def _is_end(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends at a mark. A full stop may also be that of an abbreviation."""
    if match[0][0] in "\n\u3002\uff01\uff1f\uff61":
        return True
    following = _NOT_BLANK.search(text, match.end())
    if following is not None and following[0].islower():
        return False
    if match[0] != ".":
        return True
    found = _WORD_BEFORE.search(text, max(0, match.start() - 40), match.start())
    word = found[0] if found else ""
    if "." in word or len(word) == 1:  # "U.S.", "J. Smith", "z. B."
        return is_unspaced(word) or not word
    is_ordinal = word.isdigit() and len(word) < 3  # "am 3. Oktober"
    return not is_ordinal and not (len(word) <= _SHORT and word[:1].isupper())


def _stripped(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def merged(spans: list[Span]) -> list[Span]:
    """Return spans in order, with those that overlap as one.

    Example:
        >>> merged([(0, 5), (5, 9), (12, 15), (4, 6)])
        [(0, 9), (12, 15)]
    """
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start < result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def word_spans(text: str) -> list[Span]:
    """Return the words of a text; each character of a script without spaces is one.

    Marks and apostrophes inside a word belong to it; punctuation is in none.

    Example:
        >>> text = "Who wasn't in 東京?"
        >>> [text[start:end] for start, end in word_spans(text)]
        ['Who', "wasn't", 'in', '東', '京']
    """
    spans: list[list[int]] = []
    joins = False  # whether the next character continues the last word
    for place, character in enumerate(text):
        if spans and spans[-1][1] == place and unicodedata.category(character)[0] == "M":
            spans[-1][1] = place + 1
        elif character.isalnum() and is_unspaced(character):
            spans.append([place, place + 1])
            joins = False
        elif character.isalnum():
            if joins:
                spans[-1][1] = place + 1
            else:
                spans.append([place, place + 1])
            joins = True
        else:
            joins = joins and character in "'\u2019-\u200c\u200d." and text[place - 1].isalnum()
    return [(start, end) for start, end in spans]
