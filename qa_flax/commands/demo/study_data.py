"""The data of the overfitting study: questions of two kinds, some with wrong answers (host).

The source stories tell of ships, and tune the start model. The target stories tell of people:
other relations, other sentences, other questions. A few hundred of their questions are the training
set; as in sets made by hand, some of its answers are wrong.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qa_flax.commands.demo.data import RELATIONS, Question, Story, draw_names, make_story

SOURCE_RELATIONS, TARGET_RELATIONS = RELATIONS[:5], RELATIONS[5:]
SOURCE_STORIES = 1000
TRAIN_STORIES, HELDOUT_STORIES = 75, 125  # each story has 4 questions
WRONG = 0.05  # share of the training questions whose answer is wrong


@dataclass(frozen=True)
class TargetData:
    """The stories of one seed. No two of the three sets share a context."""

    train: list[Story]
    validation: list[Story]
    test: list[Story]
    wrong: int
    """Number of training questions whose answer is wrong."""


def source_stories(seed: int) -> list[Story]:
    """Stories about ships, with an answer to every question."""
    rng = random.Random(f"{seed} source")
    names = draw_names(rng, exclude=())
    return [make_story(rng, names, SOURCE_RELATIONS, 0.0) for _ in range(SOURCE_STORIES)]


def target_data(seed: int) -> TargetData:
    """Stories about people, with an answer to every question; in the training set some are wrong.

    Args:
        seed: the data is a function of it alone.
    """
    rng = random.Random(f"{seed} target")
    stories = _distinct_stories(rng)
    train, validation, test = (
        [next(stories) for _ in range(count)]
        for count in (TRAIN_STORIES, HELDOUT_STORIES, HELDOUT_STORIES)
    )
    train, wrong = _with_wrong_answers(rng, train)
    return TargetData(train, validation, test, wrong)


def _distinct_stories(rng: random.Random) -> Iterator[Story]:
    """Stories that share no context."""
    names, contexts = draw_names(rng, exclude=()), set()
    while True:
        story = make_story(rng, names, TARGET_RELATIONS, 0.0)
        if story.context not in contexts:
            contexts.add(story.context)
            yield story


def _with_wrong_answers(rng: random.Random, stories: list[Story]) -> tuple[list[Story], int]:
    """Move the answers of a share `WRONG` of the questions to other values of their stories.

    Returns:
        The stories, and the number of questions that changed.
    """
    places = [(i, j) for i, story in enumerate(stories) for j in range(len(story.questions))]
    chosen = set(rng.sample(places, round(WRONG * len(places))))
    changed = [
        replace(
            story,
            questions=[
                _with_wrong_answer(rng, story, question) if (i, j) in chosen else question
                for j, question in enumerate(story.questions)
            ],
        )
        for i, story in enumerate(stories)
    ]
    return changed, len(chosen)


def _with_wrong_answer(rng: random.Random, story: Story, question: Question) -> Question:
    values = {value for fact in story.facts for value in fact.values.values()}
    answer = rng.choice(sorted(values - {question.answer}))
    return replace(question, answer=answer, start=story.context.index(answer))
