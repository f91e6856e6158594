"""Stage 4 of 7: writes a checkpoint's files, in shards if they are large (host).

A folder never loads a mixture of two saves. It has one model.safetensors, or shards and an index,
and readers take model.safetensors if there are both. The index is removed before a shard of an
earlier save is replaced, and is written after all shards. The manifest of an earlier save is
removed before the first file is replaced. Trainers write a new one after the last file, see
`manifest.py`; a model that is saved alone has none, because scripts edit such files.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from qa_flax import storage
from qa_flax.models.family import Family
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
)
from qa_flax.models.manifest import MODEL_MANIFEST, add_files, entry_of, manifest_text
from qa_flax.models.tensors import is_tensor, tensor_to_numpy
from qa_flax.models.weights import NamedParameters, torch_layout
from qa_flax.storage import replacing

# Keyword of transformers' and PEFT's `save_pretrained` -> accepted values, and what to do instead.
FIXED_KEYWORDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "safe_serialization": (
        (True,),
        "pickles are not written; leave it out, and PyTorch loads model.safetensors",
    ),
    "variant": ((None,), "the weights file is always model.safetensors"),
    "save_peft_format": ((True, None), "adapters are written in PEFT's format"),
    "save_original_format": ((True, None), "weights are written by their names in transformers"),
    "distributed_checkpoint": ((False, None), "weights are written as safetensors"),
    "selected_adapters": ((None, ["default"]), "a model has one set of adapters, 'default'"),
    "save_embedding_layers": (("auto", False, None), "embeddings have no adapters"),
    "path_initial_model_for_weight_conversion": ((None,), "adapters are not converted"),
    "params": ((None,), "set them before with model.set_params(...)"),
}
# The keywords of an upload, which `push_to_hub=True` asks for.
UPLOAD_KEYWORDS = frozenset(
    {
        "token",
        "repo_id",
        "private",
        "commit_message",
        "commit_description",
        "create_pr",
        "revision",
        "tags",
    }
)
# They concern an upload in transformers 3, or how PyTorch writes a pickle.
UNUSED_KEYWORDS = frozenset(
    {"save_function", "use_auth_token", "repo_url", "organization", "push_to_hub"}
)


def check_keywords(keywords: Mapping[str, Any]) -> None:
    """Check the further keywords of `save_pretrained`.

    Raises:
        TypeError: a keyword is unknown.
        ValueError: a keyword asks for what is not supported.
    """
    for name, value in keywords.items():
        if name in UNUSED_KEYWORDS | UPLOAD_KEYWORDS:
            continue
        if name not in FIXED_KEYWORDS:
            raise TypeError(f"save_pretrained() got an unexpected keyword argument {name!r}")
        accepted, instead = FIXED_KEYWORDS[name]
        if not any(value is item or value == item for item in accepted):
            raise ValueError(
                f"save_pretrained: {name}={value!r} is not supported (accepted: "
                f"{', '.join(map(repr, accepted))}): {instead}"
            )


def without_ties(state_dict: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A state dict without the further names that PyTorch's model has for a tensor.

    Raises:
        ValueError: the values of two names of a tensor differ.
    """
    kept = dict(state_dict)
    for tied, first in family.tied_names.items():
        tied, first = family.prefix + tied, family.prefix + first
        if not kept.keys() >= {tied, first}:
            continue
        if not np.array_equal(_float32(kept.pop(tied)), _float32(kept[first])):
            raise ValueError(
                f"save_pretrained: {tied} and {first} of the state_dict differ, but they are one "
                "tensor of the model; leave one of them out"
            )
    return kept


def write_adapter(location: str | os.PathLike[str], config: str, named: NamedParameters) -> None:
    """Write PEFT's two files into a folder; `config` is the text of one, `named` has the tensors.

    Raises:
        OSError: a file cannot be written.
    """
    manifest = storage.path(location) / MODEL_MANIFEST
    with storage.output_folder(location) as directory:
        files = {ADAPTER_WEIGHTS_FILE: list(named)}
        _write(directory, (ADAPTER_CONFIG_FILE, config), files, _reader(named), [manifest])


def write_model(
    location: str | os.PathLike[str],
    config: str,
    named: NamedParameters,
    state_dict: Mapping[str, Any] | None = None,
    max_shard_size: int | str = "50GB",
) -> None:
    """Write a config and weights, and remove what an earlier save left of other weights.

    Args:
        location: a folder, which is created if necessary, or a folder's URL in a bucket.
        config: the text of the config file.
        named: the parameters, float32, by the names to write.
        state_dict: arrays or tensors that are written instead.
        max_shard_size: the largest size of a file, in bytes or as "5GB". A larger tensor is a file
            of its own.

    Raises:
        OSError: a file cannot be written.
        ValueError: `max_shard_size` is not a size, or `state_dict` does not fit the parameters.
    """
    read = _reader(named)
    if state_dict is not None:
        shapes = {name: read(name).shape for name in named}
        read = _checked_state_dict(state_dict, shapes).__getitem__
    split = _split({n: 4 * math.prod(p.shape) for n, (_, p) in named.items()}, max_shard_size)
    files, target = split.filename_to_tensors, storage.path(location)
    with storage.output_folder(location) as directory:
        replaced = [MODEL_MANIFEST, INDEX_FILE] if split.is_sharded else [MODEL_MANIFEST]
        removed = [target / name for name in replaced]
        _write(directory, (CONFIG_FILE, config), files, read, removed)
        if split.is_sharded:
            total = {"total_parameters": split.metadata["total_size"] // 4}
            index = {"metadata": total | split.metadata, "weight_map": split.tensor_to_filename}
            with replacing(directory / INDEX_FILE) as temporary:
                temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        kept = {*files, INDEX_FILE} if split.is_sharded else {*files}
    stale = {path.name for path in target.iterdir() if _WEIGHTS.fullmatch(path.name)} - kept
    # Without the index first, a reader could look for shards that are gone.
    for name in sorted(stale, key=lambda name: name != INDEX_FILE):
        (target / name).unlink(missing_ok=True)


def write_manifest(folder: Path) -> None:
    """Write the manifest of a model that was just saved into a local folder.

    Raises:
        OSError: it cannot be written.
    """
    if (folder / ADAPTER_CONFIG_FILE).exists() and (folder / ADAPTER_WEIGHTS_FILE).exists():
        names = [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE]
    else:
        weights = (path.name for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name))
        names = [CONFIG_FILE, *weights]
    entries = {name: entry_of(folder / name) for name in names if (folder / name).is_file()}
    storage.write_text(folder / MODEL_MANIFEST, manifest_text(entries))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer beside the model in a local folder, and add its files to the manifest.

    Args:
        tokenizer: one of transformers, or what else has its `save_pretrained`.
        folder: the folder of the model.

    Raises:
        OSError: a file cannot be written.
    """
    with storage.write_errors(folder):
        written = tokenizer.save_pretrained(folder)
    if isinstance(written, tuple | list):  # the files' paths; a script's own may return nothing
        paths = [Path(file) for file in written]
        add_files(folder, [os.path.relpath(path, folder) for path in paths if path.is_file()])


def _reader(named: NamedParameters) -> Callable[[str], np.ndarray]:
    """A function of a parameter's name that returns its values in PyTorch's layout."""

    def read(name: str, /) -> np.ndarray:
        path, param = named[name]
        return torch_layout(path, param[...])

    return read


def _checked_state_dict(
    state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays of a state dict as float32; `ValueError` if they do not have these shapes."""
    arrays = {name: _float32(value) for name, value in state_dict.items()}
    problems = [f"missing: {name}" for name in sorted(shapes.keys() - arrays.keys())]
    problems += [f"unexpected: {name}" for name in sorted(arrays.keys() - shapes.keys())]
    problems += [
        f"wrong shape: {name} is {list(arrays[name].shape)}, expected {list(shapes[name])}"
        for name in sorted(shapes.keys() & arrays.keys())
        if arrays[name].shape != shapes[name]
    ]
    if problems:
        raise ValueError(
            f"save_pretrained: state_dict does not fit the model ({len(problems)} difference(s), "
            f"first: {problems[0]}); leave it out to save the model's own weights"
        )
    return arrays


def _float32(value: Any) -> np.ndarray:
    array = tensor_to_numpy(value) if is_tensor(value) else value
    return np.ascontiguousarray(array, np.float32)


def _write(
    directory: Path,
    config: tuple[str, str],
    files: Mapping[str, list[str]],
    read: Callable[[str], np.ndarray],
    removed: Collection[storage.AnyPath] = (),
) -> None:
    """Write a config and the `files` of tensors, by their names.

    Existing files are replaced when all new ones are complete, after those in `removed` are gone.
    """
    with ExitStack() as on_exit:
        temporaries = []
        for file, names in files.items():
            temporaries.append(on_exit.enter_context(replacing(directory / file)))
            # transformers rejects a file whose metadata has no format.
            with storage.write_errors(directory / file):
                save_file({name: read(name) for name in names}, temporaries[-1], {"format": "pt"})
        text_file = on_exit.enter_context(replacing(directory / config[0]))
        text_file.write_text(config[1])
        for temporary in temporaries:
            # safetensors makes the file readable for its owner only. Use the user's umask instead.
            shutil.copymode(text_file, temporary)
        for path in removed:
            path.unlink(missing_ok=True)


_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def _split(sizes: Mapping[str, int], max_shard_size: int | str) -> Any:
    message = f"max_shard_size={max_shard_size!r} is not a size; give bytes, or text such as '5GB'"
    is_number = isinstance(max_shard_size, int) and not isinstance(max_shard_size, bool)
    if not isinstance(max_shard_size, str) and not (is_number and max_shard_size > 0):
        raise ValueError(message)
    try:
        return split_state_dict_into_shards_factory(
            dict(sizes),
            get_storage_size=lambda size: size,
            filename_pattern=WEIGHTS_FILE.replace(".", "{suffix}."),
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ValueError(f"{message} ({error})") from error
