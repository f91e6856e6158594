"""A passage -> questions about its sentences, which stay in it (host, text).

The question has the words of a sentence without a span of it, the answer; some words are left out
and some have moved, so that it is no copy. Lewis et al. 2019, "Unsupervised question answering by
cloze translation" (P19-1484), section 2.3, call this a noisy cloze. A model that answers it has
learnt to find the sentence that shares words with a question, and the part that it asks for.
"""

import random
from collections.abc import Iterator
from typing import Any

from qa_flax.data.cloze_maker import MIN_SIZE, ClozeMaker, PassageView, cloze_example
from qa_flax.data.passages import GAP
from qa_flax.data.recurring import MAX_WORDS, WORD

WORDS_AROUND = 10
"""Words of the sentence that a question has before its answer, at most, and after it."""
DROPPED, STOP_DROPPED = 0.1, 0.35
"""The share of words of content that are left out, and of stop words."""
MOVED = 2.5
"""How far words move, at most, in the questions in which they do."""
_LIMIT = WORD * MAX_WORDS


class KeptSentenceMaker(ClozeMaker):
    """Makes the questions of passages; arguments as of `ClozeMaker`.

    Attributes:
        span_count: how many sentences have a span that can be an answer.
    """

    def _rows(self, view: PassageView, chance: random.Random) -> Iterator[dict[str, Any]]:
        sentences = list(range(len(view.passage.sentences)))
        chance.shuffle(sentences)
        for sentence in sentences:
            spans = self._spans(view, sentence)
            self.span_count += bool(spans)
            if spans and view.passage.tokens[sentence] <= self._max_question:
                # Short spans are as likely as long ones, of which there are more.
                length = chance.choice(sorted({length for _, length in spans}))
                first, _ = chance.choice([span for span in spans if span[1] == length])
                question = self._question(view, sentence, first, length, chance)
                if question is not None:
                    yield self._kept_example(view, question, first, length)

    def _spans(self, view: PassageView, sentence: int) -> list[tuple[int, int]]:
        """Return the first word and the length of the spans of a sentence that can be answers.

        They begin and end with words of content, and occur once in the sentence.
        """
        passage, words = view.passage, view.words(sentence)
        start, end = passage.sentences[sentence]
        said = passage.text[start:end].casefold()
        found = []
        for first in words:
            size = 0
            for last in range(first, words.stop):
                word = passage.words[last]
                size += self._sizes[word] if word != GAP else 0
                if word == GAP or size > _LIMIT:
                    break
                has_content = self._has_content[passage.words[first]] and self._has_content[word]
                length = last - first + 1
                if has_content and self._is_answer(passage, first, length):
                    s, e = view.place(first, length)
                    if said.count(passage.text[s:e].casefold()) == 1:
                        found.append((first, length))
        return found

    def _question(
        self, view: PassageView, sentence: int, first: int, length: int, chance: random.Random
    ) -> str | None:
        """Return a question for a span; None if too few words are left."""
        words = [k for k in view.words(sentence) if view.passage.words[k] != GAP]
        before = [k for k in words if k < first][-WORDS_AROUND:]
        after = [k for k in words if k >= first + length][:WORDS_AROUND]
        before = [k for k in before if self._stays(view, k, chance)]
        after = [k for k in after if self._stays(view, k, chance)]
        content = [k for k in before + after if self._has_content[view.passage.words[k]]]
        if sum(self._sizes[view.passage.words[k]] for k in content) < MIN_SIZE // 2:
            return None
        order: list[int | None] = [*before, None, *after]  # None: the mask
        if chance.random() < 0.5:
            order = [None, *after, *before] if chance.random() < 0.5 else [None, *before, *after]
        if chance.random() < 0.5:
            # Characters that are parts of words keep their order.
            moved = [MOVED if k is None or self._is_word(view, k) else 0.0 for k in order]
            keys = [place + chance.uniform(0, most) for place, most in enumerate(moved)]
            order = [order[place] for place in sorted(range(len(order)), key=keys.__getitem__)]
        return self._text(view, order, self._mask(chance))

    def _stays(self, view: PassageView, k: int, chance: random.Random) -> bool:
        if not self._is_word(view, k):
            return True
        has_content = self._has_content[view.passage.words[k]]
        return chance.random() >= (DROPPED if has_content else STOP_DROPPED)

    def _is_word(self, view: PassageView, k: int) -> bool:
        """Whether it is a word, and not a character of a script without blanks."""
        return self._sizes[view.passage.words[k]] >= WORD

    def _text(self, view: PassageView, order: list[int | None], mask: str) -> str:
        """Join words: with blanks, but for two characters of a script without them."""
        pieces, was_character = [], False
        for k in order:
            is_character = k is not None and not self._is_word(view, k)
            if pieces and not (is_character and was_character):
                pieces.append(" ")
            start, end = (0, 0) if k is None else view.place(k, 1)
            pieces.append(mask if k is None else view.passage.text[start:end])
            was_character = is_character
        return "".join(pieces) + "?" * (not was_character)

    def _kept_example(
        self, view: PassageView, question: str, first: int, length: int
    ) -> dict[str, Any]:
        start, end = view.place(first, length)
        text = view.passage.text
        return cloze_example(view.passage.title, question, text, [text[start:end]], [start])
