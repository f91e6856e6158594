"""The batches of an evaluation, the same shapes in every process (host)."""

import itertools
import math
from typing import NamedTuple

from qa_flax.data.batches import eval_widths
from qa_flax.data.packing import (
    Members,
    Packing,
    describe_obstacle,
    packed_eval_rows,
    packing_of,
)
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.distributed import exchange


class EvalPlan(NamedTuple):
    """The batches of an evaluation, of the same shapes in every process."""

    widths: list[int]
    """The width of each batch in tokens."""
    packed: tuple[Packing, Members] | None
    """The rows of this process's windows, if several windows are packed into each."""
    rows: int
    """The rows on each core."""
    spans: int
    """Room for spans in the labels of all answers; 0 without them."""

    @property
    def shape(self) -> tuple[int, int]:
        """The rows on each core, and the number of batches."""
        return self.rows, len(self.widths)


def eval_plan(windows: Windows, per_core: int, packs: bool = False) -> EvalPlan:
    """Plan the batches of an evaluation. Every process must call it.

    Every process has its own windows, but all must run the same shapes equally often: a batch is as
    wide as the widest of any process.

    Args:
        windows: of this process; there may be none.
        per_core: windows of a batch on each core, on average if they are packed.
        packs: whether to pack several windows into each row, if that makes fewer positions.

    Raises:
        ValueError: no process has any windows, or only some processes have labels.
    """
    cores = parallel.process_core_count()
    local_widths = eval_widths(windows, cores, per_core)
    has_labels = windows.start_positions is not None
    packing = packing_of(windows)
    if not packs or describe_obstacle(windows) is not None:
        packing = Packing(0, 0)
    kinds = (has_labels, windows.spans > 0)
    gathered = exchange.all_gather_json(
        "batch widths", (local_widths, kinds, packing, windows.spans)
    )
    process_widths, of_processes, packings, spans = zip(*gathered, strict=True)
    are_labelled, have_all = zip(*of_processes, strict=True)
    if len(set(are_labelled)) > 1:
        raise ValueError(
            "the windows have labels in some processes and none in others: prepare them with "
            "labels=True or labels=False in every process"
        )
    if len(set(have_all)) > 1:
        raise ValueError(
            "the windows have all answers as labels in some processes and only the first in "
            'others: prepare them with the same answers="all" or answers="first" in every process'
        )
    widths = [max(column) for column in itertools.zip_longest(*process_widths, fillvalue=0)]
    if not widths:
        raise ValueError("the data set has no windows; there is nothing to evaluate or predict")
    if not all(width for width, _ in packings):
        return EvalPlan(widths, None, per_core, max(spans))
    packing = Packing(*map(max, zip(*packings, strict=True)))
    members = packed_eval_rows(windows, packing)
    gathered = exchange.all_gather_json("packed rows", (len(members), len(windows)))
    rows, counts = zip(*gathered, strict=True)
    # As many windows in a batch as without packing, on average.
    on_core = max(1, round(per_core * sum(rows) / sum(counts)))
    batches = max(math.ceil(count / (cores * on_core)) for count in rows)
    if batches * on_core * packing.width >= sum(widths) * per_core:
        return EvalPlan(widths, None, per_core, max(spans))
    return EvalPlan([packing.width] * batches, (packing, members), on_core, max(spans))
