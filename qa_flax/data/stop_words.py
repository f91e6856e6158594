"""Which words of a text carry no content, told by how they are spread over its passages (host).

There are no lists of words. A word is a stop word if many passages have it, and if it occurs in
about as many of them as it would if its occurrences were scattered at random: words such as
"however" are scattered, while a passage that has a word of its subject has it again (Church & Gale
1995, "Poisson mixtures").
"""

import numpy as np
from jaxtyping import Bool, Float, Int64

MIN_PASSAGES = 5
"""A stop word occurs in at least so many passages."""
COMMON, FREQUENT, RARE = 0.4, 0.1, 0.02
"""Shares of the passages: a word in `COMMON` of them is a stop word, in less than `RARE` never."""
SPREAD, EVEN_SPREAD = 0.6, 0.75
"""How evenly `FREQUENT` and `RARE` words are spread at least: 1 is at random."""
CHARACTER_SHARE, CHARACTER_SPREAD = 0.25, 0.85
"""The limits for characters, of which words are made: most occur in many passages."""

FEW = 20
"""With fewer passages, a word that a third of them have evenly spread is a stop word."""
FEW_SHARE, FEW_CHARACTER_SHARE = 1 / 3, 0.6
SENTENCE_SHARE, MIN_SENTENCES = 0.4, 3
"""The share of the sentences that have a stop word, if there are not even three passages."""

Counts = Int64[np.ndarray, " w"]


def stop_words(
    occurrences: Counts, passages: Counts, total: int, is_character: Bool[np.ndarray, " w"]
) -> Bool[np.ndarray, " w"]:
    """Return which of w words are stop words.

    Args:
        occurrences: how often each word occurs.
        passages: in how many passages it occurs.
        total: the number of passages.
        is_character: whether a word is a single character of a script without blanks.

    Example:
        >>> occurrences, passages = np.array([90, 12, 30]), np.array([60, 12, 8])  # the, however,
        >>> stop_words(occurrences, passages, 100, np.zeros(3, bool)).tolist()  # plague
        [True, True, False]
    """
    share = passages / max(total, 1)
    spread = _spread(occurrences, passages, total)
    words = (share >= COMMON) | ((share >= FREQUENT) & (spread >= SPREAD))
    words |= (share >= RARE) & (spread >= EVEN_SPREAD)
    characters = (share >= CHARACTER_SHARE) & (spread >= CHARACTER_SPREAD)
    least = MIN_PASSAGES
    if total < FEW:
        words, least = (share >= FEW_SHARE) & (spread >= SPREAD), 2
        characters = (share >= FEW_CHARACTER_SHARE) & (spread >= CHARACTER_SPREAD)
    return (passages >= least) & np.where(is_character, characters, words)


def frequent_words(sentences: Counts, total: int) -> Bool[np.ndarray, " w"]:
    """Return which of w words most sentences have, for a text of a passage or two.

    Args:
        sentences: in how many sentences each word occurs.
        total: the number of sentences.
    """
    return (sentences >= MIN_SENTENCES) & (sentences >= SENTENCE_SHARE * total)


def _spread(occurrences: Counts, passages: Counts, total: int) -> Float[np.ndarray, " w"]:
    """Return in how many passages words occur, divided by the number that chance would give."""
    expected = -total * np.expm1(-occurrences / max(total, 1))
    return passages / np.maximum(expected, 1e-9)
