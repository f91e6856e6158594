"""Questions -> groups of them: by question word, lengths, position, windows and title (host)."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import regex
from jaxtyping import Bool, Int

from qa_flax.answers.report.questions import Questions
from qa_flax.data.sentences import UNSPACED

MOST_WORDS, MOST_TITLES = 11, 15  # groups of a slice; the others are one more
_OTHER = "other"


class Slice(NamedTuple):
    """One way to group the E questions into G groups."""

    name: str
    unit: str
    """What the labels are, such as "words"; "" if that is clear."""
    labels: list[str]
    """The names of the groups; those that begin a text of the data are shown as they are."""
    group: Int[np.ndarray, " e"]
    """The group of each question; -1: none."""

    def members(self) -> Bool[np.ndarray, "e g"]:
        """Return which questions are in which groups."""
        return self.group[:, None] == np.arange(len(self.labels))


def make_slices(questions: Questions) -> list[Slice]:
    """Return all slices for which the data has values; each has at least one group."""
    slices = [
        question_words(questions.texts),
        _answer_lengths(questions),
        _context_lengths(questions),
        _positions(questions),
        _windows(questions),
        _titles(questions.titles),
    ]
    return [slice_ for slice_ in slices if slice_ is not None]


# ---- question words ------------------------------------------------------------------------------

_ENGLISH = regex.compile(
    r"\b(how many|how much|what|whose|whom|who|when|where|which|why|how)\b", regex.IGNORECASE
)
_SAME = {"whose": "who", "whom": "who", "how much": "how many"}
_NAMES = {"who": "who, whose, whom", "how many": "how many, how much"}
# Of languages in which they stand anywhere in the sentence: Chinese, Japanese, Korean, Thai.
_INSIDE = regex.compile(
    "什么时候|什麼時候|为什么|為什麼|为何|為何|何时|何時|何处|何處|哪里|哪裡|哪儿|哪些|哪个|哪個|"
    "怎么|怎麼|怎样|怎樣|如何|多少|多久|什么|什麼|谁|誰|哪|几|幾|"
    "いつ|どこ|だれ|なぜ|どうして|どのように|いくつ|いくら|どの|どれ|どんな|何|"
    "무엇|누구|언제|어디|왜|어떻게|어떤|어느|얼마|몇|"
    "อะไร|ใคร|เมื่อไร|เมื่อใด|ที่ไหน|ที่ใด|ทำไม|อย่างไร|เท่าไร|เท่าใด|กี่"
)
_FIRST_WORD = regex.compile(r"[\p{L}\p{M}\p{N}'\u2019]+")


def question_words(texts: list[str]) -> Slice:
    """Group questions by their question word, or by their first word.

    English question words count wherever they stand, as do those of Chinese, Japanese, Korean and
    Thai; in questions of other languages it is the first word. What most questions have decides.

    Example:
        >>> question_words(["In which year?", "How many?", "Was ist das?"]).labels
        ['how many, how much', 'which', 'other']
    """
    for pattern in (_ENGLISH, _INSIDE):
        words = [_word(pattern, text) for text in texts]
        if 2 * sum(word is not None for word in words) >= len(words):
            return _by_frequency("Question word", "", words, MOST_WORDS)
    words = [_word(_FIRST_WORD, text) for text in texts]
    return _by_frequency("Question word", "first word", words, MOST_WORDS)


def _word(pattern: regex.Pattern, text: str) -> str | None:
    match = pattern.search(text)
    if match is None:
        return None
    word = match[0].lower()
    return _SAME.get(word, word) if len(word) <= 20 else None


def _by_frequency(name: str, unit: str, words: list[str | None], most: int) -> Slice:
    """Return the most frequent words as groups, and all others together."""
    counts = Counter(word for word in words if word is not None)
    chosen = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    index = {word: i for i, word in enumerate(chosen)}
    group = np.array(
        [len(chosen) if word is None else index.get(word, len(chosen)) for word in words]
    )
    labels = [_NAMES.get(word, word) for word in chosen]
    return Slice(name, unit, labels + [_OTHER] * bool((group == len(chosen)).any()), group)


# ---- lengths, positions, windows and titles ------------------------------------------------------

_UNSPACED = regex.compile(f"[{UNSPACED}]", regex.V1)
_ANSWER_EDGES = (1, 2, 4, 8, 16)
_CONTEXT_EDGES = (50, 100, 200, 400, 800, 1600)
_WINDOW_EDGES = (1, 2, 3, 4, 8, 16)
_FIFTHS = ("first fifth", "second", "third", "fourth", "last fifth")


def count_words(text: str) -> int:
    """Return the number of words; each character of a script without spaces is one.

    Example:
        >>> count_words("the 東京 tower")
        4
    """
    if text.isascii():
        return len(text.split())
    return len(_UNSPACED.sub(" x ", text).split())


def _binned(
    name: str, unit: str, values: np.ndarray, edges: tuple[int, ...], missing: str = ""
) -> Slice:
    """Group numbers from 1 by the upper ends of their ranges; 0 is `missing`."""
    bins = np.searchsorted(edges, values, side="left") + 1
    bins[values == 0] = 0
    labels = [missing]
    for i, high in enumerate(edges):
        low = edges[i - 1] + 1 if i else 1
        labels.append(str(high) if low == high else f"{low}\u2013{high}")
    labels.append(f"over {edges[-1]}")
    return _without_empty(name, unit, labels, bins)


def _without_empty(name: str, unit: str, labels: list[str], bins: np.ndarray) -> Slice:
    used = np.unique(bins)
    return Slice(name, unit, [labels[i] for i in used], np.searchsorted(used, bins))


def _answer_lengths(questions: Questions) -> Slice | None:
    if not questions.is_labelled:
        return None
    lengths = np.array([max(1, count_words(t[0])) if t else 0 for t in questions.golds])
    return _binned(
        "Answer length", "words of the first gold answer", lengths, _ANSWER_EDGES, "none"
    )


def _context_lengths(questions: Questions) -> Slice:
    lengths = np.array([max(1, count_words(text)) for text in questions.contexts])
    return _binned("Context length", "words", lengths[questions.context_of], _CONTEXT_EDGES)


def _positions(questions: Questions) -> Slice | None:
    """Group by where in the context the first gold answer begins."""
    if not questions.is_labelled:
        return None
    sizes = np.array([max(1, len(text)) for text in questions.contexts])[questions.context_of]
    starts = np.array([row[0] if row else -1 for row in questions.gold_starts])
    fifth = np.clip(starts * 5 // sizes, 0, 4)
    fifth[starts < 0] = 5
    return _without_empty("Answer position", "in the context", [*_FIFTHS, "none"], fifth)


def _windows(questions: Questions) -> Slice | None:
    if questions.windows is None:
        return None
    return _binned("Windows", "of the question", questions.windows, _WINDOW_EDGES, "none")


def _titles(titles: list[str]) -> Slice | None:
    names = [title or None for title in titles]
    if not any(names):
        return None
    return _by_frequency("Title", "", names, MOST_TITLES)
