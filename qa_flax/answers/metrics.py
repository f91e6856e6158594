"""Stage 7 of 7: answers -> exact match and F1, as the official SQuAD scorers count them (host).

Version 1.1 is `evaluate-v1.1.py` (Rajpurkar et al., 2016, arXiv:1606.05250), version 2.0 is
`evaluate-v2.0.py` (Rajpurkar et al., 2018, arXiv:1806.03822), with the inputs and keys of Hugging
Face's `squad` and `squad_v2` metrics. Sums are taken in the order of the official scripts, so the
last digit is theirs too. The two versions differ more than in name:

| case | v1.1 | v2.0 |
|---|---|---|
| both texts are empty once normalised | exact match 1, F1 0 | both 1 |
| a gold answer that is empty once normalised | counts | left out |
| no gold answer | refused (the script crashes) | right when the prediction is "" |
| no prediction for a question | counts as wrong, with a warning | refused (the script crashes) |
| the same question id twice | counts twice | the last one counts |

In both, the last of several predictions for an id counts and predictions for other ids are ignored.
`best_exact` and `best_f1` look at the prediction as it is, not as normalised: "the" for a question
without an answer is right in `exact` and costs a point here. They mean something only if
`no_answer_probability` does: with one value for all they depend on the order of the questions.
Normalising knows English articles and ASCII punctuation only, and words are parted by spaces. With
a `language` it is that of MLQA's scorer (Lewis et al., 2019, arXiv:1910.07475): the language's
articles, all of Unicode's punctuation, and in Chinese each character is a word. These are other
scores than SQuAD's, in English too.
"""

import logging
import re
import string
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, partial
from numbers import Real
from typing import Any, NamedTuple

from qa_flax.data.messages import first_few

logger = logging.getLogger(__name__)

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_metric(
    predictions: Iterable[Any],
    references: Iterable[Any],
    version_2_with_negative: bool = False,
    no_answer_threshold: float = 1.0,
    language: str | None = None,
) -> dict[str, float]:
    """Score answers against gold answers.

    Args:
        predictions: `{"id": str, "prediction_text": str}`; in v2 also `"no_answer_probability"`, a
            number that grows with the belief that there is no answer (a probability, or the null
            odds of `postprocess_qa_predictions`); 0.0 if absent.
        references: `{"id": str, "answers": {"text": [str, ...], ...}}`.
        version_2_with_negative: score as SQuAD v2.0, where a question may have no answer.
        no_answer_threshold: v2 only: an answer with a greater `no_answer_probability` counts as "".
        language: one of `LANGUAGES`, to normalise as MLQA's scorer does; None: as SQuAD's do.

    Returns:
        v1: `exact_match` and `f1`. v2: `exact`, `f1`, `total`, the same with `HasAns_` and `NoAns_`
        where there are such questions, and `best_exact`, `best_exact_thresh`, `best_f1`,
        `best_f1_thresh`: the best scores that a threshold on `no_answer_probability` could reach.
        Scores are percentages.

    Raises:
        ValueError: rows are malformed, or lacking as the module's table says; all are named. Or the
            language is not known.
    """
    predictions, references = list(predictions), list(references)
    _check_rows(predictions, _prediction_problem, "predictions")
    _check_rows(references, _reference_problem, "references")
    if not references:
        raise ValueError("there are no references to score against: pass at least one question")
    normalized = _Normalized(language)
    if version_2_with_negative:
        return _squad_v2(predictions, references, no_answer_threshold, normalized)
    return _squad_v1(predictions, references, normalized)


def _squad_v1(predictions: list, references: list, normalized: "_Normalized") -> dict[str, float]:
    without = [row["id"] for row in references if len(row["answers"]["text"]) == 0]
    if without:
        raise ValueError(
            f"{len(without)} of {len(references)} questions have no gold answer "
            f"({first_few(without)}), which SQuAD v1.1 cannot score: pass "
            "version_2_with_negative=True, or leave them out"
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
        answer = normalized[texts[row["id"]]]
        golds = [normalized[text] for text in row["answers"]["text"]]
        exact += any(answer.text == gold.text for gold in golds)
        f1 += max(_f1(gold, answer, both_empty=0) for gold in golds)
    return {"exact_match": 100.0 * exact / len(references), "f1": 100.0 * f1 / len(references)}


def _squad_v2(
    predictions: list, references: list, threshold: float, normalized: "_Normalized"
) -> dict[str, float]:
    texts = {row["id"]: row["prediction_text"] for row in predictions}
    no_answer = {row["id"]: row.get("no_answer_probability", 0.0) for row in predictions}
    golds_of = {row["id"]: row["answers"]["text"] for row in references}
    unanswered = [id_ for id_ in golds_of if id_ not in texts]
    if unanswered:
        raise ValueError(
            f"{len(unanswered)} of {len(golds_of)} questions have no prediction "
            f'({first_few(unanswered)}): SQuAD v2.0 needs one for each, "" for no answer'
        )
    has_answer = {id_: len(golds) > 0 for id_, golds in golds_of.items()}
    exact, f1 = _raw_scores(texts, golds_of, normalized)
    right_if_none = {id_: float(not has) for id_, has in has_answer.items()}
    taken_as_none = {id_ for id_ in golds_of if no_answer[id_] > threshold}
    exact_at = {k: right_if_none[k] if k in taken_as_none else v for k, v in exact.items()}
    f1_at = {k: right_if_none[k] if k in taken_as_none else v for k, v in f1.items()}

    result = _means("", list(exact_at), exact_at, f1_at)
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        ids = [id_ for id_, has in has_answer.items() if has == wanted]
        if ids:
            result |= _means(prefix, ids, exact_at, f1_at)
    in_order = sorted((id_ for id_ in no_answer if id_ in exact), key=no_answer.__getitem__)
    for name, scores in (("exact", exact), ("f1", f1)):
        best, at = _best_threshold(in_order, scores, texts, has_answer, no_answer)
        result |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return result


def _raw_scores(
    texts: dict, golds_of: dict, normalized: "_Normalized"
) -> tuple[dict[Any, int], dict[Any, float]]:
    """Exact match and F1 of each question, before any threshold."""
    exact, f1 = {}, {}
    for id_, gold_texts in golds_of.items():
        answer = normalized[texts[id_]]
        golds = [gold for gold in map(normalized.__getitem__, gold_texts) if gold.text]
        golds = golds or [normalized[""]]
        exact[id_] = int(any(answer.text == gold.text for gold in golds))
        f1[id_] = max(_f1(gold, answer, both_empty=1) for gold in golds)
    return exact, f1


def _means(prefix: str, ids: list, exact: dict, f1: dict) -> dict[str, float]:
    total = len(ids)
    return {
        f"{prefix}exact": 100.0 * sum(exact[id_] for id_ in ids) / total,
        f"{prefix}f1": 100.0 * sum(f1[id_] for id_ in ids) / total,
        f"{prefix}total": total,
    }


def _best_threshold(
    in_order: list, scores: dict, texts: dict, has_answer: dict, no_answer: dict
) -> tuple[float, float]:
    """The best mean score of answering only the first questions in order, and where that ends.

    The official `find_best_thresh`: it begins with answering none (threshold 0.0), and equal
    probabilities are taken one by one.
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


# ------------------------------------------------------------------------------------ one answer


def _squad_tokens(text: str) -> list[str]:
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


def _mlqa_tokens(language: str, text: str) -> list[str]:
    text = text.lower().translate(_unicode_punctuation())
    articles = _MLQA_ARTICLES[language]
    text = text if articles is None else articles.sub(" ", text)
    return (_HAN.sub(r" \1 ", text) if language == "zh" else text).split()


@cache
def _unicode_punctuation() -> dict[int, None]:
    codes = range(sys.maxunicode)
    marks = (code for code in codes if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys([*map(ord, string.punctuation), *marks])


class _Answer(NamedTuple):
    text: str
    tokens: list[str]
    distinct: frozenset[str]


class _Normalized(dict[str, _Answer]):
    """Text -> its normalised form, worked out once for each distinct text: gold answers repeat."""

    def __init__(self, language: str | None):
        super().__init__()
        if language is not None and language not in LANGUAGES:
            raise ValueError(
                f"language is {language!r}; MLQA's rules know {', '.join(LANGUAGES)}: give one of "
                "these, or none for SQuAD's rules"
            )
        self._tokens = _squad_tokens if language is None else partial(_mlqa_tokens, language)

    def __missing__(self, text: str) -> _Answer:
        tokens = self._tokens(text)
        answer = self[text] = _Answer(" ".join(tokens), tokens, frozenset(tokens))
        return answer


def _f1(gold: _Answer, answer: _Answer, both_empty: int) -> float:
    """F1 over the bags of words; `both_empty` is the score when neither has a word.

    0 and 1 are integers, as in the official scorers: from Python 3.12 on `sum` rounds a sum of
    floats otherwise than one with integers in it, and the last digit is to be theirs.
    """
    if not gold.tokens and not answer.tokens:
        return both_empty
    common = gold.distinct & answer.distinct
    if not common:
        return 0
    same = sum(min(gold.tokens.count(word), answer.tokens.count(word)) for word in common)
    precision, recall = same / len(answer.tokens), same / len(gold.tokens)
    return (2 * precision * recall) / (precision + recall)


# --------------------------------------------------------------------------------------- input


def _check_rows(rows: list, problem_of: Any, what: str) -> None:
    """Refuse malformed rows, all at once.

    Raises:
        ValueError: with what is wrong, how often, and the first ids (or row numbers).
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


def _prediction_problem(row: Any) -> str | None:
    if not isinstance(row, Mapping) or "id" not in row:
        return 'not a dict {"id": ..., "prediction_text": ...}'
    if not isinstance(row.get("prediction_text"), str):
        return 'no string under "prediction_text"'
    score = row.get("no_answer_probability", 0.0)
    if not isinstance(score, Real) or score != score:
        return '"no_answer_probability" is no number'
    return None


def _reference_problem(row: Any) -> str | None:
    if not isinstance(row, Mapping) or "id" not in row:
        return 'not a dict {"id": ..., "answers": {"text": [...]}}'
    answers = row.get("answers")
    if not isinstance(answers, Mapping) or "text" not in answers:
        return 'no {"text": [...]} under "answers"'
    texts = answers["text"]
    is_list = isinstance(texts, Iterable) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
        return '"answers" have a "text" that is no list of strings'
    return None
