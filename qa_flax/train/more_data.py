"""Training arguments that give more signal: changed texts, and batches of other data (host).

`TrainingArguments` inherits these fields, so `qa-flax run` has them as flags of the same names.
"""

from dataclasses import dataclass, field
from typing import Any

from qa_flax.data.augment import read_strengths


@dataclass
class MoreData:
    """Augmentation, paraphrases, and the share of another training set."""

    augment: str | None = field(
        default=None,
        metadata={
            "help": "Change the training texts anew in each epoch, without moving the answers: "
            "shuffle (sentences of the context in another order), distract (insert sentences of "
            "other contexts), noise (slips in letters outside the answers), question_dropout "
            "(leave words of the question out). Separated by commas, each with or without a "
            "strength, such as shuffle,noise:0.05; see qa_flax.augment_examples. The number of "
            "updates stays the same."
        },
    )
    paraphrases: str | None = field(
        default=None,
        metadata={
            "help": "Table of other wordings of training questions, one of which replaces the "
            "question at random in each epoch: CSV with a column id or question and a column "
            'paraphrase, or JSON such as {"id or question": ["other wording", ...]}. In Python '
            "also a dict."
        },
    )
    extra_train_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the batches of each epoch, at least 0 and below 1, that come from "
            "extra_train_file (in Python extra_train_dataset): with n batches of the own data an "
            "epoch has n / (1 - ratio). Each epoch has another part of it."
        },
    )


def invalid_more_data(args: Any) -> list[str]:
    """Describe each of these arguments that cannot be read."""
    try:
        read_strengths(getattr(args, "augment", None))
    except ValueError as error:
        return [str(error)]
    return []
