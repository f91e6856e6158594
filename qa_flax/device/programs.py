"""Stage 5 of 7: cache the steps over the cores by model and settings (device, JAX).

A step in the cache stays compiled, so a second training of the same architecture (another fold,
another learning rate) starts without compiling. Compiled programs are also stored on disk, for
other processes: see `compilation_cache.py`.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import optax
from flax import nnx

from qa_flax.device import parallel
from qa_flax.device.compilation_cache import use_compilation_cache
from qa_flax.device.step import (
    LossFunction,
    Reduction,
    make_eval_step,
    make_logits_loop,
    make_train_step,
)

CACHE_SIZE = 8
"""Train steps and eval steps in the cache, 8 of each; compiled programs take memory on the host."""


class Program:
    """A step over the cores.

    Args:
        step: from `parallel.over_cores`.
    """

    def __init__(self, step: Callable[..., Any]):
        use_compilation_cache()
        self._step: Any = step

    def __call__(self, *arguments: Any) -> Any:
        """Start the step on the cores; arguments of new shapes are compiled first."""
        with _mixed_dtypes():
            return self._step(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Trace the step for arguments of these shapes, unless that has been done.

        Args:
            arguments: as for a call; `jax.ShapeDtypeStruct`s may stand for arrays. One of several
                processes has only its own arrays: a call there compiles once more.

        Returns:
            Its `compile` gives a function of arguments of exactly these shapes, which tells how
            much memory it takes. Another thread may call it: JAX's settings, such as
            `jax.default_matmul_precision`, hold where the step is traced.
        """
        with _mixed_dtypes():
            return self._step.lower(*arguments)


def batch_shapes(
    arrays: Mapping[str, Any], rows: int, width: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of a batch like this one, of other rows and tokens.

    Args:
        arrays: of the batch, [..., B, L] of tokens and [..., B, ...] of rows.
        rows: the other B.
        width: the other L.
    """
    tokens = arrays["input_ids"].shape
    before = len(tokens) - 2

    def shape_of(name: str, array: Any) -> tuple[int, ...]:
        has_tokens = array.shape == tokens and not name.endswith("_all")  # spans are no tokens
        rest = (width,) if has_tokens else array.shape[before + 1 :]
        return (*array.shape[:before], rows, *rest)

    return {name: jax.ShapeDtypeStruct(shape_of(name, x), x.dtype) for name, x in arrays.items()}


def _mixed_dtypes() -> Any:
    """A context for optax, NNX and JAX's own attention, which mix dtypes.

    A script may have forbidden that with `jax_numpy_dtype_promotion="strict"`.
    """
    return jax.numpy_dtype_promotion("standard")


def train_program(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    label_smoothing: float,
    loss_function: LossFunction | None = None,
    ema_decay: float = 0.0,
    bf16_gradients: bool = False,
    dropout_bits: str = "hash",
) -> Program:
    """`make_train_step`'s step over all cores; equal arguments return the same function.

    Returns:
        `(state, batch, learning_rates, key_data) -> (state, measurements)`. Arguments and state are
        arrays `[D, ...]`; the measurements are scalars. The state is donated.
        `key_data` is `parallel.put_key`'s.
    """
    settings = label_smoothing, loss_function, ema_decay, bf16_gradients, dropout_bits
    return _train_program(graphdef, optimizer, *settings, parallel.cores())


def eval_program(
    graphdef: nnx.GraphDef,
    reduction: Reduction | None,
    loss_function: LossFunction | None = None,
) -> Program:
    """`make_eval_step`'s step over all cores; equal arguments return the same function.

    Returns:
        `(weights, batch) -> EvalOutput`, all arrays `[D, ...]`.
    """
    return _eval_program(graphdef, reduction, loss_function, parallel.cores())


def process_logits_loop(graphdef: nnx.GraphDef) -> Program:
    """`make_logits_loop`'s step over the cores of this process only.

    Returns:
        `(weights, batches, counts) -> (start, end)`, arrays [D, ...]; `counts` is int32 [D].
    """
    return _logits_loop(graphdef, parallel.cores()[parallel.process_cores()])


def process_eval_program(graphdef: nnx.GraphDef) -> Program:
    """`eval_program` of all logits over the cores of this process only.

    Other processes take no part in it, so each can call it as often as it likes. The weights must
    be replicated: shards are spread over the cores of all processes.
    """
    return _eval_program(graphdef, None, None, parallel.cores()[parallel.process_cores()])


def clear() -> None:
    """Empty the cache."""
    _train_program.cache_clear()
    _eval_program.cache_clear()
    _logits_loop.cache_clear()


@lru_cache(maxsize=CACHE_SIZE)
def _train_program(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    label_smoothing: float,
    loss_function: LossFunction | None,
    ema_decay: float,
    bf16_gradients: bool,
    dropout_bits: str,
    devices: tuple[Any, ...],
) -> Program:
    settings = label_smoothing, loss_function, ema_decay, bf16_gradients, dropout_bits
    step = make_train_step(graphdef, optimizer, *settings)
    over_cores = parallel.over_cores(
        lambda state, batch, rate, data: step(state, batch, rate, parallel.wrap_key(data)),
        (0, 0, 0, 0),
        (0, None),
        donate=True,
        devices=devices,
    )
    return Program(over_cores)


@lru_cache(maxsize=CACHE_SIZE)
def _eval_program(
    graphdef: nnx.GraphDef,
    reduction: Reduction | None,
    loss_function: LossFunction | None,
    devices: tuple[Any, ...],
) -> Program:
    step = make_eval_step(graphdef, reduction, loss_function)
    return Program(parallel.over_cores(step, (0, 0), 0, devices=devices))


@lru_cache(maxsize=CACHE_SIZE)
def _logits_loop(graphdef: nnx.GraphDef, devices: tuple[Any, ...]) -> Program:
    return Program(parallel.over_cores(make_logits_loop(graphdef), (0, 0, 0), 0, devices=devices))
