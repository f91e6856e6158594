"""Windows through the model: what comes back, in the order of the data (host and device).

A batch's results are copied to the host while the next one is computed.
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

logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What the model says of N windows, and each window's loss where it has labels."""

    logits: Logits | Candidates
    losses: Float[np.ndarray, " n"] | None
    bytes_to_host: int


def reduction(settings: SearchSettings) -> Reduction:
    """How a core reduces logits to the candidates that `settings` need."""
    return Reduction(settings.n_best_size, PADDING_LOGIT, finite=not settings.hf_compatible)


def predict_windows(
    step: Callable[[Any, Any], EvalOutput],
    weights: Weights,
    windows: Windows,
    per_core: int,
    settings: SearchSettings | None,
    on_batch: Callable[[], None],
    widths: Sequence[int] | None = None,
) -> Predictions:
    """Run every window through `step` (over the cores), `per_core` rows a core at a time.

    Args:
        step: `make_eval_step`, over the cores; with `reduction(settings)` if there are settings.
        weights: the model's, on the cores.
        windows: N windows.
        per_core: rows of a batch on each core.
        settings: None to gather all logits; otherwise the candidates that they need.
        on_batch: called when a batch has come back.
        widths: of the batches, where several hosts have `common_widths`; each has its own windows.

    Raises:
        Preempted: SIGTERM has come; looked for before each batch.

    A window whose logits are not all finite is warned of, with its example's id.

    Padding tokens get `PADDING_LOGIT`, so the result depends neither on batch size nor on padding
    nor on cores.
    """
    result = _AllLogits(windows) if settings is None else _BestLogits(windows, settings)
    nulls = None if settings is None else null_positions(windows.cls_index, settings.hf_compatible)
    has_labels = windows.start_positions is not None and windows.end_positions is not None
    losses = np.zeros(len(windows), np.float32) if has_labels else None
    are_finite = np.ones(len(windows), bool)
    in_flight = InFlight[HostBatch]()
    compiled: set[int] = set()
    bytes_to_host = 0

    def collect(batch: HostBatch, output: EvalOutput) -> None:
        nonlocal bytes_to_host
        bytes_to_host += sum(array.nbytes for array in jax.tree.leaves(output))
        result.add(batch, output.logits)
        are_finite[batch.rows[batch.valid]] = output.are_finite[batch.valid]
        if losses is not None and output.losses is not None:
            losses[batch.rows[batch.valid]] = output.losses[batch.valid]
        on_batch()

    for batch in eval_batches(windows, parallel.process_core_count(), per_core, nulls, widths):
        preemption.check()
        arrays = parallel.put(batch.arrays)
        width = batch.columns.stop - batch.columns.start
        # A width's first batch may compile the step, and then constants go to the cores.
        with parallel.no_implicit_transfers() if width in compiled else nullcontext():
            output = step(weights, arrays)
        compiled.add(width)
        in_flight.add(batch, output)
        for done in in_flight.due():
            collect(*done)
    for done in in_flight.all():
        collect(*done)
    _warn_of_bad_logits(windows, np.flatnonzero(~are_finite))
    return Predictions(result.finished(), losses, bytes_to_host)


def common_widths(windows: Windows, per_core: int) -> list[int]:
    """The widths of the batches that every host makes of its own windows: the widest of each.

    Raises:
        ValueError: no host has any windows.
    """
    own = eval_widths(windows, parallel.process_core_count(), per_core)
    given, labelled = zip(
        *exchange.all_gather_json("batch widths", (own, windows.start_positions is not None)),
        strict=True,
    )
    if len(set(labelled)) > 1:
        raise ValueError(
            "the windows have labels on some hosts and none on others: prepare them with "
            "labels=True or labels=False on all"
        )
    agreed = [max(widths) for widths in itertools.zip_longest(*given, fillvalue=0)]
    if not agreed:
        raise ValueError("there are no windows to predict")
    return agreed


def _warn_of_bad_logits(windows: Windows, bad: np.ndarray) -> None:
    if len(bad):
        logger.warning(
            "The logits of %d of %d windows are not finite (examples %s): their answers say "
            "nothing. Look for NaN in the model's parameters; if it has none, compute in float32.",
            len(bad),
            len(windows),
            first_few([windows.example_ids[row] for row in bad], quoted),
        )


class _AllLogits:
    """Start and end logits [N, L], filled batch by batch."""

    def __init__(self, windows: Windows):
        self._starts = np.full((len(windows), windows.padded_length), PADDING_LOGIT, np.float32)
        self._ends = self._starts.copy()

    def add(self, batch: HostBatch, logits: Any) -> None:
        scatter(batch, logits.start, self._starts, PADDING_LOGIT)
        scatter(batch, logits.end, self._ends, PADDING_LOGIT)

    def finished(self) -> Logits:
        return self._starts, self._ends


class _BestLogits:
    """Candidates [N, C], filled batch by batch."""

    def __init__(self, windows: Windows, settings: SearchSettings):
        self._padded_length = windows.padded_length
        shape = (len(windows), min(settings.n_best_size, self._padded_length))
        # A batch narrower than C tokens leaves places over: tokens behind the end, no answer's.
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

    def finished(self) -> Candidates:
        tokens = TopTokens(self._starts, self._start_logits, self._ends, self._end_logits)
        return Candidates(tokens, self._null_starts, self._null_ends, self._padded_length)
