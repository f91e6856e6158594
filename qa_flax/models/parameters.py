"""A model's parameters by PyTorch's names: views to read, write, count and freeze them (host)."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qa_flax import messages
from qa_flax.models.families import FAMILIES
from qa_flax.models.layers import Fixed, ParamPath
from qa_flax.models.live_tensors import Source, live_tensor, torch_module
from qa_flax.models.read_hooks import has_read_hook
from qa_flax.models.tensors import to_array
from qa_flax.models.transfers import to_device
from qa_flax.models.weights import (
    LEAF_NAMES,
    flax_layout,
    listing_order,
    parameters,
    torch_layout,
    torch_shape,
    weight_name,
)

logger = messages.logger(__name__)

Tree = dict[str, Any]
"""The children of a module by name: a `Tree` for a module, a `Parameter` for a parameter."""

NO_GRADIENTS = (
    "this model holds no gradients: qa_flax.Trainer computes them inside its training step; use "
    "its arguments (optim, max_grad_norm, compute_loss_func, optimizers) instead"
)


class Parameter:
    """A view of one parameter in PyTorch's layout, with the part of a tensor's interface it needs.

    It holds no values: reading gives those of the model at that moment, during training those of
    the latest update, and writing changes the model. If the script has imported torch, `data` and
    all other values are torch tensors that are written through to the model, else read-only NumPy
    arrays. `requires_grad = False` freezes it: see `set_requires_grad`.
    """

    __slots__ = ("__weakref__", "_model", "_name", "_path")

    def __init__(self, model: Any, name: str, path: ParamPath):
        self._model, self._name, self._path = model, name, path

    def __repr__(self) -> str:
        state = "trained" if self.requires_grad else "frozen"
        return f"Parameter({self._name}, {list(self.shape)}, {state})"

    @property
    def path(self) -> ParamPath:
        """The path of the variable in the model."""
        return self._path

    def _variable(self) -> nnx.Variable:
        # Found anew each time: changing the dtype or the vocabulary replaces variables.
        node = self._model
        for key in self._path:
            node = node[key] if isinstance(key, int) else getattr(node, key)
        return node

    # ---- what it is --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch's layout, in which dense kernels are [out, in]."""
        shape = torch_shape(self._path, tuple(self._variable().get_raw_value().shape))
        torch = torch_module()
        return shape if torch is None else torch.Size(shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    nelement = numel

    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> Any:
        """float32, torch's if the script has imported torch, else NumPy's."""
        torch = torch_module()
        return np.dtype(np.float32) if torch is None else torch.float32

    @property
    def device(self) -> Any:
        """Where values are returned, as of the model."""
        return self._model.device

    # ---- training ----------------------------------------------------------------------------

    @property
    def is_fixed(self) -> bool:
        """Whether it can never be trained: the encoder of a model with LoRA, sinusoidal tables."""
        return isinstance(self._variable(), Fixed)

    @property
    def requires_grad(self) -> bool:
        """Whether the next `trainer.train()` trains it."""
        return not self.is_fixed and self._path not in self._model.frozen

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        set_requires_grad(self._model, [self], bool(value))

    def requires_grad_(self, requires_grad: bool = True) -> "Parameter":
        """Set `requires_grad`, and return the parameter."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self) -> None:
        """None: the model holds no gradients."""

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            raise ValueError(f"{self._name}.grad: {NO_GRADIENTS}")

    @property
    def is_leaf(self) -> bool:
        """True, as for every parameter of PyTorch."""
        return True

    # ---- values ------------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """The values: a torch tensor that is written through, or without torch this view itself."""
        if torch_module() is None:
            return self
        version = lambda: self._variable().get_raw_value()  # noqa: E731
        return live_tensor(Source(version, self.read, self.write))

    @data.setter
    def data(self, values: Any) -> None:
        array = to_array(values)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{self._name}: an array of dtype {array.dtype} was assigned; it must be floating "
                "point"
            )
        self.write(array)

    def read(self) -> np.ndarray:
        """The values as a read-only float32 array in PyTorch's layout."""
        array = torch_layout(self._path, self._variable()[...])
        array.flags.writeable = False
        return array

    def write(self, array: np.ndarray) -> None:
        """Replace the values in the model.

        Raises:
            ValueError: the array, in PyTorch's layout, has another shape.
        """
        if tuple(array.shape) != tuple(self.shape):
            raise ValueError(
                f"{self._name}: an array of shape {list(array.shape)} was written; the "
                f"parameter's shape is {list(self.shape)}"
            )
        variable = self._variable()
        old = variable.get_raw_value()
        device = old.sharding if isinstance(old, jax.Array) else None
        values = flax_layout(self._path, np.asarray(array, np.float32))
        variable.set_value(to_device(values, device))

    def detach(self) -> Any:
        """`data`."""
        return self.data

    def cpu(self) -> Any:
        """`data`."""
        return self.data

    def clone(self) -> Any:
        """A copy of the values that is independent of the model."""
        return np.array(self.read()) if torch_module() is None else self.data.clone()

    def numpy(self) -> np.ndarray:
        """The values as a read-only NumPy array."""
        return self.read()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(), dtype=dtype) if copy else np.asarray(self.read(), dtype=dtype)

    def item(self) -> float:
        """The value of a parameter with one element."""
        return self.read().item()

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.read().tolist()

    def copy_(self, values: Any, non_blocking: bool = False) -> "Parameter":
        """Write `values`, broadcast to the parameter's shape, into the model."""
        self.write(np.broadcast_to(to_array(values), self.shape))
        return self

    def fill_(self, value: Any) -> "Parameter":
        """Write one value into all elements."""
        return self.copy_(value)

    def zero_(self) -> "Parameter":
        """Write zeros."""
        return self.copy_(0.0)

    def __getitem__(self, index: Any) -> Any:
        return self.read()[index] if torch_module() is None else self.data[index]

    def __setitem__(self, index: Any, values: Any) -> None:
        if torch_module() is not None:
            self.data[index] = values
            return
        array = np.array(self.read())
        array[index] = to_array(values)
        self.write(array)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read() if torch_module() is None else self.data)

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> Any:
        if name == "__qualname__":  # what torch's optimizers name in their error
            return OPTIMIZER_ERROR
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("backward", "register_hook", "register_post_accumulate_grad_hook"):
            raise AttributeError(f"{self._name}.{name}: {NO_GRADIENTS}")
        torch = torch_module()
        values = self.read() if torch is None else self.data
        if hasattr(values, name):
            return getattr(values, name)
        reason = "" if torch else "; import torch for the methods of its tensors"
        if torch is None and name.endswith("_"):
            reason = "; assign an array to its data, or import torch for the methods of its tensors"
        raise AttributeError(f"{self._name}: a Parameter has no attribute {name!r}{reason}")

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch's functions: they get `data`."""
        return func(*_as_data(args), **_as_data(kwargs or {}))


OPTIMIZER_ERROR = (
    "Parameter, a weight that torch's optimizers cannot train: leave the optimizer out and pass "
    "optim='adamw_torch', learning_rate=... to TrainingArguments, or optimizers=(an optax "
    "transformation, a schedule) to qa_flax.Trainer"
)


def _as_data(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _as_data(value) for name, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(map(_as_data, values))
    return values.data if isinstance(values, Parameter) else values


def _values(operand: Any) -> Any:
    if not isinstance(operand, Parameter):
        return operand
    return operand.read() if torch_module() is None else operand.data


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: Parameter, *operands: Any) -> Any:
        return getattr(_values(self), name)(*map(_values, operands))

    return apply


def _in_place(name: str) -> Callable[..., Any]:
    def apply(self: Parameter, operand: Any) -> Parameter:
        result = getattr(_values(self), name)(_values(operand))
        if result is NotImplemented:
            return result
        self.write(to_array(result))
        return self

    return apply


_BINARY = ("add", "sub", "mul", "truediv", "pow", "matmul")
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), "neg", "abs"):
    setattr(Parameter, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Parameter, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(Parameter, f"__i{_name}__", _in_place(f"__{_name}__"))


# ---- the parameters of a model -------------------------------------------------------------------


class ParameterViews:
    """The `Parameter` objects of models, one for each parameter, so that `id(p)` identifies it.

    An attribute of the model. All are equal, because they take no part in what a model is.
    """

    def __init__(self):
        # By model: NNX copies a model with its attributes.
        self._views: Any = weakref.WeakKeyDictionary()

    def get(self, model: Any, name: str, path: ParamPath) -> Parameter:
        """The object for the parameter at `path`, which is made when it is first asked for."""
        views = self._views.setdefault(model, {})
        if path not in views:
            views[path] = Parameter(model, name, path)
        return views[path]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterViews)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ParameterViews()"

    def __deepcopy__(self, memo: dict[int, Any]) -> "ParameterViews":
        return ParameterViews()


def parameter_tree(model: Any) -> Tree:
    """PyTorch's tree of a model: modules and parameters by name, in PyTorch's order.

    A model with LoRA adapters has PEFT's names, which begin with `base_model.model`.
    """
    tree: Tree = {}
    for name, path in _named_paths(model).items():
        *modules, leaf = name.split(".")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = model.parameter_views.get(model, name, path)
    return _with_sorted_lists(tree)


def _with_sorted_lists(tree: Tree) -> Tree:
    """The tree with the modules of each list in the order of their numbers."""
    # A module that only some layers have is met first in one of the later layers.
    names = sorted(tree, key=int) if all(name.isdigit() for name in tree) else list(tree)
    children = ((name, tree[name]) for name in names)
    return {n: _with_sorted_lists(c) if isinstance(c, dict) else c for n, c in children}


def _named_paths(model: Any) -> dict[str, ParamPath]:
    """The path of each parameter by its full name; tied names follow the first name."""
    family = FAMILIES[model.config.model_type]
    paths = [path for path, _ in parameters(model)]
    paths.sort(key=lambda path: listing_order(path, family))
    named: dict[str, ParamPath] = {}
    for path in paths:
        name = weight_name(path, family, family.prefix)
        named[name] = path
        for tied, first in family.tied_names.items():
            if family.prefix + first == name:
                named[family.prefix + tied] = path
    if model.lora is None:
        return named
    adapted = {path[:-1] for path in paths if path[-1] == "lora_a"}
    return {_peft_name(name, path, adapted): path for name, path in named.items()}


def _peft_name(name: str, path: ParamPath, adapted: set[ParamPath]) -> str:
    leaf = LEAF_NAMES.get(path[-1]) or name.rpartition(".")[2]
    module = f"base_model.model.{name.removesuffix(f'.{leaf}')}"
    if path[-1] in ("lora_a", "lora_b"):
        matrix, _, weight = leaf.partition(".")
        return f"{module}.{matrix}.default.{weight}"
    if path[0] == "head":
        return f"{module}.modules_to_save.default.{leaf}"
    return f"{module}.base_layer.{leaf}" if path[:-1] in adapted else f"{module}.{leaf}"


def leaves_of(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    """The parameters below a module by their names in it, tied ones under each name."""
    for name, child in tree.items():
        if isinstance(child, Parameter):
            yield prefix + name, child
        else:
            yield from leaves_of(child, f"{prefix}{name}.")


# ---- freezing ------------------------------------------------------------------------------------


class ChangedSetting(NamedTuple):
    """A setting of the config, and its values before and after arguments changed it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class SetByArguments:
    """What training arguments have changed in a model, and may change back; an attribute of it."""

    frozen: frozenset[ParamPath] = frozenset()
    """The parameters in `model.frozen` that arguments froze, not the script."""
    settings: tuple[ChangedSetting, ...] = ()
    """The settings of `model.config` that arguments changed."""
    reinitialized: int = 0
    """How many of the last layers were initialized anew."""


def set_requires_grad(model: Any, views: Iterable[Parameter], value: bool) -> None:
    """Freeze or unfreeze parameters; `trainer.train()` reads it when it starts.

    Raises:
        ValueError: the model is being trained, or parameters would be trained that a checkpoint of
            LoRA adapters does not contain.
    """
    views = list(views)
    fixed = [view for view in views if view.is_fixed]
    if fixed and value:
        names = ", ".join(view._name for view in fixed[:3])
        names += f" and {len(fixed) - 3} more" if len(fixed) > 3 else ""
        if model.lora is not None:
            raise ValueError(
                f"requires_grad=True: the encoder of a model with LoRA adapters stays frozen, "
                f"because its checkpoints hold only the adapters and the span head ({names}); to "
                "train the encoder, train the model without adapters"
            )
        logger.warning("requires_grad=True has no effect on the fixed table %s.", names)
    paths = {view.path for view in views if not view.is_fixed}
    by_arguments = model.set_by_arguments
    # What a script sets is its own: changed arguments leave it.
    model.set_by_arguments = replace(by_arguments, frozen=by_arguments.frozen - paths)
    frozen = model.frozen - paths if value else model.frozen | paths
    if frozen == model.frozen:
        return
    if has_read_hook(model):
        raise ValueError(
            "requires_grad cannot be changed while the model is trained, because the optimizer "
            "was built for the parameters that are trained; to unfreeze gradually, train in "
            "stages: set requires_grad, then call train() of a new Trainer"
        )
    model.frozen = frozenset(frozen)


def freeze_by_arguments(model: Any, paths: Iterable[ParamPath]) -> None:
    """Freeze the parameters that arguments name, and unfreeze those that earlier ones named.

    What a script has frozen stays frozen. Parameters that are never trained are left out.

    Raises:
        ValueError: the model is being trained.
    """
    trained = nnx.to_flat_state(nnx.state(model, nnx.Param))
    wanted = frozenset(path for path, _ in trained).intersection(paths)
    own = model.frozen - model.set_by_arguments.frozen
    if own | wanted == model.frozen:
        return
    if has_read_hook(model):
        raise ValueError(
            "this model is being trained already; wait until that training has finished"
        )
    model.frozen = own | wanted
    model.set_by_arguments = replace(model.set_by_arguments, frozen=wanted - own)


def frozen_names(model: Any) -> list[str]:
    """The names of the frozen parameters, in PyTorch's order; a frozen module gives only its own.

    Parameters that are never trained (`Parameter.is_fixed`) are not listed.
    """
    if not model.frozen:
        return []

    def is_frozen(view: Parameter) -> bool:
        return view.path in model.frozen and not view.is_fixed

    def names(tree: Tree, prefix: str) -> list[str]:
        views = [view for _, view in leaves_of(tree) if not view.is_fixed]
        if views and prefix and all(map(is_frozen, views)):
            return [prefix.removesuffix(".")]
        frozen: list[str] = []
        for name, child in tree.items():
            if isinstance(child, Parameter):
                frozen += [prefix + name] if is_frozen(child) else []
            else:
                frozen += names(child, f"{prefix}{name}.")
        return frozen

    return names(parameter_tree(model), "")
