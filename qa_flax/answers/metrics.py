"""Stage 7 of 7: answers -> exact match and F1, as the official SQuAD scorers count them (host).

Version 1.1 follows `evaluate-v1.1.py` (Rajpurkar et al., 2016, arXiv:1606.05250), version 2.0
follows `evaluate-v2.0.py` (Rajpurkar et al., 2018, arXiv:1806.03822). Inputs and keys are those of
Hugging Face's `squad` and `squad_v2` metrics. Sums are computed in the order of the official
scripts, so that every digit of a score is the same. The two versions differ in these cases:

| case | v1.1 | v2.0 |
|---|---|---|
| answer and gold answer are both empty after normalisation | exact match 1, F1 0 | both 1 |
| a gold answer is empty after normalisation | used | ignored |
| a question has no gold answer | ValueError (the script crashes) | "" is correct |
| a question has no prediction | counts as wrong, with a warning | ValueError (the script crashes) |
| a question id occurs twice | both count | only the last one counts |

In both versions only the last of several predictions for one id counts, and predictions for other
ids are ignored.

`best_exact` and `best_f1` (v2.0) test whether the raw prediction is empty, not the normalised one:
"the" as answer to a question without answer is correct in `exact`, but lowers `best_exact`. These
two scores are meaningful only if `no_answer_probability` differs between questions. If it is the
same for all, they depend on the order of the questions.

SQuAD's normalisation removes English articles and ASCII punctuation and splits words at whitespace.
With a `language`, texts are normalised as by MLQA's scorer (Lewis et al., 2019, arXiv:1910.07475):
this removes the articles of that language and all Unicode punctuation, and splits Chinese text into
characters. These scores are not comparable with SQuAD's, not even in English.
"""

import re
import string
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from qa_flax import messages
from qa_flax.messages import first_few
from qa_flax.ranges import NUMBER, check_numbers

logger = messages.logger(__name__)

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII_PUNCTUATION = string.punctuation.encode()
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ARTICLE_WORDS = frozenset(("a", "an", "the"))


def squad_metric(
    predictions: Iterable[Any],
    references: Iterable[Any],
    version_2_with_negative: bool = False,
    no_answer_threshold: float = 1.0,
    language: str | None = None,
) -> dict[str, float]:
    """Compute exact match and F1 of answers against gold answers.

    Args:
        predictions: `{"id": str, "prediction_text": str}` for each question; in v2 also
            `"no_answer_probability"`, a number that is higher the more likely the question has no
            answer (a probability, or the null odds that `postprocess_qa_predictions` writes);
            default 0.0.
        references: `{"id": str, "answers": {"text": [str, ...], ...}}` for each question.
        version_2_with_negative: score as SQuAD v2.0, where a question may have no answer.
        no_answer_threshold: v2 only: a prediction whose `no_answer_probability` is higher counts as
            "".
        language: one of `LANGUAGES`: normalise texts as MLQA's scorer does for this language. None:
            as SQuAD's scorers do.

    Returns:
        v1: `exact_match` and `f1`. v2: `exact`, `f1` and `total` (the number of questions), the
        same with the prefixes `HasAns_` and `NoAns_` if there are such questions, and `best_exact`,
        `best_exact_thresh`, `best_f1` and `best_f1_thresh`: the best scores that a threshold on
        `no_answer_probability` could reach, and that threshold. Scores are percentages.

    Raises:
        ValueError: `language` is not supported, there are no references, rows are malformed, or v1
            or v2 requires something that is missing (see the table in this module's docstring).
            The message has the ids of the first few rows.

    Example:
        >>> from qa_flax import squad_metric
        >>> predictions = [{"id": "q0", "prediction_text": "Saint Bernadette Soubirous"}]
        >>> references = [{"id": "q0", "answers": {"text": ["Soubirous"], "answer_start": [17]}}]
        >>> squad_metric(predictions, references)
        {'exact_match': 0.0, 'f1': 50.0}
    """
    predictions, references = list(predictions), list(references)
    _check_rows(predictions, _prediction_problem, "predictions")
    _check_rows(references, _reference_problem, "references")
    if not references:
        raise ValueError("references is empty: pass at least one question with its answers")
    normalized = _Normalized(language)
    check_numbers({"no_answer_threshold": NUMBER}, no_answer_threshold=no_answer_threshold)
    if version_2_with_negative:
        return _squad_v2(predictions, references, no_answer_threshold, normalized)
    return _squad_v1(predictions, references, normalized)


def question_scores(
    answers: Sequence[str],
    golds: Sequence[Sequence[str]],
    *,
    version_2_with_negative: bool = False,
    language: str | None = None,
) -> tuple[Float[np.ndarray, " e"], Float[np.ndarray, " e"]]:
    """Compute exact match and F1 of the answer to each of E questions.

    Their means are the scores of `squad_metric` for the same answers.

    Args:
        answers: the answer to each question; "" for none.
        golds: the gold answers to each question. In v1 an answer to a question that has none is
            wrong, whatever it is.
        version_2_with_negative, language: as of `squad_metric`.

    Returns:
        Exact match, 0 or 1, and F1, from 0 to 1: float64 [e] each.

    Raises:
        ValueError: `language` is not supported.

    Example:
        >>> from qa_flax.answers.metrics import question_scores
        >>> question_scores(["the Elbe", "Oder"], [["Elbe"], ["the river Oder"]])
        (array([1., 0.]), array([1.        , 0.66666667]))
    """
    normalized = _Normalized(language)
    exact, f1 = np.zeros(len(answers)), np.zeros(len(answers))
    for i, (answer, texts) in enumerate(zip(answers, golds, strict=True)):
        accepted = [normalized[text] for text in texts]
        if version_2_with_negative:
            accepted = [text for text in accepted if text] or [""]
        if accepted:
            scores = _best_scores(accepted, normalized[answer], int(version_2_with_negative))
            exact[i], f1[i] = scores
    return exact, f1


def exact_matches(
    answers: Iterable[Iterable[str]], golds: Iterable[Iterable[str]], language: str | None = None
) -> list[list[bool]]:
    """Return whether each of several answers to each question is an exact match, as in v2.0.

    Args:
        answers: the answers to compare, for each question.
        golds: the gold answers to each question; no answer matches if there are none.
        language: as of `squad_metric`.

    Raises:
        ValueError: `language` is not supported.

    Example:
        >>> from qa_flax.answers.metrics import exact_matches
        >>> exact_matches([["The Elbe.", "Oder"], ["Oder"]], [["Elbe"], []])
        [[True, False], [False]]
    """
    normalized = _Normalized(language)
    return [
        [bool(texts) and normalized[answer] in texts for answer in question]
        for question, texts in zip(
            answers, (_accepted(gold, normalized) for gold in golds), strict=True
        )
    ]


def _accepted(golds: Iterable[str], normalized: "_Normalized") -> set[str]:
    """Return the normalised gold answers; empty ones only if there are no others."""
    texts = {normalized[gold] for gold in golds}
    return texts - {""} or texts


def metric_names(version_2_with_negative: bool) -> list[str]:
    """Return the names of all scores that `squad_metric` can return."""
    gold: list[list[str]] = [["a"], []] if version_2_with_negative else [["a"]]
    ids = [str(n) for n in range(len(gold))]
    return list(
        squad_metric(
            [{"id": id_, "prediction_text": ""} for id_ in ids],
            [{"id": id_, "answers": {"text": text}} for id_, text in zip(ids, gold, strict=True)],
            version_2_with_negative,
        )
    )


def _squad_v1(predictions: list, references: list, normalized: "_Normalized") -> dict[str, float]:
    """Return the scores of `evaluate-v1.1.py`."""
    without_gold = [row["id"] for row in references if len(row["answers"]["text"]) == 0]
    if without_gold:
        raise ValueError(
            f"{len(without_gold)} of {len(references)} questions have no gold answer "
            f"({first_few(without_gold)}), which SQuAD v1.1 cannot score: pass "
            "version_2_with_negative=True, or remove these questions"
        )
    texts = {row["id"]: row["prediction_text"] for row in predictions}
    unanswered = [row["id"] for row in references if row["id"] not in texts]
    if unanswered:
        logger.warning(
            "%d of %d questions have no prediction and count as wrong: %s",
            len(unanswered),
            len(references),
            first_few(unanswered),
        )
    exact, f1 = 0, 0.0
    for row in references:
        if row["id"] not in texts:
            continue
        golds = [normalized[text] for text in row["answers"]["text"]]
        is_exact, best_f1 = _best_scores(golds, normalized[texts[row["id"]]], both_empty=0)
        exact += is_exact
        f1 += best_f1
    return {"exact_match": 100.0 * exact / len(references), "f1": 100.0 * f1 / len(references)}


def _squad_v2(
    predictions: list, references: list, threshold: float, normalized: "_Normalized"
) -> dict[str, float]:
    """Return the scores of `evaluate-v2.0.py`."""
    texts = {row["id"]: row["prediction_text"] for row in predictions}
    no_answer = {row["id"]: row.get("no_answer_probability", 0.0) for row in predictions}
    golds_of = {row["id"]: row["answers"]["text"] for row in references}
    unanswered = [id_ for id_ in golds_of if id_ not in texts]
    if unanswered:
        raise ValueError(
            f"{len(unanswered)} of {len(golds_of)} questions have no prediction "
            f'({first_few(unanswered)}): SQuAD v2.0 needs one for each question, "" for no answer'
        )
    has_answer = {id_: len(golds) > 0 for id_, golds in golds_of.items()}
    exact, f1 = _raw_scores(texts, golds_of, normalized)
    score_if_empty = {id_: float(not has) for id_, has in has_answer.items()}
    counts_as_empty = {id_ for id_ in golds_of if no_answer[id_] > threshold}
    exact_at = {k: score_if_empty[k] if k in counts_as_empty else v for k, v in exact.items()}
    f1_at = {k: score_if_empty[k] if k in counts_as_empty else v for k, v in f1.items()}

    result = _means("", list(exact_at), exact_at, f1_at)
    for prefix, group in (("HasAns_", True), ("NoAns_", False)):
        ids = [id_ for id_, has in has_answer.items() if has == group]
        if ids:
            result |= _means(prefix, ids, exact_at, f1_at)
    in_order = sorted((id_ for id_ in no_answer if id_ in exact), key=no_answer.__getitem__)
    for name, scores in (("exact", exact), ("f1", f1)):
        best, best_at = _best_threshold(in_order, scores, texts, has_answer, no_answer)
        result |= {f"best_{name}": best, f"best_{name}_thresh": best_at}
    return result


def _raw_scores(
    texts: dict, golds_of: dict, normalized: "_Normalized"
) -> tuple[dict[Any, int], dict[Any, float]]:
    """Return exact match and F1 (0 to 1) of each question, before the threshold is applied."""
    exact, f1 = {}, {}
    for id_, gold_texts in golds_of.items():
        golds = [gold for gold in map(normalized.__getitem__, gold_texts) if gold] or [""]
        exact[id_], f1[id_] = _best_scores(golds, normalized[texts[id_]], both_empty=1)
    return exact, f1


def _means(prefix: str, ids: list, exact: dict, f1: dict) -> dict[str, float]:
    """Return the mean scores of the questions `ids` in percent, and their number."""
    total = len(ids)
    return {
        f"{prefix}exact": 100.0 * sum(exact[id_] for id_ in ids) / total,
        f"{prefix}f1": 100.0 * sum(f1[id_] for id_ in ids) / total,
        f"{prefix}total": total,
    }


def _best_threshold(
    in_order: list, scores: dict, texts: dict, has_answer: dict, no_answer: dict
) -> tuple[float, float]:
    """Return the best mean score (percent) of any threshold on `no_answer`, and that threshold.

    This is the official `find_best_thresh`. It starts with "" for every question (threshold 0.0),
    then accepts the predictions in ascending order of `no_answer`, one by one even where it is
    equal.
    """
    current = best = sum(not has for has in has_answer.values())
    threshold = 0.0
    for id_ in in_order:
        if has_answer[id_]:
            current += scores[id_]
        elif texts[id_]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer[id_]
    return 100.0 * best / len(scores), threshold


# --------------------------------------------------------------------------------- normalisation


def _squad_words(text: str) -> list[str]:
    if text.isascii() and text.isprintable():
        # Without punctuation only spaces separate words here, so the pattern, which takes twice as
        # long, would find the same articles.
        words = text.encode().lower().translate(None, _ASCII_PUNCTUATION).decode().split()
        return [word for word in words if word not in _ARTICLE_WORDS]
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


_MLQA_ARTICLES = {
    "ar": re.compile(r"\sال^|ال"),  # noqa: RUF001
    "de": re.compile(r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "en": _ARTICLES,
    "es": re.compile(r"\b(un|una|unos|unas|el|la|los|las)\b"),
    "hi": None,
    "vi": re.compile(r"\b(của|là|cái|chiếc|những)\b"),
    "zh": None,
}
LANGUAGES = tuple(_MLQA_ARTICLES)
_HAN = re.compile(r"([\u4e00-\u9fa5])")


def _mlqa_words(language: str, text: str) -> list[str]:
    text = text.lower().translate(_unicode_punctuation())
    articles = _MLQA_ARTICLES[language]
    text = text if articles is None else articles.sub(" ", text)
    return (_HAN.sub(r" \1 ", text) if language == "zh" else text).split()


@cache
def _unicode_punctuation() -> dict[int, None]:
    codes = range(sys.maxunicode)
    marks = (code for code in codes if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys([*map(ord, string.punctuation), *marks])


class _Normalized(dict[str, str]):
    """Maps a text to its normalised form, computed once per text because gold answers repeat."""

    # The values are texts and not lists of words, because Python's garbage collector visits every
    # list again and again: that took longer than all the rest of scoring.

    def __init__(self, language: str | None):
        super().__init__()
        if language is not None and language not in LANGUAGES:
            raise ValueError(
                f"language {language!r} is not supported; MLQA's rules exist for "
                f"{', '.join(LANGUAGES)}: choose one of these, or no language for SQuAD's rules"
            )
        self._words = _squad_words if language is None else partial(_mlqa_words, language)

    def __missing__(self, text: str) -> str:
        normalized = self[text] = " ".join(self._words(text))
        return normalized


def _best_scores(golds: list[str], answer: str, both_empty: int) -> tuple[int, float]:
    """Return the exact match and the best F1 of an answer.

    Args:
        golds: the normalised gold answers.
        answer: the normalised answer.
        both_empty: F1 if neither a gold answer nor the answer has a word.
    """
    # F1 is 0 or 1 as an integer, as in the official scorers: from Python 3.12 on, `sum` rounds a
    # list of floats differently from one that also has integers, which would change the last digit.
    if answer in golds:
        return 1, 1.0 if answer else both_empty
    words = answer.split()
    distinct = set(words)
    return 0, max([_f1(gold.split(), words, distinct) for gold in golds])


def _f1(gold: list[str], answer: list[str], distinct: set[str]) -> float:
    """Return F1 over the bags of words of two different texts.

    Args:
        gold: the words of the gold answer.
        answer: the words of the answer.
        distinct: the distinct ones of these.
    """
    common = distinct.intersection(gold)
    if not common:
        return 0
    if len(distinct) == len(answer):
        same = len(common)
    else:
        same = sum([min(gold.count(word), answer.count(word)) for word in common])
    precision, recall = same / len(answer), same / len(gold)
    return (2 * precision * recall) / (precision + recall)


# --------------------------------------------------------------------------------------- input


def _check_rows(rows: list, problem_of: Any, what: str) -> None:
    """Check all rows.

    Args:
        rows: predictions or references.
        problem_of: returns what is wrong with a row, or None.
        what: the name of the argument, for the message.

    Raises:
        ValueError: rows are malformed. The message lists each problem, the number of rows that have
            it, and the first few of their ids (or row numbers).
    """
    problems: dict[str, list] = {}
    for number, row in enumerate(rows):
        problem = problem_of(row)
        if problem is not None:
            id_ = row.get("id") if isinstance(row, Mapping) else None
            problems.setdefault(problem, []).append(f"row {number}" if id_ is None else id_)
    if problems:
        lines = [f"  {len(ids)} x {problem}: {first_few(ids)}" for problem, ids in problems.items()]
        raise ValueError(f"{what} cannot be scored:\n" + "\n".join(lines))


_MAPPING = (dict, Mapping)  # a dict, the usual type, is recognised faster as itself


def _prediction_problem(row: Any) -> str | None:
    if not isinstance(row, _MAPPING) or "id" not in row:
        return 'not a dict {"id": ..., "prediction_text": ...}'
    if not isinstance(row.get("prediction_text"), str):
        return 'no string under "prediction_text"'
    score = row.get("no_answer_probability", 0.0)
    if not isinstance(score, (float, Real)) or score != score:
        return '"no_answer_probability" is not a number'
    return None


def _reference_problem(row: Any) -> str | None:
    if not isinstance(row, _MAPPING) or "id" not in row:
        return 'not a dict {"id": ..., "answers": {"text": [...]}}'
    answers = row.get("answers")
    if not isinstance(answers, _MAPPING) or "text" not in answers:
        return 'no {"text": [...]} under "answers"'
    texts = answers["text"]
    is_list = isinstance(texts, (list, Iterable)) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
        return '"text" under "answers" is not a list of strings'
    return None
