"""Documents -> passages that fit into a window, with their sentences and words (host, text).

Words are what blanks and punctuation separate; in scripts without blanks between words, a token of
the tokenizer is one. A word that does not begin and end where tokens do cannot be labelled: it
separates words as punctuation does.
"""

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from tokenizers import Tokenizer

from qa_flax.data.documents import Document
from qa_flax.data.recurring import WORD
from qa_flax.data.sentences import (
    ALPHABETIC,
    MARK,
    WORDS,
    Span,
    paragraph_spans,
    sentence_spans,
)
from qa_flax.data.tokens import encode_distinct

LETTER, CHARACTER = WORD // 4, WORD // 2
"""The sizes of a letter of Thai, and of a Chinese character; see `Vocabulary.sizes`."""
GAP = -1
"""Stands between two words that are separated by punctuation or the end of a sentence."""
BLOCK = 4_000
"""Characters that are tokenized together, at most, but for longer sentences."""
BATCH = 1 << 20
"""Characters of the blocks that are given to the tokenizer at once."""


class Passage(NamedTuple):
    """A part of a document.

    Words and gaps follow each other: `words[k]` is the number of a word in the `Vocabulary`, or
    `GAP`, and `starts[k]` and `ends[k]` are its place in the text, in code points.
    """

    title: str
    text: str
    sentences: list[Span]
    tokens: list[int]
    """How many tokens each sentence has."""
    words: array
    starts: array
    ends: array

    def words_by_sentence(self) -> Iterator[array]:
        """Yield the numbers of the words of each sentence, and of its gaps."""
        begin = 0
        for _, end in self.sentences:
            stop = bisect.bisect_left(self.starts, end, begin)
            yield self.words[begin:stop]
            begin = stop


class Vocabulary:
    """Numbers the words, without differences of case and Unicode form."""

    def __init__(self):
        self._numbers: dict[str, int] = {}  # by the word as it is written
        self._folded: dict[str, int] = {}
        self.sizes: list[int] = []
        """How much a word counts: `WORD`, or less for a single character of a script without blanks
        between words, of which it takes several to make a word."""
        self.is_short: list[bool] = []
        """Whether it is too short to be an answer: a letter, or a number below 100."""

    def __len__(self) -> int:
        return len(self.is_short)

    def number(self, word: str, is_unspaced: bool) -> int:
        """Return the number of a word."""
        number = self._numbers.get(word)
        if number is None:
            folded = normalize("NFKC", word).casefold()
            number = self._folded.setdefault(folded, len(self.is_short))
            if number == len(self.is_short):
                self.is_short.append(len(folded) < 2 or (len(folded) < 3 and folded.isdecimal()))
                is_character = is_unspaced and len(MARK.sub("", folded)) < 2
                self.sizes.append(_size(folded) if is_character else WORD)
            self._numbers[word] = number
        return number


def _size(character: str) -> int:
    return LETTER if ALPHABETIC.match(character) else CHARACTER


class _Block(NamedTuple):
    """Sentences of a paragraph that are tokenized together."""

    document: Document
    number: int
    """The number of the document."""
    begins_paragraph: bool
    sentences: list[Span]

    @property
    def text(self) -> str:
        return self.document.text[self.sentences[0][0] : self.sentences[-1][1]]


class _Sentence(NamedTuple):
    """A sentence with its words and gaps."""

    start: int
    """Where it begins in the document."""
    end: int
    tokens: int
    begins_paragraph: bool
    words: list[int]
    places: list[int]
    """Where each word begins and ends, one after the other, in the text of the block."""
    base: int
    """Where the text of the block begins in the document."""


class PassageReader:
    """Cuts documents into passages.

    Args:
        backend: the tokenizer, which neither truncates nor pads.
        room: the most tokens of a passage.
        unknown: the ids of tokens that stand for unknown text.

    Attributes:
        vocabulary: the words of the passages that were read.
        token_count: how many tokens the texts had.
        unknown_count: how many of them stand for unknown text.
    """

    def __init__(self, backend: Tokenizer, room: int, unknown: set[int]):
        self._backend, self._room, self._unknown = backend, room, unknown
        self.vocabulary = Vocabulary()
        self.token_count = self.unknown_count = 0

    def read(self, documents: Iterable[Document]) -> Iterator[Passage]:
        """Yield the passages of the documents, in order.

        Paragraphs are passages. Those that do not fit are cut between sentences, into parts of
        similar size, and short ones are joined with those after them up to half of the room.

        Raises:
            ValueError: the tokenizer cannot encode the texts.
        """
        sentences = (
            pair for batch in _batches(_blocks(documents)) for pair in self._sentences(batch)
        )
        for _, group in itertools.groupby(sentences, key=lambda pair: pair[0].number):
            pairs = iter(group)
            block, sentence = next(pairs)
            rest = (other for _, other in pairs)
            yield from self._passages(block.document, itertools.chain([sentence], rest))

    def _sentences(self, blocks: list[_Block]) -> Iterator[tuple[_Block, _Sentence]]:
        texts = [block.text for block in blocks]
        tokens = encode_distinct(texts, self._backend, disable=True)
        self.token_count += int(tokens.count.sum())
        if self._unknown:
            self.unknown_count += int(np.isin(tokens.ids, list(self._unknown)).sum())
        for block, text, first, count in zip(
            blocks, texts, tokens.first.tolist(), tokens.count.tolist(), strict=True
        ):
            base = block.sentences[0][0]
            starts, ends = tokens.offsets[first : first + count].T.tolist()
            # Some tokenizers include the blank before a word in its token.
            starts = [s + (s < e and text[s] == " ") for s, e in zip(starts, ends, strict=True)]
            edges = set(starts), set(ends)
            for n, (start, end) in enumerate(block.sentences):
                low, high = (bisect.bisect_left(starts, place - base) for place in (start, end))
                words, places = self._words(text, (start - base, end - base), starts, edges)
                is_first = block.begins_paragraph and n == 0
                yield block, _Sentence(start, end, high - low, is_first, words, places, base)

    def _words(
        self,
        text: str,
        span: Span,
        token_starts: list[int],
        edges: tuple[set[int], set[int]],
    ) -> tuple[list[int], list[int]]:
        """Return the words of a part of a text and their places, and a gap at its end.

        Args:
            text: the text.
            span: the part.
            token_starts: where its tokens begin, ascending.
            edges: where its tokens begin, and where they end.
        """
        numbers: list[int] = []
        places: list[int] = []
        number_of = self.vocabulary.number
        begins, stops = edges
        for match in WORDS.finditer(text, *span):
            begin, end = match.span()
            kind = match.lastgroup
            if kind == "unspaced":
                low = bisect.bisect_right(token_starts, begin)
                high = bisect.bisect_left(token_starts, end)
                inside = dict.fromkeys(token_starts[low:high])
                # A vowel sign of Thai is no beginning, though a token may begin with it.
                cuts = [begin, *(s for s in inside if not MARK.match(text, s)), end]
                for s, e in itertools.pairwise(cuts):
                    is_whole = s in begins and e in stops
                    numbers.append(number_of(text[s:e], True) if is_whole else GAP)
                    places += (s, e)
                continue
            is_word = kind is None and begin in begins and end in stops
            numbers.append(number_of(text[begin:end], False) if is_word else GAP)
            places += (begin, end)
        return [*numbers, GAP], [*places, span[1], span[1]]

    # ---- passages --------------------------------------------------------------------------------

    def _passages(self, document: Document, sentences: Iterable[_Sentence]) -> Iterator[Passage]:
        pending: list[_Sentence] = []
        for paragraph in _paragraphs(sentences):
            size = sum(sentence.tokens for sentence in paragraph)
            before = sum(sentence.tokens for sentence in pending)
            if pending and (before + size > self._room or 2 * before >= self._room):
                yield _passage(document, pending)
                pending = []
            pending = pending + paragraph
            if size > self._room:
                parts = _cut(pending, self._room)
                yield from (_passage(document, part) for part in parts[:-1])
                pending = parts[-1]
        if pending:
            yield _passage(document, pending)


def _blocks(documents: Iterable[Document]) -> Iterator[_Block]:
    """Yield the sentences of documents in blocks that do not cross paragraphs."""
    for number, document in enumerate(documents):
        for start, end in paragraph_spans(document.text):
            sentences: list[Span] = []
            is_first = True
            for span in sentence_spans(document.text, start, end):
                if sentences and span[1] - sentences[0][0] > BLOCK:
                    yield _Block(document, number, is_first, sentences)
                    sentences, is_first = [], False
                sentences.append(span)
            if sentences:
                yield _Block(document, number, is_first, sentences)


def _batches(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    batch: list[_Block] = []
    characters = 0
    for block in blocks:
        batch.append(block)
        characters += block.sentences[-1][1] - block.sentences[0][0]
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _paragraphs(sentences: Iterable[_Sentence]) -> Iterator[list[_Sentence]]:
    paragraph: list[_Sentence] = []
    for sentence in sentences:
        if sentence.begins_paragraph and paragraph:
            yield paragraph
            paragraph = []
        paragraph.append(sentence)
    if paragraph:
        yield paragraph


def _cut(sentences: list[_Sentence], room: int) -> list[list[_Sentence]]:
    """Cut sentences into parts of similar size that fit into the room; a longer one is a part."""
    total = sum(sentence.tokens for sentence in sentences)
    target = total / -(-total // room)
    parts: list[list[_Sentence]] = [[]]
    size = done = 0
    for sentence in sentences:
        is_full = size + sentence.tokens > room
        # Rather half of the sentence too much than half of it too little.
        is_enough = done + sentence.tokens / 2 > target * len(parts)
        if parts[-1] and (is_full or is_enough):
            parts.append([])
            size = 0
        parts[-1].append(sentence)
        size += sentence.tokens
        done += sentence.tokens
    return parts


def _passage(document: Document, sentences: list[_Sentence]) -> Passage:
    base, end = sentences[0].start, sentences[-1].end
    shifts = [sentence.base - base for sentence in sentences]
    starts, ends = (
        array(
            "i",
            [
                place + shift
                for sentence, shift in zip(sentences, shifts, strict=True)
                for place in sentence.places[side::2]
            ],
        )
        for side in (0, 1)
    )
    return Passage(
        document.title,
        document.text[base:end],
        [(sentence.start - base, sentence.end - base) for sentence in sentences],
        [sentence.tokens for sentence in sentences],
        array("i", [word for sentence in sentences for word in sentence.words]),
        starts,
        ends,
    )
