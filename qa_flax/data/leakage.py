"""Validation questions about texts that are in the training set: found and described (host)."""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets

from qa_flax.data.messages import first_few
from qa_flax.data.splits import contexts_of

EVIDENCE = (
    "so validation scores say little about new texts; --validation_split (in Python "
    "qa_flax.split_examples) splits by context"
)


def describe_shared_examples(train: datasets.Dataset, validation: datasets.Dataset) -> str | None:
    """Describe the validation examples whose contexts are also in the training set.

    Args:
        train, validation: from `load_examples`.

    Returns:
        A sentence with their number and some ids; None if there are none.
    """
    pairs = _questions_and_contexts(validation)
    return describe_shared(_questions_and_contexts(train), pairs, validation["id"][:])


def describe_shared(
    train: Iterable[tuple[Any, Any]], validation: Sequence[tuple[Any, Any]], ids: Sequence[str]
) -> str | None:
    """Describe the validation questions whose contexts are also in the training set.

    Args:
        train: a key of the question and one of the context, for each training question.
        validation: the same of the validation questions.
        ids: the ids of the validation questions.

    Returns:
        A sentence with their number and some ids; None if there are none.
    """
    known = set(train)
    contexts = {context for _, context in known}
    shared = [id_ for id_, (_, context) in zip(ids, validation, strict=True) if context in contexts]
    if not shared:
        return None
    if len(shared) == len(ids) and known == set(validation):
        return (
            f"the {len(ids):,} validation questions are the training questions, so validation "
            "scores say nothing about other questions"
        )
    equal = sum(pair in known for pair in validation)
    detail = f" ({equal:,} of them are themselves in the training set)" if equal else ""
    return (
        f"{len(shared):,} of {len(ids):,} validation questions (ids {first_few(shared)}) are about "
        f"contexts that are in the training set{detail}, {EVIDENCE}"
    )


def _questions_and_contexts(examples: datasets.Dataset) -> list[tuple[str, str]]:
    questions = [" ".join(question.split()) for question in examples["question"][:]]
    return list(zip(questions, contexts_of(examples), strict=True))
