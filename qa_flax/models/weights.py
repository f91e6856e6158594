"""Stage 4 of 7: parameters by a checkpoint's names and layouts, and weights that fill a model.

A parameter's path in the model, its family's table of names, and PyTorch's layout: nothing else
stands between a checkpoint's tensor and the array here.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qa_flax.models.family import Family
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    FLOAT_DTYPES,
    StoredTensor,
    stored_adapter,
    stored_tensors,
)
from qa_flax.models.layers import BlockConfig, Fixed, ParamPath

# A parameter's place in the model and its shape -> its float32 values.
MakeArray = Callable[[ParamPath, tuple[int, ...]], np.ndarray]
# Parameters, with their places, by the names that a checkpoint has for them.
Named = dict[str, tuple[ParamPath, nnx.Variable]]
M = TypeVar("M", bound=nnx.Module)

logger = logging.getLogger(__name__)


# ---- names and layouts ---------------------------------------------------------------------------

# A dense kernel is [in, out] here and [out, in] in PyTorch; the rest differs by name only.
LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
LEAF_NAMES |= {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
TRANSPOSED = ("kernel", "lora_a", "lora_b")


def weight_name(path: ParamPath, family: Family, prefix: str = "") -> str:
    """The checkpoint's name of the parameter at `path`, the encoder's with `prefix` before it."""
    part, *modules, leaf = map(str, path)
    names = {"encoder": family.weight_names, "head": family.head_weight_names}[part]
    module = ".".join(modules)
    for pattern, replacement in names.items():
        if match := re.fullmatch(pattern, module):
            before = prefix if part == "encoder" else ""
            return f"{before}{match.expand(replacement)}.{LEAF_NAMES[leaf]}"
    raise KeyError(f"no checkpoint name for the module {module}: a row is missing in its table")


def named_parameters(model: nnx.Module, family: Family, prefix: str = "") -> Named:
    """All that a checkpoint of the model holds, by its names there."""
    return {weight_name(path, family, prefix): (path, p) for path, p in parameters(model)}


def layer_name(family: Family, path: ParamPath) -> str:
    """PyTorch's name of the encoder's dense layer at `path`."""
    name = weight_name(("encoder", *path, "kernel"), family, family.prefix)
    return name.removesuffix(".weight")


def _canonical(name: str, family: Family) -> str:
    """A checkpoint's name without the prefix and with today's LayerNorm words (was gamma, beta)."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def torch_layout(path: ParamPath, value: jax.Array) -> np.ndarray:
    """The array as PyTorch lays out the parameter at `path`."""
    array = np.asarray(value)
    # safetensors writes the memory as it lies, so a transposed view must be copied.
    return np.ascontiguousarray(array.T if path[-1] in TRANSPOSED else array)


def _our_layout(path: ParamPath, array: np.ndarray) -> np.ndarray:
    return array.T if path[-1] in TRANSPOSED else array


# ---- fitting it to the model ---------------------------------------------------------------------


def filled(model: M, array: MakeArray) -> M:
    """`model` with `array(path, shape)` for each parameter."""
    # A copy: JAX must be able to give its memory away (donation), which it cannot do with NumPy's.
    new = [(path, p.replace(jnp.array(array(path, p.shape)))) for path, p in parameters(model)]
    return nnx.merge(nnx.graphdef(model), nnx.from_flat_state(new))


def arrays_of(model: nnx.Module) -> dict[ParamPath, np.ndarray]:
    """All that a checkpoint of the model holds, by path, float32."""
    return {path: np.asarray(param[...]) for path, param in parameters(model)}


def parameters(model: nnx.Module) -> list[tuple[ParamPath, nnx.Variable]]:
    """All that a checkpoint holds, trained or not, with its path, in NNX's own, stable order."""
    return list(nnx.to_flat_state(nnx.state(model, (nnx.Param, Fixed))))


def initial_arrays(family: Family, config: BlockConfig, seed: int) -> MakeArray:
    """New weights. NumPy's generator gives the same ones on any hardware, and without compiling."""
    random = np.random.default_rng(seed)
    fixed = family.fixed_arrays(config)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        if path in fixed:
            return fixed[path]
        return family.initial_array(path, shape, config, random)

    return array


def stored_arrays(
    model: nnx.Module, family: Family, config: BlockConfig, directory: Path, seed: int
) -> MakeArray:
    """The checkpoint's weights, once it is known to fit, and a new span head if it has none."""
    named = named_parameters(model, family)
    shapes = {name: _torch_shape(path, p.shape) for name, (path, p) in named.items()}
    stored = _used_tensors(directory, family, shapes.keys())
    # The outputs are the head proper; a head's other layers may come from another task's.
    outputs = {name for name, (path, _) in named.items() if path[:2] == ("head", "outputs")}
    if not stored.keys() & outputs:
        head = sorted(n for n, (p, _) in named.items() if p[0] == "head" and n not in stored)
        shapes = {name: shape for name, shape in shapes.items() if name not in head}
        logger.warning(
            "%s has no span head: %s are newly initialised from seed %d. "
            "Fine-tune the model before using its answers.",
            directory,
            " and ".join(head),
            seed,
        )
    _check_fit(directory, shapes, stored)
    initial = initial_arrays(family, config, seed)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        tensor = stored.get(weight_name(path, family))
        return initial(path, shape) if tensor is None else _our_layout(path, tensor.read())

    return array


def _used_tensors(
    directory: Path, family: Family, wanted: Collection[str]
) -> dict[str, StoredTensor]:
    """The checkpoint's tensors by canonical name, without those not wanted of other tasks."""
    used: dict[str, StoredTensor] = {}
    others: dict[str, StoredTensor] = {}
    for tensor in stored_tensors(directory):
        name = _canonical(tensor.name, family)
        unused = any(re.fullmatch(pattern, name) for pattern in family.unused_weights)
        if unused and name not in wanted:
            if name in family.other_names:
                others[family.other_names[name]] = tensor
            continue
        if name in used:
            raise ValueError(
                f"{directory} holds {name} twice, as {used[name].name} and {tensor.name}; "
                "remove one of them"
            )
        used[name] = tensor
    return others | used


def adapter_arrays(directory: Path, named: Named) -> dict[ParamPath, np.ndarray]:
    """The adapters' values by path, once their file is known to fit the parameters `named`."""
    stored = {tensor.name: tensor for tensor in stored_adapter(directory)}
    shapes = {name: _torch_shape(path, param.shape) for name, (path, param) in named.items()}
    _check_fit(directory, shapes, stored, ADAPTER_CONFIG_FILE)
    return {path: _our_layout(path, stored[name].read()) for name, (path, _) in named.items()}


def _check_fit(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredTensor],
    config_file: str = CONFIG_FILE,
) -> None:
    """Raise with the whole difference unless names, shapes and dtypes agree both ways."""
    problems = [f"missing: {n} {list(shapes[n])}" for n in sorted(shapes.keys() - stored.keys())]
    problems += [
        f"unexpected: {stored[n].name} {list(stored[n].shape)}"
        for n in sorted(stored.keys() - shapes.keys())
    ]
    for name in sorted(shapes.keys() & stored.keys()):
        tensor = stored[name]
        if tensor.shape != shapes[name]:
            problems.append(
                f"wrong shape: {tensor.name} is {list(tensor.shape)} in the checkpoint, "
                f"{list(shapes[name])} by {config_file}"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            problems.append(
                f"wrong dtype: {tensor.name} is {tensor.dtype}; known: {', '.join(FLOAT_DTYPES)}"
            )
    if problems:
        raise ValueError(
            f"the weights in {directory} do not fit the model its {config_file} describes, "
            f"{len(problems)} difference(s):\n  " + "\n  ".join(problems)
        )


def _torch_shape(path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] in TRANSPOSED else shape
