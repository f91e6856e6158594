"""Evaluation and prediction of one set of windows, of which each process computes its part."""

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
from qa_flax.distributed import preemption, processes
from qa_flax.distributed.exchange import all_gather_json, all_gather_rows, broadcast_from_main
from qa_flax.train.events import Events
from qa_flax.train.live_state import LiveState
from qa_flax.train.plan import wants_device_report
from qa_flax.train.prediction import common_widths, predict_windows, reduction

Dataset = datasets.Dataset | Windows
"""What the trainer takes as a data set: Hugging Face style columns, or this package's windows."""


class EvaluationResult(NamedTuple):
    """What the model says of a set's windows, in their order, and what that took.

    `logits`: start and end, float32 [N, L] each, or candidates. `labels`: start and end positions,
    int32 [N] each; `losses`: float32 [N]; both None where there are no labels.
    """

    logits: Any
    labels: Any
    losses: Float[np.ndarray, " n"] | None
    metrics: dict[str, Any]


def as_windows(dataset: Dataset) -> Windows:
    """The one type that is computed with."""
    return dataset if isinstance(dataset, Windows) else Features.from_dataset(dataset)


@dataclass(frozen=True)
class Share:
    """This process's part of what is evaluated, and how it becomes the whole again.

    `is_split`: what the trainer was given is this process's part already, not the whole.
    """

    is_split: bool

    def select(self, windows: Windows) -> Windows:
        """This process's windows of those given."""
        return windows if self.is_split else windows.select(processes.part_of(len(windows)))

    def count(self, name: str, own: int) -> int:
        """The sum of what every process counted."""
        return sum(all_gather_json(name, own))

    def whole_inputs(self, input_ids: np.ndarray) -> np.ndarray:
        """The token ids of all windows, of what the trainer was given."""
        return all_gather_rows("inputs", input_ids) if self.is_split else input_ids

    def whole_examples(self, name: str, own: int) -> int:
        """How many there are in all, of what the trainer was given."""
        return self.count(name, own) if self.is_split else own

    def whole_answers(self, scored: EvalPrediction) -> EvalPrediction:
        """The answers and references of all processes, where each has found those of its part."""
        if not self.is_split:
            return scored
        both: Any = (scored.predictions, scored.label_ids)
        answers, references = (_joined(part) for part in zip(*_exchanged(both), strict=True))
        return EvalPrediction(predictions=answers, label_ids=references)


def agreed(output: PredictionOutput) -> PredictionOutput:
    """The same times and speeds in all processes: the main one's."""
    return output._replace(metrics=broadcast_from_main("metrics", output.metrics))


class Evaluator:
    """Runs windows through the model on all cores.

    Args:
        events: to report batches to; its `args` say how many rows a core takes.
        live: gives the weights.
        graphdef: the model's, in the dtype to compute in.
        share: which windows are this process's.
    """

    def __init__(self, events: Events, live: LiveState, graphdef: nnx.GraphDef, share: Share):
        self._events, self._live, self._graphdef = events, live, graphdef
        self._share = share

    def run(
        self, dataset: Dataset, prefix: str, candidates: SearchSettings | None, *, gather: bool
    ) -> EvaluationResult:
        """Logits or candidates, labels, losses, the mean loss and the speed.

        Of all processes' windows, in their order; logits and labels of this one's if not `gather`.
        """
        started = time.time()
        windows = self._share.select(as_windows(dataset))
        args = self._events.args
        per_core = args.per_device_eval_batch_size
        widths = common_widths(windows, per_core)
        # The progress callback only asks for the length of what is gone through.
        batches: Any = widths
        self._events.handler.eval_dataloader = batches
        weights = self._live.evaluation_weights()
        watching = device_report(f"{prefix} of {len(windows)} windows", wants_device_report(args))
        # Each process computes its windows at its own pace; the exchange brings all together.
        way = None if candidates is None else reduction(candidates)
        with preemption.sigterm_handled():
            with watching as report:
                predicted = predict_windows(
                    eval_program(self._graphdef, way),
                    weights,
                    windows,
                    per_core,
                    candidates,
                    lambda: self._events.notify("on_prediction_step"),
                    widths,
                )
                report.steps, report.bytes_to_host = len(widths), predicted.bytes_to_host
            count = self._share.count("windows", len(windows))
            labels, losses, metrics, logits = None, None, {}, predicted.logits
            if predicted.losses is not None:
                labels = (windows.start_positions, windows.end_positions)
                losses = all_gather_rows("losses", predicted.losses)
                metrics[f"{prefix}_loss"] = float(np.mean(losses, dtype=np.float64))
            if gather:
                labels, logits = all_gather_rows("labels", labels), _of_all(logits)
        metrics |= speed_metrics(prefix, started, num_samples=count, num_steps=len(widths))
        return EvaluationResult(logits, labels, losses, metrics)


def with_prefix(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`f1` -> `eval_f1`; a name that has the prefix already stays."""
    return {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in metrics.items()}


def prediction_output(predictions: Any, labels: Any, metrics: dict[str, Any]) -> PredictionOutput:
    """The result in transformers' form."""
    # Its annotations know neither pairs of logits nor lists of answers; both are usual.
    return PredictionOutput(predictions, labels, metrics)


def _of_all(logits: Any) -> Any:
    """The logits, or candidates, of all processes' windows."""
    if isinstance(logits, Candidates):
        *arrays, length = logits
        return Candidates(*all_gather_rows("candidates", arrays), padded_length=length)
    return all_gather_rows("logits", logits)


def _exchanged(answers: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """What post-processing gave in each process: answers and references."""
    if all(isinstance(part, (list, dict)) for part in answers):
        return all_gather_json("answers", answers)
    kinds = ", ".join(type(part).__name__ for part in answers)
    raise ValueError(
        f"split_by_node: post_process_function gave {kinds}; with several processes it must give "
        "lists or dicts that JSON can hold, so that those of all can be joined"
    )


def _joined(parts: Sequence[Any]) -> Any:
    """Lists one after the other, or dicts as one."""
    if isinstance(parts[0], dict):
        return {key: value for part in parts for key, value in part.items()}
    return [value for part in parts for value in part]
