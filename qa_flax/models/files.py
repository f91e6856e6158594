"""Stage 4 of 7: a checkpoint's files: found, listed and read one tensor at a time (host)."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from qa_flax import storage

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, not read yet."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """Its values as float32."""
        with safe_open(self.file, "np") as opened:
            return opened.get_tensor(self.name).astype(np.float32, copy=False)


# safetensors' dtype names; each is exact or rounded once in float32.
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")


def checkpoint_directory(source: str | os.PathLike[str], **hub: Any) -> Path:
    """`source` if it is a directory, else the local copy of that bucket's folder or hub id.

    `OSError` if it is none of these.
    """
    path = storage.local_copy(source) if storage.is_remote(source) else Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{source} is a file; give the directory that holds it")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith("."):
        raise FileNotFoundError(
            f"{source} does not exist, and it is no hub id (name or owner/name)"
        )
    files = [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model*.safetensors"]
    files += [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE]
    try:
        return Path(snapshot_download(str(source), allow_patterns=files, **hub))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{source} is no directory here, and the hub gave no model of that id: {reason}"
        ) from error


def stored_tensors(directory: Path) -> list[StoredTensor]:
    """What the checkpoint's one file, or the shards its index names, hold.

    `OSError` for files that are absent or not whole, `ValueError` for an index that is no index or
    that names files elsewhere.
    """
    if (directory / WEIGHTS_FILE).is_file():
        files = [WEIGHTS_FILE]
    elif (directory / INDEX_FILE).is_file():
        files = shard_names(directory / INDEX_FILE)
    else:
        raise FileNotFoundError(
            f"{directory} has no {WEIGHTS_FILE} and no {INDEX_FILE}; it holds: "
            f"{listing(directory)}. {PICKLE_HELP}"
        )
    return [tensor for file in files for tensor in _tensors_of(directory / file)]


def stored_adapter(directory: Path) -> list[StoredTensor]:
    """What PEFT's file of adapters holds; `OSError` if it is absent or not whole."""
    if not (directory / ADAPTER_WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"{directory} has no {ADAPTER_WEIGHTS_FILE}; it holds: {listing(directory)}. "
            "Adapters are read from safetensors alone"
        )
    return _tensors_of(directory / ADAPTER_WEIGHTS_FILE)


PICKLE_HELP = (
    "pytorch_model.bin is not read: it is a pickle, which can run code. Convert it once: "
    "pip install 'qa-flax[torch]', then: qa-flax convert DIRECTORY"
)


def shard_names(index: Path) -> list[str]:
    """The files that a sharded checkpoint's index names, sorted; they are beside it.

    `ValueError` if it is no index or names files elsewhere, `OSError` if one is absent.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map of tensor names to files")
    files = set(weight_map.values())
    # A name with a folder in it could point at any file of this machine.
    if bad := sorted(str(f) for f in files if not isinstance(f, str) or Path(f).name != f):
        raise ValueError(
            f"{index} names {', '.join(bad)}; only plain file names beside it are read"
        )
    if absent := sorted(f for f in files if not (index.parent / f).is_file()):
        raise FileNotFoundError(f"{index} names {', '.join(absent)}, absent from {index.parent}")
    return sorted(files)


def _tensors_of(file: Path) -> list[StoredTensor]:
    try:
        with safe_open(file, "np") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118
            return [StoredTensor(file, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices]
    except SafetensorError as error:
        raise OSError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}. "
            "Download or write it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `ValueError` if it holds anything else."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}; an object is expected")
    return values


def listing(directory: Path) -> str:
    """The names in a directory, for a message."""
    return ", ".join(sorted(p.name for p in directory.iterdir())) or "nothing"
