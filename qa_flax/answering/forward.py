"""Run a model that may change over windows, on the cores of this process (host and device)."""

import math
import operator
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np

from qa_flax.answers.spans import PADDING_LOGIT, Logits
from qa_flax.data.columns import blocks
from qa_flax.data.windows import LazyWindows
from qa_flax.device import parallel
from qa_flax.device.memory import abstract_weights
from qa_flax.device.programs import process_eval_program, process_logits_loop
from qa_flax.device.step import weights_of
from qa_flax.distributed import preemption
from qa_flax.models.id_limits import check_ids
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.transfers import implicit_transfers, to_host
from qa_flax.train.prediction import predict_windows, warn_of_nonfinite_logits

DEFAULT_BATCH_SIZE = 32
TOKENS_ON_CPU = 256
"""How many tokens a core computes at once, where cores are CPUs: about what their caches hold."""
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
        self._loop: Any = None
        self._compiled: set[int] = set()  # widths
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
        # Arrays of a model are replaced, never changed in place. A model is a JAX tree, which is
        # looked through in a tenth of the time that `weights_of` takes.
        arrays = jax.tree.leaves(self.model)
        is_same = len(arrays) == len(self._arrays) and all(map(operator.is_, arrays, self._arrays))
        if is_same:
            return
        self._weights = None  # frees the memory of the old ones first
        abstract = abstract_weights(self.model, False, is_padded=parallel.has_tiles())
        self._weights = parallel.put_state(weights_of(self.model), abstract)
        self._graphdef = self.model.graphdef(self.model.dtype)
        self._loop = process_logits_loop(self._graphdef)
        self._compiled.clear()
        self._arrays = arrays
        self.loads += 1

    # ---- CPUs ------------------------------------------------------------------------------------

    def _on_cpu(self, windows: LazyWindows, on_windows: Callable[[int], None]) -> Logits:
        """Compute windows of similar lengths in small batches, many of them in each call."""
        starts, ends = np.full((2, len(windows), windows.padded_length), PADDING_LOGIT, np.float32)
        is_finite = np.ones(len(windows), bool)
        cores = parallel.process_core_count()
        # Some operations use one thread of the CPU only: two calls at a time use the others.
        at_once = CALLS_AT_ONCE if cores == 1 else 1
        running: deque[tuple[_Part, np.ndarray, Future[list[np.ndarray]]]] = deque()

        def finish() -> None:
            part, is_token, computed = running.popleft()
            for values, all_ in zip(computed.result(), (starts, ends), strict=True):
                columns = windows.columns(part.width)
                all_[part.rows, columns] = np.where(is_token, values, PADDING_LOGIT)
                is_finite[part.rows] &= (np.isfinite(values) | ~is_token).all(axis=1)
            on_windows(len(part.rows))

        pool = ThreadPoolExecutor(at_once)
        try:
            for part in _parts(windows, cores):
                preemption.check()
                inputs = windows.inputs(part.rows, part.width)
                check_ids(inputs, self.model.id_limits)
                computed = pool.submit(self._compute, inputs, part)
                running.append((part, inputs["attention_mask"] > 0, computed))
                if len(running) > at_once:  # the next one waits while they run
                    finish()
            while running:
                preemption.check()
                finish()
        finally:
            pool.shutdown(cancel_futures=True)
        warn_of_nonfinite_logits(windows, np.flatnonzero(~is_finite))
        return starts, ends

    def _compute(self, inputs: dict[str, np.ndarray], part: "_Part") -> list[np.ndarray]:
        """Return start and end logits [n, width] of n rows."""
        batched = _Batched(len(part.rows), part.per_batch, parallel.process_core_count())
        arrays = {name: batched.placed(rows) for name, rows in inputs.items()}
        # Only one thread compiles: the other may need the same program.
        with nullcontext() if part.width in self._compiled else self._compiling:
            # The step takes host arrays in a tenth of the time that copying them before takes.
            with implicit_transfers():
                logits = self._loop(self._weights, arrays, batched.counts)
            self._compiled.add(part.width)
        return [batched.taken(to_host(array)) for array in logits]


class _Part(NamedTuple):
    rows: np.ndarray
    """The windows that are computed in one call."""
    width: int
    """What they are padded to, in tokens."""
    per_batch: int


class _Batched:
    """Where n rows are in the arrays of a call.

    Batch i is computed by core i modulo the number of cores, so that all have as many.

    Attributes:
        counts: how many batches each core computes, int32 [D].
    """

    def __init__(self, n: int, per_batch: int, cores: int):
        self._n, self._shape = n, (cores, BATCHES_IN_A_CALL, per_batch)
        batches = -(-n // per_batch)
        self.counts = ((batches - np.arange(cores) + cores - 1) // cores).astype(np.int32)
        batch, row = divmod(np.arange(batches * per_batch), per_batch)
        self._place = (batch % cores * BATCHES_IN_A_CALL + batch // cores) * per_batch + row

    def placed(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [n, width] as [D, m, b, width]."""
        array = np.zeros((math.prod(self._shape), rows.shape[1]), np.int32)
        array[self._place[: self._n]] = rows
        # The last batch is filled with a real window: a mask of zeros would give NaN.
        array[self._place[self._n :]] = rows[0]
        return array.reshape(*self._shape, -1)

    def taken(self, array: np.ndarray) -> np.ndarray:
        """Return the rows [n, width] of an array [D, m, b, width]."""
        return array.reshape(-1, array.shape[-1])[self._place[: self._n]]


def _parts(windows: LazyWindows, cores: int) -> Iterator[_Part]:
    widths = -(-windows.lengths // WIDTH_STEP_ON_CPU) * WIDTH_STEP_ON_CPU
    widths = np.minimum(widths, windows.padded_length)
    for width in np.unique(widths)[::-1].tolist():
        rows, per_batch = np.flatnonzero(widths == width), max(1, TOKENS_ON_CPU // width)
        for part in blocks(len(rows), BATCHES_IN_A_CALL * per_batch * cores):
            yield _Part(rows[part], width, per_batch)
