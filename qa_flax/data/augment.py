"""Examples with other contexts and questions in each epoch, and right answers (host, text).

What a row becomes depends on the seed, the epoch and the row's id, not on the rows around it, so
it is the same in every process, in every order of the rows, and in a resumed run. Only distractors
come from the other rows.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import datasets

from qa_flax.data.alignment import find_nearest, is_at
from qa_flax.data.augment_texts import (
    Passage,
    noisy,
    pieces_of,
    shuffled,
    with_distractors,
    without_words,
)
from qa_flax.data.examples import is_checked, keeps_misaligned, load_examples, with_columns
from qa_flax.data.paraphrases import (
    Paraphrases,
    check_paraphrases,
    paraphrases_of,
    read_paraphrases,
)
from qa_flax.data.readers import arrow_table
from qa_flax.data.splits import contexts_of
from qa_flax.data.text_words import sentence_spans
from qa_flax.messages import shown
from qa_flax.ranges import SEED, Range, at_least, check_numbers

DEFAULT_STRENGTHS = {"shuffle": 0.5, "distract": 0.2, "noise": 0.02, "question_dropout": 0.1}
"""The kinds, with the strengths that they have without one."""
_STRENGTH = Range("a number above 0 and at most 1", lambda v: 0 < v <= 1)
_LONGEST = 500  # characters of a sentence that is inserted elsewhere
_DRAWS = 20  # sentences that are looked at for one that fits

Strengths = dict[str, float]
"""Kind of augmentation -> its strength, above 0 and at most 1."""


def augment_examples(
    examples: Any,
    augment: Any = None,
    *,
    paraphrases: Any = None,
    seed: int = 42,
    epoch: int = 0,
) -> datasets.Dataset:
    """Return the examples as a training with these arguments has them in an epoch.

    In each row `context[start : start + len(text)] == text` for every answer, and a row without
    answers has none. An answer that is elsewhere than at its `answer_start` is moved to the nearest
    place of its text, and left out if it occurs nowhere; a row of which none occurs is not changed.

    Args:
        examples: anything that `load_examples` reads.
        augment: kinds with or without a strength s, such as "shuffle,noise:0.05", a list of these,
            or a dict of kinds and strengths:

            - shuffle: a share s of the rows (default 0.5) has the sentences of its context in
              another order. The sentences that an answer is in stay whole.
            - distract: sentences of other contexts are inserted, s (0.2) times as many as the
              context has. They contain none of the row's answers, nor one to the same question.
            - noise: a share s (0.02) of the letters of context and question is exchanged, left out,
              doubled or replaced, except in words that an answer is in.
            - question_dropout: each word of the question is left out with a probability of s (0.1),
              but never all of them.
        paraphrases: other wordings of questions, see `read_paraphrases`; each epoch has one of
            them or the question itself, all with the same probability.
        seed: the seed, `data_seed` of a training.
        epoch: number of the epoch, from 0.

    Raises:
        ExampleError: the examples or the paraphrases are invalid.
        ValueError: an argument is invalid, or neither `augment` nor `paraphrases` is given.

    Example:
        >>> from qa_flax import augment_examples
        >>> context = "Ada wrote programs in 1843. Babbage built the engine. It was never finished."
        >>> answers = {"text": ["1843"], "answer_start": [22]}
        >>> row = {"id": "q", "question": "When?", "context": context, "answers": answers}
        >>> other = augment_examples([row], "shuffle:1", seed=1)[0]
        >>> other["context"]
        'It was never finished. Ada wrote programs in 1843. Babbage built the engine.'
        >>> start = other["answers"]["answer_start"][0]
        >>> other["context"][start:start + 4]
        '1843'
    """
    check_numbers({"seed": SEED, "epoch": at_least(0)}, seed=seed, epoch=epoch)
    strengths = read_strengths(augment)
    if not strengths and paraphrases is None:
        raise ValueError(
            f"augment={augment!r}: give at least one of {', '.join(DEFAULT_STRENGTHS)}, or "
            "paraphrases"
        )
    if not is_checked(examples):
        examples = load_examples(examples, require_answers=True)
    table = None if paraphrases is None else read_paraphrases(paraphrases)
    if table is not None:
        check_paraphrases(table, examples)
    return Augmenter(examples, strengths, table, seed).examples(epoch)


def read_strengths(augment: Any) -> Strengths:
    """Read the argument `augment`.

    Args:
        augment: see `augment_examples`; None: nothing.

    Raises:
        ValueError: a kind is unknown or given twice, or a strength is out of range.

    Example:
        >>> read_strengths("noise:0.05, shuffle")
        {'shuffle': 0.5, 'noise': 0.05}
    """
    if augment is None:
        return {}
    found: Strengths = {}
    for kind, strength in _kinds(augment):
        if kind not in DEFAULT_STRENGTHS:
            raise ValueError(
                f"augment={augment!r}: {kind!r} is unknown; it must be one of "
                f"{', '.join(DEFAULT_STRENGTHS)}, each with or without a strength, such as "
                "noise:0.05"
            )
        if kind in found:
            raise ValueError(f"augment={augment!r}: {kind} is given twice; give it once")
        value = DEFAULT_STRENGTHS[kind] if strength is None else _number(strength)
        if not _STRENGTH.contains(value):
            raise ValueError(
                f"augment={augment!r}: the strength of {kind} is {shown(strength)}; it must be "
                f"{_STRENGTH.allowed}, such as {kind}:{DEFAULT_STRENGTHS[kind]}; to do without it, "
                f"leave {kind} out"
            )
        found[kind] = float(value)
    if not found:
        raise ValueError(
            f"augment={augment!r}: it names nothing; it must have at least one of "
            f"{', '.join(DEFAULT_STRENGTHS)}, or be left out"
        )
    return {kind: found[kind] for kind in DEFAULT_STRENGTHS if kind in found}


def _kinds(augment: Any) -> list[tuple[str, Any]]:
    if isinstance(augment, Mapping):
        return [(str(kind).strip(), strength) for kind, strength in augment.items()]
    parts = augment if isinstance(augment, list | tuple) else [augment]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"augment={augment!r}: it must be text such as 'shuffle,noise:0.05', a list of such "
            "texts, or a dict of kinds and strengths"
        )
    kinds = []
    for text in ",".join(parts).split(","):
        kind, colon, strength = text.partition(":")
        if text.strip():
            kinds.append((kind.strip(), strength.strip() if colon else None))
    return kinds


def _number(strength: Any) -> Any:
    """Return the number that a text has the form of; everything else as it is."""
    if isinstance(strength, str) and re.fullmatch(
        r"[-+]?[\d.]+(e[-+]?\d+)?", strength, re.I | re.A
    ):
        try:
            return float(strength)
        except ValueError:
            pass  # such as "1.2.3", which is out of every range
    return strength


class _Sentence(NamedTuple):
    """A sentence that may be inserted into other contexts."""

    text: str
    folded: str
    context: str
    title: str
    answered: Collection[str]
    """The questions that it holds an answer to."""


class Augmenter:
    """Examples that are augmented anew in each epoch.

    Args:
        examples: a result of `load_examples`.
        strengths: see `read_strengths`.
        table: the paraphrases, if there are any.
        seed: the seed.
    """

    def __init__(
        self,
        examples: datasets.Dataset,
        strengths: Strengths,
        table: Paraphrases | None,
        seed: int,
    ):
        self._examples, self._strengths, self._seed = examples, strengths, seed
        self._table = table
        self._rows: list[dict[str, Any]] = arrow_table(examples).to_pylist()
        self._places = [_places(row, keeps_misaligned(examples)) for row in self._rows]
        self._contexts = contexts_of(examples)
        ids, questions = ([row[name] for row in self._rows] for name in ("id", "question"))
        self._wordings = None if table is None else paraphrases_of(table, ids, questions)
        self._titles = {row["title"] for row in self._rows} - {""}
        self._pool = self._distractors() if "distract" in strengths else []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> list[str]:
        """The ids of the examples."""
        return [row["id"] for row in self._rows]

    @property
    def most_answers(self) -> int:
        """The largest number of answers of an example."""
        return max(len(row["answers"]["text"]) for row in self._rows)

    def examples(self, epoch: int, plain: Collection[int] = ()) -> datasets.Dataset:
        """Return the examples of an epoch.

        Args:
            epoch: its number, from 0.
            plain: the numbers of examples that are not changed.
        """
        columns: dict[str, list[Any]] = {"question": [], "context": [], "answers": []}
        for number, row in enumerate(self._rows):
            new = row if number in plain else self._augmented(number, epoch)
            for name, values in columns.items():
                values.append(new[name])
        return with_columns(self._examples, columns)

    def describe(self) -> str:
        """Return a sentence about what is done, for a log."""
        parts = [f"{kind} {strength:g}" for kind, strength in self._strengths.items()]
        if self._wordings is not None:
            count = sum(map(bool, self._wordings))
            parts.append(f"paraphrases of {count:,} questions")
        return (
            f"Augmentation: each epoch has the {len(self):,} training questions with new texts "
            f"({', '.join(parts)}), in as many windows and updates as without"
        )

    def conditions(self) -> dict[str, str]:
        """Return what the result depends on, but for the seed: the kinds, and hashes of texts."""
        return {
            "kinds": ",".join(f"{kind}:{value:g}" for kind, value in self._strengths.items()),
            "texts": _hash(self._rows),
            "paraphrases": _hash(self._table),
        }

    def random(self, epoch: int, number: int, purpose: str) -> Random:
        """Return a generator for one example in one epoch."""
        return Random(f"{self._seed} {epoch} {purpose} {self._rows[number]['id']}")

    def _augmented(self, number: int, epoch: int) -> Mapping[str, Any]:
        row, places = self._rows[number], self._places[number]
        if places is None:
            return row
        rng, strengths = self.random(epoch, number, "text"), self._strengths
        question, passage = row["question"], Passage(row["context"], places.spans)
        if self._wordings is not None and (wordings := self._wordings[number]):
            question = rng.choice([question, *wordings])
        if (rate := strengths.get("question_dropout")) is not None:
            question = without_words(question, rate, rng)
        if rng.random() < strengths.get("shuffle", 0):
            passage = shuffled(passage, rng)
        if (share := strengths.get("distract")) is not None:
            passage = with_distractors(passage, self._drawn(number, share, rng), rng)
        if (rate := strengths.get("noise")) is not None:
            passage = noisy(passage, rate, rng)
            question = noisy(Passage(question, ()), rate, rng).context
        starts = [start for start, _ in passage.answers]
        answers = {"text": list(places.texts), "answer_start": starts}
        return {"question": question, "context": passage.context, "answers": answers}

    # ---- distractors -----------------------------------------------------------------------------

    def _distractors(self) -> list[_Sentence]:
        """Return the sentences of all contexts, in an order that is not that of the rows."""
        answered: dict[str, dict[str, set[str]]] = {}
        sources: dict[str, tuple[str, str]] = {}
        for row, places, key in zip(self._rows, self._places, self._contexts, strict=True):
            context = row["context"]
            sources[context] = key, row["title"]
            of_context = answered.setdefault(context, {})
            for start, end in () if places is None else places.spans:
                for sentence in _overlapping(context, start, end):
                    of_context.setdefault(sentence, set()).add(_folded(row["question"]))
        pool = []
        for context in sorted(answered):
            for start, end in sentence_spans(context):
                text = context[start:end]
                if len(text) <= _LONGEST:
                    known = frozenset(answered[context].get(text, ()))
                    pool.append(_Sentence(text, _folded(text), *sources[context], known))
        return pool

    def _drawn(self, number: int, share: float, rng: Random) -> list[str]:
        """Draw sentences that a row may have in addition to its own."""
        row, places = self._rows[number], self._places[number]
        spans = () if places is None else places.spans
        exact = share * len(pieces_of(Passage(row["context"], spans)).spans)
        count = math.floor(exact) + (rng.random() < exact % 1)
        drawn: list[str] = []
        for _ in range(count):
            tries = (rng.choice(self._pool) for _ in range(_DRAWS if self._pool else 0))
            fitting = (s.text for s in tries if s.text not in drawn and self._fits(s, number))
            drawn += [text for text in [next(fitting, None)] if text is not None]
        return drawn

    def _fits(self, sentence: _Sentence, number: int) -> bool:
        """Whether a sentence is of another context, and leaves the row's answers the only ones."""
        row = self._rows[number]
        if sentence.context == self._contexts[number]:
            return False
        if _folded(row["question"]) in sentence.answered:
            return False
        texts = row["answers"]["text"]
        # A question without an answer is often one about a text of the same title.
        if not texts and len(self._titles) > 1 and sentence.title == row["title"]:
            return False
        return not any(_folded(text) in sentence.folded for text in texts)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _overlapping(context: str, start: int, end: int) -> list[str]:
    return [context[a:b] for a, b in sentence_spans(context) if a < end and start < b]


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


class _Answers(NamedTuple):
    """The answers of a row whose places are known."""

    texts: Sequence[str]
    spans: tuple[tuple[int, int], ...]


def _places(row: Mapping[str, Any], is_kept: bool) -> _Answers | None:
    """Return the answers of a row with their places; None: it has some, and none is known.

    Args:
        row: the row.
        is_kept: whether answers are trained on as they are, with other text at their places.
    """
    context, answers = row["context"], row["answers"]
    pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
    placed: list[tuple[str, int]] = []
    for text, start in pairs:
        place: int | None = start if is_at(context, text, start) else None
        if place is None and not is_kept:
            place = find_nearest(context, text, start)
        if place is not None:
            placed.append((text, place))
        elif is_kept:
            return None
    if pairs and not placed:
        return None
    return _Answers([t for t, _ in placed], tuple((s, s + len(t)) for t, s in placed))
