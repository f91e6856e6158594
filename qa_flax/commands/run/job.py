"""The work of `qa-flax run`: load model and data, train, evaluate, predict, write the files."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction

from qa_flax import storage
from qa_flax.answers.files import merge_files
from qa_flax.answers.metrics import metric_names, squad_metric
from qa_flax.answers.postprocess import find_answers
from qa_flax.answers.spans import SearchSettings
from qa_flax.answers.written import noting_answers
from qa_flax.commands.arguments import DataArguments, DistributedArguments, ModelArguments
from qa_flax.commands.env.report import start
from qa_flax.commands.errors import TOKENIZER_ARGUMENT, usage_errors
from qa_flax.commands.run.calibrate import Calibrator, check_calibrate, check_calibration_data
from qa_flax.commands.run.folds import cross_validate
from qa_flax.commands.run.model import load_model_and_tokenizer
from qa_flax.commands.run.more_data import EXTRA, check_more_data, show_augmentation
from qa_flax.commands.run.output import print_on_main, report_backend, warn
from qa_flax.commands.run.record import write_evaluation
from qa_flax.commands.run.sharing import card_arguments, card_facts, check_push, push
from qa_flax.commands.run.split import (
    check_stages,
    examples_by_stage,
    load_stages,
    report_rows,
)
from qa_flax.commands.run.unanswerable import check_answers
from qa_flax.data.examples import has_answers
from qa_flax.data.features import make_windows
from qa_flax.data.labelling import describe_single_answers
from qa_flax.data.labels import describe_long_answers, learnable_examples
from qa_flax.data.windows import Windows
from qa_flax.distributed import exchange, failure, preemption, processes
from qa_flax.train import checkpoints
from qa_flax.train.best import MetricError
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.folder_lock import FolderLockedError, check_lock, locked
from qa_flax.train.model_arguments import apply_model_arguments
from qa_flax.train.output_room import Room, check_room, model_room
from qa_flax.train.plan import optimizer_bytes, output_dir
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.trackers import tracker_callbacks
from qa_flax.train.training_arguments import TrainingArguments, check_training_arguments

_STAGES = {
    "train": "Training",
    "eval": "Validation",
    "predict": "Test",
    EXTRA: "Extra training",
}


@dataclass(frozen=True)
class Stage:
    """The data of train, eval or predict in this process."""

    examples: datasets.Dataset  # this process's
    windows: Windows  # of these examples; for training, those of all processes
    count: int  # windows of all processes


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    distributed_args: DistributedArguments | None = None,
) -> dict[str, Any]:
    """Train, evaluate and predict as `--do_train`, `--do_eval` and `--do_predict` say.

    Returns:
        The metrics of all of them, as in `all_results.json`.

    Raises:
        UsageError: a file, an argument, the data or the model is invalid.
        FloatingPointError: a loss is not finite.
        ProcessError: the processes did not join, or run different commands.
        Preempted: the run was stopped by SIGTERM; the same call resumes from the checkpoint.
    """
    # Until training starts, these exceptions come from an invalid argument or file.
    with usage_errors(ValueError, OSError):
        start(DistributedArguments() if distributed_args is None else distributed_args)
        report_backend()
    failure.propagate_failures()
    with preemption.sigterm_handled():
        return _run(model_args, data_args, training_args)


def _run(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> dict[str, Any]:
    vars(training_args)["_is_command_line"] = True  # messages name arguments with dashes
    vars(training_args)["_prints_tables"] = True
    if training_args.packing is None:
        training_args.packing = True
    with usage_errors(ValueError, OSError):
        check_training_arguments(training_args)
        check_stages(data_args, training_args)
        check_calibrate(data_args, training_args)
        check_more_data(data_args, training_args)
        check_push(data_args, training_args)
        tracker_callbacks(training_args)  # a missing tracker is found before any work
        folder = output_dir(training_args)
    with ExitStack() as stack:
        with usage_errors(FolderLockedError, FileExistsError, NotADirectoryError):
            stack.enter_context(locked(folder))
        if processes.is_main():
            checkpoints.recover(folder)
        return _run_locked(model_args, data_args, training_args)


def _run_locked(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> dict[str, Any]:
    if data_args.folds is not None:
        return cross_validate(model_args, data_args, training_args, _run_stages)
    with usage_errors(ValueError, OSError):
        loaded = load_stages(model_args, data_args, training_args)
        report_rows(loaded.values(), data_args, training_args)
        examples = examples_by_stage(model_args, data_args, training_args, loaded)
        labelled = {stage for stage, part in loaded.items() if part.says_none}
        labelled |= examples.keys() - loaded.keys()  # split off the training data
        check_answers(examples, data_args, training_args, labelled=labelled)
        check_calibration_data(examples.get("eval"), data_args)
    return _run_stages(model_args, data_args, training_args, examples)


def _run_stages(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    examples: Mapping[str, datasets.Dataset],
) -> dict[str, Any]:
    """Train, evaluate and predict with the examples of each stage, and write the files."""
    with usage_errors(ValueError, OSError):
        show_augmentation(examples, data_args, training_args)
        trainer, stages = _prepare(model_args, data_args, training_args, examples)
        if processes.is_main():
            storage.make_folder(output_dir(training_args))
    if processes.is_main():
        room = model_room(trainer.model) if training_args.do_train else Room(0, 0)
        check_room(output_dir(training_args), room, "the model")
    metrics: dict[str, Any] = {}
    if training_args.do_train:
        metrics |= _train(trainer, stages["train"], data_args.accept_changes)
    calibrator = None
    if data_args.calibrate:
        calibrator = Calibrator(trainer, data_args, model_args.model_name_or_path)
    if training_args.do_eval:
        metrics |= _evaluate(trainer, stages["eval"], calibrator)
    if training_args.do_predict:
        metrics |= _predict(trainer, stages["predict"], calibrator)
    trainer.save_state()
    trainer._card_facts = card_facts(model_args, data_args, stages.get("eval"))
    trainer.create_model_card(**card_arguments(training_args))
    # Wait for the slowest process: JAX's own barrier at shutdown has a shorter timeout.
    exchange.barrier("the end of the run")
    print_on_main(f"All files are in {training_args.output_dir}")
    _refuse_nonfinite(trainer.nonfinite_windows)
    if calibrator is not None and calibrator.calibration is None:
        raise FloatingPointError(
            "--calibrate: the model's scores are NaN or infinite, so it was not calibrated; all "
            "other files were written"
        )
    push(trainer)
    return metrics


def _refuse_nonfinite(windows: Mapping[str, int]) -> None:
    """Let the command fail, after all files are written, if logits were not finite."""
    counts = [f"{count} windows ({stage})" for stage, count in windows.items() if count]
    if counts:
        raise FloatingPointError(
            f"the logits of {' and '.join(counts)} are NaN or infinite, so there are no answers "
            "from these windows, and scores and losses that include them are wrong or null. The "
            "files were written. Look for NaN in the model's parameters; if there is none, use "
            "--dtype float32 without --bf16"
        )


def make_post_processing(
    data_args: DataArguments, output_dir: str | None, model: str | None = None
) -> Callable[..., EvalPrediction]:
    """Build the `post_process_function` of the trainer, as in run_qa.py.

    It turns the logits into answers, writes the answer files to `output_dir` and returns the input
    of `make_compute_metrics`.

    Args:
        data_args: how to search the answers, and where the data came from.
        output_dir: None: nothing is written.
        model: the model's folder or Hub id, for `qa-flax report`.
    """
    settings = search_settings(data_args)
    compatible = settings.hf_compatible

    def post_process(examples, features, predictions, stage="eval") -> EvalPrediction:
        # Every process has all training questions of `eval_train_samples`: no files of parts.
        has_files = stage != "train" and output_dir is not None
        # `write_evaluation` notes more than the trainer would.
        with noting_answers(), _gathered_files(output_dir if has_files else None) as folder:
            answers = find_answers(
                examples,
                features,
                predictions,
                settings,
                data_args.null_score_diff_threshold,
                output_dir=folder,
                prefix=stage,
                save_spans=data_args.save_spans and has_files,
            )
        formatted: Any  # lists, as in run_qa.py; EvalPrediction is annotated for arrays only
        if not settings.version_2_with_negative:
            formatted = [{"id": i, "prediction_text": text} for i, text in answers.texts.items()]
        else:
            # The best span and its null odds, so that the scorer can search the best threshold.
            # run_qa.py passes the final answers with odds of 0.0 instead, which prevents that.
            texts = answers.texts if compatible else answers.best_texts
            odds = dict.fromkeys(texts, 0.0) if compatible else answers.null_odds
            formatted = [
                {"id": id_, "prediction_text": text, "no_answer_probability": odds[id_]}
                for id_, text in texts.items()
            ]
        references: Any = [{"id": e["id"], "answers": e["answers"]} for e in examples]
        if output_dir is not None and has_files:
            golds = {row["id"]: row["answers"]["text"] for row in references}
            ids = features.example_ids
            write_evaluation(output_dir, stage, model, data_args, answers.texts, golds, ids)
        return EvalPrediction(predictions=formatted, label_ids=references)

    post_process.runs_ahead = True  # pyright: ignore[reportFunctionMemberAccess]
    return post_process


@contextmanager
def _gathered_files(output_dir: str | None) -> Iterator[str | None]:
    """A folder for this process's answer files.

    On exit the main process writes the files of all processes, joined, to `output_dir`.
    """
    if output_dir is None or processes.count() == 1:
        yield output_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
        for path in sorted(Path(folder).iterdir()):
            content = merge_files(exchange.all_gather_bytes(path.name, path.read_bytes()))
            if processes.is_main():
                storage.write_text(storage.path(output_dir) / path.name, content.decode())


def search_settings(data_args: DataArguments) -> SearchSettings:
    """The settings of the span search, from the arguments."""
    return SearchSettings(
        data_args.version_2_with_negative,
        data_args.n_best_size,
        data_args.max_answer_length,
        data_args.hf_compatible,
    )


def make_compute_metrics(data_args: DataArguments) -> Callable[[EvalPrediction], dict[str, Any]]:
    """Build the `compute_metrics` of the trainer: EM and F1, or no metrics for unlabelled data."""
    # With hf_compatible the answers are final: all odds are 0.0, below this threshold of 1.0.
    threshold = 1.0 if data_args.hf_compatible else data_args.null_score_diff_threshold

    def compute_metrics(scored: EvalPrediction) -> dict[str, Any]:
        if not any(reference["answers"]["text"] for reference in scored.label_ids):
            return {}
        return squad_metric(
            scored.predictions,
            scored.label_ids,
            version_2_with_negative=data_args.version_2_with_negative,
            no_answer_threshold=threshold,
            language=data_args.language,
        )

    # With them a wrong --metric_for_best_model is found before the training.
    compute_metrics.metric_names = metric_names(data_args.version_2_with_negative)  # pyright: ignore[reportFunctionMemberAccess]
    return compute_metrics


# ---- preparation ---------------------------------------------------------------------------------


def _prepare(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    examples_by_stage: Mapping[str, datasets.Dataset],
) -> tuple[QuestionAnsweringTrainer, dict[str, Stage]]:
    model, tokenizer = load_model_and_tokenizer(model_args, data_args, training_args)
    stages = {}
    for stage, examples in examples_by_stage.items():
        stages[stage] = _stage(stage, examples, tokenizer, data_args, training_args)
        preemption.check()
    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=stages["train"].windows if "train" in stages else None,
        eval_dataset=stages["eval"].windows if "eval" in stages else None,
        eval_examples=stages["eval"].examples if "eval" in stages else None,
        train_examples=examples_by_stage.get("train"),
        extra_train_dataset=stages[EXTRA].windows if EXTRA in stages else None,
        processing_class=tokenizer,
        post_process_function=make_post_processing(
            data_args, training_args.output_dir, model_args.model_name_or_path
        ),
        compute_metrics=make_compute_metrics(data_args),
        search_settings=search_settings(data_args) if data_args.gather == "topk" else None,
        split_by_node=True,
    )
    trainer.warns_of_leakage = False  # `examples_by_stage` has compared the texts
    return trainer, stages


def _stage(
    stage: str,
    examples: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> Stage:
    """Select this process's examples and cut them into windows.

    All windows of an example are in one process. To train on, every process gets the windows of
    all examples, so that the batches do not depend on the number of processes.
    """
    # Evaluation data with answers gets labels, so that evaluation reports a loss.
    is_trained = stage in ("train", EXTRA)
    labels = is_trained or bool(has_answers(examples).any())
    if is_trained:  # before the examples are divided, so that no process has nothing to learn
        examples = learnable_examples(examples)
    part = examples.select(np.arange(len(examples))[processes.part_of(len(examples))])
    windows = make_windows(
        part,
        tokenizer,
        max_seq_length=data_args.max_seq_length,
        doc_stride=data_args.doc_stride,
        labels=labels,
        pad_to_max_length=data_args.pad_to_max_length,
        long_questions=data_args.long_questions,
        disable_tqdm=bool(training_args.disable_tqdm) or not processes.is_main(),
        warn=warn,
        tokenizer_argument=TOKENIZER_ARGUMENT,
        answers=data_args.answers,
    )
    if stage == "train" and (line := describe_single_answers(windows)) is not None:
        warn("%s questions: %s", _STAGES[stage], line)
    if (line := describe_long_answers(windows, data_args.max_answer_length)) is not None:
        warn("%s questions: %s", _STAGES[stage], line)
    sizes = exchange.all_gather_json(f"windows to {stage}", [windows.padded_length, len(windows)])
    lengths, counts = zip(*sizes, strict=True)
    windows = windows.padded_to(max(lengths))
    if is_trained and processes.count() > 1:
        needs_offsets = stage == "train" and training_args.eval_train_samples > 0
        windows = windows.joined(
            exchange.all_gather_arrays("training windows", windows.to_arrays(offsets=needs_offsets))
        )
    return Stage(part, windows, sum(counts))


# ---- training, evaluation, prediction ------------------------------------------------------------


def _train(trainer: QuestionAnsweringTrainer, stage: Stage, accept_changes: bool) -> dict[str, Any]:
    apply_model_arguments(trainer.args, trainer.model)
    trained, total = trainer.model.num_parameters(True), trainer.model.num_parameters()
    print_on_main(
        f"Training {trained:,} of {total:,} parameters ({trained / total:.2%}); the optimizer "
        f"state takes {optimizer_bytes(trainer.args, trainer.model):,} bytes on each core"
    )
    with usage_errors(ResumeError, MetricError, FolderLockedError):
        output = trainer.train(checkpoint_of(trainer.args), accept_changes=accept_changes)
    metrics = dict(output.metrics, train_samples=stage.count)
    check_lock(output_dir(trainer.args))
    trainer.save_model(_internal_call=True)
    return _finish(trainer, "train", metrics)


def checkpoint_of(args: Any) -> str | bool | None:
    """The checkpoint to resume from: `--resume_from_checkpoint`, else the latest in `output_dir`.

    True: the latest, and it is an error if there is none. None: train from the beginning.
    """
    if args.resume_from_checkpoint is not None:
        value = args.resume_from_checkpoint
        return {"true": True, "false": None}.get(str(value).lower(), value)
    if getattr(args, "overwrite_output_dir", False):
        return None
    latest = None
    if processes.is_main():
        latest = checkpoints.latest(output_dir(args))
    latest = exchange.broadcast_from_main(
        "latest checkpoint", None if latest is None else str(latest)
    )
    if latest is not None:
        print_on_main(
            f"Resuming from {latest}; --overwrite_output_dir trains from the beginning instead",
            sys.stderr,
        )
    return latest


def _evaluate(
    trainer: QuestionAnsweringTrainer, stage: Stage, calibrator: Calibrator | None
) -> dict[str, Any]:
    metrics = _finish(trainer, "eval", dict(trainer.evaluate(), eval_samples=stage.count))
    if calibrator is not None and (fitted := calibrator.fit(stage.examples)):
        metrics |= fitted
        trainer.save_metrics("eval", metrics)
    return metrics


def _predict(
    trainer: QuestionAnsweringTrainer, stage: Stage, calibrator: Calibrator | None
) -> dict[str, Any]:
    output = trainer.predict(stage.windows, stage.examples, metric_key_prefix="predict")
    metrics = dict(output.metrics or {}, predict_samples=stage.count)
    metrics = _finish(trainer, "predict", metrics)
    if calibrator is not None and (measured := calibrator.measure(stage.examples)):
        metrics |= measured
        trainer.save_metrics("predict", metrics)
    return metrics


def _finish(
    trainer: QuestionAnsweringTrainer, split: str, metrics: dict[str, Any]
) -> dict[str, Any]:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return metrics
