"""The work of `qa-flax check`: train and judge each fold, then write and print the rows."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets

from qa_flax import storage
from qa_flax.commands.arguments import DataArguments, DistributedArguments, ModelArguments
from qa_flax.commands.check import CheckArguments
from qa_flax.commands.check.report import lines_of, mending, summary_line
from qa_flax.commands.env.report import start
from qa_flax.commands.errors import TOKENIZER_ARGUMENT, UsageError, usage_errors
from qa_flax.commands.run.folds import train_folds
from qa_flax.commands.run.job import checkpoint_of
from qa_flax.commands.run.model import load_model_and_tokenizer
from qa_flax.commands.run.output import print_on_main, report_backend, warn
from qa_flax.commands.run.split import load_stage, report_rows
from qa_flax.data.examples import has_answers
from qa_flax.distributed import failure, preemption
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.folder_lock import FolderLockedError, locked
from qa_flax.train.label_check import (
    Row,
    WindowSettings,
    fold_windows,
    judge_fold,
    ranked,
    require_labels,
    scores,
)
from qa_flax.train.plan import output_dir
from qa_flax.train.trackers import tracker_callbacks
from qa_flax.train.trainer import Trainer
from qa_flax.train.training_arguments import TrainingArguments, check_training_arguments

FOLD_ROWS = "label_check.json"
"""In a fold's folder: the rows of its questions."""


def check_file(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    distributed_args: DistributedArguments,
    check_args: CheckArguments,
) -> list[Row]:
    """Judge the labels of all questions, write the rows and print the most suspicious ones.

    Returns:
        The rows of `qa_flax.check_labels`.

    Raises:
        UsageError: the file, an argument or the model is invalid.
        FloatingPointError: a training diverged.
        Preempted: it was stopped by SIGTERM; the same call resumes.
    """
    vars(training_args)["_is_command_line"] = True  # messages name arguments with dashes
    training_args.do_train = True
    with usage_errors(ValueError, OSError):
        folder = output_dir(training_args)
        start(distributed_args)
        report_backend()
        check_training_arguments(training_args)
        tracker_callbacks(training_args)
        target = _target(check_args, data_args, folder)
    failure.propagate_failures()
    with preemption.sigterm_handled(), ExitStack() as stack:
        with usage_errors(FolderLockedError, FileExistsError, NotADirectoryError):
            stack.enter_context(locked(folder))
        checkpoints.recover(folder)
        rows = _judged(model_args, data_args, training_args)
    _write(rows, data_args, folder, target, check_args.show)
    return rows


def _judged(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> list[Row]:
    """Judge every fold that is not finished; return the rows of all."""
    with usage_errors(ValueError, OSError):
        loaded = load_stage("train", model_args, data_args)
        report_rows([loaded], data_args, training_args)
        require_labels(loaded.examples)
    data_args.version_2_with_negative = not has_answers(loaded.examples).all()
    results = train_folds(
        loaded.examples, model_args, data_args, training_args, _judge_fold, command="check"
    )
    folder = output_dir(training_args)
    rows: list[Row] = []
    for number in range(1, len(results) + 1):
        file = folder / f"fold-{number}" / FOLD_ROWS
        try:
            rows += json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{file} cannot be read ({error}); delete the folder {file.parent} to judge this "
                "fold again"
            ) from error
    return ranked(rows)


def _judge_fold(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    stages: Mapping[str, datasets.Dataset],
) -> dict[str, Any]:
    """Train on a fold's examples and judge the others; return how many answers are as labelled."""
    folder = output_dir(args)
    settings = WindowSettings(
        data_args.max_seq_length,
        data_args.doc_stride,
        data_args.max_answer_length,
        data_args.long_questions,
        data_args.pad_to_max_length,
    )
    warnings = {"warn": warn, "tokenizer_argument": TOKENIZER_ARGUMENT}
    with usage_errors(ValueError, OSError):
        checkpoints.recover(folder)
        model, tokenizer = load_model_and_tokenizer(model_args, data_args, args)
        windows = fold_windows(stages["train"], stages["eval"], tokenizer, settings, **warnings)
        trainer = Trainer(model, args, train_dataset=windows[0], processing_class=tokenizer)
        storage.make_folder(folder)
    with usage_errors(ResumeError, FolderLockedError):
        trainer.train(checkpoint_of(args), accept_changes=data_args.accept_changes)
    rows = judge_fold(
        trainer,
        windows[1],
        stages["eval"],
        settings,
        has_null=data_args.version_2_with_negative,
        fold=int(folder.name.partition("-")[2]),
    )
    storage.write_text(folder / FOLD_ROWS, storage.json_text(rows, ensure_ascii=False) + "\n")
    checkpoints.delete_others(folder, None)
    return {f"eval_{name}": value for name, value in scores(rows).items()}


# ---- files ---------------------------------------------------------------------------------------


def _target(args: CheckArguments, data_args: DataArguments, folder: AnyPath) -> AnyPath:
    """Return the file for the rows.

    Raises:
        ValueError: it is the file that is checked, or some other file that would be lost.
    """
    if args.output is None:
        return folder / "label_check.json"
    target = storage.path(args.output)
    source = data_args.train_file or ""
    if not storage.is_remote(args.output) and os.path.realpath(args.output) == os.path.realpath(
        source
    ):
        raise ValueError(
            f"--output {args.output} would overwrite the file that is checked; give another name"
        )
    if target.is_dir():
        raise ValueError(f"--output {args.output} is a folder; give the name of a file")
    if target.exists() and not _is_earlier(target):
        raise ValueError(
            f"--output {args.output} exists, and is not of a label check; give another name"
        )
    return target


def _is_earlier(file: AnyPath) -> bool:
    """Whether a file has the rows of an earlier check."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        rows = _read_rows(text)
    except ValueError:
        return False
    return isinstance(rows, list) and all(isinstance(r, dict) and "suspicion" in r for r in rows)


def _read_rows(text: str) -> Any:
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line]


def _write(
    rows: list[Row], data_args: DataArguments, folder: AnyPath, target: AnyPath, show: int
) -> None:
    """Write the rows and the report; print its beginning."""
    texts = [storage.json_text(row, ensure_ascii=False) for row in rows]
    is_lines = Path(target.name).suffix.lower() == ".jsonl"
    content = "\n".join(texts) if is_lines else "[\n" + ",\n".join(texts) + "\n]"
    report = folder / "label_check.txt"
    head = summary_line(rows)
    with usage_errors(OSError):
        storage.write_text(target, content + "\n")
        storage.write_text(
            report,
            "\n".join([head, "", *lines_of(rows), *mending(str(data_args.train_file))]) + "\n",
        )
    print_on_main(f"\n{head}\n")
    for line in lines_of(rows[:show]):
        print_on_main(line)
    for line in mending(str(data_args.train_file)):
        print_on_main(line)

    print_on_main(f"All {len(rows):,} questions in this order: {report}, and as JSON: {target}")
