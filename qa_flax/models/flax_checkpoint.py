"""Reads the Flax checkpoints of transformers 4, flax_model.msgpack, by PyTorch's names (host).

Its Flax models have the modules of PyTorch's by the same names. Only the last part of a name
differs, and dense kernels are transposed. Tables of sinusoids, which PyTorch's checkpoints contain,
are computed by the Flax models.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore

from qa_flax.models.files import FLAX_FILE, FLAX_INDEX_FILE, shard_names
from qa_flax.models.model import family_of, load_config
from qa_flax.models.weights import LEAF_NAMES, weight_name


def flax_tensors(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of a Flax checkpoint by PyTorch's names and in its layout.

    Args:
        directory: it has a config.json and `flax_model.msgpack`, or its shards and their index.

    Raises:
        OSError: a file is missing.
        ValueError: a file is not a Flax checkpoint, or the model type is not supported.
    """
    config = load_config(directory)
    if (directory / FLAX_FILE).is_file():
        files = [FLAX_FILE]
    else:
        files = shard_names(directory / FLAX_INDEX_FILE)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        for path, array in _leaves(_restore(directory / file)):
            name, tensor = _in_torch(directory / file, path, array)
            tensors[name] = tensor
    family = family_of(config)
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    fixed = family.fixed_arrays(family.read_config(config.to_dict()))
    return {weight_name(path, family, prefix): array for path, array in fixed.items()} | tensors


def _restore(file: Path) -> Mapping[str, Any]:
    try:
        tree = msgpack_restore(file.read_bytes())
    except OSError:
        raise
    except Exception as error:  # each library below has its own for bytes that it cannot read
        reason = str(error) or type(error).__name__
        raise ValueError(f"{file} is not a complete msgpack file of Flax: {reason}") from error
    if isinstance(tree, Mapping) and tree.keys() == {"params"}:
        tree = tree["params"]
    if not isinstance(tree, Mapping):
        raise ValueError(f"{file} contains a {type(tree).__name__}, not parameters by name")
    return tree


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """The paths and values of a tree; shards have joined parts of a path (`a/b`) as names."""
    for name, value in tree.items():
        longer = (*path, *str(name).split("/"))
        if isinstance(value, Mapping):
            yield from _leaves(value, longer)
        else:
            yield longer, value


def _in_torch(file: Path, path: tuple[str, ...], value: Any) -> tuple[str, np.ndarray]:
    """The PyTorch name of the parameter at `path`, and its values in PyTorch's layout."""
    name, array = ".".join((*path[:-1], LEAF_NAMES.get(path[-1], path[-1]))), np.asarray(value)
    is_real = array.dtype.kind in "fiu" and array.dtype.itemsize <= 8
    if not (array.dtype.name == "bfloat16" or is_real):
        raise ValueError(f"{file}: {'/'.join(path)} is a {type(value).__name__}, not an array")
    if path[-1] == "kernel":
        if array.ndim != 2:
            raise ValueError(
                f"{file}: {'/'.join(path)} has the shape {list(array.shape)}; a dense kernel of "
                "two axes is expected. Save the model with transformers 4.9 or newer"
            )
        array = array.T
    if array.dtype.name == "bfloat16":  # exact, and every reader of safetensors knows float32
        array = array.astype(np.float32)
    return name, np.ascontiguousarray(array)
