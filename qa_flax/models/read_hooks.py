"""Hooks that run before a model's weights are read: during training they fetch the weights (host).

During training the current weights are on the cores and not in the model object. A user's code may
still read the model at any time: in a callback, after an error, through `nnx.state`. The hook that
`train/live_state.py` sets copies the weights into the model before such a read.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from flax import nnx

_READ_HOOKS: WeakKeyDictionary[nnx.Module, Callable[[], None]] = WeakKeyDictionary()

# Every access to a model's weights reads one of these attributes: calls, nnx.state, nnx.split,
# jax.tree functions, copies.
_HOLDS_WEIGHTS = frozenset({"encoder", "head", "__dict__"})


class ReadHooks(nnx.Module):
    """A module that calls its hook, set by `set_read_hook`, before its weights are accessed."""

    def __getattribute__(self, name: str) -> Any:
        if name in _HOLDS_WEIGHTS and (hook := _READ_HOOKS.get(self)) is not None:
            hook()
        return super().__getattribute__(name)


def has_read_hook(model: ReadHooks) -> bool:
    """Whether the model has a read hook, because the current weights are on the cores."""
    return model in _READ_HOOKS


def set_read_hook(model: ReadHooks, hook: Callable[[], None] | None) -> None:
    """Call `hook` before every read or write of the weights of `model`; None removes the hook."""
    if hook is None:
        _READ_HOOKS.pop(model, None)
    else:
        _READ_HOOKS[model] = hook


class DeferredArray:
    """Placeholder for the array of a variable whose current value is on the cores.

    Code that holds a variable from before training (`kernel = model.head.outputs.kernel`) finds it
    there instead of an outdated array. Each use reads the current value; it can be set by index.
    """

    def __init__(self, variable: nnx.Variable, shape: tuple[int, ...], read: Callable[[], None]):
        self._variable, self.shape, self._read = variable, shape, read
        self.dtype = np.dtype(np.float32)

    def __repr__(self) -> str:
        return f"DeferredArray({self.shape}, on the cores during training)"

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    def array(self) -> jax.Array:
        """The current array, as of the latest finished update."""
        self._read()
        return self._variable.get_raw_value()

    __jax_array__ = array

    def __getattr__(self, name: str) -> Any:
        if name in ("_variable", "_read"):  # not yet set while the object is copied
            raise AttributeError(name)
        return getattr(self.array(), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array(), dtype=dtype)

    def __getitem__(self, index: Any) -> jax.Array:
        return self.array()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._read()
        self._variable[index] = value
