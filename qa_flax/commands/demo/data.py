"""The demo's data: generated harbour stories with questions, in SQuAD v2.0 format (host).

A story is a few sentences about invented people, ships and towns. Each sentence states one fact,
which is one of the `RELATIONS` with names and values filled in. Often two facts of a story have the
same relation but different subjects, so a model must match both the name and the relation to find
the answer.

Held-out stories share no fact, no context and no possible question with the training stories, and
most of their names never occur in training. The data depends only on the seed.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any


def words(text: str) -> list[str]:
    """Split a text into words; word lists are easier to read without quotes."""
    return text.split()


# A name is a few syllables and one of these endings, which no name of the pre-training data has.
ONSETS = words("b br d f g gr h k l m n p r s st t th v w")
VOWELS = words("a e i o u")
CLOSINGS = words("d g l m n r s t v")
ENDINGS = {
    "given": words("an el ik is or en"),
    "family": words("berg man sen strom well"),
    "ship": words("ella etta ina ora ania"),
    "town": words("dal ford haven mouth stad wick"),
}
WORDS = {
    "goods": words(
        "apples beans candles cloth coal copper grain honey nails oranges paper pearls pepper rope "
        "salt silk soap spices sugar tea timber wax wool"
    ),
    "trade": words(
        "baker carpenter clerk cook doctor farmer gardener hunter judge miner musician nurse "
        "painter printer sailor smith tailor teacher weaver"
    ),
    "animal": [
        f"{colour} {animal}"
        for colour in words("black brown grey old small white young")
        for animal in words("cat cow dog donkey duck goat hen horse parrot pig rabbit sheep")
    ],
    "colour": [
        f"{shade}{colour}"
        for shade in ("", "bright ", "dark ", "pale ")
        for colour in words("black blue brown green grey orange red white yellow")
    ],
}


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    `slots` maps each slot's name to the kind of its values; the first slot is the subject.
    `questions` maps a slot's name to the questions that ask for its value.
    """

    name: str
    slots: dict[str, str]
    sentences: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]

    @property
    def subject(self) -> str:
        """The name of the subject's slot. A story states a relation once for each subject."""
        return next(iter(self.slots))


RELATIONS = (
    Relation(
        "captain",
        {"ship": "ship", "person": "person"},
        (
            "{person} is captain of the {ship}.",
            "The {ship} sails under {person}.",
            "On board the {ship}, the orders come from {person}.",
        ),
        {
            "person": (
                "Who is captain of the {ship}?",
                "Which captain commands the {ship}?",
                "Who gives the orders on the {ship}?",
            ),
            "ship": ("Which ship does {person} command?", "{person} is captain of which ship?"),
        },
    ),
    Relation(
        "home",
        {"ship": "ship", "town": "town"},
        (
            "The {ship} comes home to {town} every winter.",
            "In winter the harbour of {town} keeps the {ship} safe.",
        ),
        {
            "town": (
                "Where is the {ship} in winter?",
                "Which town does the {ship} come home to?",
                "What is the home port of the {ship}?",
            ),
            "ship": (
                "Which ship comes home to {town}?",
                "What ship is in {town} during the winter?",
            ),
        },
    ),
    Relation(
        "launch",
        {"ship": "ship", "year": "year", "town": "town"},
        (
            "The {ship} was launched at {town} in {year}.",
            "In {year}, the shipyard of {town} launched the {ship}.",
        ),
        {
            "year": ("When was the {ship} launched?", "In what year was the {ship} launched?"),
            "town": ("Where was the {ship} launched?", "Which town launched the {ship}?"),
            "ship": ("Which ship did {town} launch?", "What was launched at {town} in {year}?"),
        },
    ),
    Relation(
        "cargo",
        {"ship": "ship", "amount": "number", "goods": "goods"},
        (
            "The {ship} carries {amount} barrels of {goods}.",
            "There are {amount} barrels of {goods} aboard the {ship}.",
        ),
        {
            "amount": (
                "How many barrels are aboard the {ship}?",
                "How many barrels does the {ship} carry?",
            ),
            "goods": ("What does the {ship} carry?", "What is in the barrels of the {ship}?"),
            "ship": (
                "Which ship carries {amount} barrels of {goods}?",
                "Where are {amount} barrels of {goods}?",
            ),
        },
    ),
    Relation(
        "paint",
        {"ship": "ship", "colour": "colour"},
        ("The hull of the {ship} is painted {colour}.", "Sailors painted the {ship} {colour}."),
        {"colour": ("What colour is the {ship}?", "Which paint covers the hull of the {ship}?")},
    ),
    Relation(
        "birth",
        {"person": "person", "town": "town"},
        ("{person} was born in {town}.", "{town} is where {person} grew up."),
        {
            "town": (
                "Where was {person} born?",
                "From which town is {person}?",
                "In which town did {person} grow up?",
            ),
            "person": ("Who was born in {town}?", "Who grew up in {town}?"),
        },
    ),
    Relation(
        "trade",
        {"person": "person", "trade": "trade"},
        ("{person} used to be a {trade}.", "Years ago {person} earned a living as a {trade}."),
        {
            "trade": ("What was the trade of {person}?", "How did {person} earn a living?"),
        },
    ),
    Relation(
        "lesson",
        {"pupil": "person", "teacher": "person"},
        ("{teacher} taught {pupil} to sail.", "{pupil} learned to sail from {teacher}."),
        {
            "teacher": ("Who taught {pupil} to sail?", "From whom did {pupil} learn to sail?"),
            "pupil": ("Whom did {teacher} teach to sail?", "Who learned to sail from {teacher}?"),
        },
    ),
    Relation(
        "pet",
        {"person": "person", "animal": "animal"},
        ("{person} owns a {animal}.", "A {animal} follows {person} everywhere."),
        {
            "animal": ("What animal does {person} own?", "Which animal follows {person}?"),
        },
    ),
)


NAMES = 9000  # size of the pool of invented names of each kind
CAST = {"person": 3, "ship": 2, "town": 4}  # invented names that one story may use
QUESTIONS = 4  # for each story
UNANSWERABLE = 0.11  # probability of a question without an answer, where the story allows one


@dataclass(frozen=True)
class Fact:
    """A relation and the values of its slots."""

    relation: Relation
    values: dict[str, str]

    @property
    def key(self) -> tuple[str, ...]:
        """The relation's name and the values: equal for equal facts."""
        return (self.relation.name, *self.values.values())

    def questions(self, slot: str) -> list[str]:
        """All questions that ask for the value of `slot`."""
        return [pattern.format(**self.values) for pattern in self.relation.questions[slot]]

    def all_questions(self) -> set[str]:
        """All questions that this fact answers."""
        return {q for slot in self.relation.questions for q in self.questions(slot)}


@dataclass(frozen=True)
class Question:
    """A question about a story; `start` is the answer's first character in the context.

    A question without an answer has `answer=""` and `start=-1`.
    """

    text: str
    answer: str
    start: int


@dataclass(frozen=True)
class Story:
    """A context, the facts that it states, questions about it, and its invented names."""

    context: str
    facts: list[Fact]
    questions: list[Question]
    names: set[str]

    def possible_questions(self) -> set[str]:
        """All questions that the story's facts answer, and the questions that were asked."""
        return {q.text for q in self.questions}.union(
            *(fact.all_questions() for fact in self.facts)
        )


Names = dict[str, list[str]]


def make_stories(
    seed: int = 0, train: int = 1600, heldout: int = 125
) -> tuple[list[Story], list[Story]]:
    """Generate training stories and held-out stories.

    The two share no context, no fact and no possible question.

    Args:
        seed: the data is a function of these arguments alone.
        train: number of training stories.
        heldout: number of held-out stories.
    """
    rng = random.Random(seed)
    train_names = draw_names(rng, exclude=())
    new_names = draw_names(rng, exclude={n for names in train_names.values() for n in names})
    heldout_names = {
        kind: rng.sample(names, NAMES // 2) + rng.sample(new_names[kind], NAMES // 2)
        for kind, names in train_names.items()
    }
    training = [make_story(rng, train_names) for _ in range(train)]
    facts = {fact.key for story in training for fact in story.facts}
    questions = {text for story in training for text in story.possible_questions()}
    heldout_stories: list[Story] = []
    while len(heldout_stories) < heldout:
        story = make_story(rng, heldout_names)
        if facts.isdisjoint(fact.key for fact in story.facts) and questions.isdisjoint(
            story.possible_questions()
        ):
            heldout_stories.append(story)
    return training, heldout_stories


def squad_json(stories: Iterable[Story], title: str) -> dict[str, Any]:
    """Format stories as SQuAD v2.0 JSON: one article, with ids `<title>-<story>-<question>`."""
    paragraphs = [
        {
            "context": story.context,
            "qas": [_qa(q, f"{title}-{i}-{j}") for j, q in enumerate(story.questions)],
        }
        for i, story in enumerate(stories)
    ]
    return {"version": "v2.0", "data": [{"title": title, "paragraphs": paragraphs}]}


def _qa(question: Question, name: str) -> dict[str, Any]:
    answer = {"text": question.answer, "answer_start": question.start}
    return {
        "id": name,
        "question": question.text,
        "answers": [answer] if question.answer else [],
        "is_impossible": not question.answer,
    }


# --- names -------------------------------------------------------------------------------------


def draw_names(rng: random.Random, exclude: Iterable[str]) -> Names:
    """Draw `NAMES` different invented names of each kind, none of them in `exclude`."""
    exclude, names = set(exclude), {}
    for kind in ("person", "ship", "town"):
        pool: dict[str, None] = {}  # a set would not keep the order
        while len(pool) < NAMES:
            name = _name(rng, kind)
            if name not in exclude:
                pool[name] = None
        names[kind] = list(pool)
    return names


def _name(rng: random.Random, kind: str) -> str:
    if kind == "person":
        return f"{_name(rng, 'given')} {_name(rng, 'family')}"
    count = rng.choice((1, 1, 2)) if kind in ("ship", "town") else 1
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(count)]
    closing = "" if kind == "family" else rng.choice(CLOSINGS)
    return ("".join(syllables) + closing + rng.choice(ENDINGS[kind])).capitalize()


# --- stories -----------------------------------------------------------------------------------


def make_story(
    rng: random.Random,
    names: Names,
    relations: Sequence[Relation] = RELATIONS,
    unanswerable: float = UNANSWERABLE,
) -> Story:
    """Generate a story whose facts have three of the relations.

    Args:
        rng: the source of all choices.
        names: invented names of each kind, from `draw_names`.
        relations: the kinds of facts, at least three.
        unanswerable: probability of a question without an answer.
    """
    cast = {kind: rng.sample(names[kind], count) for kind, count in CAST.items()}
    facts = [
        fact
        for relation in rng.sample(relations, 3)
        for fact in _facts(rng, relation, cast, count=rng.choice((1, 2)))
    ]
    rng.shuffle(facts)
    context, starts = _write_context(rng, facts)
    questions = _ask(rng, facts, starts, QUESTIONS, unanswerable)
    invented = {name for group in cast.values() for name in group}
    values = {value for fact in facts for value in fact.values.values()}
    return Story(context, facts, questions, values & invented)


def _facts(rng: random.Random, relation: Relation, cast: Names, count: int) -> list[Fact]:
    """Draw `count` facts of one relation whose values differ in every slot."""
    while True:
        columns = [_values(rng, kind, cast, count) for kind in relation.slots.values()]
        rows = list(zip(*columns, strict=True))
        if all(len(set(row)) == len(row) for row in rows):  # nobody is their own teacher
            return [Fact(relation, dict(zip(relation.slots, row, strict=True))) for row in rows]


def _values(rng: random.Random, kind: str, cast: Names, count: int) -> list[str]:
    if kind == "number":
        return [str(n) for n in rng.sample(range(20, 1000), count)]
    if kind == "year":
        return [str(n) for n in rng.sample(range(1500, 2000), count)]
    return rng.sample(cast.get(kind) or WORDS[kind], count)


def _write_context(rng: random.Random, facts: list[Fact]) -> tuple[str, list[dict[str, int]]]:
    """Write one sentence for each fact.

    Returns:
        The context, and for each fact the first character of each slot's value in the context.
    """
    text, starts = "", []
    for fact in facts:
        text += " " if text else ""
        start = {}
        for literal, slot, *_ in Formatter().parse(rng.choice(fact.relation.sentences)):
            text += literal
            if slot:
                start[slot] = len(text)
                text += fact.values[slot]
        starts.append(start)
    return text, starts


def _ask(
    rng: random.Random,
    facts: list[Fact],
    starts: list[dict[str, int]],
    count: int,
    unanswerable_share: float,
) -> list[Question]:
    """Draw up to `count` questions for different slots; a few have no answer in the story."""
    unanswerable = _unanswerable(facts)
    answers = [
        (fact, slot, start[slot])
        for fact, start in zip(facts, starts, strict=True)
        for slot in fact.relation.questions
    ]
    questions = []
    for fact, slot, start in rng.sample(answers, min(count, len(answers))):
        if unanswerable and rng.random() < unanswerable_share:
            text = unanswerable.pop(rng.randrange(len(unanswerable)))
            questions.append(Question(text, "", -1))
        else:
            questions.append(Question(rng.choice(fact.questions(slot)), fact.values[slot], start))
    return questions


def _unanswerable(facts: list[Fact]) -> list[str]:
    """Questions about a subject for which the story does not state the relation.

    The story states the relation for another subject, so such a question looks answerable.
    """
    values = {(f.relation.slots[slot], value) for f in facts for slot, value in f.values.items()}
    questions = []
    for relation in {fact.relation.name: fact.relation for fact in facts}.values():
        subjects = {fact.values[relation.subject] for fact in facts if fact.relation is relation}
        for kind, name in sorted(values):
            if kind == relation.slots[relation.subject] and name not in subjects:
                questions += _questions_about(relation, name)
    return questions


def _questions_about(relation: Relation, subject: str) -> list[str]:
    """The questions of a relation that mention only the subject and no other slot."""
    patterns = [pattern for group in relation.questions.values() for pattern in group]
    return [
        pattern.format(**{relation.subject: subject})
        for pattern in patterns
        if {slot for _, slot, *_ in Formatter().parse(pattern) if slot} == {relation.subject}
    ]
