"""Find wrong labels: judge the labels of each question by a model that has not seen it (host)."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import transformers
from transformers import PreTrainedTokenizerBase

from qa_flax.answers.metrics import squad_metric
from qa_flax.answers.suspicion import Judgement, Label, judge_labels
from qa_flax.data.examples import has_answers, is_checked, keeps_misaligned, load_examples
from qa_flax.data.features import make_windows
from qa_flax.data.labels import learnable_examples
from qa_flax.data.splits import fold_examples
from qa_flax.data.windows import LazyWindows
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.tokenizer_fit import load_fitting_tokenizer
from qa_flax.train.train_data import data_seed_of
from qa_flax.train.trainer import Trainer
from qa_flax.train.training_arguments import TrainingArguments

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 8,
    "packing": True,
    "report_to": "none",
}
"""Training arguments of a label check that suit a few hundred questions."""

Row = dict[str, Any]
"""A question with what the model thinks of its labels:

- `rank`: int, from 1.
- `id`, `question`, `context`: str.
- `suspicion`: float, from 0 to 100: minus the natural logarithm of the label's probability among
  all spans of the question; 100 if its text does not occur in the context. Of several answers that
  of the first, unless a later one is more than 20 times less probable.
- `gold`: the answer that has this suspicion, a dict of `text`, `answer_start`, `judged_at` (where
  the text is, int, or None if it does not occur), `probability` and `suspicion` (float); None for a
  question without an answer.
- `prediction`: what the model answers, a dict of `text`, `answer_start` and `probability`; its text
  is "" and its start None where the model gives no answer.
- `answers`: a dict as `gold` for each answer of the question.
- `no_answer_probability`: float; None where all questions have an answer.
- `fold`: int, from 1: the fold whose model has judged it.
- `note`: str, what is wrong with the label for certain, such as an answer that does not occur in
  its context; None: nothing is.
"""


class WindowSettings(NamedTuple):
    """How questions are cut into windows, and how long an answer may be, in tokens."""

    max_seq_length: int = 384
    doc_stride: int = 128
    max_answer_length: int = 30
    long_questions: str = "truncate"
    pad_to_max_length: bool = True


def check_labels(
    examples: Any,
    model: str | os.PathLike[str] | Callable[[], AutoModelForQuestionAnswering],
    tokenizer: PreTrainedTokenizerBase | None = None,
    args: transformers.TrainingArguments | None = None,
    *,
    folds: int = 5,
    split_by: str = "auto",
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_answer_length: int = 30,
) -> list[Row]:
    """Find the questions whose labelled answers are most likely wrong.

    The examples are split into folds, and questions about one text stay together. For each fold a
    model is trained on the others; it then judges the questions that it has not seen. A label is
    suspicious if it is improbable to that model. `qa-flax check` does the same, shows the passages,
    and resumes. The idea is that of confident learning (Northcutt et al. 2021, arXiv 1911.00068),
    with spans in place of classes.

    Args:
        examples: what `load_examples` returns or reads, at least as many texts as folds.
        model: the folder or Hub id of the model to train for each fold, or a function that returns
            a new one. The better it answers questions, the more wrong labels come first.
        tokenizer: the model's; None: the one beside the model, if that is a folder or Hub id.
        args: of the trainings; None: `DEFAULTS`. No checkpoints are saved. The seed also chooses
            the folds.
        folds: how many parts to split the examples into.
        split_by: see `fold_examples`.
        max_seq_length, doc_stride: see `prepare_train_features`.
        max_answer_length: the longest answer that the model may give, in tokens.

    Returns:
        A dict for each question, see `Row`, the most suspicious first.

    Raises:
        ValueError: there are fewer texts than folds, no question has an answer, or an argument is
            invalid.
        FloatingPointError: a training diverged.

    Example:
        >>> from qa_flax import TrainingArguments, check_labels
        >>> args = TrainingArguments(max_steps=1, report_to="none", disable_tqdm=True)
        >>> window = {"max_seq_length": 64, "doc_stride": 16}
        >>> rows = check_labels(
        ...     "train-v1.1.json", "bert-base-uncased", args=args, folds=2, **window
        ... )  # doctest: +ELLIPSIS
        {...
        >>> rows[0]["suspicion"] >= rows[-1]["suspicion"]
        True
    """
    if not is_checked(examples):
        examples = load_examples(examples, require_answers=True)
    require_labels(examples)
    args = TrainingArguments(output_dir="label_check", **DEFAULTS) if args is None else args
    args = copy.copy(args)
    args.save_strategy = "no"
    settings = WindowSettings(max_seq_length, doc_stride, max_answer_length)
    has_null = not has_answers(examples).all()
    rows: list[Row] = []
    parts = fold_examples(examples, folds, seed=data_seed_of(args), by=split_by)
    for number, (train, held_out) in enumerate(parts, 1):
        fold_model = _new_model(model, args)
        if tokenizer is None:
            if not isinstance(model, str | os.PathLike):
                raise ValueError("pass the tokenizer of the model that your function returns")
            tokenizer = load_fitting_tokenizer(fold_model, model, argument="tokenizer")
        windows = fold_windows(train, held_out, tokenizer, settings)
        trainer = Trainer(fold_model, args, train_dataset=windows[0], processing_class=tokenizer)
        trainer.train()
        rows += judge_fold(trainer, windows[1], held_out, settings, has_null=has_null, fold=number)
    return ranked(rows)


def _new_model(model: Any, args: Any) -> AutoModelForQuestionAnswering:
    if not isinstance(model, str | os.PathLike):
        return model()
    return AutoModelForQuestionAnswering.from_pretrained(model, seed=args.seed)


def require_labels(examples: datasets.Dataset) -> None:
    """Refuse examples that have no labels to check.

    Raises:
        ValueError: none of the questions has an answer.
    """
    if not has_answers(examples).any():
        raise ValueError(
            f"none of the {len(examples)} questions has an answer, so there are no labels to check "
            "and nothing to train on; give a file with answers"
        )


def fold_windows(
    train: datasets.Dataset,
    held_out: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: WindowSettings,
    **warnings: Any,
) -> tuple[LazyWindows, LazyWindows]:
    """Cut the examples of a fold into windows: those to train on, and those to judge.

    Args:
        train: the examples to train on, a result of `load_examples`.
        held_out: those to judge.
        tokenizer: the model's.
        settings: of the windows.
        warnings: how `make_windows` warns.

    Raises:
        ValueError: as of `make_windows`.
    """
    cut: dict[str, Any] = settings._asdict() | {"disable_tqdm": True} | warnings
    cut.pop("max_answer_length")
    return (
        make_windows(learnable_examples(train), tokenizer, labels=True, **cut),
        make_windows(held_out, tokenizer, labels=False, **cut),
    )


def judge_fold(
    trainer: Trainer,
    windows: LazyWindows,
    held_out: datasets.Dataset,
    settings: WindowSettings,
    *,
    has_null: bool,
    fold: int,
) -> list[Row]:
    """Judge the labels of examples that a trained model has not seen.

    Args:
        trainer: has the trained model.
        windows: those of the examples.
        held_out: the examples, a result of `load_examples`.
        settings: how long an answer may be.
        has_null: whether questions may have no answer.
        fold: the number of the fold.

    Returns:
        A row for each example, in their order, without a rank.

    Raises:
        FloatingPointError: the model's logits are NaN or infinite.
    """
    rows: list[Any] = list(held_out)
    logits: Any = trainer.predict(windows).predictions
    judgements = judge_labels(
        rows,
        windows,
        logits,
        max_answer_length=settings.max_answer_length,
        has_null=has_null,
        misaligned="keep" if keeps_misaligned(held_out) else "drop",
    )
    return [_row(row, judged, fold) for row, judged in zip(rows, judgements, strict=True)]


# ---- rows ----------------------------------------------------------------------------------------


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the most suspicious first, each with its rank."""

    ordered = sorted(rows, key=lambda row: -row["suspicion"])
    return [{"rank": rank, **row} for rank, row in enumerate(ordered, 1)]


def scores(rows: Sequence[Row]) -> dict[str, float]:
    """Return the percentages `exact_match` and `f1` of the model's answers, compared with labels.

    They say how far the model is to be trusted.
    """
    metrics = squad_metric(
        [
            {"id": row["id"], "prediction_text": row["prediction"]["text"]}
            | {"no_answer_probability": 0.0}
            for row in rows
        ],
        [
            {"id": row["id"], "answers": {"text": [answer["text"] for answer in row["answers"]]}}
            for row in rows
        ],
        version_2_with_negative=any(not row["answers"] for row in rows),
    )
    names = ("exact", "exact_match") if "exact" in metrics else ("exact_match", "exact_match")
    return {names[1]: metrics[names[0]], "f1": metrics["f1"]}


def _row(example: Mapping[str, Any], judgement: Judgement, fold: int) -> Row:
    pairs = zip(
        example["answers"]["text"],
        example["answers"]["answer_start"],
        judgement.labels,
        strict=True,
    )
    answers = [
        {
            "text": text,
            "answer_start": start,
            "judged_at": None if label.span is None else label.span[0],
            "probability": label.probability,
            "suspicion": label.suspicion,
        }
        for text, start, label in pairs
    ]
    begin, end = judgement.prediction or (None, None)
    return {
        "id": example["id"],
        "question": example["question"],
        "suspicion": judgement.suspicion,
        "gold": None if judgement.worst is None else answers[judgement.worst],
        "prediction": {
            "text": "" if judgement.prediction is None else example["context"][begin:end],
            "answer_start": begin,
            "probability": judgement.probability,
        },
        "answers": answers,
        "no_answer_probability": judgement.null_probability,
        "fold": fold,
        "note": _note(example, judgement.labels),
        "context": example["context"],
    }


def _note(example: Mapping[str, Any], labels: Sequence[Label]) -> str | None:
    """Say what is wrong with the labels whatever a model thinks; None: nothing is."""
    starts = example["answers"]["answer_start"]
    texts = example["answers"]["text"]
    for label, text, start in zip(labels, texts, starts, strict=True):
        if label.span is None:
            return f"the answer {text!r} does not occur in the context"
        if label.span[0] != start:
            return f"the answer {text!r} is not at its answer_start {start}, but at {label.span[0]}"
    return None
