"""Calibrate a model by how it answers questions whose answers are known (host)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from jaxtyping import Bool, Int

from qa_flax import storage
from qa_flax.answering.questions import Question
from qa_flax.answering.results import Found
from qa_flax.answers.calibration import Calibration
from qa_flax.answers.calibration_fit import correct_answers, fit_calibration
from qa_flax.answers.confidence import AnswerScores
from qa_flax.answers.ranking import CANDIDATES
from qa_flax.data.examples import has_answers
from qa_flax.data.splits import contexts_of
from qa_flax.models.files import checkpoint_directory
from qa_flax.models.fingerprint import fingerprint
from qa_flax.models.model import AutoModelForQuestionAnswering

AGAIN = "qa-flax run --calibrate, or QuestionAnswerer.calibrate(examples, folder=...)"
"""What makes a new calibration, for messages."""


# ---- examples -> scores -> calibration -----------------------------------------------------------


class ScoredExamples(NamedTuple):
    """How E questions with known answers were answered."""

    answers: AnswerScores
    correct: Bool[np.ndarray, "e d"]
    """Whether each answer is right; the last column: whether the question has none."""
    groups: Int[np.ndarray, " e"]
    """A number for each context, the same in every process and run."""


def score_examples(
    examples: datasets.Dataset,
    find: Callable[[Iterable[Question]], Iterator[Found]],
    language: str | None = None,
) -> ScoredExamples:
    """Answer the questions of E examples, and compare the answers with the known ones.

    Args:
        examples: a result of `load_examples`.
        find: answers questions, each with one context.
        language: normalise texts as MLQA's scorer does for this language; None: as SQuAD's.
    """
    texts, rows, nulls = [], [], []
    pairs = zip(examples["question"], examples["context"], strict=True)
    for found in find(Question(question, (context,)) for question, context in pairs):
        best = sorted(found.competing, key=lambda answer: answer.logit, reverse=True)[:CANDIDATES]
        texts.append([answer.text for answer in best])
        rows.append([answer.logit for answer in best] + [-np.inf] * (CANDIDATES - len(best)))
        nulls.append(found.null_logit)
    golds = [answers["text"] for answers in examples["answers"]]
    return ScoredExamples(
        AnswerScores(np.array(rows, float).reshape(-1, CANDIDATES), np.array(nulls, float)),
        correct_answers(texts, golds, language, width=CANDIDATES),
        np.array([_number_of(context) for context in contexts_of(examples)], np.int64),
    )


def _number_of(context: str) -> int:
    digest = hashlib.sha256(context.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def calibrated(scored: ScoredExamples, model: AutoModelForQuestionAnswering) -> Calibration:
    """Fit the calibration of a model on how it answered questions.

    Raises:
        ValueError: there are no questions, or scores are NaN or infinite.
    """
    return fit_calibration(
        scored.answers, scored.correct, scored.groups, fingerprint=fingerprint(model)
    )


def check_has_answers(examples: datasets.Dataset) -> None:
    """Refuse examples none of which has an answer: nothing says what is right.

    Raises:
        ValueError: says so.
    """
    if not has_answers(examples).any():
        raise ValueError(
            f"none of the {len(examples)} questions has an answer, so nothing says which answers "
            "are right; calibrate with data that has gold answers"
        )


# ---- files ---------------------------------------------------------------------------------------


def read_calibration(given: Any, model: Any, hub: dict[str, Any]) -> Calibration | None:
    """Return the calibration that was passed, or that of a folder; None: there is none.

    Args:
        given: a calibration, or the folder or URL of one; None: that beside the model.
        model: the folder, URL or Hub id of the model, which is loaded already; or a model.
        hub: the arguments that it was downloaded with.

    Raises:
        FileNotFoundError: `given` is a folder without one.
        TypeError: `given` is none of these.
        ValueError: the file is damaged or foreign.
    """
    if isinstance(given, Calibration):
        return given
    if given is not None:
        if not isinstance(given, str | os.PathLike):
            raise TypeError(
                f"calibration is a {type(given).__name__}; pass a Calibration, or the folder of a "
                "calibration.json"
            )
        return Calibration.read(given)
    if not isinstance(model, str | os.PathLike):
        return None
    if not storage.is_remote(model) and not Path(model).is_dir():
        model = checkpoint_directory(model, local_files_only=True, **hub)
    try:
        return Calibration.read(model)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}, or pass calibration=Calibration() to do without") from error


def is_of(calibration: Calibration, model: AutoModelForQuestionAnswering) -> bool:
    """Return whether a calibration was fitted with the model's present weights, or with unknown."""
    return calibration.fingerprint in (None, fingerprint(model))
