"""A passage -> its clozes: which spans, which sentence, which answer (host, text)."""

import bisect
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qa_flax.data.documents import CLOZE_ID
from qa_flax.data.passages import GAP, Passage, Vocabulary
from qa_flax.data.recurring import WORD, RecurringSpan, recurring_spans

MIN_SIZE = 4 * WORD
"""How much of a question is not masked, at least: 4 words, or 8 Chinese characters."""
MAX_QUESTION = 100
"""Tokens of a sentence that becomes a question, at most."""
MAX_ANSWER = 100
"""Characters of a span, at most."""


class Cloze(NamedTuple):
    """A question made of a sentence."""

    order: tuple[int, bytes]
    """Which clozes are taken first if there are too many: the first of each passage, shuffled."""
    row: dict[str, Any]
    """The example; see `examples.FEATURES`."""


class ClozeMaker:
    """Makes the clozes of passages.

    Args:
        vocabulary: the words of the passages.
        is_stopped: whether each of them is a stop word, bool [w].
        masks: what stands for the answer in a question: one of these.
        per_passage: the most clozes of a passage.
        seed: chooses spans and sentences.
        max_question: tokens of a sentence that becomes a question, at most.

    Attributes:
        span_count: how many spans occur again in the passages so far.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        is_stopped: np.ndarray,
        masks: Sequence[str],
        per_passage: int,
        seed: int,
        max_question: int = MAX_QUESTION,
    ):
        self._has_content: list[bool] = (~is_stopped).tolist()
        self._is_short = vocabulary.is_short
        self._sizes = vocabulary.sizes
        self._masks, self._max_question = masks, max_question
        self._per_passage, self._seed = per_passage, seed
        self.span_count = 0

    def clozes(self, passage: Passage) -> Iterator[Cloze]:
        """Yield the clozes of a passage."""
        # The choice depends on the passage and the seed alone, so the order of texts is free.
        key = f"{self._seed}\0{passage.text}".encode("utf-8", "surrogatepass")
        chance = random.Random(hashlib.blake2b(key).digest())
        rows = self._rows(PassageView(passage, self._has_content), chance)
        for count, row in enumerate(itertools.islice(rows, self._per_passage)):
            digest = hashlib.blake2b(f"{self._seed}\0{row['id']}".encode(), digest_size=8).digest()
            yield Cloze((count, digest), row)

    def _rows(self, view: "PassageView", chance: random.Random) -> Iterator[dict[str, Any]]:
        """Yield the examples of a passage in random order."""
        passage = view.passage
        found = recurring_spans(passage.words, GAP, self._has_content, self._sizes)
        spans = [span for span in found if self._is_answer(passage, span.places[0], span.length)]
        self.span_count += len(spans)
        if len(passage.sentences) > 1:
            chance.shuffle(spans)
            rows = (self._row(view, span, chance) for span in spans)
            yield from (row for row in rows if row is not None)

    def _is_answer(self, passage: Passage, first: int, length: int) -> bool:
        """Whether the `length` words from `first` on are neither too short nor too long."""
        words = passage.words[first : first + length]
        is_short = length == 1 and self._is_short[words[0]]
        if is_short or sum(self._sizes[word] for word in words) < WORD:
            return False
        return passage.ends[first + length - 1] - passage.starts[first] <= MAX_ANSWER

    def _row(
        self, view: "PassageView", span: RecurringSpan, chance: random.Random
    ) -> dict[str, Any] | None:
        """Return the cloze of a span; None if no sentence around it can be a question.

        Of the pairs of a question and an answer, the one whose sentences share most is taken.
        """
        sentences = [view.sentence_of(place) for place in span.places]
        counts = Counter(sentences)
        best: tuple[int, float, int, int] | None = None
        first = span.places[0]
        own = set(view.passage.words[first : first + span.length])
        for asked, sentence in zip(span.places, sentences, strict=True):
            if counts[sentence] > 1 or not self._can_ask(view, span, asked, sentence):
                continue
            for place, other in zip(span.places, sentences, strict=True):
                if other != sentence:
                    pair = view.shared(sentence, other, own), chance.random(), asked, place
                    best = pair if best is None else max(best, pair)
        if best is None:
            return None
        _, _, asked, answer = best
        return self._example(view, span, asked, answer, self._mask(chance))

    def _can_ask(self, view: "PassageView", span: RecurringSpan, asked: int, sentence: int) -> bool:
        """Whether a sentence says enough without the span, and does not name it otherwise."""
        passage = view.passage
        if passage.tokens[sentence] > self._max_question or view.is_repeated(sentence):
            return False
        words = view.words(sentence)
        masked = range(asked, asked + span.length)
        left = sum(
            self._sizes[passage.words[k]]
            for k in words
            if k not in masked and passage.words[k] != GAP
        )
        if left < MIN_SIZE:
            return False
        start, end = view.place(asked, span.length)
        first, last = passage.sentences[sentence]
        before, after = passage.text[first:start], passage.text[end:last]
        answer = passage.text[start:end].casefold()
        rest = before + "\n" + after
        return answer not in rest.casefold() and all(mask not in rest for mask in self._masks)

    def _mask(self, chance: random.Random) -> str:
        return self._masks[0] if len(self._masks) == 1 else chance.choice(self._masks)

    def _example(
        self, view: "PassageView", span: RecurringSpan, asked: int, answer: int, mask: str
    ) -> dict[str, Any]:
        passage = view.passage
        text = passage.text
        first, last = passage.sentences[view.sentence_of(asked)]
        start, end = view.place(asked, span.length)
        question = " ".join(f"{text[first:start]}{mask}{text[end:last]}".split())
        before, after = text[:first], text[last:].lstrip()
        before = before if after else before.rstrip()
        moved = len(text) - len(after) - len(before)
        context = before + after
        others = [place for place in span.places if place not in (asked, answer)]
        places = [view.place(place, span.length) for place in (answer, *others)]
        starts = [s if s < first else s - moved for s, _ in places]
        return cloze_example(
            passage.title, question, context, [text[s:e] for s, e in places], starts
        )


def cloze_example(
    title: str, question: str, context: str, texts: list[str], starts: list[int]
) -> dict[str, Any]:
    """Return an example, see `examples.FEATURES`; its id depends on what it says."""
    key = "\0".join((question, context, str(starts[0]), texts[0]))
    return {
        "id": CLOZE_ID + hashlib.blake2b(key.encode(), digest_size=10).hexdigest(),
        "title": title,
        "context": context,
        "question": question,
        "answers": {"text": texts, "answer_start": starts},
    }


class PassageView:
    """Looks things up in a passage.

    Args:
        passage: the passage.
        has_content: by the number of a word, whether it is no stop word.
    """

    def __init__(self, passage: Passage, has_content: Sequence[bool]):
        self.passage = passage
        self._has_content = has_content
        self._sentence_starts = [start for start, _ in passage.sentences]
        self._content: dict[int, set[int]] = {}
        self._repeats: list[bool] = []

    def place(self, word: int, length: int) -> tuple[int, int]:
        """Return where a span begins in the text, and where it ends."""
        return self.passage.starts[word], self.passage.ends[word + length - 1]

    def sentence_of(self, word: int) -> int:
        """Return the sentence of a word."""
        return bisect.bisect_right(self._sentence_starts, self.passage.starts[word]) - 1

    def words(self, sentence: int) -> range:
        """Return the words of a sentence, and its gaps."""
        start, end = self.passage.sentences[sentence]
        starts = self.passage.starts
        return range(bisect.bisect_left(starts, start), bisect.bisect_left(starts, end))

    def is_repeated(self, sentence: int) -> bool:
        """Whether another sentence has the same words; it would give the answer away."""
        if not self._repeats:
            sentences = self.passage.words_by_sentence()
            said = [tuple(word for word in words if word != GAP) for words in sentences]
            counts = Counter(said)
            self._repeats = [counts[words] > 1 for words in said]
        return self._repeats[sentence]

    def shared(self, sentence: int, other: int, own: set[int]) -> int:
        """Return how many words of content two sentences share, without some words."""
        return len((self._content_of(sentence) & self._content_of(other)) - own)

    def _content_of(self, sentence: int) -> set[int]:
        if sentence not in self._content:
            words = {self.passage.words[k] for k in self.words(sentence)} - {GAP}
            self._content[sentence] = {word for word in words if self._has_content[word]}
        return self._content[sentence]
