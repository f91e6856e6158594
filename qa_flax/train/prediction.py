"""Run windows through the model and return the results in the order of the data (host and device).

The results of a batch are copied to the host while the next batch is computed.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qa_flax.answers.arrivals import Arrivals
from qa_flax.answers.spans import (
    PADDING_LOGIT,
    Candidates,
    Logits,
    SearchSettings,
    TopTokens,
    null_positions,
)
from qa_flax.data.batches import HostBatch, eval_batches, eval_widths, scatter
from qa_flax.data.packing import packed_eval_batches
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.device.in_flight import InFlight
from qa_flax.device.prefetch import prefetched, ready
from qa_flax.device.programs import Program, batch_shapes
from qa_flax.device.step import EvalOutput, Reduction, Weights
from qa_flax.distributed import exchange, preemption, processes
from qa_flax.messages import first_few, quoted
from qa_flax.models.id_limits import IdLimits
from qa_flax.train.compiling import Compiling
from qa_flax.train.eval_plan import EvalPlan, eval_plan

logger = logging.getLogger(__name__)


OnCandidates = Callable[[Candidates, Arrivals], None]
"""Called with candidates whose arrays are being filled, and with what says which have arrived."""


class Predictions(NamedTuple):
    """The logits and losses of N windows, in the order of the data."""

    logits: Logits | Candidates
    """Start and end logits, float32 [N, L] each, or the candidates among them."""
    losses: Float[np.ndarray, "n t"] | None
    """The terms of each window's loss, see `EvalOutput`; None for windows without labels."""
    bytes_to_host: int
    """How many bytes were copied from the cores to the host."""
    nonfinite: int
    """Number of windows with logits that are not finite."""
    tokens: int
    """Tokens of the windows, without padding."""
    positions: int
    """Tokens of all rows that were computed, with padding."""


def reduction(settings: SearchSettings) -> Reduction:
    """Return how a core reduces logits to the candidates that `settings` need."""
    return Reduction(settings.n_best_size, PADDING_LOGIT, finite=not settings.hf_compatible)


def predict_windows(
    step: Program,
    weights: Weights,
    windows: Windows,
    per_core: int,
    settings: SearchSettings | None,
    on_batch: Callable[[], None],
    plan: EvalPlan | None = None,
    limits: IdLimits = (),
    *,
    is_shown: bool = False,
    on_candidates: OnCandidates | None = None,
) -> Predictions:
    """Run every window through `step` and return the logits (or candidates) and losses.

    Padding tokens get the logit `PADDING_LOGIT`, so the result depends neither on the batch size
    nor on the padding nor on the number of cores. Windows whose logits are not all finite are
    logged as a warning, with the ids of their examples.

    Args:
        step: `eval_program`; with `reduction(settings)` if there are settings.
        weights: of the model, on the cores: float32 [D, ...], or shards.
        windows: N windows of padded length L.
        per_core: batch size of each core, in windows.
        settings: return only the candidates that these settings need; None: all logits.
        on_batch: called when the results of a batch have arrived on the host.
        plan: the shapes of the batches, from `eval_plan`. Several processes, which each have their
            own windows, need it; None: what these windows need, one window a row.
        limits: the model's `id_limits`; (): the ids are not checked.
        is_shown: whether lines say that the step is being compiled.
        on_candidates: called before the first batch with the candidates, whose arrays are being
            filled, and with what says which have arrived. Not called without settings.

    Raises:
        ValueError: an id is outside the model's tables.
        Preempted: SIGTERM was received; it is checked before each batch.
    """
    results = _Results(windows, settings)
    if on_candidates is not None and isinstance(results.buffer, _CandidateBuffer):
        on_candidates(results.buffer.contents(), results.arrivals)
    nulls = None if settings is None else null_positions(windows.cls_index, settings.hf_compatible)
    batches = map(partial(ready, limits=limits), _batches(windows, per_core, nulls, plan))
    with (
        _Steps(step, weights, _widths(windows, per_core, plan), is_shown) as steps,
        InFlight[HostBatch]() as in_flight,
        prefetched(batches) as prepared,
    ):
        for batch, arrays in prepared:
            preemption.check()
            compute, is_first = steps.step_for(arrays)
            if is_first:  # it may copy constants to the cores
                in_flight.add(batch, compute(weights, arrays))
            else:
                in_flight.call(batch, partial(_compute, compute, weights, arrays))
            for result in in_flight.due():
                results.add(*result)
                on_batch()
        for result in in_flight.all():
            results.add(*result)
            on_batch()
    found, nonfinite = results.predictions(), np.flatnonzero(~results.are_finite)
    if plan is not None and plan.packed is not None:
        alone = partial(predict_windows, step, weights, on_batch=on_batch, limits=limits)
        again = _with_nonfinite_alone(
            found, windows, nonfinite, results.buffer, alone, per_core, settings
        )
        results.arrivals.add_all()
        return again
    warn_of_nonfinite_logits(windows, nonfinite)
    results.arrivals.add_all()
    return found


class _Results:
    """The results of the batches that have arrived; see `Predictions`."""

    def __init__(self, windows: Windows, settings: SearchSettings | None):
        is_raw = settings is None
        self.buffer = _LogitBuffer(windows) if is_raw else _CandidateBuffer(windows, settings)
        self.are_finite = np.ones(len(windows), bool)
        self.arrivals = Arrivals(len(windows))
        self._losses: np.ndarray | None = None
        self._bytes = self._tokens = self._positions = 0

    def add(self, batch: HostBatch, output: EvalOutput) -> None:
        """Add the results of a batch, NumPy arrays."""
        self._bytes += sum(array.nbytes for array in jax.tree.leaves(output))
        self._tokens += batch.tokens
        self._positions += batch.arrays["input_ids"].size
        self.buffer.add(batch, output.logits)
        rows, are_finite = batch.rows[batch.valid], output.are_finite[batch.valid]
        self.are_finite[rows] = are_finite
        if output.losses is not None:
            if self._losses is None:
                shape = (len(self.are_finite), output.losses.shape[-1])
                self._losses = np.zeros(shape, np.float32)
            self._losses[rows] = output.losses[batch.valid]
        self.arrivals.add(rows[are_finite])  # packed windows that are not finite: computed again

    def predictions(self) -> Predictions:
        """What has been added, as one."""
        count = int((~self.are_finite).sum())
        counts = self._bytes, count, self._tokens, self._positions
        return Predictions(self.buffer.contents(), self._losses, *counts)


class _Steps:
    """The evaluation step, compiled for each width of the batches, ahead of its use.

    It is a context manager: what is not compiled yet when it ends is not compiled.

    Args:
        step: the evaluation step.
        weights: what it is called with.
        widths: of the batches, in their order.
        is_shown: whether lines say what is being compiled.
    """

    def __init__(self, step: Program, weights: Weights, widths: Sequence[int], is_shown: bool):
        self._step, self._weights, self._widths = step, weights, deque(dict.fromkeys(widths))
        self._compiling = Compiling("the evaluation step", is_shown)
        self._steps: dict[int, Callable[..., EvalOutput]] = {}

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *error: object) -> None:
        self._compiling.__exit__(*error)

    def step_for(self, arrays: Any) -> tuple[Callable[..., EvalOutput], bool]:
        """Return the step for a batch, and whether it is the first one of that width."""
        rows, width = arrays["input_ids"].shape[-2:]
        if processes.count() > 1:  # only all processes together have the arrays of all cores
            is_first = width not in self._steps
            return self._steps.setdefault(width, self._step), is_first
        is_first = width not in self._steps
        if is_first:
            self._compile(arrays, rows, width)
            self._steps[width] = self._compiling.result(width)
        elif self._widths:  # the cores compute the batch before this one
            self._compile(arrays, rows, self._widths.popleft())
        return self._steps[width], is_first

    def _compile(self, arrays: Any, rows: int, width: int) -> None:
        lower = partial(self._step.lower, self._weights, batch_shapes(arrays, rows, width))
        self._compiling.add(width, f"{rows} x {width} tokens", lower)


def _compute(step: Callable[..., EvalOutput], weights: Weights, arrays: Any) -> EvalOutput:
    with parallel.no_implicit_transfers():
        return step(weights, arrays)


def _widths(windows: Windows, per_core: int, plan: EvalPlan | None) -> Sequence[int]:
    """The width of each batch."""
    if plan is not None:
        return plan.widths
    return eval_widths(windows, parallel.process_core_count(), per_core)


def _batches(
    windows: Windows, per_core: int, nulls: Any, plan: EvalPlan | None
) -> Iterator[HostBatch]:
    cores = parallel.process_core_count()
    if plan is not None and plan.packed is not None:
        return packed_eval_batches(windows, *plan.packed, cores, *plan.shape, nulls)
    return eval_batches(windows, cores, per_core, nulls, None if plan is None else plan.widths)


def _with_nonfinite_alone(
    found: Predictions,
    windows: Windows,
    nonfinite: np.ndarray,
    buffer: Any,
    predict: Callable[..., Predictions],
    per_core: int,
    settings: SearchSettings | None,
) -> Predictions:
    """Compute packed windows whose logits are not finite again, in rows of their own.

    A packed window gets NaN from the others of its row, too: a probability of 0 times NaN.
    """
    if not sum(exchange.all_gather_json("windows that are not finite", len(nonfinite))):
        return found
    alone = windows.select(nonfinite)
    of_each = predict(
        windows=alone, per_core=per_core, settings=settings, plan=eval_plan(alone, per_core)
    )
    buffer.replace(nonfinite, of_each.logits)
    if found.losses is not None and of_each.losses is not None:
        found.losses[nonfinite] = of_each.losses
    return found._replace(
        logits=buffer.contents(),
        bytes_to_host=found.bytes_to_host + of_each.bytes_to_host,
        nonfinite=of_each.nonfinite,
        positions=found.positions + of_each.positions,
    )


def warn_of_nonfinite_logits(windows: Windows, rows: np.ndarray) -> None:
    """Log the examples of the windows `rows`, whose logits are not all finite."""
    if len(rows):
        logger.warning(
            "The logits of %d of %d windows are not finite (examples %s), so they give no "
            "answers. Look for NaN in the model's parameters; if there is none, compute in "
            "float32.",
            len(rows),
            len(windows),
            first_few(list(dict.fromkeys(windows.example_ids[row] for row in rows)), quoted),
        )


class _LogitBuffer:
    """Start and end logits, float32 [N, L] each, filled batch by batch."""

    def __init__(self, windows: Windows):
        self._starts = np.full((len(windows), windows.padded_length), PADDING_LOGIT, np.float32)
        self._ends = self._starts.copy()

    def add(self, batch: HostBatch, logits: Any) -> None:
        scatter(batch, logits.start, self._starts, PADDING_LOGIT)
        scatter(batch, logits.end, self._ends, PADDING_LOGIT)

    def replace(self, rows: np.ndarray, logits: Any) -> None:
        """Replace the logits of some windows."""
        for array, values in zip((self._starts, self._ends), logits, strict=True):
            array[rows, : values.shape[1]] = values

    def contents(self) -> Logits:
        return self._starts, self._ends


class _CandidateBuffer:
    """Candidates [N, C], filled batch by batch."""

    def __init__(self, windows: Windows, settings: SearchSettings):
        self._padded_length = windows.padded_length
        shape = (len(windows), min(settings.n_best_size, self._padded_length))
        # A batch narrower than C tokens gives fewer candidates. The remaining ones stay as they
        # are initialised: token L, which is beyond the end and in no answer.
        self._starts, self._ends = np.full((2, *shape), self._padded_length, np.int32)
        self._start_logits, self._end_logits = np.full((2, *shape), PADDING_LOGIT, np.float32)
        self._null_starts, self._null_ends = np.zeros((2, len(windows)), np.float32)

    def add(self, batch: HostBatch, best: Any) -> None:
        rows, first = batch.rows[batch.valid], np.int32(batch.columns.start)
        if batch.begins is not None:
            first = -batch.begins[batch.valid][:, None]
        count = best.starts.shape[-1]
        for tokens, all_tokens in ((best.starts, self._starts), (best.ends, self._ends)):
            own = tokens[batch.valid].astype(np.int32) + first
            # A token of an earlier window of the row stands where a window has too few.
            all_tokens[rows, :count] = np.where(own < 0, self._padded_length, own)
        self._start_logits[rows, :count] = best.start_logits[batch.valid]
        self._end_logits[rows, :count] = best.end_logits[batch.valid]
        self._null_starts[rows] = best.null_starts[batch.valid]
        self._null_ends[rows] = best.null_ends[batch.valid]

    def replace(self, rows: np.ndarray, candidates: Any) -> None:
        """Replace the candidates of some windows."""
        arrays = (self._starts, self._start_logits, self._ends, self._end_logits)
        for array, values in zip(arrays, candidates.tokens, strict=True):
            array[rows] = values
        self._null_starts[rows] = candidates.null_starts
        self._null_ends[rows] = candidates.null_ends

    def contents(self) -> Candidates:
        tokens = TopTokens(self._starts, self._start_logits, self._ends, self._end_logits)
        return Candidates(tokens, self._null_starts, self._null_ends, self._padded_length)
