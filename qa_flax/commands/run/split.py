"""The examples of train, eval and predict: from files or the hub, or split off (host)."""

import logging
from collections.abc import Iterable, Mapping

import datasets

from qa_flax import storage
from qa_flax.commands.arguments import DataArguments, ModelArguments
from qa_flax.commands.run.more_data import EXTRA, check_table, load_extra, warn_of_extra_leakage
from qa_flax.commands.run.output import print_on_main, warn_on_main
from qa_flax.data.examples import LoadedExamples, read_examples
from qa_flax.data.leakage import describe_shared_examples
from qa_flax.data.splits import contexts_of, split_examples, splits_by_title
from qa_flax.distributed import processes
from qa_flax.train.plan import output_dir
from qa_flax.train.train_data import data_seed_of
from qa_flax.train.training_arguments import TrainingArguments

logger = logging.getLogger(__name__)

# Stage (--do_STAGE) -> split of the data set (--SPLIT_file).
SPLITS = {"train": "train", "eval": "validation", "predict": "test"}
REJECTED_FILE = "rejected.jsonl"
"""In the output folder: the rows that `--bad_rows skip` has left out."""


def check_stages(data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Check that every stage has data; with a split or folds, switch evaluation on and say so.

    Raises:
        ValueError: there is nothing to do, or a stage has no data.
    """
    flag = "folds" if data_args.folds is not None else "validation_split"
    is_split = getattr(data_args, flag) is not None
    if is_split and not training_args.do_train:
        raise ValueError(
            f"--{flag} needs --do_train: the model is evaluated on the part of the training data "
            "that it was not trained on; to evaluate only, give --validation_file"
        )
    if is_split and not training_args.do_eval:
        training_args.do_eval = True
        print_on_main(f"--{flag} sets --do_eval: the part that is split off is evaluated")
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        raise ValueError("nothing to do: give --do_train, --do_eval or --do_predict")
    epochs = training_args.num_train_epochs
    if training_args.do_train and training_args.max_steps < 0 and not epochs > 0:
        raise ValueError(
            f"--num_train_epochs is {epochs}, so nothing would be trained; give a number above 0, "
            "or leave --do_train out"
        )
    if data_args.save_spans and not (training_args.do_eval or training_args.do_predict):
        raise ValueError(
            "--save_spans writes the spans of evaluated questions, but nothing is evaluated; add "
            "--do_eval or --do_predict, or remove it"
        )
    for stage, split in SPLITS.items():
        file = getattr(data_args, f"{split}_file")
        is_needed = getattr(training_args, f"do_{stage}") and not (is_split and stage == "eval")
        if is_needed and not (file or data_args.dataset_name):
            other = ", or --validation_split" if stage == "eval" else ""
            asked, patience = f"--do_{stage}", training_args.early_stopping_patience
            if stage == "eval" and patience is not None:  # it sets do_eval
                asked = f"--early_stopping_patience {patience}"
            raise ValueError(f"{asked} needs --{split}_file or --dataset_name{other}")


def load_stages(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> dict[str, LoadedExamples]:
    """Read the data of every stage that has a file or a split of its own.

    Raises:
        ValueError: the data is invalid.
        OSError: a file cannot be read.
    """
    is_split = data_args.validation_split is not None
    loaded = {
        stage: load_stage(stage, model_args, data_args)
        for stage in SPLITS
        if getattr(training_args, f"do_{stage}") and not (is_split and stage == "eval")
    }
    if "train" in loaded:
        check_table(loaded["train"].examples, training_args)
        if data_args.extra_train_file is not None:
            loaded[EXTRA] = load_extra(data_args)
    return loaded


def examples_by_stage(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    loaded: Mapping[str, LoadedExamples] | None = None,
) -> dict[str, datasets.Dataset]:
    """Return the examples of every stage that is to be done, the same in every process.

    Args:
        model_args, data_args, training_args: the arguments of the run.
        loaded: the result of `load_stages`; None: it is called.

    Raises:
        ValueError: the data is invalid, or cannot be split.
        OSError: a file cannot be read.
    """
    is_split = data_args.validation_split is not None
    if loaded is None:
        loaded = load_stages(model_args, data_args, training_args)
    examples = {stage: part.examples for stage, part in loaded.items()}
    if is_split:
        examples["train"], examples["eval"] = _split(examples["train"], data_args, training_args)
    examples = {stage: limited(stage, examples[stage], data_args) for stage in examples}
    if not is_split and {"train", "eval"} <= examples.keys():
        line = describe_shared_examples(examples["train"], examples["eval"])
        if line is not None and processes.is_main():
            logger.warning("%s", line)
    warn_of_extra_leakage(examples)
    return examples


def load_stage(stage: str, model_args: ModelArguments, data_args: DataArguments) -> LoadedExamples:
    """Read all examples of a stage from its file or from the hub."""
    split = SPLITS[stage]
    file = getattr(data_args, f"{split}_file")
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    source = (
        {"source": file}
        if file
        else {
            "source": data_args.dataset_name,
            "config_name": data_args.dataset_config_name,
            "split": split,
            "load_dataset_kwargs": hub,
        }
    )
    return read_examples(
        **source,
        columns={
            "question": data_args.question_column,
            "context": data_args.context_column,
            "answers": data_args.answer_column,
            "id": data_args.id_column,
        },
        # Test data need not have answers.
        optional_columns=("answers",) if stage == "predict" else (),
        misaligned=data_args.misaligned_answers,
        bad_rows=data_args.bad_rows,
        require_answers=stage == "train",
        warn=warn_on_main,
    )


def report_rows(
    loaded: Iterable[LoadedExamples], data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Print what became of the rows of each source, and write those that were left out.

    They are in the output folder; an earlier run's are removed.
    """
    loaded = list(loaded)
    for part in loaded:
        print_on_main(part.counts())
    if data_args.bad_rows != "skip" or not processes.is_main():
        return
    path = output_dir(training_args) / REJECTED_FILE
    lines = "".join(part.rejected_lines() for part in loaded)
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(path, lines)
        print_on_main(f"The rows that were left out, with the reasons: {path}")
    elif path.exists():
        path.unlink()


def limited(stage: str, examples: datasets.Dataset, data_args: DataArguments) -> datasets.Dataset:
    """Return the first examples of a stage, as `--max_STAGE_samples` says."""
    limit = None if stage == EXTRA else getattr(data_args, f"max_{stage}_samples")
    return examples if limit is None else examples.select(range(min(limit, len(examples))))


def _split(
    examples: datasets.Dataset, data_args: DataArguments, training_args: TrainingArguments
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split the validation part off, and report its size."""
    share, by = data_args.validation_split, data_args.split_by
    assert share is not None
    train, validation = split_examples(examples, share, seed=data_seed_of(training_args), by=by)
    got = len(validation) / len(examples)
    contexts = [len(set(contexts_of(part))) for part in (validation, examples)]
    by_title = splits_by_title(examples, by)
    kinds = [f"{contexts[0]} of {contexts[1]} contexts"]
    if by_title:
        titles = [len(set(part["title"]) - {""}) for part in (validation, examples)]
        kinds.append(f"{titles[0]} of {titles[1]} titles")
    print_on_main(
        f"Validation: {len(validation):,} of {len(examples):,} questions ({got:.1%}), "
        f"{', '.join(kinds)}; no {'context or title' if by_title else 'context'} is on both sides"
    )
    if not share / 2 <= got <= 2 * share:
        advice = (
            "Questions about contexts with the same title were kept together; --split_by context "
            "comes nearer to it, with the same titles on both sides"
            if by_title
            else "Questions about the same context were kept together"
        )
        if processes.is_main():
            logger.warning("--validation_split asked for %s. %s.", f"{share:.1%}", advice)
    return train, validation
