"""Stage 1 of 7: where an answer's text is in its context (host, text).

Offsets count code points. `find_similar` also finds a text that differs from the context in ways
that do not change its meaning; it returns the offsets of the context's own text.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple


class Span(NamedTuple):
    """The part [start, end) of a context."""

    start: int
    end: int


def is_at(context: str, text: str, start: int) -> bool:
    """Return whether the text is in the context at this start."""
    return start >= 0 and context.startswith(text, start)


def find_nearest(context: str, text: str, start: int) -> int | None:
    """Return the start of the occurrence of `text` that is nearest to `start`, or None.

    Occurrences that are whole words come first: "art" is rather the word than a part of "party".
    """
    spans = whole_words_first(context, list(_occurrences(context, text)))
    return min((span.start for span in spans), key=lambda b: abs(b - start), default=None)


def find_only(context: str, text: str) -> tuple[int | None, int]:
    """Return the start of the text's only occurrence, and how many occurrences there are.

    If several places have the text, but only one of them as whole words, it is that one. The start
    is None if there is none, or no single one.
    """
    occurrences = list(_occurrences(context, text))
    spans = whole_words_first(context, occurrences)
    return (spans[0].start, 1) if len(spans) == 1 else (None, len(spans))


def find_similar(context: str, text: str, start: int | None) -> Span | None:
    """Return where the context has `text` in another spelling, or None.

    These differences do not count: Unicode forms (NFC, NFD, NFKC), curly quotes and dashes, HTML
    entities such as `&amp;`, kinds and runs of white space, invisible characters, and, if nothing
    is found without it, upper and lower case.

    Args:
        context: the context.
        text: the answer.
        start: the place to be near to; None: there must be only one.
    """
    for folds_case in (False, True):
        found = _similar(context, text, folds_case)
        if folds_case:  # other letters may be meant in the middle of a word: "US" is not in "bus"
            found = [span for span in found if is_whole_words(context, span)]
        found = whole_words_first(context, found)
        if found and start is not None:
            return min(found, key=lambda span: abs(span.start - start))
        if len(found) == 1:
            return found[0]
    return None


def _occurrences(context: str, text: str) -> Iterator[Span]:
    """Yield every place of the text, overlapping ones, too."""
    start = context.find(text) if text else -1
    while start >= 0:
        yield Span(start, start + len(text))
        start = context.find(text, start + 1)


# --- Words ---------------------------------------------------------------------------------------


def whole_words_first(context: str, spans: list[Span]) -> list[Span]:
    """Return the spans that are whole words; all of them if none is."""
    return [span for span in spans if is_whole_words(context, span)] or spans


def is_whole_words(context: str, span: Span) -> bool:
    """Return whether neither end of a span is inside a word or number.

    Only scripts with upper and lower case and numbers are divided: others are written without
    spaces, or attach particles to words.
    """
    return not any(
        0 < edge < len(context) and _is_letter(context[edge - 1]) and _is_letter(context[edge])
        for edge in span
    )


def _is_letter(character: str) -> bool:
    return unicodedata.category(character) in ("Lu", "Ll", "Lt", "Nd")


# --- Other spellings -----------------------------------------------------------------------------

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_SIMILAR = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4\u0060\u02bc\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d", "-"),
    }
)


class _Plain(NamedTuple):
    """A text in a plain spelling, and the part of the original that each character stands for."""

    text: str
    spans: list[Span]


@lru_cache(maxsize=8)  # questions about one context follow each other
def _plain(text: str, folds_case: bool) -> _Plain:
    characters: list[str] = []
    spans: list[Span] = []
    for part, span in _units(text):
        if part.isspace():
            if characters and characters[-1] == " ":  # a run of white space is one space
                spans[-1] = Span(spans[-1].start, span.end)
                continue
            part = " "
        else:
            part = _plain_unit(part, folds_case)
        characters.extend(part)
        spans.extend([span] * len(part))
    return _Plain("".join(characters), spans)


def _plain_unit(part: str, folds_case: bool) -> str:
    """Return a character with its marks in the spelling that is compared; "" if it is invisible."""
    part = unicodedata.normalize("NFKD", part.translate(_SIMILAR)).translate(_SIMILAR)
    if folds_case:
        part = unicodedata.normalize("NFKD", part.casefold())
    return "".join(c for c in part if unicodedata.category(c) != "Cf")


def _units(text: str) -> Iterator[tuple[str, Span]]:
    """Yield the characters that are compared as one: an HTML entity, or a letter with its marks."""
    position = 0
    while position < len(text):
        entity = _ENTITY.match(text, position) if text[position] == "&" else None
        if entity is not None and (character := html.unescape(entity[0])) != entity[0]:
            yield character, Span(position, entity.end())
            position = entity.end()
            continue
        end = position + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        yield text[position:end], Span(position, end)
        position = end


def _similar(context: str, text: str, folds_case: bool) -> list[Span]:
    """Return the spans of the context whose plain spelling is that of the text."""
    plain, wanted = _plain(context, folds_case), _plain(text, folds_case).text.strip()
    found = []
    for first, last in _occurrences(plain.text, wanted):
        start, end = plain.spans[first], plain.spans[last - 1]
        # A letter and its accent, or the letters of a ligature, are found together or not at all.
        begins = first == 0 or plain.spans[first - 1] != start
        ends = last == len(plain.spans) or plain.spans[last] != end
        if begins and ends:
            found.append(Span(start.start, end.end))
    return found
