"""Run a model that may change over windows, on the cores of this process (host and device)."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from qa_flax.answers.spans import PADDING_LOGIT, Logits
from qa_flax.data.columns import blocks
from qa_flax.data.windows import LazyWindows
from qa_flax.device import parallel
from qa_flax.device.programs import process_eval_program, process_logits_loop
from qa_flax.device.step import weights_of
from qa_flax.distributed import preemption
from qa_flax.models.id_limits import check_ids
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.prediction import predict_windows, warn_of_nonfinite_logits

DEFAULT_BATCH_SIZE = 32
TOKENS_ON_CPU = 256
"""How many tokens a core computes at once, where the cores are CPUs: about what their caches hold.
With MiniLM, windows of 384 tokens were computed 1.4 times as fast one by one as 32 at once."""
WIDTH_STEP_ON_CPU = 32
"""There, windows are padded to a multiple of this many tokens."""
BATCHES_IN_A_CALL = 32


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
        self._graphdef: Any = None
        self.loads = 0
        """How often weights were copied to the cores: it grows when the model has others."""

    def __call__(
        self, windows: LazyWindows, batch_size: int | None, on_windows: Callable[[int], None]
    ) -> Logits:
        """Return start and end logits of N windows, float32 [N, L] each, after a `refresh`.

        Args:
            windows: the windows.
            batch_size: the largest number of windows that a core computes at once; None: what is
                fast on these cores.
            on_windows: called when logits have arrived, with their number of windows.

        Raises:
            ValueError: a token id is outside the model's tables.
            Preempted: SIGTERM was received.
        """
        if batch_size is None and jax.default_backend() == "cpu":
            return self._on_cpu(windows, on_windows)
        cores, left = parallel.process_core_count(), len(windows)
        # Few different numbers of rows, so that few programs are compiled.
        rows = 1 << (-(-len(windows) // cores) - 1).bit_length()
        per_core = min(batch_size or DEFAULT_BATCH_SIZE, rows)

        def count() -> None:
            nonlocal left
            done = min(left, per_core * cores)
            left -= done
            on_windows(done)

        step, limits = process_eval_program(self._graphdef), self.model.id_limits
        predictions = predict_windows(
            step, self._weights, windows, per_core, None, count, limits=limits
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
        self._graphdef = self.model.graphdef(self.model.dtype)
        self._arrays = arrays
        self.loads += 1

    # ---- CPUs ------------------------------------------------------------------------------------

    def _on_cpu(self, windows: LazyWindows, on_windows: Callable[[int], None]) -> Logits:
        """Compute windows of similar lengths in small batches, many of them in each call."""
        starts, ends = np.full((2, len(windows), windows.padded_length), PADDING_LOGIT, np.float32)
        lengths, cores = windows.lengths, parallel.process_core_count()
        is_finite = np.ones(len(windows), bool)
        for width, rows in _by_width(lengths, windows.padded_length):
            columns, per_batch = windows.columns(width), max(1, TOKENS_ON_CPU // width)
            for part in blocks(len(rows), BATCHES_IN_A_CALL * per_batch * cores):
                some = rows[part]
                preemption.check()
                inputs = windows.inputs(some, width)
                check_ids(inputs, self.model.id_limits)
                is_token = inputs["attention_mask"] > 0
                for logits, all_ in zip(self._loop(inputs, per_batch), (starts, ends), strict=True):
                    all_[some, columns] = np.where(is_token, logits, PADDING_LOGIT)
                    is_finite[some] &= (np.isfinite(logits) | ~is_token).all(axis=1)
                on_windows(len(some))
        warn_of_nonfinite_logits(windows, np.flatnonzero(~is_finite))
        return starts, ends

    def _loop(self, inputs: dict[str, np.ndarray], per_batch: int) -> list[np.ndarray]:
        """Return start and end logits [n, width] of n rows."""
        cores = parallel.process_core_count()
        n, width = inputs["input_ids"].shape
        batches = -(-n // per_batch)
        shape = (cores, BATCHES_IN_A_CALL, per_batch, width)
        # Batch i is computed by core i modulo the number of cores, so that all have as many.
        places = np.arange(n) // per_batch % cores * BATCHES_IN_A_CALL
        places = (places + np.arange(n) // per_batch // cores) * per_batch + np.arange(
            n
        ) % per_batch
        arrays = {}
        for name, rows in inputs.items():
            # Padding rows repeat a real window: an all-zero attention mask would give NaN.
            array = np.broadcast_to(rows[0], (cores * BATCHES_IN_A_CALL * per_batch, width)).copy()
            array[places] = rows
            arrays[name] = array.reshape(shape)
        counts = (batches - np.arange(cores) + cores - 1) // cores
        loop = process_logits_loop(self._graphdef)
        logits = loop(self._weights, *parallel.put((arrays, counts.astype(np.int32))))
        return [np.asarray(array).reshape(-1, width)[places] for array in logits]


def _by_width(lengths: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the widths that windows of these lengths are padded to, and their windows."""
    widths = np.minimum(-(-lengths // WIDTH_STEP_ON_CPU) * WIDTH_STEP_ON_CPU, longest)
    for width in np.unique(widths)[::-1].tolist():
        yield width, np.flatnonzero(widths == width)
