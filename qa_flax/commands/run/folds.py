"""`qa-flax run --folds`: trainings, their mean, and the answers of all models together (host)."""

import copy
import dataclasses
import gc
import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

from qa_flax import storage
from qa_flax.commands.arguments import DataArguments, ModelArguments
from qa_flax.commands.errors import UsageError, usage_errors
from qa_flax.commands.run.more_data import EXTRA, check_table, load_extra, warn_of_extra_leakage
from qa_flax.commands.run.output import print_on_main
from qa_flax.commands.run.split import limited, load_stage, report_rows
from qa_flax.commands.run.unanswerable import check_answers
from qa_flax.data.paraphrases import read_paraphrases
from qa_flax.data.splits import fold_examples
from qa_flax.distributed import exchange, preemption, processes
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    FOLDS_FILE,
)
from qa_flax.models.save import save_tokenizer
from qa_flax.storage import AnyPath
from qa_flax.train.plan import output_dir
from qa_flax.train.regularization import remove_evaluation
from qa_flax.train.train_data import data_seed_of
from qa_flax.train.training_arguments import TrainingArguments

Metrics = dict[str, Any]
RunStages = Callable[
    [ModelArguments, DataArguments, TrainingArguments, Mapping[str, datasets.Dataset]], Metrics
]
"""Trains, evaluates and predicts with the examples of each stage, as a run without folds does."""

FOLD_FILE = "fold.json"
"""In a fold's folder: its results and its conditions, written when it is finished."""


def cross_validate(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    run_stages: RunStages,
) -> Metrics:
    """Train and evaluate each fold in its own folder, and write `folds.json`.

    Finished folds are not trained again, and an interrupted one resumes. With `--do_predict` the
    folds' models answer the test data together.

    Returns:
        The mean of each metric, with `_std` after its name the standard deviation, and the metrics
        of the prediction.

    Raises:
        UsageError: the data or an argument is invalid, or the folder holds another run.
    """
    folder = output_dir(training_args)
    with usage_errors(ValueError, OSError):
        _check_folder(folder, training_args)
        loaded = load_stage("train", model_args, data_args)
        examples, sources, test, extra = loaded.examples, [loaded], {}, {}
        check_table(examples, training_args)
        if data_args.extra_train_file is not None:
            sources.append(load_extra(data_args))
            extra = {EXTRA: sources[-1].examples}
        if training_args.do_predict:
            sources.append(load_stage("predict", model_args, data_args))
            test["predict"] = limited("predict", sources[-1].examples, data_args)
        report_rows(sources, data_args, training_args)
        warn_of_extra_leakage({"eval": examples, **extra})
        # Every training question is one to evaluate, in one of the folds.
        check_answers(
            {"train": examples, "eval": examples, **test, **extra},
            data_args,
            training_args,
            labelled=("eval",),
        )
    results = train_folds(examples, model_args, data_args, training_args, run_stages, extra=extra)
    summary = _summary(results)
    if processes.is_main():
        _copy_tokenizer(folder / "fold-1", folder)
        storage.write_text(folder / FOLDS_FILE, storage.json_text(summary, indent=2) + "\n")
        print("\n".join(table(summary)), flush=True)
    exchange.barrier("the results of all folds")
    means = summary["mean"] | {f"{name}_std": value for name, value in summary["std"].items()}
    if test:
        means |= _predict(run_stages, model_args, data_args, training_args, test)
    return means


def train_folds(
    examples: datasets.Dataset,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    run_stages: RunStages,
    command: str = "run",
    extra: Mapping[str, datasets.Dataset] | None = None,
) -> list[Metrics]:
    """Train and evaluate each fold in its own folder, unless it is finished.

    Args:
        examples: of all folds together.
        model_args, data_args, training_args: of the command.
        run_stages: trains and evaluates one fold, in the `output_dir` of its arguments.
        command: the command that the folds belong to: no other goes on with them.
        extra: further stages, the same for every fold.

    Returns:
        The results of each fold, also in its `fold.json`.

    Raises:
        UsageError: the data or an argument is invalid, or the folder holds another run.
    """
    folder = output_dir(training_args)
    with usage_errors(ValueError, OSError):
        folds = fold_examples(
            examples,
            data_args.folds or 0,
            seed=data_seed_of(training_args),
            by=data_args.split_by,
        )
        if getattr(training_args, "overwrite_output_dir", False):
            _delete_folds(folder)
        data = [examples, *(extra or {}).values()]
        conditions = conditions_of(model_args, data_args, training_args, data)
        conditions |= {"command": command}
        finished = [_finished(folder / f"fold-{n + 1}", conditions) for n in range(len(folds))]
        _check_conditions(folder, finished, conditions, data_args.accept_changes)
    results = []
    for number, (parts, known) in enumerate(zip(folds, finished, strict=True), 1):
        stages = {
            stage: limited(stage, part, data_args)
            for stage, part in zip(("train", "eval"), parts, strict=True)
        } | dict(extra or {})
        heading = _heading(number, len(folds), stages)
        if known is None:
            print_on_main(f"{heading}, in {folder / f'fold-{number}'}")
            known = _run_fold(
                number, stages, conditions, run_stages, model_args, data_args, training_args
            )
        else:
            print_on_main(f"{heading}: already finished")
        results.append(known["results"])
        preemption.check()
    return results


def _heading(number: int, count: int, stages: Mapping[str, datasets.Dataset]) -> str:
    train, validation = (len(stages[stage]) for stage in ("train", "eval"))
    return f"Fold {number} of {count}: {train:,} questions to train on, {validation:,} to evaluate"


def _run_fold(
    number: int,
    stages: Mapping[str, datasets.Dataset],
    conditions: Mapping[str, Any],
    run_stages: RunStages,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> dict[str, Any]:
    """Train and evaluate one fold; return the content of its `fold.json`."""
    folder = output_dir(training_args) / f"fold-{number}"
    args = copy.copy(training_args)
    args.output_dir, args.do_predict = str(folder), False
    if args.run_name is not None:
        args.run_name = f"{args.run_name}-fold-{number}"
    metrics = run_stages(model_args, data_args, args, stages)
    results = {"fold": number, "train_examples": len(stages["train"])}
    results |= {"eval_examples": len(stages["eval"]), **metrics}
    content = {"results": results, "conditions": dict(conditions)}
    if processes.is_main():
        storage.write_text(folder / FOLD_FILE, storage.json_text(content, indent=2) + "\n")
    gc.collect()  # the weights and optimizer state of this fold, before the next one's are made
    return content


def _copy_tokenizer(source: AnyPath, target: AnyPath) -> None:
    """Save the tokenizer beside `folds.json`, so that the folder is loaded like a model's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(storage.local_copy(source)))
    with storage.output_folder(target) as folder:
        save_tokenizer(tokenizer, folder)


def _predict(
    run_stages: RunStages,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    test: Mapping[str, datasets.Dataset],
) -> Metrics:
    """Answer the test data with the models of all folds together."""
    folder = training_args.output_dir or "trainer_output"
    model = dataclasses.replace(
        model_args,
        model_name_or_path=str(folder),
        config_name=None,
        tokenizer_name=None,
        lora_r=0,
        lora_target_modules=None,
    )
    args = copy.copy(training_args)
    args.do_train = args.do_eval = args.eval_on_start = False
    args.save_strategy, args.metric_for_best_model = "no", None
    remove_evaluation(args)
    print_on_main(f"The models of all {data_args.folds} folds answer the test data together")
    return run_stages(model, data_args, args, test)


# ---- finished folds ------------------------------------------------------------------------------


def _check_folder(folder: AnyPath, args: TrainingArguments) -> None:
    """Refuse a folder with a model of its own, and a checkpoint to resume from."""
    if args.resume_from_checkpoint is not None:
        raise ValueError(
            f"--resume_from_checkpoint={args.resume_from_checkpoint} names one checkpoint, but "
            "--folds has a training for each fold; remove it: repeating the command resumes"
        )
    exists = processes.is_main() and folder.is_dir()
    own = [n for n in (CONFIG_FILE, ADAPTER_CONFIG_FILE) if exists and (folder / n).is_file()]
    if own := exchange.broadcast_from_main("model in the output folder", own):
        raise ValueError(
            f"{folder} holds a model already ({own[0]}), which would be taken for that of the "
            "folds; give another --output_dir with --folds"
        )


def _delete_folds(folder: AnyPath) -> None:
    """Delete the results of an earlier cross-validation."""
    if processes.is_main() and folder.is_dir():
        (folder / FOLDS_FILE).unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if re.fullmatch(r"fold-[0-9]+", path.name) and storage.is_real_folder(path):
                storage.delete(path)
    exchange.barrier("earlier folds are deleted")


def _finished(folder: AnyPath, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of a finished fold's `fold.json`; None if it is not finished."""
    content = None
    if processes.is_main() and (folder / FOLD_FILE).is_file():
        try:
            content = json.loads((folder / FOLD_FILE).read_text())
            content = {"results": dict(content["results"]), "conditions": content["conditions"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / FOLD_FILE} cannot be read ({error}); delete it to train this fold again"
            ) from error
    return exchange.broadcast_from_main(folder.name, content)


# Arguments that may differ between the run that trained a fold and the run that goes on.
_FREE = re.compile(
    r"(do_|log|report_to|run_name|project|trackio_|hub_|push_to_hub|disable_tqdm|dataloader_(?!drop)"
    r"|save_|ddp_|local_rank|token$|cache_dir|output_dir|overwrite_|resume_from|accept_changes|debug"
    r"|(train|validation|test|extra_train)_file|augment_preview|paraphrases|dataset_|max_predict|preprocessing_|skip_memory|eval_accum|gather"
    r"|include_num|per_device_eval|_logging)"
)


def conditions_of(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    data: Sequence[datasets.Dataset],
) -> dict[str, Any]:
    """What the result of a training depends on, as JSON values: the data and the arguments."""
    values = {**vars(model_args), **vars(data_args), **training_args.to_dict()}
    values = {name: value for name, value in values.items() if not _FREE.match(name)}
    if data_args.save_spans:  # a fold that has them may go on without, but not the reverse
        values["save_spans"] = True
    sha256 = hashlib.sha256()
    for examples in data:
        for name in examples.column_names:
            sha256.update(json.dumps(examples[name][:]).encode())
    if (paraphrases := training_args.paraphrases) is not None:
        sha256.update(json.dumps(read_paraphrases(paraphrases)).encode())
    return json.loads(json.dumps(values | {"training data": sha256.hexdigest()[:16]}, default=str))


_BEFORE = {"save_spans": False, "command": "run"}
"""Conditions that earlier versions have not written, as they were."""


def _check_conditions(
    folder: AnyPath,
    finished: Sequence[dict[str, Any] | None],
    conditions: Mapping[str, Any],
    accept_changes: bool,
) -> None:
    """Refuse to go on with folds that were trained under other conditions.

    Raises:
        UsageError: names every difference.
    """
    for number, fold in enumerate(finished, 1):
        before = {} if fold is None else _BEFORE | fold["conditions"]
        differences = [
            f"{name} was {before[name]!r} and is {conditions[name]!r}"
            for name in sorted(before.keys() & conditions.keys())
            if before[name] != conditions[name]
        ]
        is_other = bool(before) and before["command"] != conditions["command"]
        if differences and (is_other or not accept_changes):
            raise UsageError(
                f"{folder / f'fold-{number}'} is finished, but was trained under other conditions: "
                f"{'; '.join(differences)}. Restore them, give another --output_dir, train all "
                "folds anew with --overwrite_output_dir, or keep this fold as it is with "
                "--accept_changes"
            )


# ---- results -------------------------------------------------------------------------------------

# Not a quality of the model, so their means say nothing.
_NOT_AVERAGED = re.compile(r"fold|epoch|total_flos|.*_(runtime|per_second|samples|examples|time)")
_COLUMNS = ("exact_match", "f1", "accuracy_start", "accuracy_end", "loss")


def _summary(results: Sequence[Metrics]) -> dict[str, Any]:
    """The folds' results with the mean and the sample standard deviation of each metric."""
    values: dict[str, list[Any]] = {
        name: [result.get(name) for result in results]
        for name in results[0]
        if not _NOT_AVERAGED.fullmatch(name)
    }
    numbers = {name: column for name, column in values.items() if all(map(_is_number, column))}
    return {
        "folds": list(results),
        "mean": {name: statistics.fmean(column) for name, column in numbers.items()},
        "std": {name: statistics.stdev(column) for name, column in numbers.items()},
    }


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def table(summary: Mapping[str, Any]) -> list[str]:
    """The lines of a table with a row for each fold, the means and the deviations."""
    mean, std = summary["mean"], summary["std"]
    names = [f"{part}_{name}" for part in ("train", "eval") for name in _COLUMNS]
    names = [name for name in names if name in mean]
    rows = [["fold", "train", "eval", *names]]
    for fold in summary["folds"]:
        counts = [str(fold[name]) for name in ("fold", "train_examples", "eval_examples")]
        rows.append([*counts, *(_rounded(name, fold[name]) for name in names)])
    for label, values in (("mean", mean), ("std", std)):
        rows.append([label, "", "", *(_rounded(name, values[name]) for name in names)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return [*lines, "std: sample standard deviation over the folds (divided by their number - 1)"]


def _rounded(name: str, value: float) -> str:
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.2f}"
