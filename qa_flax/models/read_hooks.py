"""Weights that are elsewhere: while a model is trained, the cores hold them (host).

A script keeps one variable `model` from the first line to the last, and reads it when it likes: in
a callback, after an error, through `nnx.state`. While `train/live_state.py` owns the weights, every
such reading is told here first, so that the model holds them by the time it is read.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from flax import nnx

_READ_HOOKS: WeakKeyDictionary[nnx.Module, Callable[[], None]] = WeakKeyDictionary()

# All ways to a model's weights go through these: calls, nnx.state, nnx.split, jax.tree, copies.
_HOLDS_WEIGHTS = frozenset({"encoder", "head", "__dict__"})


class ReadHooks(nnx.Module):
    """A module that calls what `set_read_hook` was given before anybody gets at its parts."""

    def __getattribute__(self, name: str) -> Any:
        if name in _HOLDS_WEIGHTS and (call := _READ_HOOKS.get(self)) is not None:
            call()
        return super().__getattribute__(name)


def has_read_hook(model: ReadHooks) -> bool:
    """Whether somebody else holds the model's weights."""
    return model in _READ_HOOKS


def set_read_hook(model: ReadHooks, call: Callable[[], None] | None) -> None:
    """Call this from now on before `model` is read or written; None: nothing."""
    if call is None:
        _READ_HOOKS.pop(model, None)
    else:
        _READ_HOOKS[model] = call


class DeferredArray:
    """Stands for a variable's array that is on the cores, and becomes it when it is read.

    Only who kept a part of the model from before (`kernel = model.head.outputs.kernel`) meets one:
    it is the array of the moment, and may be written by index. Nothing ever reads an old value.
    """

    def __init__(self, variable: nnx.Variable, shape: tuple[int, ...], read: Callable[[], None]):
        self._variable, self.shape, self._read = variable, shape, read
        self.dtype = np.dtype(np.float32)

    def __repr__(self) -> str:
        return f"DeferredArray({self.shape}, on the cores while the model is trained)"

    @property
    def ndim(self) -> int:
        """Axes of the array."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Numbers in the array."""
        return int(np.prod(self.shape))

    def array(self) -> jax.Array:
        """The array, after the last finished update."""
        self._read()
        return self._variable.get_raw_value()

    __jax_array__ = array

    def __getattr__(self, name: str) -> Any:
        if name in ("_variable", "_read"):  # not made yet, while it is copied
            raise AttributeError(name)
        return getattr(self.array(), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array(), dtype=dtype)

    def __getitem__(self, index: Any) -> jax.Array:
        return self.array()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._read()
        self._variable[index] = value
