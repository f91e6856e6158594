"""Evaluation and prediction on one data set, sharded over the processes (host)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
from flax import nnx
from jaxtyping import Float
from transformers.trainer_utils import EvalPrediction, PredictionOutput, speed_metrics

from qa_flax.answers.spans import Candidates, SearchSettings
from qa_flax.data.windows import Features, Windows
from qa_flax.device.counters import device_report
from qa_flax.device.programs import eval_program
from qa_flax.device.step import LossFunction
from qa_flax.distributed import preemption, processes
from qa_flax.distributed.exchange import all_gather_json, all_gather_rows, broadcast_from_main
from qa_flax.train.events import Events, plain_metrics
from qa_flax.train.live_state import LiveState
from qa_flax.train.plan import wants_device_report
from qa_flax.train.prediction import common_widths, predict_windows, reduction

Dataset = datasets.Dataset | Windows
"""What the trainer accepts as a data set: a Hugging Face data set, or this package's windows."""


class EvaluationResult(NamedTuple):
    """The logits, labels and losses of N windows, in the order of the data set, and the metrics."""

    logits: Any
    """Start and end logits, float32 [N, L] each, or `Candidates`."""
    labels: Any
    """Start and end positions, int32 [N] each; None for windows without labels."""
    losses: Float[np.ndarray, " n"] | None
    """The loss of each window; None for windows without labels."""
    metrics: dict[str, Any]
    """The mean loss, if the windows have labels, and the speed."""


def as_windows(dataset: Dataset) -> Windows:
    """Return the data set as windows.

    Raises:
        ValueError: a column is missing or invalid.
    """
    return dataset if isinstance(dataset, Windows) else Features.from_dataset(dataset)


@dataclass(frozen=True)
class DatasetShard:
    """Selects this process's shard of a data set and gathers results from all processes.

    Every process must call the methods that gather, in the same order. With one process they return
    what they are given.
    """

    is_split: bool
    """Whether the trainer's data sets are this process's shard already, not the full data set."""

    def select(self, windows: Windows) -> Windows:
        """Return this process's shard of `windows`: all of them if they are a shard already."""
        return windows if self.is_split else windows.select(processes.part_of(len(windows)))

    def sum(self, name: str, count: int) -> int:
        """Return the sum of every process's `count`; `name` is used in error messages."""
        return sum(all_gather_json(name, count))

    def gather_inputs(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the token ids int32 [N, L] of the full data set.

        Args:
            input_ids: those of the trainer's data set, which are gathered if it is a shard.
        """
        return all_gather_rows("inputs", input_ids) if self.is_split else input_ids

    def total_examples(self, count: int) -> int:
        """Return the number of examples in the full data set.

        Args:
            count: the examples that the trainer was given, summed if they are a shard.
        """
        return self.sum("examples", count) if self.is_split else count

    def gather_answers(self, scored: EvalPrediction) -> EvalPrediction:
        """Return the answers and references of the full data set.

        Args:
            scored: those of the trainer's examples, which are gathered if they are a shard.

        Raises:
            ValueError: they are neither lists nor dicts, and cannot be gathered.
        """
        if not self.is_split:
            return scored
        shards = _all_gather_answers(scored.predictions, scored.label_ids)
        answers, references = map(_concatenated, zip(*shards, strict=True))
        return EvalPrediction(predictions=answers, label_ids=references)


def with_main_metrics(output: PredictionOutput) -> PredictionOutput:
    """Replace the metrics by the main process's, so that times and speeds agree in all processes.

    Every process must call it.
    """
    return output._replace(metrics=broadcast_from_main("metrics", output.metrics))


class Evaluator:
    """Runs a model over the windows of a data set, on all cores.

    Args:
        events: notified of every batch; its `args` have the batch size per core.
        live: the owner of the weights.
        graphdef: of the model, in the dtype to compute in.
        shard: which windows this process computes.
        loss_function: replaces the loss of spans.
    """

    def __init__(
        self,
        events: Events,
        live: LiveState,
        graphdef: nnx.GraphDef,
        shard: DatasetShard,
        loss_function: LossFunction | None = None,
    ):
        self._events, self._live, self._graphdef = events, live, graphdef
        self._shard, self._loss_function = shard, loss_function

    def run(
        self, dataset: Dataset, prefix: str, search_settings: SearchSettings | None, *, gather: bool
    ) -> EvaluationResult:
        """Compute logits (or candidates), losses, the mean loss and the speed.

        Every process must call it.

        Args:
            dataset: the full data set, or this process's shard (see `DatasetShard`).
            prefix: what the names of the metrics begin with.
            search_settings: return only the candidates that this search needs; None: all logits.
            gather: whether to return the logits and labels of all processes, in the order of the
                full data set, or only this process's. Losses and metrics are always those of all.

        Raises:
            ValueError: no process has any windows, or only some processes have labels.
            Preempted: SIGTERM was received.
        """
        started = time.time()
        windows = self._shard.select(as_windows(dataset))
        args = self._events.args
        per_core = args.per_device_eval_batch_size
        widths = common_widths(windows, per_core)
        # transformers' progress bar only asks for the length of the data loader.
        loader: Any = widths
        self._events.handler.eval_dataloader = loader
        weights = self._live.evaluation_weights()
        measuring = device_report(f"{prefix} of {len(windows)} windows", wants_device_report(args))
        on_core = None if search_settings is None else reduction(search_settings)
        step = eval_program(self._graphdef, on_core, self._loss_function)
        with preemption.sigterm_handled():
            with measuring as report:
                predictions = predict_windows(
                    step,
                    weights,
                    windows,
                    per_core,
                    search_settings,
                    lambda: self._events.notify("on_prediction_step"),
                    widths,
                )
                report.steps, report.bytes_to_host = len(widths), predictions.bytes_to_host
            # The processes finish at different times; each gathering waits for all of them.
            count = self._shard.sum("windows", len(windows))
            labels, losses, metrics, logits = None, None, {}, predictions.logits
            if predictions.losses is not None:
                labels = (windows.start_positions, windows.end_positions)
                losses = all_gather_rows("losses", predictions.losses)
                metrics[f"{prefix}_loss"] = float(np.mean(losses, dtype=np.float64))
            if gather:
                labels, logits = all_gather_rows("labels", labels), _all_gather_logits(logits)
        metrics |= speed_metrics(prefix, started, num_samples=count, num_steps=len(widths))
        return EvaluationResult(logits, labels, losses, metrics)


def with_prefix(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Rename `f1` to `eval_f1`, with Python numbers; a name that has the prefix is unchanged."""
    metrics = plain_metrics(metrics)
    return {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in metrics.items()}


def prediction_output(predictions: Any, labels: Any, metrics: dict[str, Any]) -> PredictionOutput:
    """Return transformers' `PredictionOutput`."""
    # Its annotations allow neither a pair of arrays nor a list of answers, which are both usual.
    return PredictionOutput(predictions, labels, metrics)


def _all_gather_logits(logits: Any) -> Any:
    """The logits, or the candidates, of the windows of all processes."""
    if isinstance(logits, Candidates):
        *arrays, padded_length = logits
        return Candidates(*all_gather_rows("candidates", arrays), padded_length=padded_length)
    return all_gather_rows("logits", logits)


def _all_gather_answers(answers: Any, references: Any) -> list[Any]:
    """The pair (answers, references) of each process, exchanged as JSON."""
    values = answers, references
    if all(isinstance(value, (list, dict)) for value in values):
        return all_gather_json("answers", values)
    types = " and ".join(type(value).__name__ for value in values)
    raise ValueError(
        f"split_by_node=True: post_process_function returned predictions and label_ids of types "
        f"{types}; with several processes both must be lists or dicts that can be written as "
        "JSON, so that they can be gathered from all processes"
    )


def _concatenated(shards: Sequence[Any]) -> Any:
    """Concatenate lists, or merge dicts."""
    if isinstance(shards[0], dict):
        return {key: value for shard in shards for key, value in shard.items()}
    return [value for shard in shards for value in shard]
