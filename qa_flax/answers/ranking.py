"""Stage 6 of 7: the spans of a question's windows -> its answers, best first (host).

`merged` combines the spans of all windows as the question answering pipeline of transformers 4 did:
spans with the same text, in whatever case, are one answer, at the place where it was found first,
and its score is the sum of theirs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

CANDIDATES = 20
"""How many distinct answers to a question compete for its confidence."""


@dataclass(slots=True)
class Candidate:
    """An answer to a question.

    Attributes:
        text: the answer, as it stands in the context.
        start: its first character in the context, in code points.
        end: the character after its last.
        score: the pipeline's score: the probabilities of its spans in their windows, added.
        logit: the largest sum of start and end logit of its spans.
    """

    text: str
    start: int
    end: int
    score: float
    logit: float


Span = tuple[int, int, float, float]
"""First character, the character after the last, probability, and sum of start and end logit."""


def merged(context: str, windows: Iterable[list[Span]]) -> list[Candidate]:
    """Merge the spans of a question's windows into distinct answers, in the order of discovery.

    Args:
        context: the text.
        windows: the spans of each window, best first.

    Example:
        >>> answers = merged("in Oslo or OSLO", [[(3, 7, 0.5, 2.0), (11, 15, 0.25, 1.0)]])
        >>> [(answer.text, answer.score) for answer in answers]
        [('Oslo', 0.75)]
    """
    answers: dict[str, Candidate] = {}
    for spans in windows:
        for start, end, probability, logit in spans:
            text = context[start:end]
            known = answers.get(key := text.lower())
            if known is None:
                answers[key] = Candidate(text, start, end, probability, logit)
            else:
                known.score += probability
                known.logit = max(known.logit, logit)
    return list(answers.values())


def separate(context: str, windows: Iterable[list[Span]], count: int) -> list[Candidate]:
    """Return the `count` answers with the largest logits that neither overlap nor repeat a text."""
    spans = sorted((s for window in windows for s in window), key=lambda s: s[3], reverse=True)
    kept: list[Candidate] = []
    for start, end, probability, logit in spans:
        text = context[start:end]
        is_new = all(
            (end <= other.start or other.end <= start) and text.lower() != other.text.lower()
            for other in kept
        )
        if is_new and text.strip():
            kept.append(Candidate(text, start, end, probability, logit))
        if len(kept) == count:
            break
    return kept


def competing_logits(answers: list[Candidate]) -> list[float]:
    """Return the logits of the answers that compete for confidence, the largest first."""
    return sorted((answer.logit for answer in answers), reverse=True)[:CANDIDATES]
