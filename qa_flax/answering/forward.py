"""Run a model that may change over windows, on the cores of this process (host and device)."""

from collections.abc import Callable
from typing import Any

import jax

from qa_flax.answers.spans import Logits
from qa_flax.data.windows import LazyWindows
from qa_flax.device import parallel
from qa_flax.device.programs import process_eval_program
from qa_flax.device.step import weights_of
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.prediction import predict_windows


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
        self, windows: LazyWindows, batch_size: int, on_batch: Callable[[], None]
    ) -> Logits:
        """Return start and end logits of N windows, float32 [N, L] each.

        Args:
            windows: the windows.
            batch_size: the largest number of windows that a core computes at once.
            on_batch: called when the logits of a batch have arrived.

        Raises:
            ValueError: a token id is outside the model's tables.
        """
        self.refresh()
        rows = -(-len(windows) // parallel.process_core_count())
        # Few different numbers of rows, so that few programs are compiled.
        per_core = min(batch_size, 1 << (rows - 1).bit_length())
        limits = self.model.id_limits
        predictions = predict_windows(
            self._step, self._weights, windows, per_core, None, on_batch, limits=limits
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
