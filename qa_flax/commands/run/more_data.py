"""Augmentation and the extra training file of `qa-flax run`: their checks, and a preview (host)."""

import os
from collections.abc import Mapping
from typing import Any

import datasets

from qa_flax import storage
from qa_flax.commands.arguments import DataArguments
from qa_flax.commands.run.output import print_on_main, warn_on_main
from qa_flax.data.augment import Augmenter
from qa_flax.data.examples import LoadedExamples, read_examples
from qa_flax.data.leakage import describe_shared_examples
from qa_flax.data.paraphrases import check_paraphrases, read_paraphrases
from qa_flax.train.augmentation import make_augmenter, wants_augmentation
from qa_flax.train.training_arguments import TrainingArguments

EXTRA = "extra"
"""The stage of the extra training examples, which are trained on together with those of `train`."""


def check_more_data(data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Check that the arguments go together, before any work.

    Raises:
        ValueError: they do not.
    """
    file, ratio = data_args.extra_train_file, training_args.extra_train_ratio
    given = {
        "augment": training_args.augment,
        "paraphrases": training_args.paraphrases,
        "extra_train_file": file,
        "extra_train_ratio": ratio,
    }
    names = [f"--{name}" for name, value in given.items() if value is not None]
    if names and not training_args.do_train:
        raise ValueError(
            f"{' and '.join(names)}: only training data is changed, but nothing is trained; add "
            "--do_train, or leave this out"
        )
    if data_args.augment_preview and not wants_augmentation(training_args):
        raise ValueError(
            "--augment_preview shows augmented questions; add --augment or --paraphrases, or "
            "remove it"
        )
    if file is not None and ratio is None:
        raise ValueError(
            "--extra_train_file needs --extra_train_ratio, the share of the batches of an epoch "
            "that come from it, such as 0.2"
        )
    if file is None and ratio is not None:
        raise ValueError(
            f"--extra_train_ratio {ratio} is the share of the batches of an epoch that come from "
            "--extra_train_file; give it, or remove the share"
        )
    own = data_args.train_file
    if file is not None and own is not None and _is_same_file(own, file):
        raise ValueError(
            f"--extra_train_file and --train_file are the same file ({file}); to see it more "
            "often, raise --num_train_epochs"
        )


def _is_same_file(one: str, other: str) -> bool:
    if storage.is_remote(one) or storage.is_remote(other):
        return one == other
    paths = [os.path.realpath(os.path.expanduser(path)) for path in (one, other)]
    return paths[0] == paths[1]


def load_extra(data_args: DataArguments) -> LoadedExamples:
    """Read the extra training file, which may have the columns that flags name, or known ones.

    Raises:
        ValueError: the data is invalid.
        OSError: the file cannot be read.
    """
    columns = {
        "question": data_args.question_column,
        "context": data_args.context_column,
        "answers": data_args.answer_column,
        "id": data_args.id_column,
    }
    return read_examples(
        data_args.extra_train_file,
        columns=columns,
        optional_columns=tuple(columns),
        has_fallback=True,
        misaligned=data_args.misaligned_answers,
        bad_rows=data_args.bad_rows,
        require_answers=True,
        warn=warn_on_main,
    )


def warn_of_extra_leakage(examples: Mapping[str, datasets.Dataset]) -> None:
    """Warn of validation questions about contexts of the extra training file."""
    if EXTRA in examples and "eval" in examples:
        advice = "leave these contexts out of one of the two"
        line = describe_shared_examples(examples[EXTRA], examples["eval"], advice)
        if line is not None:
            warn_on_main("%s", f"--extra_train_file: {line}")


def check_table(examples: datasets.Dataset, training_args: TrainingArguments) -> None:
    """Check the table of paraphrases against all questions, before they are split.

    Raises:
        ValueError: the table is invalid, or of other questions.
        OSError: its file cannot be read.
    """
    if training_args.paraphrases is not None:
        check_paraphrases(read_paraphrases(training_args.paraphrases), examples)


def show_augmentation(
    examples: Mapping[str, datasets.Dataset],
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Print the rows of `--augment_preview`.

    Raises:
        ValueError: the paraphrases are invalid.
        OSError: their file cannot be read.
    """
    if data_args.augment_preview and "train" in examples:
        augmenter = make_augmenter(training_args, examples["train"])
        for line in preview(augmenter, data_args.augment_preview):
            print_on_main(line)


def preview(augmenter: Augmenter, count: int) -> list[str]:
    """Return lines that show the first examples as the first epoch has them."""
    lines: list[str] = []
    for row in augmenter.examples(0).select(range(min(count, len(augmenter)))):
        row: Any
        lines += [
            f"Augmented question {row['id']}: {row['question']}",
            f"  context: {_marked(row['context'], row['answers'])}",
        ]
    return lines


def _marked(context: str, answers: Mapping[str, Any]) -> str:
    """Return a context with its first answer in double brackets."""
    if not answers["text"]:
        return f"{context} (no answer)"
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    return f"{context[:start]}[[{context[start:end]}]]{context[end:]}"
