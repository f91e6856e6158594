"""Stage 5 of 7: the steps over the cores, made once for equal models and settings (device, JAX).

A step that was traced and compiled stays so while it is kept here: a second training of the same
architecture, as of another fold or another learning rate, starts at once.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import optax
from flax import nnx

from qa_flax.device import parallel
from qa_flax.device.step import Reduction, make_eval_step, make_train_step

# Of each kind, the last ones used: what is compiled takes the host's memory while it is kept.
KEPT = 8


def train_program(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, label_smoothing: float
) -> Callable[..., Any]:
    """`(state, batch, learning_rates, key_words) -> (state, measurements)`, all `[D, ...]`.

    `make_train_step`'s step over the cores that there are; the state's memory is given away. The
    key is `parallel.put_key`'s. Equal arguments give the same function.
    """
    return _train_program(graphdef, optimizer, label_smoothing, parallel.cores())


def eval_program(graphdef: nnx.GraphDef, reduction: Reduction | None) -> Callable[..., Any]:
    """`(weights, batch) -> EvalOutput`, all `[D, ...]`: `make_eval_step`'s step over the cores."""
    return _eval_program(graphdef, reduction, parallel.cores())


def forget() -> None:
    """Let go of all that is kept."""
    _train_program.cache_clear()
    _eval_program.cache_clear()


@lru_cache(maxsize=KEPT)
def _train_program(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    label_smoothing: float,
    devices: tuple[Any, ...],
) -> Callable[..., Any]:
    step = make_train_step(graphdef, optimizer, label_smoothing)
    return parallel.over_cores(
        lambda state, batch, rate, words: step(state, batch, rate, parallel.key_of(words)),
        (0, 0, 0, 0),
        (0, None),
        donate=True,
        devices=devices,
    )


@lru_cache(maxsize=KEPT)
def _eval_program(
    graphdef: nnx.GraphDef, reduction: Reduction | None, devices: tuple[Any, ...]
) -> Callable[..., Any]:
    return parallel.over_cores(make_eval_step(graphdef, reduction), (0, 0), 0, devices=devices)
