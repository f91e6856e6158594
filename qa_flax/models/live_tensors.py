"""Torch tensors that stay equal to a model's weights, for scripts that have imported torch (host).

PyTorch's `p.data` and `state_dict()` share the model's memory: what is written into them changes
the model. A copy would ignore such writes in silence. The tensors here are copies, too, but after
each operation that has changed one, the new values are written into the model; and before each
operation values that have changed in the model since are copied into the tensor.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np


class Source(NamedTuple):
    """Where a tensor's values are read from and written to."""

    version: Callable[[], Any]
    """Returns an object; another one means that the values have changed."""
    read: Callable[[], np.ndarray]
    write: Callable[[np.ndarray], None]


def torch_module() -> Any:
    """The module `torch` if the script has imported it, else None."""
    return sys.modules.get("torch")


def live_tensor(source: Source) -> Any:
    """A torch tensor with the values of `source`; what is written into it is written there."""
    return _tensor_class().of(source)


class _LiveMethods:
    """What a live tensor does besides `torch.Tensor`, from which its class inherits, too."""

    _source: Source | None = None  # None in a view
    _root: Any = None  # of a view: the tensor that it is a view of
    _version_read: Any = None

    @classmethod
    def of(cls, source: Source) -> Any:
        """A new tensor with the values of `source`."""
        torch: Any = torch_module()
        version = source.version()
        tensor = torch.from_numpy(np.array(source.read())).as_subclass(cls)
        tensor._source, tensor._version_read = source, version
        return tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in place of every function and method that a live tensor is given to."""
        torch: Any = torch_module()
        kwargs = kwargs or {}
        if func == torch.Tensor.data.__set__:
            func = torch.Tensor.copy_
        tensors: list[Any] = [t for t in _flat((args, kwargs)) if isinstance(t, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            roots = [tensor._root_tensor() for tensor in tensors]
            for root in roots:
                root._refresh()
            before = [tensor._version for tensor in tensors]
            result = func(*args, **kwargs)
            for tensor, root, version in zip(tensors, roots, before, strict=True):
                if tensor._version != version:
                    root._write()
            return _map(lambda value: cls._as_view(value, roots), result)

    @classmethod
    def _as_view(cls, value: Any, roots: Iterable[Any]) -> Any:
        """Mark a tensor that shares memory with a root as its view, and protect an array."""
        torch: Any = torch_module()
        if isinstance(value, np.ndarray):
            if not value.flags.owndata:
                value.flags.writeable = False  # torch does not see what is written into it
        elif isinstance(value, torch.Tensor) and not isinstance(value, cls):
            memory = value.untyped_storage().data_ptr()
            for root in roots:
                if memory and root.untyped_storage().data_ptr() == memory:
                    view = value.as_subclass(cls)
                    view._root = root
                    return view
        return value

    def _root_tensor(self) -> Any:
        return self if self._root is None else self._root

    def _plain(self) -> Any:
        tensor: Any = self
        torch: Any = torch_module()
        return tensor.as_subclass(torch.Tensor)

    def _refresh(self) -> None:
        torch: Any = torch_module()
        source = self._source
        if source is not None and (version := source.version()) is not self._version_read:
            with torch.no_grad():
                self._plain().copy_(torch.from_numpy(np.array(source.read())))
            self._version_read = version

    def _write(self) -> None:
        if (source := self._source) is not None:
            source.write(self._plain().detach().numpy())
            self._version_read = source.version()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        tensor: Any = self
        return memo.setdefault(id(self), tensor.detach().clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As a plain tensor, which `torch.load` accepts with its default `weights_only=True`.
        torch: Any = torch_module()
        with torch._C.DisableTorchFunctionSubclass():
            self._root_tensor()._refresh()
            return self._plain().__reduce_ex__(protocol)


@cache
def _tensor_class() -> Any:
    torch: Any = torch_module()
    return type("LiveTensor", (_LiveMethods, torch.Tensor), {})


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        for value in values:
            yield from _flat(value)
    else:
        yield values


def _map(function: Callable[[Any], Any], values: Any) -> Any:
    if type(values) in (list, tuple):
        return type(values)(_map(function, value) for value in values)
    return function(values)
