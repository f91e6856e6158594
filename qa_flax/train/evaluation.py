"""Evaluation and prediction on one data set, sharded over the processes (host)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from qa_flax.answers.spans import PADDING_LOGIT, Candidates, Logits, SearchSettings
from qa_flax.data.labels import describe_labels_outside, holds_answer, terms_inside
from qa_flax.data.loaders import Loader, describe, loader_windows
from qa_flax.data.windows import Windows
from qa_flax.device.counters import device_report
from qa_flax.device.programs import eval_program
from qa_flax.device.step import LossFunction
from qa_flax.distributed import preemption, processes
from qa_flax.distributed.exchange import all_gather_json, all_gather_rows
from qa_flax.train.best import MetricError
from qa_flax.train.eval_plan import eval_plan
from qa_flax.train.events import Events, plain_metrics
from qa_flax.train.live_state import LiveState
from qa_flax.train.plan import wants_device_report
from qa_flax.train.prediction import OnCandidates, predict_windows, reduction
from qa_flax.train.progress import close_bars
from qa_flax.train.train_data import refuse_several_processes, reports_fill, wants_packing

Dataset = Any
"""A data set for the trainer: Hugging Face's, PyTorch's, windows or a list of dicts."""


class EvaluationResult(NamedTuple):
    """The logits, labels and losses of N windows, in the order of the data set."""

    logits: Any
    """Start and end logits, float32 [N, L] each, or `Candidates`."""
    labels: Any
    """Start and end positions, int32 [N] each; None for windows without labels."""
    terms: Float[np.ndarray, "n t"] | None
    """Of each window's loss: start and end, or the one of a script's own loss function."""
    inside: Sequence[int]
    """How many start labels and how many end labels are inside their windows."""
    metrics: dict[str, Any]
    """The mean loss, if the windows have labels."""
    windows: int
    """Number of windows in all processes."""
    input_ids: np.ndarray | None
    """Token ids, int32 [N, L], if they were asked for."""
    hits: Sequence[int] = ()
    """How many windows hold an answer, and of how many of them the best start token, and the best
    end token, is the label; () if they were not counted. `metrics` then has the accuracies."""
    nonfinite: int = 0
    """Number of windows in all processes with logits that are not finite."""

    @property
    def losses(self) -> Float[np.ndarray, " n"] | None:
        """The loss of each window, to which a label outside it adds 0; None without labels."""
        return None if self.terms is None else self.terms.mean(axis=1)


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

    def sum(self, name: str, counts: Sequence[int]) -> list[int]:
        """Return the sum of each of every process's `counts`; `name` is used in error messages."""
        return [sum(column) for column in zip(*all_gather_json(name, counts), strict=True)]

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
        return self.sum("examples", [count])[0] if self.is_split else count

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


class Evaluator:
    """Runs a model over the windows of a data set, on all cores.

    Args:
        events: notified of every batch; its `args` have the batch size per core.
        live: the owner of the weights.
        graphdef: of the model, in the dtype to compute in.
        shard: which windows this process computes.
        loss_function: replaces the loss of spans.
        obstacle: why rows cannot hold several windows, apart from the data; None: they can.
    """

    def __init__(
        self,
        events: Events,
        live: LiveState,
        graphdef: nnx.GraphDef,
        shard: DatasetShard,
        loss_function: LossFunction | None = None,
        obstacle: str | None = None,
    ):
        self._obstacle = obstacle
        self._events, self._live, self._graphdef = events, live, graphdef
        self._shard, self._loss_function = shard, loss_function

    def run(
        self,
        loader: Any,
        prefix: str,
        search_settings: SearchSettings | None = None,
        *,
        gather: bool = True,
        wants_inputs: bool = False,
        on_candidates: OnCandidates | None = None,
    ) -> EvaluationResult:
        """Compute logits (or candidates), losses and the mean loss.

        Every process must call it.

        Args:
            loader: the loader of the full data set, or of this process's shard (`DatasetShard`).
                A loader whose batches a collator or a script makes is read some batches at a time.
            prefix: what the names of the metrics begin with.
            search_settings: return only the candidates that this search needs; None: all logits.
                The rows of a stream always give all logits.
            gather: whether to return the logits and labels of all processes, in the order of the
                full data set, or only this process's. Losses and metrics are always those of all.
            wants_inputs: whether to return the token ids, too.
            on_candidates: see `predict_windows`; not called without `search_settings`.

        Raises:
            ValueError: no process has any windows, only some processes have labels, or a token id
                is outside the model's table.
            Preempted: SIGTERM was received.
        """
        close_bars(self._events.handler, training=False)  # of an evaluation that was interrupted
        self._events.handler.eval_dataloader = loader
        windows = loader.windows() if isinstance(loader, Loader) else None
        if windows is not None:
            if self._loss_function is None and (self._shard.is_split or processes.is_main()):
                self._events.warn_once("evaluation", describe_labels_outside(windows))
            part = self._run_windows(
                self._shard.select(windows),
                prefix,
                search_settings,
                gather=gather,
                on_candidates=on_candidates,
            )
            inputs = (
                self._shard.gather_inputs(windows.features().input_ids) if wants_inputs else None
            )
            return part._replace(input_ids=inputs)
        refuse_several_processes(loader, "evaluation")
        parts, inputs = [], []
        takes_extras = self._loss_function is not None
        for windows in loader_windows(loader, self._events.args.seed, takes_extras=takes_extras):
            parts.append(self._run_windows(windows, prefix, None, gather=False))
            if wants_inputs:
                inputs.append(windows.features().input_ids)
        result = _joined(parts, inputs, prefix)
        outside = sum(result.windows - count for count in result.inside)
        if outside and self._loss_function is None:
            self._events.warn_once(
                "evaluation",
                f"{outside} labels of {result.windows} windows of {describe(loader)} are outside "
                "their windows, and take no part in the loss",
            )
        return result

    def _run_windows(
        self,
        windows: Windows,
        prefix: str,
        search_settings: SearchSettings | None,
        *,
        gather: bool,
        on_candidates: OnCandidates | None = None,
    ) -> EvaluationResult:
        args = self._events.args
        per_core = args.per_device_eval_batch_size
        plan = eval_plan(windows, per_core, wants_packing(args) and self._obstacle is None)
        windows = windows.with_span_room(plan.spans)
        if wants_packing(args) and self._obstacle is not None:
            self._events.warn_once("evaluation", f"packing has no effect, because {self._obstacle}")
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
                    plan,
                    self._live.model.id_limits,
                    is_shown=processes.is_main() and not args.disable_tqdm,
                    on_candidates=on_candidates,
                )
                report.steps, report.bytes_to_host = len(plan.widths), predictions.bytes_to_host
            # The processes finish at different times; each gathering waits for all of them.
            inside = terms_inside(windows)
            hits = count_hits(windows, predictions.logits) if counts_hits(args) else ()
            fill = (predictions.tokens, predictions.positions)
            counts = [len(windows), predictions.nonfinite, *fill, *inside, *hits]
            count, nonfinite, tokens, positions, *sums = self._shard.sum("windows", counts)
            inside, hits = sums[: len(inside)], sums[len(inside) :]
            labels, terms, logits = None, None, predictions.logits
            metrics: dict[str, Any] = _accuracies(hits, prefix)
            if reports_fill(args) and prefix != "train":  # `train_fill` is the training's
                metrics[f"{prefix}_fill"] = tokens / positions
            if predictions.losses is not None:
                labels = (windows.start_positions, windows.end_positions)
                terms = all_gather_rows("losses", predictions.losses)
                metrics[f"{prefix}_loss"] = _mean_loss(terms, inside)
            if gather:
                labels, logits = all_gather_rows("labels", labels), _all_gather_logits(logits)
        return EvaluationResult(
            logits, labels, terms, inside, metrics, count, None, hits, nonfinite
        )


def counts_hits(args: Any) -> bool:
    """Whether evaluation computes the accuracies of starts and ends: with `eval_train_samples`."""
    return getattr(args, "eval_train_samples", 0) > 0


def count_hits(windows: Windows, logits: Logits | Candidates) -> list[int]:
    """Count the windows that hold an answer, and of these the right starts and ends.

    Args:
        windows: N windows.
        logits: start and end logits, float32 [N, L] each, with `PADDING_LOGIT` on padding tokens;
            or the best tokens of each window.

    Returns:
        The three counts; [] if the windows have no labels.
    """
    holds = holds_answer(windows)
    if holds is None or windows.start_positions is None or windows.end_positions is None:
        return []
    if isinstance(logits, Candidates):
        starts, ends = logits.tokens.starts[:, 0], logits.tokens.ends[:, 0]
    else:
        starts, ends = (array.argmax(axis=1) for array in logits)
    is_right = (starts == windows.start_positions, ends == windows.end_positions)
    return [int(holds.sum()), *(int((holds & right).sum()) for right in is_right)]


def _accuracies(hits: Sequence[int], prefix: str) -> dict[str, float]:
    """The accuracies in percent, without any if no window holds an answer."""
    if not hits or not hits[0]:
        return {}
    count, *right = hits
    names = (f"{prefix}_accuracy_start", f"{prefix}_accuracy_end")
    return {name: 100.0 * hit / count for name, hit in zip(names, right, strict=True)}


def _joined(
    parts: Sequence[EvaluationResult], inputs: Sequence[np.ndarray], prefix: str
) -> EvaluationResult:
    """Concatenate results; logits are padded to the longest row with `PADDING_LOGIT`.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("the data set has no windows; there is nothing to evaluate or predict")
    if len({part.labels is None for part in parts}) > 1:
        raise ValueError("some batches have start_positions and end_positions and others have not")
    logits = tuple(
        _concatenated_rows(rows, PADDING_LOGIT)
        for rows in zip(*(p.logits for p in parts), strict=True)
    )
    labels, terms = None, None
    inside, hits = (
        [sum(column) for column in zip(*counts, strict=True)]
        for counts in ([part.inside for part in parts], [part.hits for part in parts])
    )
    metrics: dict[str, Any] = _accuracies(hits, prefix)
    if parts[0].labels is not None:
        labels = tuple(
            np.concatenate(arrays) for arrays in zip(*(p.labels for p in parts), strict=True)
        )
        terms = np.concatenate([part.terms for part in parts if part.terms is not None])
        metrics[f"{prefix}_loss"] = _mean_loss(terms, inside)
    input_ids = _concatenated_rows(inputs, 0) if inputs else None
    count = sum(part.windows for part in parts)
    nonfinite = sum(part.nonfinite for part in parts)
    return EvaluationResult(
        logits, labels, terms, inside, metrics, count, input_ids, hits, nonfinite
    )


def _concatenated_rows(arrays: Sequence[np.ndarray], fill: float) -> np.ndarray:
    width = max(array.shape[1] for array in arrays)
    margins = [((0, 0), (0, width - array.shape[1])) for array in arrays]
    padded = [np.pad(a, m, constant_values=fill) for a, m in zip(arrays, margins, strict=True)]
    return np.concatenate(padded)


def _mean_loss(terms: Float[np.ndarray, "n t"], inside: Sequence[int]) -> float:
    """Return the mean loss of N windows.

    Args:
        terms: of each window's loss: start and end, or the one of a script's own loss function.
        inside: how many start labels and how many end labels are inside their windows. The others
            take no part in the mean.
    """
    if terms.shape[1] == 2:
        # Factors of the terms, which are 1.0 if all labels are inside.
        terms = terms * (np.float32(len(terms)) / np.maximum(inside, 1).astype(np.float32))
    return float(np.mean(terms.mean(axis=1), dtype=np.float64))


def with_prefix(metrics: Any, prefix: str) -> dict[str, Any]:
    """Rename `f1` to `eval_f1`, with Python numbers; a name that has the prefix is unchanged.

    Args:
        metrics: what a script's `compute_metrics` returned.
        prefix: what the names begin with.

    Raises:
        MetricError: it is no dict with names and values that can be written as JSON.
    """
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise MetricError(
            f"compute_metrics returned {_described(metrics)}; it must return a dict of names and "
            'numbers, such as {"f1": 88.5}'
        )
    metrics = plain_metrics(metrics)
    for name, value in metrics.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise MetricError(
                f"compute_metrics returned {_described(value)} as {name!r}, which cannot be "
                "written as JSON; return a number, such as the mean of an array"
            ) from None
    return {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in metrics.items()}


def _described(value: Any) -> str:
    """The type of a value, with its shape if it is an array."""
    if value is None:
        return "None (does it end with a return statement?)"
    if isinstance(value, Mapping):
        numbered = [key for key in value if not isinstance(key, str)]
        return "a dict" + (f" with the key {numbered[0]!r}" if numbered else "")
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def prediction_output(predictions: Any, labels: Any, metrics: dict[str, Any]) -> PredictionOutput:
    """Return transformers' `PredictionOutput`."""
    # Its annotations allow neither a pair of arrays nor a list of answers, which are both usual.
    return PredictionOutput(predictions, labels, metrics)


def _all_gather_logits(logits: Any) -> Any:
    """The logits, or the candidates, of the windows of all processes."""
    if isinstance(logits, Candidates):
        arrays = logits.tokens, logits.null_starts, logits.null_ends
        tokens, null_starts, null_ends = all_gather_rows("candidates", arrays)
        return Candidates(tokens, null_starts, null_ends, logits.padded_length)
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
