"""`qa-flax run --calibrate`: how sure the model may be of its answers, fitted on validation data.

Every process answers the questions of its own examples. The scores, a few numbers for each
question, are exchanged, so that every process fits the same calibration.
"""

from typing import Any

import datasets
import numpy as np

from qa_flax.answering.answerer import QuestionAnswerer
from qa_flax.answering.calibrating import ScoredExamples, calibrated, check_has_answers
from qa_flax.answers.calibration import Calibration, describe
from qa_flax.answers.calibration_fit import Figures, measure
from qa_flax.commands.arguments import DataArguments
from qa_flax.commands.run.output import print_on_main, warn_on_main
from qa_flax.data.examples import has_answers
from qa_flax.distributed import exchange, preemption, processes
from qa_flax.models.files import CALIBRATION_FILE
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.training_arguments import TrainingArguments


def check_calibrate(data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Check that `--calibrate` goes with the other arguments, before any work.

    Raises:
        ValueError: it does not.
    """
    if not data_args.calibrate:
        return
    if data_args.folds is not None:
        raise ValueError(
            "--calibrate cannot be used with --folds, because each fold's model has validation "
            "data of its own; calibrate one of them afterwards, on data that it was not trained "
            f"on: qa-flax run --model_name_or_path {training_args.output_dir}/fold-1 --do_eval "
            "--validation_file FILE --calibrate --output_dir DIR"
        )
    if training_args.shard_params:
        raise ValueError(
            "--calibrate cannot be used with --shard_params, because questions are answered with "
            "all weights on each core; train without --calibrate, then run it where the model "
            f"fits: qa-flax run --model_name_or_path {training_args.output_dir} --do_eval "
            "--validation_file FILE --calibrate --output_dir DIR"
        )
    if not training_args.do_eval:
        raise ValueError(
            "--calibrate needs questions with known answers that the model is not trained on: add "
            "--do_eval with --validation_file or --dataset_name, or --validation_split"
        )


def check_calibration_data(examples: datasets.Dataset | None, data_args: DataArguments) -> None:
    """Check that the validation data can be calibrated on, before the model is loaded.

    Raises:
        ValueError: none of its questions has an answer.
    """
    if data_args.calibrate and examples is not None:
        try:
            check_has_answers(examples)
        except ValueError as error:
            raise ValueError(f"--calibrate, validation data: {error}") from error


class Calibrator:
    """Calibrates the model of a run, and measures the calibration on further data.

    Args:
        trainer: has the model and the tokenizer.
        data_args: the language and whether questions may have no answer.
        model_source: the folder or Hub id that the model came from.
    """

    def __init__(
        self, trainer: QuestionAnsweringTrainer, data_args: DataArguments, model_source: str
    ):
        self._trainer, self._data_args, self._model_source = trainer, data_args, model_source
        self.calibration: Calibration | None = None
        """The result of `fit`; None: the model's scores were not finite."""

    def fit(self, examples: datasets.Dataset) -> dict[str, float]:
        """Fit on this process's validation examples, write the file and print the report.

        Returns:
            The figures, with the prefix `eval_`.
        """
        scored = self._scored("calibrate", examples)
        if not np.isfinite(scored.answers.null_scores).all():
            warn_on_main(
                "The model's scores are NaN or infinite, so it was not calibrated. Look for NaN in "
                "its parameters."
            )
            return {}
        self.calibration = calibrated(scored, self._trainer.model)
        output_dir = str(self._trainer.args.output_dir)
        if processes.is_main():
            self.calibration.write(output_dir)
        print_on_main(str(self.calibration))
        if not self._trainer.args.do_train and self._model_source != output_dir:
            print_on_main(
                f"{CALIBRATION_FILE} is in {output_dir}, the model in {self._model_source}: copy "
                f"it there, or pass QuestionAnswerer({self._model_source!r}, "
                f"calibration={output_dir!r})"
            )
        return _prefixed("eval", self.calibration.metrics())

    def measure(self, examples: datasets.Dataset) -> dict[str, float]:
        """Measure the calibration on this process's test examples, if they have answers.

        Returns:
            The figures, with the prefix `predict_`.
        """
        is_labelled = len(examples) > 0 and bool(has_answers(examples).any())
        labelled = exchange.all_gather_json("labelled test data", is_labelled)
        if self.calibration is None or not any(labelled):
            return {}
        scored = self._scored("measure calibration", examples)
        has_null = self._data_args.version_2_with_negative
        metrics: dict[str, float] = {}
        for when, calibration in (("before", Calibration()), ("after", self.calibration)):
            figures = measure(scored.answers, scored.correct, calibration, has_null)
            metrics |= _named(figures, when)
        count = f"{len(scored.correct):,} questions"
        print_on_main(f"Calibration on the test data, {count} that were not used for the fit:")
        for line in describe(metrics):
            print_on_main(line)
        return _prefixed("predict", metrics)

    def _scored(self, label: str, examples: datasets.Dataset) -> ScoredExamples:
        """Answer the examples of all processes, with the settings that a new answerer has."""
        preemption.check()
        answerer = QuestionAnswerer(
            self._trainer.model,
            self._trainer.processing_class,
            dtype="float32",
            batch_size=self._trainer.args.per_device_eval_batch_size,
        )
        part = answerer.score_examples(examples, self._data_args.language)
        return exchange.all_gather_rows(label, part)


def _named(figures: Figures, when: str) -> dict[str, Any]:
    """Return figures by the names of `Calibration.metrics`."""
    values = {
        f"ece_{when}": figures.ece,
        f"accuracy_{when}": figures.accuracy,
        f"coverage_at_80_{when}": figures.coverage_at_80,
    }
    if when == "after" and figures.confidence_at_80 is not None:
        values["confidence_at_80"] = figures.confidence_at_80
    return values


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}
