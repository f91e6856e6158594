"""An evaluation's folder -> a report, computed (host)."""

import os
from pathlib import PurePath
from typing import Any

import numpy as np
import regex

from qa_flax.answers.metrics import question_scores
from qa_flax.answers.report.bootstrap import means
from qa_flax.answers.report.data import EvaluationData, load_data
from qa_flax.answers.report.page import Report
from qa_flax.answers.report.questions import Comparison, Outcome, Questions, compare, make_questions
from qa_flax.answers.report.reading import Answered, read_evaluation
from qa_flax.answers.report.reliability import reliability
from qa_flax.answers.report.rows import page_rows
from qa_flax.answers.report.slices import make_slices
from qa_flax.answers.report.thresholds import threshold_curve


def build_report(
    folder: str | os.PathLike,
    *,
    data: str | os.PathLike | None = None,
    prefix: str | None = None,
    compare_with: str | os.PathLike | None = None,
    language: str | None = None,
    most_rows: int | None = None,
    seed: int = 0,
    learning_curves: str = "",
) -> Report:
    """Return the report of an evaluation, which `page.render` makes a page of.

    Args:
        folder: where `eval_predictions.json` is.
        data: the file or Hub id that was evaluated; None: where the evaluation's record says.
        prefix: of the files, such as "predict"; None: "eval", or the only one.
        compare_with: the folder of another evaluation of the same questions.
        language: score by MLQA's rules for this language; None: as the evaluation did.
        most_rows: how many questions the page lists; None: as many as fit.
        seed: of the bootstrap and of the sample of right answers that are listed.
        learning_curves: an SVG picture.

    Raises:
        FileNotFoundError: there are no answers.
        ValueError: a file is damaged, or the files, the data or the evaluations do not fit
            together.
        OSError: a file cannot be read.
    """
    answered = read_evaluation(folder, prefix)
    other = None if compare_with is None else read_evaluation(compare_with, answered.prefix)
    loaded = load_data(answered, data)
    questions = make_questions(answered, loaded, language)
    comparison = None if other is None else compare(questions, other)
    slices = make_slices(questions)
    settings = {} if answered.record is None else answered.record["settings"]
    report = Report(
        title=_title(answered),
        prefix=answered.prefix,
        description=_description(answered, loaded, questions, settings),
        questions=questions,
        rows=page_rows(questions, answered, slices, comparison, seed=seed, most_rows=most_rows),
        language=language_of(questions),
        slices=slices,
        threshold=float(settings.get("null_score_diff_threshold") or 0.0),
        comparison=comparison,
        learning_curves=learning_curves,
        notes=[*loaded.notes, *_notes(answered, questions, comparison)],
    )
    if questions.is_labelled:
        _add_means(report, seed)
        _add_curve(report, answered)
        if questions.confidence is not None:
            report.reliability = reliability(questions.confidence, questions.exact > 0)
    return report


def _add_means(report: Report, seed: int) -> None:
    """Add the means of all questions and of each slice, from one bootstrap."""
    questions, comparison = report.questions, report.comparison
    has_gold = questions.has_gold()
    everything = np.ones(len(questions), bool)
    measures, compared = [questions.exact, questions.f1], everything
    if comparison is not None:
        measures += [questions.exact - comparison.exact, questions.f1 - comparison.f1]
        compared = comparison.compared
    groups = [np.stack([everything, has_gold, ~has_gold, compared], axis=1)]
    groups += [slice_.members() for slice_ in report.slices]
    result = means(
        np.stack(measures, axis=1), np.concatenate(groups, axis=1), questions.context_of, seed
    )
    ends = np.cumsum([part.shape[1] for part in groups])[:-1]
    parts = zip(*(np.split(array, ends) for array in result), strict=True)
    report.overall, *report.slice_means = (type(result)(*part) for part in parts)


def _add_curve(report: Report, answered: Answered) -> None:
    """Add the scores by no-answer threshold, if the evaluation has null odds."""
    questions = report.questions
    if not answered.null_odds or not answered.best_texts:
        return
    best = [answered.best_texts[id_] for id_ in questions.ids]
    exact, f1 = question_scores(
        best, questions.golds, version_2_with_negative=True, language=questions.language
    )
    odds = np.array([answered.null_odds[id_] for id_ in questions.ids], np.float64)
    # JSON may hold infinite numbers; a question without any span has the highest finite one.
    largest = float(np.finfo(np.float32).max)
    odds = np.clip(odds, -largest, largest)
    scores = np.stack([exact, f1], axis=1)
    report.curve = threshold_curve(odds, scores, questions.has_gold(), report.threshold)


def _title(answered: Answered) -> str:
    name = PurePath(os.path.abspath(answered.folder)).name or answered.folder
    return name if answered.prefix in ("eval", "") else f"{name}, {answered.prefix}"


def _description(
    answered: Answered, data: EvaluationData, questions: Questions, settings: dict[str, Any]
) -> dict[str, str]:
    values = {"Model": settings.get("model"), "Data": data.name}
    part = "" if answered.record is None else answered.record["source"].get("part")
    if part:
        values["Part"] = part
    count = f"{len(questions):,}"
    if data.total > len(questions):
        count += f" of {data.total:,}"
    values |= {"Questions": count, "Contexts": f"{len(questions.contexts):,}"}
    if "max_seq_length" in settings:
        windows = f"{settings['max_seq_length']} tokens, overlap {settings.get('doc_stride')}"
        values["Windows"] = windows
    return {name: str(value) for name, value in values.items() if value}


def _notes(answered: Answered, questions: Questions, comparison: Comparison | None) -> list[str]:
    notes = []
    if not questions.is_labelled:
        notes.append("The data has no gold answers, so there are no scores.")
    if questions.confidence is None:
        notes.append("There is no n-best file, so there are no confidences and no n-best answers.")
    is_empty = questions.outcome == Outcome.SHOULD_BE_ANSWERED
    if not questions.version_2 and is_empty.any():
        notes.append(f"{int(is_empty.sum()):,} answers are empty, though every question has one.")
    if comparison is not None and not comparison.compared.all():
        missing = int((~comparison.compared).sum())
        notes.append(
            f"{comparison.folder} lacks {missing:,} of the questions; they are not compared."
        )
    if comparison is not None and comparison.only_other:
        notes.append(
            f"{comparison.folder} has {comparison.only_other:,} questions more, which are left out."
        )
    return notes


# ---- the language of the texts -------------------------------------------------------------------

_SAMPLE = 200
_SCRIPTS = (
    ("ja", regex.compile(r"[\p{Hiragana}\p{Katakana}]")),
    ("ko", regex.compile(r"\p{Hangul}")),
    ("zh", regex.compile(r"\p{Han}")),
)


def language_of(questions: Questions) -> str:
    """Return a language tag, for the shapes of Chinese characters; "" if it does not matter.

    It is that of the scores, or one that the script of most questions shows.
    """
    if questions.language is not None:
        return questions.language
    texts = questions.texts[:_SAMPLE]
    for language, script in _SCRIPTS:
        if 2 * sum(script.search(text) is not None for text in texts) > len(texts):
            return language
    return ""
