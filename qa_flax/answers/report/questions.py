"""An evaluation and its data -> questions with scores, outcomes and confidences (host, NumPy).

Dimensions: E questions.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int

from qa_flax.answers.metrics import question_scores
from qa_flax.answers.report.data import EvaluationData
from qa_flax.answers.report.reading import Answered
from qa_flax.messages import first_few


class Outcome(IntEnum):
    """What became of a question; each question has one outcome."""

    RIGHT = 0
    PARTLY = 1
    WRONG = 2
    SHOULD_BE_EMPTY = 3
    SHOULD_BE_ANSWERED = 4
    ANSWERED = 5
    EMPTY = 6


OUTCOMES = {
    Outcome.RIGHT: "right",
    Outcome.PARTLY: "partly right",
    Outcome.WRONG: "wrong",
    Outcome.SHOULD_BE_EMPTY: "should have been empty",
    Outcome.SHOULD_BE_ANSWERED: "should have been answered",
    Outcome.ANSWERED: "answered",
    Outcome.EMPTY: "left empty",
}
"""What the page calls them. The last two are those of data without gold answers."""


@dataclass
class Questions:
    """The questions of an evaluation, in its order."""

    ids: list[str]
    titles: list[str]
    texts: list[str]
    contexts: list[str]
    """The distinct contexts, in the order of their first question."""
    context_of: Int[np.ndarray, " e"]
    """The index of each question's context."""
    golds: list[list[str]]
    gold_starts: list[list[int]]
    answers: list[str]
    exact: Float[np.ndarray, " e"]
    f1: Float[np.ndarray, " e"]
    """0 to 1; 0 for all questions of data without gold answers."""
    outcome: Int[np.ndarray, " e"]
    confidence: Float[np.ndarray, " e"] | None
    """None without an n-best file."""
    windows: Int[np.ndarray, " e"] | None
    """None without a record of the evaluation."""
    is_labelled: bool
    """Whether there are gold answers."""
    version_2: bool
    """Whether questions may have no answer."""
    language: str | None

    def __len__(self) -> int:
        return len(self.ids)

    def has_gold(self) -> Bool[np.ndarray, " e"]:
        """Return whether each question has an answer."""
        return np.array([bool(texts) for texts in self.golds])


def make_questions(answered: Answered, data: EvaluationData, language: str | None) -> Questions:
    """Score the answers of an evaluation.

    Args:
        answered: the evaluation.
        data: its examples.
        language: whose rules to score with; None: as the evaluation did.

    Raises:
        ValueError: `language` is not supported.
    """
    examples = data.examples
    contexts, context_of = _distinct(examples["context"][:])
    gold_rows = examples["answers"][:]
    golds = [row["text"] for row in gold_rows]
    settings = {} if answered.record is None else answered.record["settings"]
    language = settings.get("language") if language is None else language
    is_labelled = any(golds)
    version_2 = bool(settings.get("version_2_with_negative") or answered.null_odds)
    version_2 |= is_labelled and not all(golds)
    answers = list(answered.answers.values())
    exact = f1 = np.zeros(len(answers))
    if is_labelled:
        exact, f1 = question_scores(
            answers, golds, version_2_with_negative=version_2, language=language
        )
    confidence = windows = None
    if answered.confidence:
        confidence = np.array([answered.confidence[id_] for id_ in answered.answers])
    if answered.record is not None:
        records = answered.record["questions"]
        windows = np.array([records[id_]["windows"] for id_ in answered.answers], np.int64)
    return Questions(
        ids=list(answered.answers),
        titles=examples["title"][:],
        texts=examples["question"][:],
        contexts=contexts,
        context_of=context_of,
        golds=golds,
        gold_starts=[row["answer_start"] for row in gold_rows],
        answers=answers,
        exact=exact,
        f1=f1,
        outcome=_outcomes(answers, golds, exact, f1, is_labelled),
        confidence=confidence,
        windows=windows,
        is_labelled=is_labelled,
        version_2=version_2,
        language=language,
    )


def _distinct(texts: list[str]) -> tuple[list[str], Int[np.ndarray, " e"]]:
    index: dict[str, int] = {}
    places = [index.setdefault(text, len(index)) for text in texts]
    return list(index), np.array(places, np.int64)


def _outcomes(
    answers: list[str], golds: list[list[str]], exact: np.ndarray, f1: np.ndarray, labelled: bool
) -> Int[np.ndarray, " e"]:
    is_empty = np.array([not answer.strip() for answer in answers])
    if not labelled:
        return np.where(is_empty, Outcome.EMPTY, Outcome.ANSWERED)
    has_gold = np.array([bool(texts) for texts in golds])
    cases = [exact > 0, ~has_gold, is_empty, f1 > 0]
    outcomes = [
        Outcome.RIGHT,
        Outcome.SHOULD_BE_EMPTY,
        Outcome.SHOULD_BE_ANSWERED,
        Outcome.PARTLY,
    ]
    return np.select(cases, outcomes, Outcome.WRONG)


# ---- two evaluations -----------------------------------------------------------------------------


class Change(IntEnum):
    """What became of a question since the other evaluation, by exact match."""

    BOTH_RIGHT = 0
    MENDED = 1
    BROKEN = 2
    BOTH_WRONG = 3
    NOT_COMPARED = 4


CHANGES = {
    Change.BOTH_RIGHT: "right in both",
    Change.MENDED: "mended",
    Change.BROKEN: "broken",
    Change.BOTH_WRONG: "wrong in both",
    Change.NOT_COMPARED: "not in the other",
}


@dataclass
class Comparison:
    """Another evaluation's answers to the same questions, scored in the same way."""

    folder: str
    answers: list[str | None]
    """None: the other evaluation does not have the question."""
    exact: Float[np.ndarray, " e"]
    f1: Float[np.ndarray, " e"]
    change: Int[np.ndarray, " e"]
    compared: Bool[np.ndarray, " e"]
    """Which questions both evaluations have."""
    only_other: int
    """How many questions only the other one has."""


def compare(questions: Questions, other: Answered) -> Comparison:
    """Score another evaluation's answers to the same questions.

    Raises:
        ValueError: no question is in both, or there are no gold answers.
    """
    if not questions.is_labelled:
        raise ValueError(
            "--compare needs gold answers to say which evaluation is better, and the data has "
            "none; give data with answers: --data FILE"
        )
    answers = [other.answers.get(id_) for id_ in questions.ids]
    compared = np.array([answer is not None for answer in answers])
    if not compared.any():
        raise ValueError(
            f"--compare {other.folder}: none of its {len(other.answers):,} questions (ids "
            f"{first_few(list(other.answers))}) is one of the {len(questions):,} of this "
            f"evaluation (ids {first_few(questions.ids)}); give an evaluation of the same data"
        )
    exact, f1 = question_scores(
        [answer or "" for answer in answers],
        questions.golds,
        version_2_with_negative=questions.version_2,
        language=questions.language,
    )
    now, before = questions.exact > 0, exact > 0
    change = np.select(
        [~compared, now & before, now, before],
        [Change.NOT_COMPARED, Change.BOTH_RIGHT, Change.MENDED, Change.BROKEN],
        Change.BOTH_WRONG,
    )
    only_other = len(other.answers) - int(compared.sum())
    return Comparison(other.folder, answers, exact, f1, change, compared, only_other)
