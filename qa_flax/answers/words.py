"""Stage 6 of 7: token spans of windows -> characters of the context, by tokens or by words (host).

A word is what the tokenizer's pre-tokenizer makes: often what white space and punctuation separate,
a single Chinese character for BERT, but a whole Chinese sentence for many SentencePiece tokenizers.
Where a window begins or ends inside a word, only its part of the word counts, as in the pipeline of
transformers 4.
"""

import numpy as np
from jaxtyping import Int

from qa_flax.data.windows import LazyWindows

Places = Int[np.ndarray, "n k"]


class Words:
    """The words of N windows' contexts.

    Args:
        windows: their contexts' tokens say where words begin (`windows_of_texts(words=True)`).
        by_words: whether to widen spans to whole words.
    """

    def __init__(self, windows: LazyWindows, by_words: bool):
        contexts, slices = windows.contexts, windows.slices
        self._offsets, self._by_words = contexts.offsets, by_words
        self._begins = contexts.first[slices.example] + slices.start
        self._last = self._begins + slices.count - 1
        begins_word = contexts.begins_word
        if begins_word is None:
            raise ValueError("the contexts were tokenized without their words")
        # Texts follow each other, and the first token of each begins a word.
        self._first_tokens = np.flatnonzero(begins_word)
        self._last_tokens = np.append(self._first_tokens[1:], len(begins_word)) - 1
        self._word = np.cumsum(begins_word) - 1

    def widened(self, starts: Places, ends: Places) -> tuple[Places, Places]:
        """Return the first and the last token of the spans' words.

        Args:
            starts: first tokens [N, K], counted from the window's first context token.
            ends: last tokens [N, K].
        """
        if not self._by_words or not len(self._word):
            return starts, ends
        begins, last = self._begins[:, None], self._last[:, None]
        first = self._first_tokens[self._word[self._inside(starts)]]
        final = self._last_tokens[self._word[self._inside(ends)]]
        return np.maximum(first, begins) - begins, np.minimum(final, last) - begins

    def characters(self, starts: Places, ends: Places) -> tuple[Places, Places]:
        """Return the first character of each span, and the character after its last [N, K]."""
        starts, ends = self.widened(starts, ends)
        if not len(self._offsets):
            return np.zeros_like(starts), np.zeros_like(ends)
        return self._offsets[self._inside(starts), 0], self._offsets[self._inside(ends), 1]

    def _inside(self, places: Places) -> Places:
        """Return the tokens at places of windows, as indices of all contexts' tokens."""
        # A window without a span has a place there, too, which nobody reads.
        return np.minimum(self._begins[:, None] + places, len(self._word) - 1)
