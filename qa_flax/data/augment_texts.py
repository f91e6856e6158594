"""Changes of a question or a context that leave the answers what and where they are (host, text).

A `Passage` is a context with the places of its answers. Each change returns a new passage, in which
`context[start : start + len(text)]` is still the answer's text. All draw from a generator that the
caller seeds for each row.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from qa_flax.data.sentences import Span
from qa_flax.data.text_words import is_unspaced, merged, sentence_spans, word_spans

_DRAWS = 20  # characters that are looked at for one that is a letter


class Passage(NamedTuple):
    """A context, and the span [start, end) of each answer in it."""

    context: str
    answers: tuple[Span, ...]


class Pieces(NamedTuple):
    """The sentences of a passage; those that one answer is in are one piece.

    The context is `gaps[0] + pieces[0] + gaps[1] + ... + pieces[-1] + gaps[-1]`.
    """

    spans: list[Span]
    gaps: list[str]


def pieces_of(passage: Passage) -> Pieces:
    """Split a passage into pieces that can change places."""
    context = passage.context
    spans = merged(
        sentence_spans(context) + [span for span in passage.answers if span[0] < span[1]]
    )
    ends, starts = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(context)]
    return Pieces(spans, [context[a:b] for a, b in zip(ends, starts, strict=True)])


# ---- shuffle and distract ------------------------------------------------------------------------


def shuffled(passage: Passage, rng: Random) -> Passage:
    """Put the sentences in another order; the white space between them stays where it is."""
    spans, gaps = pieces_of(passage)
    order = list(range(len(spans)))
    rng.shuffle(order)
    if order == sorted(order):
        order = order[1:] + order[:1]
    return _built(passage, [spans[n] for n in order], gaps)


def with_distractors(passage: Passage, sentences: Sequence[str], rng: Random) -> Passage:
    """Insert sentences of other contexts, each at a random place between two sentences."""
    spans, gaps = pieces_of(passage)
    parts: list[Span | str] = list(spans)
    gaps = list(gaps)
    for sentence in sentences:
        place = rng.randrange(len(parts) + 1)
        space = _space_between(passage.context, gaps[1:-1], sentence)
        if place < len(parts):
            gaps.insert(place + 1, space)
        else:  # white space at the end of the context stays there
            gaps.insert(place, space if parts else "")
        parts.insert(place, sentence)
    return _built(passage, parts, gaps)


def _space_between(context: str, gaps: Sequence[str], sentence: str) -> str:
    """What separates an inserted sentence from its neighbours: nothing in scripts without it."""
    if inner := [gap for gap in gaps if gap]:
        return min(inner, key=len)
    is_unspaced_text = [any(map(is_unspaced, text[-20:])) for text in (context, sentence)]
    return "" if all(is_unspaced_text) else " "


def _built(passage: Passage, parts: Sequence[Span | str], gaps: Sequence[str]) -> Passage:
    """Join parts, which are pieces of the passage's context or new texts."""
    texts, places, length = [gaps[0]], {}, len(gaps[0])
    for part, gap in zip(parts, gaps[1:], strict=True):
        text = part if isinstance(part, str) else passage.context[part[0] : part[1]]
        if not isinstance(part, str):
            places[part] = length
        texts += [text, gap]
        length += len(text) + len(gap)
    answers = []
    for start, end in passage.answers:
        piece = next((p for p in places if p[0] <= start and end <= p[1]), None)
        shift = 0 if piece is None else places[piece] - piece[0]
        answers.append((start + shift, end + shift))
    return Passage("".join(texts), tuple(answers))


# ---- noise ---------------------------------------------------------------------------------------


def noisy(passage: Passage, rate: float, rng: Random) -> Passage:
    """Change letters as slips of the hand do: exchange two, leave one out, double or replace one.

    Words that an answer is in, or begins or ends in, are not changed, nor are letters with marks.

    Args:
        passage: the passage; a question is one without answers.
        rate: the share of the letters that are changed.
        rng: the generator.
    """
    context = passage.context
    kept = merged([_whole_words(context, *span) for span in passage.answers])
    texts: list[str] = []
    shifts: list[tuple[int, int]] = []  # (end of a kept span, by how much it has moved)
    done = length = 0
    for start, end in [*kept, (len(context), len(context))]:
        changed = _noisy_text(context[done:start], rate, rng)
        shifts.append((end, length + len(changed) - start))
        texts += [changed, context[start:end]]
        length += len(changed) + end - start
        done = end
    answers = []
    for start, end in passage.answers:
        shift = next(by for last, by in shifts if end <= last)
        answers.append((start + shift, end + shift))
    return Passage("".join(texts), tuple(answers))


def _whole_words(text: str, start: int, end: int) -> Span:
    while start and _continues(text, start - 1, start):
        start -= 1
    while end < len(text) and end and _continues(text, end - 1, end):
        end += 1
    return start, end


def _continues(text: str, before: int, after: int) -> bool:
    """Whether no word ends between two neighbouring characters."""
    if unicodedata.category(text[after])[0] == "M":
        return True
    pair = text[before], text[after]
    is_mark = unicodedata.category(pair[0])[0] == "M"
    return (pair[0].isalnum() or is_mark) and pair[1].isalnum() and not any(map(is_unspaced, pair))


def _noisy_text(text: str, rate: float, rng: Random) -> str:
    characters = list(text)
    place = _next_place(-1, rate, rng)
    while place < len(characters):
        if _is_free(characters, place):
            _slip(characters, place, text, rng)
        place = _next_place(place, rate, rng)
    return "".join(characters)


def _next_place(place: int, rate: float, rng: Random) -> int:
    """Return the next of places that are each drawn with a probability of `rate`."""
    if rate >= 1:
        return place + 1
    return place + 1 + int(math.log(1 - rng.random()) / math.log1p(-rate))


def _is_free(characters: list[str], place: int) -> bool:
    """Whether a letter can be changed: it has no mark, and a letter beside it in its word."""
    if not characters[place].isalpha():
        return False
    after = characters[place + 1] if place + 1 < len(characters) else ""
    if after and unicodedata.category(after[0])[0] == "M":
        return False
    before = characters[place - 1] if place else ""
    return any(neighbour[:1].isalpha() for neighbour in (before, after))


def _slip(characters: list[str], place: int, text: str, rng: Random) -> None:
    """Change the letter at a place; a cell may hold no character or two afterwards.

    Args:
        characters: of the text, in which some may have been changed.
        place: that of the letter.
        text: where a letter that replaces it is drawn from, so that it is of the same script.
        rng: the generator.
    """
    own = characters[place]
    kind = rng.randrange(4)
    if kind == 0 and place + 1 < len(characters) and _is_free(characters, place + 1):
        characters[place], characters[place + 1] = characters[place + 1], own
    elif kind == 1:
        characters[place] = ""
    elif kind == 2:
        characters[place] = own + own
    else:
        drawn = (text[int(rng.random() * len(text))] for _ in range(_DRAWS))
        characters[place] = next(filter(str.isalpha, drawn), own)


# ---- questions -----------------------------------------------------------------------------------


def without_words(question: str, rate: float, rng: Random) -> str:
    """Leave words of a question out, each with a probability of `rate`, but not all of them."""
    words = word_spans(question)
    if len(words) < 2:
        return question
    kept = [rng.random() >= rate for _ in words]
    if all(kept):
        return question
    if not any(kept):
        kept[rng.randrange(len(words))] = True
    texts, done = [], 0
    for (start, end), is_kept in zip(words, kept, strict=True):
        texts.append(question[done:start] + (question[start:end] if is_kept else ""))
        done = end
    text = "".join(texts) + question[done:]
    text = re.sub(r"(?<=\s)\s+", "", text).strip()
    return re.sub(r"\s+(?=[?.!,;:\u061f\uff1f]+$)", "", text)
