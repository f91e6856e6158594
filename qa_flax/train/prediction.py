"""Run windows through the model and return the results in the order of the data (host and device).

The results of a batch are copied to the host while the next batch is computed.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qa_flax.answers.spans import (
    PADDING_LOGIT,
    Candidates,
    Logits,
    SearchSettings,
    TopTokens,
    null_positions,
)
from qa_flax.data.batches import HostBatch, eval_batches, eval_widths, scatter
from qa_flax.data.messages import first_few, quoted
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.device.in_flight import InFlight
from qa_flax.device.step import EvalOutput, Reduction, Weights
from qa_flax.distributed import exchange, preemption
from qa_flax.models.id_limits import IdLimits, check_ids

logger = logging.getLogger(__name__)


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


def reduction(settings: SearchSettings) -> Reduction:
    """Return how a core reduces logits to the candidates that `settings` need."""
    return Reduction(settings.n_best_size, PADDING_LOGIT, finite=not settings.hf_compatible)


def predict_windows(
    step: Callable[[Any, Any], EvalOutput],
    weights: Weights,
    windows: Windows,
    per_core: int,
    settings: SearchSettings | None,
    on_batch: Callable[[], None],
    widths: Sequence[int] | None = None,
    limits: IdLimits = (),
) -> Predictions:
    """Run every window through `step` and return the logits (or candidates) and losses.

    Padding tokens get the logit `PADDING_LOGIT`, so the result depends neither on the batch size
    nor on the padding nor on the number of cores. Windows whose logits are not all finite are
    logged as a warning, with the ids of their examples.

    Args:
        step: `make_eval_step` over the cores; with `reduction(settings)` if there are settings.
        weights: of the model, on the cores: float32 [D, ...], or shards.
        windows: N windows of padded length L.
        per_core: batch size of each core, in windows.
        settings: return only the candidates that these settings need; None: all logits.
        on_batch: called when the results of a batch have arrived on the host.
        widths: the width of each batch in tokens. With several processes, which each have their
            own windows, pass `common_widths`; None: the widths that these windows need.
        limits: the model's `id_limits`; (): the ids are not checked.

    Raises:
        ValueError: an id is outside the model's tables.
        Preempted: SIGTERM was received; it is checked before each batch.
    """
    buffer = _LogitBuffer(windows) if settings is None else _CandidateBuffer(windows, settings)
    nulls = None if settings is None else null_positions(windows.cls_index, settings.hf_compatible)
    losses: np.ndarray | None = None
    are_finite = np.ones(len(windows), bool)
    in_flight = InFlight[HostBatch]()
    compiled_widths: set[int] = set()
    bytes_to_host = 0

    def collect(batch: HostBatch, output: EvalOutput) -> None:
        nonlocal bytes_to_host, losses
        bytes_to_host += sum(array.nbytes for array in jax.tree.leaves(output))
        buffer.add(batch, output.logits)
        are_finite[batch.rows[batch.valid]] = output.are_finite[batch.valid]
        if output.losses is not None:
            if losses is None:
                losses = np.zeros((len(windows), output.losses.shape[-1]), np.float32)
            losses[batch.rows[batch.valid]] = output.losses[batch.valid]
        on_batch()

    for batch in eval_batches(windows, parallel.process_core_count(), per_core, nulls, widths):
        preemption.check()
        check_ids(batch.arrays, limits)
        arrays = parallel.put(batch.arrays)
        width = batch.columns.stop - batch.columns.start
        # The first batch of a width may compile the step, which copies constants to the cores.
        with parallel.no_implicit_transfers() if width in compiled_widths else nullcontext():
            output = step(weights, arrays)
        compiled_widths.add(width)
        in_flight.add(batch, output)
        for result in in_flight.due():
            collect(*result)
    for result in in_flight.all():
        collect(*result)
    nonfinite = np.flatnonzero(~are_finite)
    warn_of_nonfinite_logits(windows, nonfinite)
    return Predictions(buffer.contents(), losses, bytes_to_host, len(nonfinite))


def common_widths(windows: Windows, per_core: int) -> list[int]:
    """Return the width in tokens of each batch, the same in every process.

    Every process has its own windows, but all must run the same shapes equally often: a batch is as
    wide as the widest of any process. Every process must call it.

    Raises:
        ValueError: no process has any windows, or only some processes have labels.
    """
    local_widths = eval_widths(windows, parallel.process_core_count(), per_core)
    has_labels = windows.start_positions is not None
    gathered = exchange.all_gather_json("batch widths", (local_widths, has_labels))
    process_widths, are_labelled = zip(*gathered, strict=True)
    if len(set(are_labelled)) > 1:
        raise ValueError(
            "the windows have labels in some processes and none in others: prepare them with "
            "labels=True or labels=False in every process"
        )
    widths = [max(column) for column in itertools.zip_longest(*process_widths, fillvalue=0)]
    if not widths:
        raise ValueError("the data set has no windows; there is nothing to evaluate or predict")
    return widths


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
        rows, first = batch.rows[batch.valid], batch.columns.start
        count = best.starts.shape[-1]
        self._starts[rows, :count] = best.starts[batch.valid].astype(np.int32) + first
        self._ends[rows, :count] = best.ends[batch.valid].astype(np.int32) + first
        self._start_logits[rows, :count] = best.start_logits[batch.valid]
        self._end_logits[rows, :count] = best.end_logits[batch.valid]
        self._null_starts[rows] = best.null_starts[batch.valid]
        self._null_ends[rows] = best.null_ends[batch.valid]

    def contents(self) -> Candidates:
        tokens = TopTokens(self._starts, self._start_logits, self._ends, self._end_logits)
        return Candidates(tokens, self._null_starts, self._null_ends, self._padded_length)
