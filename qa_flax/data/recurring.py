"""The spans of words that occur again in a passage (host).

The idea is that of recurring span selection: Ram et al. 2021, "Few-shot question answering by
pretraining span selection" (Splinter, arXiv 2101.00438).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

MIN_COUNT, MAX_COUNT = 2, 4
"""How often a span occurs in its passage."""
MAX_WORDS = 5
"""Words of a span."""
WORD = 4
"""The size of a word. A character of a script without blanks is smaller."""
_LIMIT = WORD * MAX_WORDS


class RecurringSpan(NamedTuple):
    """A span that occurs several times."""

    places: list[int]
    """Where its occurrences begin, as indices of the passage's words; ascending."""
    length: int
    """How many words it has, or characters of a script without blanks."""


def recurring_spans(
    words: Sequence[int], gap: int, can_begin: Sequence[bool], sizes: Sequence[int]
) -> list[RecurringSpan]:
    """Return the spans of a passage that occur 2 to 4 times, in the order of their first places.

    They begin and end with words of content, have no gap inside, and do not overlap themselves. A
    span that occurs only inside of another such span is left out, and so is one of a script without
    blanks that always has the same character before or after it: it is probably a part of a word.

    Args:
        words: the numbers of the passage's words, and gaps between some of them.
        gap: the number that stands for a gap.
        can_begin: by the number of a word, whether a span may begin and end with it.
        sizes: by the number of a word, how much it counts: `WORD`, or less for a character.

    Example:
        >>> words = [0, 1, 2, -1, 3, 0, 1, -1]
        >>> recurring_spans(words, -1, [True] * 4, [4] * 4)
        [RecurringSpan(places=[0, 5], length=2)]
    """
    groups = {}
    for place, word in enumerate(words):
        if word != gap and can_begin[word]:
            groups.setdefault(word, []).append(place)
    level = [(places, sizes[word]) for word, places in groups.items() if len(places) > 1]
    counts: dict[tuple[int, int], int] = {}  # (first place, length) -> how often it occurs
    spans: list[tuple[RecurringSpan, bool]] = []  # and whether it is short enough
    length = 1
    while level:
        following = []
        for places, size in level:
            counts[places[0], length] = len(places)
            last = words[places[0] + length - 1]
            if can_begin[last] and len(places) <= MAX_COUNT:
                overlaps = any(b - a < length for a, b in itertools.pairwise(places))
                if not overlaps and not _is_part(words, gap, sizes, places, length):
                    spans.append((RecurringSpan(places, length), size <= _LIMIT))
            if size <= _LIMIT:
                following += _longer(words, gap, sizes, places, length, size)
        level, length = following, length + 1
    covered = {
        (span.places[0] + offset, inner)
        for span, _ in spans
        for inner in range(1, span.length)
        for offset in range(span.length - inner + 1)
        if counts.get((span.places[0] + offset, inner)) == len(span.places)
    }
    kept = [s for s, is_short in spans if is_short and (s.places[0], s.length) not in covered]
    return sorted(kept)


def _is_part(
    words: Sequence[int], gap: int, sizes: Sequence[int], places: list[int], length: int
) -> bool:
    """Whether a span of characters always has the same one before it, or after it."""
    for edge, neighbour in ((0, -1), (length - 1, length)):
        if sizes[words[places[0] + edge]] < WORD:
            beside = {words[k + neighbour] if k + neighbour >= 0 else gap for k in places}
            if len(beside) == 1 and gap not in beside and sizes[min(beside)] < WORD:
                return True
    return False


def _longer(
    words: Sequence[int],
    gap: int,
    sizes: Sequence[int],
    places: list[int],
    length: int,
    size: int,
) -> list[tuple[list[int], int]]:
    """Return the spans of one word more, each with its places and its size."""
    groups: dict[int, list[int]] = {}
    for place in places:
        following = words[place + length]  # a passage ends with a gap
        if following != gap:
            groups.setdefault(following, []).append(place)
    return [(group, size + sizes[word]) for word, group in groups.items() if len(group) > 1]
