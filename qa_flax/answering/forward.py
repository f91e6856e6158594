"""Run a model that may change over windows, on the cores of this process (host and device)."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from qa_flax.answers.spans import PADDING_LOGIT, Logits
from qa_flax.data.batches import WIDTH_STEP
from qa_flax.data.windows import LazyWindows
from qa_flax.device import parallel
from qa_flax.device.programs import process_eval_program
from qa_flax.device.step import weights_of
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.prediction import predict_windows

DEFAULT_BATCH_SIZE = 32
TOKENS_ON_CPU = 512
"""How many tokens a core computes at once, where the cores are CPUs."""


class Forward:
    """Computes logits with a model's present weights.

    The weights stay on the cores between calls. They are copied again when the model has others:
    after training, or after `set_params`.

    Args:
        model: the model.
    """

    def __init__(self, model: AutoModelForQuestionAnswering):
        self.model = model
        self._arrays: list[Any] = []
        self._weights: Any = None
        self._step: Any = None
        self.loads = 0
        """How often weights were copied to the cores: it grows when the model has others."""

    def __call__(
        self, windows: LazyWindows, batch_size: int | None, on_windows: Callable[[int], None]
    ) -> Logits:
        """Return start and end logits of N windows, float32 [N, L] each.

        Args:
            windows: the windows.
            batch_size: the largest number of windows that a core computes at once; None: what is
                fast on these cores.
            on_windows: called when the logits of a batch have arrived, with its number of windows.

        Raises:
            ValueError: a token id is outside the model's tables.
        """
        self.refresh()
        starts, ends = np.full((2, len(windows), windows.padded_length), PADDING_LOGIT, np.float32)
        for rows, largest in _groups(windows, batch_size):
            starts[rows], ends[rows] = self._logits(windows.select(rows), largest, on_windows)
        return starts, ends

    def _logits(
        self, windows: LazyWindows, batch_size: int, on_windows: Callable[[int], None]
    ) -> Logits:
        cores = parallel.process_core_count()
        # Few different numbers of rows, so that few programs are compiled.
        per_core = min(batch_size, 1 << (-(-len(windows) // cores) - 1).bit_length())
        left = len(windows)

        def count() -> None:
            nonlocal left
            done = min(left, per_core * cores)
            left -= done
            on_windows(done)

        limits = self.model.id_limits
        predictions = predict_windows(
            self._step, self._weights, windows, per_core, None, count, limits=limits
        )
        logits: Any = predictions.logits
        return logits

    def refresh(self) -> None:
        """Copy the model's weights to the cores, unless they are there already."""
        weights = weights_of(self.model)
        arrays = jax.tree.leaves(weights)
        # Arrays of a model are replaced, never changed in place.
        is_same = len(arrays) == len(self._arrays) and all(
            new is old for new, old in zip(arrays, self._arrays, strict=True)
        )
        if is_same:
            return
        self._weights = None  # frees the memory of the old ones first
        self._weights = parallel.put_replicas(weights)
        self._step = process_eval_program(self.model.graphdef(self.model.dtype))
        self._arrays = arrays
        self.loads += 1


def _groups(windows: LazyWindows, batch_size: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Yield groups of windows, and the largest number of each that a core computes at once."""
    if batch_size is not None or jax.default_backend() != "cpu":
        yield np.arange(len(windows)), batch_size or DEFAULT_BATCH_SIZE
        return
    # Larger batches do not fit into the caches of a CPU: with MiniLM, windows of 384 tokens were
    # computed 1.4 times as fast one by one as 32 at once.
    widths = np.minimum(-(-windows.lengths // WIDTH_STEP) * WIDTH_STEP, windows.padded_length)
    for width in np.unique(widths)[::-1]:
        yield np.flatnonzero(widths == width), max(1, TOKENS_ON_CPU // int(width))
