"""Stage 4 of 7: checkpoint tensors -> model parameters and back: names, layouts, values (host).

A tensor of a checkpoint and a parameter of the model differ only in their names, which the family's
`weight_names` translate, and in the layout of dense kernels, which are transposed.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from qa_flax import messages
from qa_flax.messages import first_few
from qa_flax.models.configs import least_tensors
from qa_flax.models.family import Family
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CONFIG_FILE,
    FLOAT_DTYPES,
    INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    stored_adapter,
    stored_tensors,
)
from qa_flax.models.layers import BlockConfig, Fixed, ParamPath
from qa_flax.models.manifest import check_model
from qa_flax.models.transfers import to_device, to_host
from qa_flax.ranges import SEED, check_numbers

# (path, shape) of a parameter -> its float32 values.
MakeArray = Callable[[ParamPath, tuple[int, ...]], np.ndarray]
# Checkpoint name -> (path, parameter).
NamedParameters = dict[str, tuple[ParamPath, nnx.Variable]]
M = TypeVar("M", bound=nnx.Module)

logger = messages.logger(__name__)

MAX_DIFFERENCES = 40
"""Differences between a checkpoint and the model that an error message lists."""


# ---- names and layouts ---------------------------------------------------------------------------

# A dense kernel is [in, out] in Flax and [out, in] in PyTorch; other tensors differ only by name.
LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
LEAF_NAMES |= {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
LEAF_NAMES |= {"gain": "weight"}  # a scale that PyTorch lists after the bias, as in MobileBERT
TRANSPOSED = ("kernel", "lora_a", "lora_b")
# A parameter with another name belongs to no layer of Flax: families list its whole path.


def weight_name(path: ParamPath, family: Family, prefix: str = "") -> str:
    """The checkpoint name of the parameter at `path`; an encoder's name starts with `prefix`."""
    match, replacement, _ = _module_match(path, family)
    name = match.expand(replacement)
    if path[-1] in LEAF_NAMES:
        name = f"{name}.{LEAF_NAMES[path[-1]]}"
    return prefix + name if path[0] == "encoder" else name


def listing_order(path: ParamPath, family: Family) -> tuple[Any, ...]:
    """A key that sorts parameters so that each module's children come in PyTorch's order."""
    match, _, number = _module_match(path, family)
    # The pattern has no nested groups; a group is `\d+` or a list of alternatives.
    choices = [group.split("|") for group in re.findall(r"\(([^()]*)\)", match.re.pattern)]
    ranks = tuple(
        int(text) if text.isdigit() else alternatives.index(text)
        for text, alternatives in zip(match.groups(), choices, strict=True)
    )
    in_head = (path[0] == "head") != family.head_first
    leaf = list(LEAF_NAMES).index(path[-1]) if path[-1] in LEAF_NAMES else 0
    return in_head, number, ranks, leaf


def _module_match(path: ParamPath, family: Family) -> tuple[re.Match[str], str, int]:
    """The match of the module's pattern, the pattern's replacement, and its place in the table."""
    part, *modules = map(str, path if path[-1] not in LEAF_NAMES else path[:-1])
    names = {"encoder": family.weight_names, "head": family.head_weight_names}[part]
    module = ".".join(modules)
    for number, (pattern, replacement) in enumerate(names.items()):
        if match := re.fullmatch(pattern, module):
            return match, replacement, number
    raise KeyError(
        f"no checkpoint name for the module {module} of the {part}: add it to the weight names of "
        f"the family {family.model_type!r}"
    )


def named_parameters(model: nnx.Module, family: Family, prefix: str = "") -> NamedParameters:
    """The model's parameters, trained or not, by checkpoint name."""
    return {weight_name(path, family, prefix): (path, p) for path, p in parameters(model)}


def layer_name(family: Family, path: ParamPath) -> str:
    """PyTorch's name of the dense layer at `path` in the encoder."""
    name = weight_name(("encoder", *path, "kernel"), family, family.prefix)
    return name.removesuffix(".weight")


def _canonical(name: str, family: Family) -> str:
    """A checkpoint name without prefix; the old LayerNorm names gamma and beta are replaced."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def torch_layout(path: ParamPath, value: jax.Array) -> np.ndarray:
    """The parameter at `path` in PyTorch's layout."""
    array = to_host(value)
    # safetensors writes the memory in its physical order, so a transposed view must be copied.
    return np.ascontiguousarray(array.T if path[-1] in TRANSPOSED else array)


def flax_layout(path: ParamPath, array: np.ndarray) -> np.ndarray:
    """The array of the parameter at `path` in Flax's layout, given PyTorch's."""
    return array.T if path[-1] in TRANSPOSED else array


# ---- values --------------------------------------------------------------------------------------


def with_parameters(model: M, make_array: MakeArray) -> M:
    """A copy of `model` in which each parameter is `make_array(path, shape)`."""
    new = [(path, p.replace(to_device(make_array(path, p.shape)))) for path, p in parameters(model)]
    return nnx.merge(nnx.graphdef(model), nnx.from_flat_state(new))


def parameter_arrays(model: nnx.Module) -> dict[ParamPath, np.ndarray]:
    """The model's parameters, trained or not, as float32 arrays by path."""
    return {path: to_host(param[...]) for path, param in parameters(model)}


def parameters(model: nnx.Module) -> list[tuple[ParamPath, nnx.Variable]]:
    """The parameters that a checkpoint contains, trained or not, with paths, in NNX's order."""
    return list(nnx.to_flat_state(nnx.state(model, (nnx.Param, Fixed))))


def size_without_embeddings(model: nnx.Module) -> int:
    """The number of parameters, trained or not, without those of embedding tables."""
    return sum(math.prod(p.shape) for path, p in parameters(model) if path[-1] != "embedding")


def initial_arrays(family: Family, config: BlockConfig, seed: int) -> MakeArray:
    """Randomly initialised weights; the same `seed` gives the same weights on any hardware."""
    check_numbers({"seed": SEED}, seed=seed)
    # NumPy's generator also needs no compilation.
    random = np.random.default_rng(seed)
    fixed = family.fixed_arrays(config)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        if path in fixed:
            return fixed[path]
        return family.initial_array(path, shape, config, random)

    return array


def check_depth(directory: Path, config: BlockConfig) -> None:
    """Refuse a config of more layers than the checkpoint has tensors, before they are built.

    Raises:
        OSError: a file is missing or incomplete.
        ValueError: there are too few tensors.
    """
    stored, blocks = len(stored_tensors(directory)), least_tensors(config)
    if stored < blocks:
        raise ValueError(
            f"the weights in {directory} do not fit the model that its {CONFIG_FILE} describes: it "
            f"has {blocks:,} layers, but there are only {stored:,} tensors"
        )


def stored_arrays(
    model: nnx.Module,
    family: Family,
    config: BlockConfig,
    directory: Path,
    seed: int,
    ignore_mismatched_sizes: bool = False,
) -> MakeArray:
    """The weights of a checkpoint; a missing span head is initialised from `seed`, with a warning.

    With `ignore_mismatched_sizes` so is every weight that has another shape in the checkpoint.

    Raises:
        OSError: a file is missing or incomplete.
        ValueError: the checkpoint's tensors do not fit the model.
    """
    named = named_parameters(model, family)
    shapes = {name: torch_shape(path, p.shape) for name, (path, p) in named.items()}
    stored = _used_tensors(directory, family, shapes.keys())
    # Without the output layer a checkpoint has no span head, even if it contains the head's other
    # layers: those may belong to another task's head.
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
    if ignore_mismatched_sizes:
        mismatched = [n for n in shapes if n in stored and stored[n].shape != shapes[n]]
        if mismatched:
            logger.warning(
                "%s: %s have other shapes than the model and are newly initialised from seed %d.",
                directory,
                ", ".join(mismatched),
                seed,
            )
        stored = {name: tensor for name, tensor in stored.items() if name not in mismatched}
        shapes = {name: shape for name, shape in shapes.items() if name not in mismatched}
    _check_fit(directory, shapes, stored)
    initial = initial_arrays(family, config, seed)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        tensor = stored.get(weight_name(path, family))
        return initial(path, shape) if tensor is None else flax_layout(path, tensor.read())

    return array


def _used_tensors(
    directory: Path, family: Family, expected: Collection[str]
) -> dict[str, StoredTensor]:
    """The checkpoint's tensors by canonical name, without those that only other tasks use."""
    used: dict[str, StoredTensor] = {}
    alternatives: dict[str, StoredTensor] = {}
    tensors = stored_tensors(directory)
    check_model(directory, _files_of(tensors, directory))
    names = _names_without_wrappers([t.name for t in tensors], family, expected, directory)
    for tensor in tensors:
        name = _canonical(names[tensor.name], family)
        unused = any(re.fullmatch(pattern, name) for pattern in family.unused_weights)
        if unused and name not in expected:
            if name in family.other_names:
                alternatives[family.other_names[name]] = tensor
            continue
        if name in used:
            raise ValueError(
                f"{directory} contains {name} twice, as {used[name].name} and {tensor.name}; "
                "remove one of them"
            )
        used[name] = tensor
    return alternatives | used


def _files_of(tensors: Collection[StoredTensor], directory: Path) -> set[str]:
    """The names of the weights files, and that of the index if it was read."""
    names = {tensor.file.name for tensor in tensors}
    return names if WEIGHTS_FILE in names else names | {INDEX_FILE}


# Names of modules that wrap a model or a part of it: DistributedDataParallel, torch.compile, FSDP.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def _names_without_wrappers(
    names: Collection[str], family: Family, expected: Collection[str], directory: Path
) -> dict[str, str]:
    """The tensors' names without what a wrapper of the model put before them.

    A training script may save the state dict of a wrapped model: `module.bert.embeddings...` of
    DistributedDataParallel, or `model.bert...` of a Lightning module. A prefix is removed if the
    names fit only without it, and if all the names that fit then have the same.

    Returns:
        Stored name -> name without wrappers.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in names}
    fits = {
        prefix: sum(_canonical(n.removeprefix(prefix), family) in expected for n in plain.values())
        for prefix in {""} | _prefixes(plain.values(), family, expected)
    }
    best = [prefix for prefix, count in fits.items() if count == max(fits.values())]
    if len(best) == 1:  # a model of two encoders fits with either prefix
        plain = {name: text.removeprefix(best[0]) for name, text in plain.items()}
    changed = sum(name != text for name, text in plain.items())
    if changed:
        name, text = next((n, t) for n, t in plain.items() if n != t)
        logger.warning(
            "%s: %d of %d weight names have a prefix of a wrapper, which is ignored: %s is read as "
            "%s.",
            directory,
            changed,
            len(plain),
            name,
            text,
        )
    return plain


def _prefixes(names: Collection[str], family: Family, expected: Collection[str]) -> set[str]:
    """What stands before the names that end as an expected one, and before the family's prefix."""
    # The longest expected names are the least likely to end another name by chance.
    ends = tuple(f".{name}" for name in sorted(expected, key=len)[-8:])
    prefixes = Counter(
        name.removesuffix(end[1:]).removesuffix(family.prefix)
        for name in names
        for end in ends
        if name.endswith(end)
    )
    # Each is tried with every name; a wrapped model has one or two.
    return {prefix for prefix, _ in prefixes.most_common(8)}


def adapter_arrays(directory: Path, named: NamedParameters) -> dict[ParamPath, np.ndarray]:
    """The values of an adapter file by path; `ValueError` if it does not fit `named`."""
    stored = {tensor.name: tensor for tensor in stored_adapter(directory)}
    check_model(directory, {ADAPTER_WEIGHTS_FILE})
    shapes = {name: torch_shape(path, param.shape) for name, (path, param) in named.items()}
    _check_fit(directory, shapes, stored, ADAPTER_CONFIG_FILE)
    return {path: flax_layout(path, stored[name].read()) for name, (path, _) in named.items()}


def _check_fit(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredTensor],
    config_file: str = CONFIG_FILE,
) -> None:
    """Raise `ValueError` with all differences unless names, shapes and dtypes agree."""
    problems = [f"missing: {n} {list(shapes[n])}" for n in sorted(shapes.keys() - stored.keys())]
    problems += [
        f"unexpected: {_name(stored[n])} {list(stored[n].shape)}"
        for n in sorted(stored.keys() - shapes.keys())
    ]
    for name in sorted(shapes.keys() & stored.keys()):
        tensor = stored[name]
        if tensor.shape != shapes[name]:
            problems.append(
                f"wrong shape: {_name(tensor)} is {list(tensor.shape)} in the checkpoint, "
                f"{list(shapes[name])} by {config_file}"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            problems.append(
                f"wrong dtype: {_name(tensor)} is {tensor.dtype}; "
                f"supported: {', '.join(FLOAT_DTYPES)}"
            )
    if problems:
        more = f"\n  and {len(problems) - MAX_DIFFERENCES} more" * (len(problems) > MAX_DIFFERENCES)
        raise ValueError(
            f"the weights in {directory} do not fit the model that its {config_file} describes, "
            f"{len(problems)} difference(s):\n  " + "\n  ".join(problems[:MAX_DIFFERENCES]) + more
        )


def _name(tensor: StoredTensor) -> str:
    """A tensor's name in a message."""
    return first_few([tensor.name])


def torch_shape(path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the parameter at `path` in PyTorch's layout, given Flax's."""
    return shape[::-1] if path[-1] in TRANSPOSED else shape
