"""The depth of each parameter of a model: embeddings, layers as they run, span head (host).

The rule is on the tree of modules: each item of a `Stack` is a layer. Modules outside the stacks
count as embeddings, unless `beside_layers` of the module that holds the stack says which layer they
belong to. A module that holds several stacks has their order in `run_order`.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from flax import nnx

from qa_flax.models.blocks import Stack
from qa_flax.models.layers import ParamPath
from qa_flax.models.weights import parameters

EMBEDDINGS = 0
"""The level of the embeddings, and of projections and position tables that all layers share."""


class Depth(NamedTuple):
    """The levels of a model's parameters: 0 embeddings, 1 to `layers` the layers, then the head.

    The decoder's layers follow the encoder's. Layers that share their weights are one layer.
    """

    layers: int
    """Number of layers, n. The level of layer k, counted from 0, is k + 1; the head's is n + 1."""
    levels: Mapping[ParamPath, int]
    """The level of each parameter, trained or not, by its path."""
    is_shared: bool
    """Whether layers share their weights, so that `layers` counts groups of them."""

    @property
    def head(self) -> int:
        """The level of the span head."""
        return self.layers + 1

    def paths(self, levels: Container[int]) -> frozenset[ParamPath]:
        """The paths of all parameters on these levels."""
        return frozenset(path for path, level in self.levels.items() if level in levels)


def depth_of(model: Any) -> Depth:
    """The levels of the parameters of a question answering model."""
    layers = _layers(model.encoder, ("encoder",))
    level_of = {path: n for n, modules in enumerate(layers, 1) for path in modules}

    def level(path: ParamPath) -> int:
        if path[0] == "head":
            return len(layers) + 1
        inside = (level_of.get(path[:length]) for length in range(1, len(path)))
        return next((n for n in inside if n is not None), EMBEDDINGS)

    levels = {path: level(path) for path, _ in parameters(model)}
    is_shared = any(isinstance(module, Stack) for layer in layers for module in layer.values())
    return Depth(len(layers), levels, is_shared)


def _layers(module: Any, path: ParamPath) -> list[dict[ParamPath, Any]]:
    """The modules of each layer by their paths, in the order in which the layers run."""
    if isinstance(module, Stack):
        if isinstance(path[-1], int):  # a group in a list, which runs several times, as in ALBERT
            return [{path: module}]
        return [{(*path, n): layer} for n, layer in enumerate(module)]
    layers = [layer for name, child in _children(module) for layer in _layers(child, (*path, name))]
    for name, index in getattr(module, "beside_layers", {}).items():
        if layers:
            layers[index][*path, name] = getattr(module, name)
    return layers


def _children(module: Any) -> Iterator[tuple[Any, nnx.Module]]:
    """The modules in a module, those of an encoder-decoder in the order in which they run."""
    if isinstance(module, nnx.List):
        children = enumerate(module)
    else:  # NNX sorts attributes by name when it copies a module
        first = getattr(module, "run_order", ())
        names = [*first, *(name for name in vars(module) if name not in first)]
        children = ((name, getattr(module, name)) for name in names)
    return ((name, child) for name, child in children if isinstance(child, nnx.Module))
