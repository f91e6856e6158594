"""Parts of a model by PyTorch's paths, such as `model.bert.encoder.layer[:4]` (host)."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qa_flax.models.live_tensors import torch_module
from qa_flax.models.parameters import Parameter, Tree, leaves_of, set_requires_grad
from qa_flax.models.tensors import to_array


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` found: names that were missing, and unexpected ones."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class ModuleMethods:
    """The part of `torch.nn.Module`'s interface that concerns parameters and child modules."""

    def _tree(self) -> Tree:
        raise NotImplementedError

    def _whole(self) -> Any:
        """The model."""
        raise NotImplementedError

    def _label(self) -> str:
        """The module's path in the model; empty for the model."""
        return ""

    def _part(self, name: str, tree: Tree) -> "Part":
        label = self._label()
        return Part(self._whole(), f"{label}.{name}" if label else name, tree)

    # ---- modules -----------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Part"]]:
        """The modules directly below, by name. Modules without parameters are not listed."""
        for name, child in self._tree().items():
            if not isinstance(child, Parameter):
                yield name, self._part(name, child)

    def children(self) -> Iterator["Part"]:
        """The modules directly below."""
        return (child for _, child in self.named_children())

    def named_modules(
        self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        """This module and all modules below it, by name."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(prefix=f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Any]:
        """This module and all modules below it."""
        return (module for _, module in self.named_modules())

    def get_submodule(self, target: str) -> Any:
        """The module at a dotted path; `AttributeError` if there is none."""
        module: Any = self
        for name in target.split(".") if target else ():
            module = _child(module, name, "module", lambda child: not isinstance(child, Parameter))
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path; `AttributeError` if there is none."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        return _child(module, name, "parameter", lambda child: isinstance(child, Parameter))

    def get_input_embeddings(self) -> "Part":
        """The token embeddings."""
        for module in self.modules():
            weight = module._tree().get("weight")
            if isinstance(weight, Parameter) and weight.path[-2:] == ("word", "embedding"):
                return module
        raise AttributeError("this part of the model has no token embeddings")

    # ---- parameters --------------------------------------------------------------------------

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters by PyTorch's names, in PyTorch's order."""
        seen: set[int] = set()
        for name, view in leaves_of(self._tree(), f"{prefix}." if prefix else ""):
            is_direct = "." not in name.removeprefix(f"{prefix}.")
            if (recurse or is_direct) and not (remove_duplicate and id(view) in seen):
                seen.add(id(view))
                yield name, view

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, in PyTorch's order."""
        return (view for _, view in self.named_parameters(recurse=recurse))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters.

        Args:
            only_trainable: without those that are frozen.
            exclude_embeddings: without the embedding tables.
        """
        return sum(
            view.numel()
            for view in self.parameters()
            if (view.requires_grad or not only_trainable)
            and not (exclude_embeddings and view.path[-1] == "embedding")
        )

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Freeze (False) or unfreeze all parameters, and return the module.

        Raises `ValueError` while the model is trained, and for the encoder of a model with LoRA.
        """
        set_requires_grad(self._whole(), self.parameters(), bool(requires_grad))
        return self

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """All values by PyTorch's names, in PyTorch's layout.

        Args:
            destination: a dict to add them to; None: a new one.
            prefix: what the names begin with.
            keep_vars: whether the values are `Parameter` objects.

        Returns:
            Torch tensors if the script has imported torch, else read-only NumPy arrays. As in
            PyTorch, writing into one of the tensors changes the model.
        """
        state: dict[str, Any] = OrderedDict() if destination is None else destination
        values: dict[int, Any] = {}  # a tied parameter has the same tensor under all its names
        for name, view in leaves_of(self._tree(), prefix):
            if id(view) not in values:
                values[id(view)] = view.read() if torch_module() is None else view.data
            state[name] = view if keep_vars else values[id(view)]
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Write values into the model; if any does not fit, none is written.

        During training they are used from the next update on.

        Args:
            state_dict: torch tensors, NumPy arrays or JAX arrays by PyTorch's names.
            strict: whether missing and unexpected names are an error.
            assign: accepted; the parameters are float32 in any case.

        Returns:
            The missing and the unexpected names.

        Raises:
            RuntimeError: names are missing or unexpected, or shapes differ; the message has all.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict needs a dict, got {type(state_dict).__name__}")
        views = dict(leaves_of(self._tree()))
        missing = [name for name in views if name not in state_dict]
        # PEFT's copy of the head from before the adapters, which computes nothing.
        unexpected = [
            name for name in state_dict if name not in views and ".original_module." not in name
        ]
        arrays = {name: to_array(state_dict[name]) for name in views if name in state_dict}
        problems = [
            f"size mismatch for {name}: its shape is {list(array.shape)} in the state_dict, "
            f"{list(views[name].shape)} in the model"
            for name, array in arrays.items()
            if tuple(array.shape) != tuple(views[name].shape)
        ]
        if strict and unexpected:
            problems.insert(0, f"Unexpected key(s) in state_dict: {', '.join(unexpected)}")
        if strict and missing:
            problems.insert(0, f"Missing key(s) in state_dict: {', '.join(missing)}")
        if problems:
            raise RuntimeError("Error(s) in loading state_dict:\n  " + "\n  ".join(problems))
        for name, array in arrays.items():
            views[name].write(array)
        return IncompatibleKeys(missing, unexpected)


class Part(ModuleMethods):
    """A module of PyTorch's model as a view: its children, and their parameters.

    It is a list if PyTorch's module is one. It cannot be called, and its children cannot be
    replaced; assigning to one of its parameters writes the values into the model.
    """

    def __init__(self, model: Any, name: str, tree: Tree):
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_children", tree)

    def _tree(self) -> Tree:
        return self._children

    def _whole(self) -> Any:
        return self._model

    def __repr__(self) -> str:
        lines = [f"  ({name}): {list(view.shape)}" for name, view in self.named_parameters()]
        return "\n".join((f"Part {self._name}(", *lines, ")"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and other._identity() == self._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self._name, tuple(id(view) for view in self.parameters())

    def _label(self) -> str:
        return self._name

    @property
    def config(self) -> Any:
        """The model's config."""
        return self._model.config

    @property
    def device(self) -> Any:
        """Where values are returned, as of the model."""
        return self._model.device

    def eval(self) -> "Part":
        """Return the part: dropout is active in `Trainer.train` only."""
        return self

    def train(self, mode: bool = True) -> "Part":
        """Return the part: dropout is active in `Trainer.train` only."""
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the model holds no gradients."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `TypeError`: only the whole model can be called."""
        raise TypeError(
            f"{self._name} cannot be called on its own; call the model, which returns the start "
            "and end logits"
        )

    def __getattr__(self, name: str) -> Any:
        return module_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        child = self._children.get(name)
        if isinstance(child, Parameter) and value is not None:
            child.data = value
            return
        hint = "; use requires_grad_(...)" if name == "requires_grad" else ""
        raise AttributeError(
            f"{self._name}.{name} cannot be set: a part of the model is a view, of which only the "
            f"parameters can be written{hint}"
        )

    # ---- lists of modules --------------------------------------------------------------------

    def _modules(self) -> list["Part"]:
        if not self._children or not all(name.isdigit() for name in self._children):
            raise TypeError(
                f"{self._name} is not a list of modules; it has {', '.join(self._children)}"
            )
        return [self._part(name, child) for name, child in self._children.items()]

    def __len__(self) -> int:
        return len(self._modules())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator["Part"]:
        return iter(self._modules())

    def __getitem__(self, index: int | slice) -> "Part":
        modules = self._modules()
        if isinstance(index, slice):
            trees = {str(n): module._children for n, module in enumerate(modules[index])}
            return Part(self._model, self._name, trees)
        return modules[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(f"the modules of {self._name} cannot be replaced")

    def __delitem__(self, index: Any) -> None:
        raise TypeError(
            f"modules of {self._name} cannot be removed; load the model with a config of fewer "
            "layers instead"
        )


# What a PyTorch module says of its sizes: the leaf in Flax that has it, and the weight's axis.
_SIZES = {
    "in_features": ("kernel", 1),
    "out_features": ("kernel", 0),
    "num_embeddings": ("embedding", 0),
    "embedding_dim": ("embedding", 1),
}


def module_attribute(module: Any, name: str) -> Any:
    """The child of a module, for attributes that Python does not find.

    Raises:
        AttributeError: there is none; the message has the names of those that exist.
    """
    if name.startswith("_"):
        raise AttributeError(f"{type(module).__name__!r} has no attribute {name!r}")
    tree: Tree = module._tree()
    for path, level in _levels(tree):
        if name in level:
            child = level[name]
            if isinstance(child, Parameter):
                return child
            return module._part(".".join((*path, name)), child)
        weight = level.get("weight")
        leaf, axis = _SIZES.get(name, ("", 0))
        if isinstance(weight, Parameter) and weight.path[-1] == leaf and len(weight.shape) == 2:
            return weight.shape[axis]
    label = module._label() or "the model"
    raise AttributeError(
        f"{label} has no attribute {name!r}; of PyTorch's modules and parameters it has "
        f"{', '.join(tree)} (what has no parameters, such as dropout, is set in model.config)"
    )


def _levels(tree: Tree) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """The children of a module, then those of the modules to which PEFT's wrappers forward.

    Each comes with the path of the module that has them.
    """
    yield (), tree
    wrapped: list[tuple[str, ...]] = [("base_model",), ("base_model", "model")]
    wrapped += [("base_layer",), ("modules_to_save", "default")]
    wrapped += [("model",)] if list(tree) == ["model"] else []
    for path in wrapped:
        node: Any = tree
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            yield path, node


def _child(module: Any, name: str, kind: str, fits: Any) -> Any:
    tree = module._tree()
    if name in tree and fits(tree[name]):
        child = tree[name]
        return child if isinstance(child, Parameter) else module._part(name, child)
    raise AttributeError(f"there is no {kind} {name!r}; there are {', '.join(tree)}")
