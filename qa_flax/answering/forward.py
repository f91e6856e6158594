"""Run a model that may change over windows, on the cores of this process (host and device)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

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
BATCHES_IN_A_CALL, CALLS_AT_ONCE = 16, 2


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
        self._compiled: set[Any] = set()
        self._compiling = Lock()
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
        is_finite = np.ones(len(windows), bool)
        # Some operations use one thread of the CPU only: two calls at a time use the others.
        cores = parallel.process_core_count()
        pool = ThreadPoolExecutor(CALLS_AT_ONCE if cores == 1 else 1)
        try:
            compute = partial(self._compute, windows)
            for rows, width, is_token, logits in pool.map(compute, _parts(windows, cores)):
                preemption.check()
                for values, all_ in zip(logits, (starts, ends), strict=True):
                    all_[rows, windows.columns(width)] = np.where(is_token, values, PADDING_LOGIT)
                    is_finite[rows] &= (np.isfinite(values) | ~is_token).all(axis=1)
                on_windows(len(rows))
        finally:
            pool.shutdown(cancel_futures=True)
        warn_of_nonfinite_logits(windows, np.flatnonzero(~is_finite))
        return starts, ends

    def _compute(self, windows: LazyWindows, part: "_Part") -> tuple[Any, ...]:
        """Return the part's windows, their width, which are tokens, and their logits."""
        inputs = windows.inputs(part.rows, part.width)
        check_ids(inputs, self.model.id_limits)
        # Only one thread compiles: the other may need the same program.
        is_new = (self._graphdef, part.width) not in self._compiled
        with self._compiling if is_new else nullcontext():
            logits = self._loop(inputs, part.per_batch)
            self._compiled.add((self._graphdef, part.width))
        return part.rows, part.width, inputs["attention_mask"] > 0, logits

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


class _Part(NamedTuple):
    rows: np.ndarray
    """The windows that are computed in one call."""
    width: int
    """What they are padded to, in tokens."""
    per_batch: int


def _parts(windows: LazyWindows, cores: int) -> Iterator[_Part]:
    widths = -(-windows.lengths // WIDTH_STEP_ON_CPU) * WIDTH_STEP_ON_CPU
    widths = np.minimum(widths, windows.padded_length)
    for width in np.unique(widths)[::-1].tolist():
        rows, per_batch = np.flatnonzero(widths == width), max(1, TOKENS_ON_CPU // width)
        for part in blocks(len(rows), BATCHES_IN_A_CALL * per_batch * cores):
            yield _Part(rows[part], width, per_batch)
