"""The forms in which questions are asked, as in transformers 4's pipeline (host).

Whatever the form, each question becomes a `Question`: one question and the text, or the texts, that
it is asked of.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qa_flax.messages import first_few, quoted

FORMS = (
    'pass question="..." and context="...", lists of them, a dict {"question": ..., "context": '
    "...} or a list of such dicts"
)
TEXTS = ("question", "context", "contexts", "X", "data")
"""The keywords of a call that are no settings."""

BLOCK_QUESTIONS, STREAM_QUESTIONS = 1024, 256
"""How many questions are answered together, at most: of a list, and of a stream, whose first
answers somebody may wait for."""
BLOCK_CHARACTERS = 1 << 20
"""Of how long contexts in all questions are answered together."""

_ENTRIES = {
    "question": ("question", "question_text"),
    "context": ("context", "context_text"),
    "contexts": ("contexts",),
}


class QuestionError(ValueError, KeyError):
    """A question cannot be asked: a text is missing, empty or not a text."""

    __str__ = ValueError.__str__  # KeyError's would put the message in quotes


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: the question.
        contexts: the texts that it is asked of.
        names: the name of each of several contexts: its number, or its key in a dict; None: the
            question was asked of a single `context`.
        id: what messages call it, if it has an id.
    """

    text: str
    contexts: tuple[str, ...]
    names: tuple[Any, ...] | None = None
    id: str | None = None


@dataclass(frozen=True)
class Call:
    """The questions of a call, and what it returns: one result, a list, or a stream of results."""

    questions: Iterable[Question]
    is_single: bool = False
    is_stream: bool = False


def read_call(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
    """Read the arguments of a call.

    Args:
        inputs: arguments without names: one dict, list, data set or iterator of questions, a
            question and a context, or several dicts.
        keywords: `question` and `context` (or `contexts`), or `X` or `data`.

    Raises:
        QuestionError: a text is missing, empty or not a text. All wrong questions are listed.
        TypeError: the arguments are of no known form.
    """
    rows: Any
    if inputs:
        if keywords:
            raise TypeError(f"got questions twice, also as {', '.join(keywords)}; {FORMS}")
        is_pair = len(inputs) == 2 and all(isinstance(value, str) for value in inputs)
        rows = inputs[0] if len(inputs) == 1 else list(inputs)
        if is_pair:
            rows = {"question": inputs[0], "context": inputs[1]}
    elif len(keywords) == 1 and keywords.keys() <= {"X", "data"}:
        (rows,) = keywords.values()
    elif "question" in keywords:
        rows = dict(keywords)
    else:
        raise TypeError(f"no question; {FORMS}")
    if isinstance(rows, Iterator):
        return Call(_stream(rows), is_stream=True)
    if isinstance(rows, Mapping):
        rows = _paired(rows)
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise TypeError(f"questions are a {type(rows).__name__}; {FORMS}")
    questions = _questions(list(rows))
    return Call(questions, is_single=len(questions) == 1)


def _paired(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each question of a dict, whose values may be lists.

    Raises:
        QuestionError: the lists do not fit each other.
    """
    question, context = (_listed(columns.get(name)) for name in ("question", "context"))
    others = {name: columns[name] for name in ("contexts",) if name in columns}
    if not isinstance(question, list):
        if isinstance(context, list):
            raise QuestionError(
                f"one question is asked of a list of {len(context)} contexts: pass contexts=[...] "
                "for the best answers over all of them, or a list of as many questions"
            )
        return [dict(columns)] if context is None else [{**columns, "context": context}]
    if not isinstance(context, list):
        given = {"context": context} if "context" in columns else {}
        return [{"question": text, **given, **others} for text in question]
    if len(question) != len(context):
        raise QuestionError(
            f"there are {len(question)} questions and {len(context)} contexts; pass one context "
            "for each question, or a single one for all"
        )
    pairs = zip(question, context, strict=True)
    return [{"question": text, "context": passage, **others} for text, passage in pairs]


def _listed(value: Any) -> Any:
    return list(value) if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return not isinstance(value, str | bytes | Mapping) and isinstance(value, Iterable)


def _questions(rows: list[Any]) -> list[Question]:
    """Check all rows.

    Raises:
        QuestionError: lists the wrong ones.
    """
    questions, problems = [], []
    for number, row in enumerate(rows):
        try:
            questions.append(_question(row))
        except QuestionError as error:
            problems.append(f"{_name(row, number)}: {error}" if len(rows) > 1 else str(error))
    if len(problems) > 1 or (problems and len(rows) > 1):
        listed = first_few(problems, separator="\n  - ")
        raise QuestionError(f"{len(problems)} of {len(rows)} questions:\n  - {listed}")
    if problems:
        raise QuestionError(problems[0])
    return questions


def _stream(rows: Iterator[Any]) -> Iterator[Question]:
    for number, row in enumerate(rows):
        try:
            yield _question(row)
        except QuestionError as error:
            raise QuestionError(f"{_name(row, number)}: {error}") from None


def _name(row: Any, number: int) -> str:
    id_ = _id(row)
    return f"number {number}" if id_ is None else f"number {number} (id {quoted(id_)})"


def _question(row: Any) -> Question:
    """Read a question; further entries of a dict, such as an id, are left aside."""
    if isinstance(row, Question):
        return row
    texts = {name: _entry(row, names) for name, names in _ENTRIES.items()}
    question = _text("question", texts["question"])
    contexts = texts["contexts"]
    if contexts is None:
        return Question(question, (_text("context", texts["context"]),), id=_id(row))
    if texts["context"] is not None:
        raise QuestionError("it has both context and contexts; pass one of them")
    if isinstance(contexts, Mapping):
        names, values = tuple(contexts), list(contexts.values())
    elif _is_list(contexts):
        values = list(contexts)
        names = tuple(range(len(values)))
    else:
        raise QuestionError(
            f"contexts is a {type(contexts).__name__}; pass a list of texts, or a dict of them by "
            "their names"
        )
    if not values:
        raise QuestionError("contexts is empty; pass at least one text")
    passages = tuple(
        _text(f"contexts[{name!r}]", value) for name, value in zip(names, values, strict=True)
    )
    return Question(question, passages, names, _id(row))


def _id(row: Any) -> str | None:
    id_ = row.get("id") if isinstance(row, Mapping) else None
    return None if id_ is None else str(id_)


def _entry(row: Any, names: tuple[str, ...]) -> Any:
    if isinstance(row, Mapping):
        return next((row[name] for name in names if name in row), None)
    if not any(hasattr(row, name) for name in ("question", "question_text")):
        raise QuestionError(f"it is a {type(row).__name__}; {FORMS}")
    return next((getattr(row, name) for name in names if hasattr(row, name)), None)


def _text(name: str, value: Any) -> str:
    if value is None:
        raise QuestionError(f"it has no {name}; {FORMS}")
    if not isinstance(value, str):
        raise QuestionError(f"{name} is a {type(value).__name__}; it must be a text")
    if not value.strip():
        raise QuestionError(f"{name} is empty")
    return value


# ---- blocks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A question and one of its contexts."""

    index: int  # of the question in the call
    question: Question
    number: int  # of the context among the question's

    @property
    def id(self) -> str:
        """What messages call the question: its id, or its number."""
        return str(self.index) if self.question.id is None else self.question.id

    @property
    def context(self) -> str:
        """The text that the question is asked of."""
        return self.question.contexts[self.number]


def in_blocks(questions: Iterable[Question], size: int) -> Iterator[list[Item]]:
    """Yield questions with their contexts in blocks that bound the memory.

    Args:
        questions: the questions.
        size: how many contexts a block has, at most.

    Raises:
        QuestionError: the stream of questions has a wrong one; those before it are yielded first.
    """
    block: list[Item] = []
    characters, problem = 0, None
    try:
        for item in _items(questions):
            is_full = characters + len(item.context) > BLOCK_CHARACTERS
            if block and (is_full or len(block) == size):
                yield block
                block, characters = [], 0
            block.append(item)
            characters += len(item.context)
    except QuestionError as error:
        problem = error
    if block:
        yield block
    if problem is not None:
        raise problem


def _items(questions: Iterable[Question]) -> Iterator[Item]:
    for index, question in enumerate(questions):
        for number in range(len(question.contexts)):
            yield Item(index, question, number)
