"""Questions without answers: whether the data fits `--version_2_with_negative` (host).

This is known as soon as the data is read. Without the check, a run would fail at its first
evaluation, or score what it was not meant to.
"""

from collections.abc import Collection, Mapping

import datasets
import numpy as np

from qa_flax.commands.arguments import DataArguments
from qa_flax.commands.run.output import warn_on_main
from qa_flax.data.examples import has_answers
from qa_flax.messages import first_few, quoted
from qa_flax.train.training_arguments import TrainingArguments

_NAMES = {
    "train": "training",
    "eval": "validation",
    "predict": "test",
    "extra": "extra training",
}


def check_answers(
    examples: Mapping[str, datasets.Dataset],
    data_args: DataArguments,
    training_args: TrainingArguments,
    *,
    labelled: Collection[str] = (),
) -> None:
    """Check that questions without answers are expected exactly where there are some.

    Args:
        examples: the examples of each stage.
        data_args: `version_2_with_negative` says whether to expect them.
        training_args: training questions are evaluated with `eval_train_samples`.
        labelled: stages whose data says of questions that they have no answer. Otherwise data in
            which no question has an answer counts as not labelled, also with empty lists, as test
            data is often published: it is answered, but not scored.

    Raises:
        ValueError: v1.1 cannot score the data, or there is nothing to learn from it.
    """
    answered = {stage: has_answers(part) for stage, part in examples.items() if len(part)}
    if data_args.version_2_with_negative:
        scored = [mask for mask in answered.values() if mask.any()]
        if scored and all(mask.all() for mask in scored):
            warn_on_main(
                "--version_2_with_negative is given, but every question has an answer. Remove it, "
                "unless the model shall be able to give none."
            )
        return
    for stage in ("eval", "predict"):
        if stage in answered:
            _check_scored(stage, examples[stage], answered[stage], stage in labelled)
    if "train" in answered:
        is_scored = training_args.eval_train_samples > 0
        _check_trained("train", examples["train"], answered["train"], is_scored)
    if "extra" in answered:
        _check_trained("extra", examples["extra"], answered["extra"], False)


def _check_scored(
    stage: str, examples: datasets.Dataset, answered: np.ndarray, is_labelled: bool
) -> None:
    if answered.all():
        return
    if answered.any() or is_labelled:
        raise ValueError(
            f"{_count(examples, answered)} of the {_NAMES[stage]} data have no answer, which "
            "SQuAD v1.1 cannot score: add --version_2_with_negative, or remove them"
        )
    if stage == "eval":
        warn_on_main(
            "No question of the validation data has an answer: it is answered, but not scored. If "
            "its questions have none, add --version_2_with_negative."
        )


def _check_trained(
    stage: str, examples: datasets.Dataset, answered: np.ndarray, is_scored: bool
) -> None:
    if answered.all():
        return
    count = f"{_count(examples, answered)} of the {_NAMES[stage]} data have no answer"
    if not answered.any():
        raise ValueError(
            f"{count}, so there are no answers to learn: add answers, or, if they have none, "
            "--version_2_with_negative"
        )
    if is_scored:
        raise ValueError(
            f"{count}, which SQuAD v1.1 cannot score for --eval_train_samples: add "
            "--version_2_with_negative, or remove one of the two"
        )
    warn_on_main(
        f"{count}: the model learns that they have none, but without --version_2_with_negative it "
        "answers every question."
    )


def _count(examples: datasets.Dataset, answered: np.ndarray) -> str:
    rows = np.flatnonzero(~answered)
    ids = [examples[int(row)]["id"] for row in rows[:6]]
    return f"{len(rows)} of {len(examples)} questions (ids {first_few(ids, quoted)})"
