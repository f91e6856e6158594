"""Words of a text in any script, and its sentences as lists (host, text)."""

import itertools
import unicodedata
from functools import lru_cache

import regex

from qa_flax.data import sentences
from qa_flax.data.sentences import UNSPACED, Span

_UNSPACED = regex.compile(f"[{UNSPACED}]", regex.V1)


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces between words."""
    return _UNSPACED.match(character) is not None


def sentence_spans(text: str) -> list[Span]:
    """Return the sentences of a text; blank lines end one, other line breaks do not.

    Everything but white space is in exactly one of them.
    """
    return list(_sentence_spans(text))


@lru_cache(maxsize=1 << 10)  # the questions about a context follow each other
def _sentence_spans(text: str) -> tuple[Span, ...]:
    paragraphs = sentences.paragraph_spans(text)
    parts = (sentences.sentence_spans(text, *span, has_lines=False) for span in paragraphs)
    return tuple(itertools.chain.from_iterable(parts))


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
