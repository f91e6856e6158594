"""The questions that the page holds: which, in which order, and as JSON (host).

A page of 100,000 questions opens at once because only its first block is plain JSON. The others are
compressed, and the page reads them one after the other. If all blocks together would be too large,
right answers are left out first, then the least confident mistakes.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from qa_flax.answers.report.questions import Comparison, Outcome, Questions
from qa_flax.answers.report.reading import Answered
from qa_flax.answers.report.slices import Slice

FIRST_ROWS, BLOCK_ROWS = 50, 1000
MOST_BYTES = 24_000_000  # of all blocks in the page

FIELDS = (
    *("id", "title", "question", "answer", "golds", "outcome", "exact", "f1", "confidence"),
    *("windows", "context", "answerPlace", "occurrences", "goldPlaces", "nBest", "groups"),
    *("otherAnswer", "otherF1", "change"),
)
"""What a row is, in this order. Places are in UTF-16 units, as JavaScript counts."""


@dataclass(frozen=True)
class PageRows:
    """The rows of the page in blocks of JSON."""

    first: str
    """The block that is plain JSON: an object with rows and contexts."""
    packed: list[str]
    """The other blocks: gzip, in base64."""
    count: int
    """How many rows there are in all of them."""
    mistakes: int
    """How many of these are no right answers."""


def order_of(questions: Questions, seed: int) -> Int[np.ndarray, " e"]:
    """Return the questions as the page has them: what is left out is at the end.

    Mistakes come first, the most confident and most wrong of them at the beginning. Right answers
    follow in random order, so that a part of them is a sample.
    """
    confidence = questions.confidence
    weight = np.ones(len(questions)) if confidence is None else confidence
    cost = weight * (1.0 - questions.f1)
    is_right = questions.outcome == Outcome.RIGHT
    shuffled = np.random.default_rng(seed).permutation(len(questions))
    key = np.where(is_right, 2.0, -cost)
    if not questions.is_labelled:
        key = weight  # the least confident answers first
    tie = np.where(is_right, shuffled, np.arange(len(questions)))
    return np.lexsort((tie, key))


def page_rows(
    questions: Questions,
    answered: Answered,
    slices: Sequence[Slice],
    comparison: Comparison | None,
    *,
    seed: int,
    most_rows: int | None,
    most_bytes: int = MOST_BYTES,
) -> PageRows:
    """Return the rows of the page.

    Args:
        questions: all questions.
        answered: their n-best lists, and where their answers are.
        slices: the groups that the page filters by.
        comparison: another evaluation's answers.
        seed: of the sample of right answers.
        most_rows: how many rows the page may have; None: as many as `most_bytes` allow.
        most_bytes: how large the blocks may be together.
    """
    order = order_of(questions, seed)[:most_rows]
    maker = _Rows(questions, answered, slices, comparison)
    first = maker.block(order[:FIRST_ROWS])
    packed, size, count = [], len(first), min(FIRST_ROWS, len(order))
    for start in range(FIRST_ROWS, len(order), BLOCK_ROWS):
        rows = order[start : start + BLOCK_ROWS]
        block = base64.b64encode(gzip.compress(maker.block(rows).encode(), 6, mtime=0)).decode()
        if size + len(block) > most_bytes:
            break
        packed.append(block)
        size, count = size + len(block), count + len(rows)
    mistakes = int((questions.outcome[order[:count]] != Outcome.RIGHT).sum())
    return PageRows(first, packed, count, mistakes)


def script_json(value: Any) -> str:
    """Return JSON that may stand in a script element: ASCII without `<`, `>` and `&`.

    Example:
        >>> script_json("</script>")
        '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Rows:
    def __init__(
        self,
        questions: Questions,
        answered: Answered,
        slices: Sequence[Slice],
        comparison: Comparison | None,
    ):
        self._questions, self._answered, self._comparison = questions, answered, comparison
        count = len(questions)
        groups = [slice_.group for slice_ in slices]
        self._groups = np.stack(groups, axis=1) if groups else np.zeros((count, 0), np.int64)
        self._written: set[int] = set()

    def block(self, rows: Int[np.ndarray, " n"]) -> str:
        """Return rows, and those of their contexts that no earlier block has."""
        contexts = []
        for index in dict.fromkeys(self._questions.context_of[rows].tolist()):
            if index not in self._written:
                self._written.add(index)
                contexts.append([index, self._questions.contexts[index]])
        return script_json({"rows": list(map(self._row, rows.tolist())), "contexts": contexts})

    def _row(self, row: int) -> list[Any]:
        questions, comparison = self._questions, self._comparison
        context = questions.contexts[questions.context_of[row]]
        golds = list(dict.fromkeys(questions.golds[row]))
        gold_places = list(_gold_places(context, questions.golds[row], questions.gold_starts[row]))
        place, occurrences = self._answer_place(row, context, gold_places)
        is_counted, id_ = questions.windows is not None, questions.ids[row]
        confidence = questions.confidence
        compared = [None, None, None]
        if comparison is not None:
            other, f1 = comparison.answers[row], round(float(comparison.f1[row]), 4)
            compared = [other, f1, int(comparison.change[row])]
        return [
            *(id_, questions.titles[row], questions.texts[row], questions.answers[row], golds),
            int(questions.outcome[row]),
            int(questions.exact[row]),
            round(float(questions.f1[row]), 4),
            None if confidence is None else round(float(confidence[row]), 4),
            int(questions.windows[row]) if is_counted and questions.windows is not None else None,
            int(questions.context_of[row]),
            _utf16(context, place),
            occurrences,
            [_utf16(context, gold) for gold in gold_places],
            [[text, round(p, 4)] for text, p in self._answered.n_best.get(id_, [])],
            self._groups[row].tolist(),
            *compared,
        ]

    def _answer_place(
        self, row: int, context: str, gold_places: list[tuple[int, int]]
    ) -> tuple[tuple[int, int] | None, int]:
        """Return where the answer is in the context, and in how many places it may be.

        Without `spans.json` only its text is known. Of several places that with a gold answer is
        returned, else the first.
        """
        answer = self._questions.answers[row]
        if not answer.strip():
            return None, 0
        start = self._answered.starts.get(self._questions.ids[row], -1)
        if start >= 0 and context.startswith(answer, start):
            return (start, start + len(answer)), 1
        places = list(_occurrences(context, answer))
        for place in places:
            if any(place[0] < end and first < place[1] for first, end in gold_places):
                return place, len(places)
        return (places[0] if places else None), len(places)


def _occurrences(context: str, text: str) -> Iterator[tuple[int, int]]:
    start = context.find(text)
    while start >= 0:
        yield start, start + len(text)
        start = context.find(text, start + len(text))


def _gold_places(
    context: str, texts: Sequence[str], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield where the gold answers are, in order, without those that are not at their starts."""
    places = {
        (start, start + len(text))
        for text, start in zip(texts, starts, strict=True)
        if text and start >= 0 and context.startswith(text, start)
    }
    yield from sorted(places)


def _utf16(context: str, place: tuple[int, int] | None) -> list[int] | None:
    """Return code points of a context as UTF-16 units."""
    if place is None or context.isascii():
        return None if place is None else list(place)
    before, inside = context[: place[0]], context[slice(*place)]
    start = len(before.encode("utf-16-le", "surrogatepass")) // 2
    return [start, start + len(inside.encode("utf-16-le", "surrogatepass")) // 2]
