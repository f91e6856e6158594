"""The text of `qa-flax check`: what a person needs to decide about each label (host)."""

from collections.abc import Iterable, Sequence
from typing import Any

from qa_flax.messages import escaped
from qa_flax.train.label_check import Row, scores

MARKS = {"label": ("[[", "]]"), "model": ("{{", "}}")}
"""Around the labelled answer and around the model's, in the passage."""
WEAK = 20
"""The F1 below which the models know too little; 25 was enough (docs/small_data.md, 7)."""
AROUND = 80
"""How many characters of the context are shown before and after an answer."""


def summary_line(rows: Sequence[Row]) -> str:
    """One line: how many questions there are, and how good the models that judged them are."""
    measured = scores(rows)
    line = (
        f"{len(rows):,} questions, judged by models that have not seen them. Their answers are the "
        f"labelled ones in {measured['exact_match']:.1f}% (EM), F1 {measured['f1']:.1f}."
    )
    if measured["f1"] < WEAK:
        line += (
            f" Below an F1 of about {WEAK} the order is a weak hint: start from a model that has "
            "been trained on other questions, such as SQuAD, or raise --num_train_epochs."
        )
    return line


def mending(file: str) -> list[str]:
    """Lines that say what to do with the result."""
    return [
        f"To mend {file}: look at each question, the most suspicious first, until most labels are "
        "right. Where a label is wrong, give its id another answer in the file: `text`, and as "
        "`answer_start` the number of characters before it in the context. Where the model is "
        "right, `prediction` has both. Delete questions that the text does not answer, or give "
        "them no answer. The file itself is not changed.",
    ]


def lines_of(rows: Iterable[Row]) -> list[str]:
    """Some lines for each question, and an empty one after each."""
    lines = [
        "In the passages the label is in [[ ]], what the model says in {{ }}. The suspicion is "
        "minus the logarithm of the label's probability.",
        "",
    ]
    for row in rows:
        lines += _lines(row)
    return lines


def _lines(row: Row) -> list[str]:
    gold, prediction = row["gold"], row["prediction"]
    lines = [
        f"{row['rank']}. id {escaped(row['id'])}, suspicion {row['suspicion']:.1f}",
        f"   question: {escaped(row['question'])}",
        f"   label:    {_answer(gold, row['no_answer_probability'])}",
        f"   model:    {_answer(prediction, None)}",
    ]
    others = [answer for answer in row["answers"] if answer != gold]
    if others:
        lines.append(f"   others:   {', '.join(escaped(repr(a['text'])) for a in others[:5])}")
    if row["note"]:
        lines.append(f"   note:     {escaped(row['note'])}")
    return [*lines, f"   passage:  {passage(row)}", ""]


def _answer(answer: dict[str, Any] | None, null_probability: float | None) -> str:
    if answer is None:
        return f"no answer, probability {_share(null_probability or 0.0)}"
    if answer["answer_start"] is None:
        return f"no answer, probability {_share(answer['probability'])}"
    return (
        f"{escaped(repr(answer['text']))} at {answer['answer_start']}, probability "
        f"{_share(answer['probability'])}"
    )


def _share(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def passage(row: Row) -> str:
    """The parts of the context around the label and the model's answer, both marked, in one line.

    Example:
        >>> gold = {"text": "Ada", "answer_start": 0}
        >>> prediction = {"text": "in 1843", "answer_start": 10}
        >>> passage({"context": "Ada wrote in 1843.", "gold": gold, "prediction": prediction})
        '[[Ada]] wrote {{in 1843}}.'
    """
    context = row["context"]
    spans = []
    for marks, answer in ((MARKS["label"], row["gold"]), (MARKS["model"], row["prediction"])):
        begin = None if answer is None else answer.get("judged_at", answer["answer_start"])
        if answer is not None and begin is not None:
            spans.append((begin, begin + len(answer["text"]), marks))
    shown = _joined([(b - AROUND, e + AROUND) for b, e, _ in spans] or [(0, 2 * AROUND)], context)
    text = " ... ".join(_marked(context, begin, end, spans) for begin, end in shown)
    before = "... " if shown[0][0] > 0 else ""
    return escaped(f"{before}{text}" + (" ..." if shown[-1][1] < len(context) else ""))


def _joined(parts: list[tuple[int, int]], context: str) -> list[tuple[int, int]]:
    """Return parts of the context in their order, those that overlap or nearly touch as one."""
    result: list[tuple[int, int]] = []
    for begin, end in sorted(parts):
        begin, end = max(begin, 0), min(end, len(context))
        if result and begin <= result[-1][1] + AROUND // 4:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((begin, end))
    return result


def _marked(
    context: str, begin: int, end: int, spans: Sequence[tuple[int, int, tuple[str, str]]]
) -> str:
    """Return a part of the context with marks around the spans in it."""
    places: list[tuple[tuple[int, ...], str]] = []
    for number, (first, last, (opening, closing)) in enumerate(spans):
        if begin <= first and last <= end:  # of two in one place, the inner one closes first
            places += [((first, 1, -last, number), opening), ((last, 0, -first, -number), closing)]
    parts, position = [], begin
    for (place, *_), mark in sorted(places):
        parts += [context[position:place], mark]
        position = place
    return "".join([*parts, context[position:end]])
