"""Stage 4 of 7: finds a checkpoint's files and reads them one tensor at a time (host)."""

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

from qa_flax import messages, storage
from qa_flax.messages import escaped, first_few, shown

logger = messages.logger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The Flax checkpoints of transformers 4.
FLAX_FILE = "flax_model.msgpack"
FLAX_INDEX_FILE = "flax_model.msgpack.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_PICKLE_FILE = "adapter_model.bin"
# Names the license and the languages of a base model for the card of the trained one.
CARD_FILE = "README.md"
# Lists the folds of a cross-validation, whose models are in the folders fold-1 and so on.
FOLDS_FILE = "folds.json"
# How sure the model is of its answers, see `answers/calibration.py`.
CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, whose values are not yet read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """Read the values as float32.

        Raises:
            OSError: the file cannot be read.
        """
        with safe_open(self.file, "np") as opened:
            array = opened.get_tensor(self.name).astype(np.float32, copy=False)
        # NaN is both the smallest and the largest value of an array that contains it.
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            count = array.size - np.count_nonzero(np.isfinite(array))
            logger.warning(
                "%s: %d of the %d values of %s are NaN or infinite, so the file is damaged or its "
                "training failed; download it again, or use an earlier checkpoint",
                self.file,
                count,
                array.size,
                self.name,
            )
        return array


# In safetensors' names. Conversion to float32 is exact, except that F64 is rounded.
FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")


def checkpoint_directory(source: str | os.PathLike[str], **hub: Any) -> Path:
    """The local directory of a checkpoint; downloads it if `source` is a bucket URL or a hub id.

    Args:
        source: a directory, the URL of a folder in a bucket, or a name on the Hugging Face Hub.
        **hub: further arguments of `huggingface_hub.snapshot_download`, such as `revision`.

    Raises:
        OSError: `source` does not exist or could not be downloaded.
    """
    path = storage.local_copy(source) if storage.is_remote(source) else Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{source} is a file; give the directory that contains it")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith("."):
        raise FileNotFoundError(
            f"{first_few([source])} does not exist, and it is not a valid hub id (name or "
            "owner/name)"
        )
    files = [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model*.safetensors"]
    files += [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, CALIBRATION_FILE, CARD_FILE]
    try:
        return Path(snapshot_download(str(source), allow_patterns=files, **hub))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{source} is not a local directory, and no model of that name could be downloaded "
            f"from the Hugging Face Hub: {reason}"
        ) from error


def is_folds(directory: Path) -> bool:
    """Whether a folder has the results of a cross-validation, and no model of its own."""
    own = (CONFIG_FILE, ADAPTER_CONFIG_FILE)
    return (directory / FOLDS_FILE).is_file() and not any((directory / n).is_file() for n in own)


def fold_directories(directory: Path) -> list[Path]:
    """The folders of the models of all folds that `folds.json` lists.

    Raises:
        OSError: a folder is missing.
        ValueError: the file is invalid.
    """
    file = directory / FOLDS_FILE
    try:
        numbers = [int(fold["fold"]) for fold in read_json(file)["folds"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file} has no list of folds; it is not of qa-flax run") from error
    folders = [directory / f"fold-{number}" for number in numbers]
    if missing := [folder.name for folder in folders if not folder.is_dir()]:
        raise FileNotFoundError(f"{file} lists {', '.join(missing)}, missing from {directory}")
    return folders


def stored_tensors(directory: Path) -> list[StoredTensor]:
    """The tensors of a checkpoint, in one safetensors file or in the shards that its index lists.

    Raises:
        OSError: a file is missing or incomplete.
        ValueError: the index is invalid or lists files in other folders.
    """
    if (directory / WEIGHTS_FILE).is_file():
        files = [WEIGHTS_FILE]
    elif (directory / INDEX_FILE).is_file():
        files = shard_names(directory / INDEX_FILE)
    else:
        is_flax = any((directory / name).is_file() for name in (FLAX_FILE, FLAX_INDEX_FILE))
        raise FileNotFoundError(
            f"{directory} has no {WEIGHTS_FILE} and no {INDEX_FILE}; it contains: "
            f"{listing(directory)}. {FLAX_HELP if is_flax else PICKLE_HELP}"
            f"{models_inside(directory)}"
        )
    return [tensor for file in files for tensor in _tensors_of(directory / file)]


def stored_adapter(directory: Path) -> list[StoredTensor]:
    """The tensors of PEFT's adapter file; `OSError` if it is missing or incomplete."""
    if not (directory / ADAPTER_WEIGHTS_FILE).is_file():
        is_pickle = (directory / ADAPTER_PICKLE_FILE).is_file()
        raise FileNotFoundError(
            f"{directory} has no {ADAPTER_WEIGHTS_FILE}; it contains: {listing(directory)}. "
            + (
                ADAPTER_PICKLE_HELP
                if is_pickle
                else "Adapters are read from safetensors files only"
            )
        )
    return _tensors_of(directory / ADAPTER_WEIGHTS_FILE)


PICKLE_HELP = (
    "pytorch_model.bin is not read, because a pickle file can run any code. Convert it once: "
    "pip install 'qa-flax[torch]', then: qa-flax convert DIRECTORY"
)

ADAPTER_PICKLE_HELP = PICKLE_HELP.replace("pytorch_model.bin", ADAPTER_PICKLE_FILE)

FLAX_HELP = "Convert Flax's weights once: qa-flax convert DIRECTORY"


def shard_names(index: Path) -> list[str]:
    """The sorted names of the files that a sharded checkpoint's index lists.

    Raises:
        OSError: a file is missing from the index's folder.
        ValueError: the index is invalid or lists files in other folders.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map of tensor names to files")
    if bad := [f for f in weight_map.values() if not isinstance(f, str)]:
        raise ValueError(f"{index}: weight_map lists {shown(bad[0])}, which is no name of a file")
    files = set(weight_map.values())
    # A name that contains a folder could point to any file of this machine.
    if bad := sorted(f for f in files if Path(f).name != f):
        raise ValueError(
            f"{index} lists {first_few(bad)}; only file names in the same folder are allowed"
        )
    if missing := sorted(f for f in files if not (index.parent / f).is_file()):
        raise FileNotFoundError(
            f"{index} lists {first_few(missing)}, which is missing from {index.parent}"
        )
    return sorted(files)


def _tensors_of(file: Path) -> list[StoredTensor]:
    try:
        with safe_open(file, "np") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118
            return [StoredTensor(file, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices]
    except SafetensorError as error:
        content = storage.foreign_content(file)
        reason = (
            f"{error}. Download it or write it again" if content is None else f"it is {content}"
        )
        raise OSError(
            f"{file} ({file.stat().st_size} bytes) is not a complete safetensors file: {reason}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object; `ValueError` if it contains anything else."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        content = storage.foreign_content(path)
        reason = str(error) if content is None else f"it is {content}"
        raise ValueError(f"{path} is not JSON: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} contains a JSON {type(values).__name__}; an object is expected")
    for name, value in values.items():
        if is_nested(value):
            raise ValueError(
                f"{path}: {escaped(name)} is nested more than {MAX_NESTING} levels deep"
            )
    return values


MAX_NESTING = 50
"""Levels of a JSON file, beyond which copying and printing it may exceed Python's stack."""


def is_nested(value: Any) -> bool:
    """Whether a value of JSON has more than `MAX_NESTING` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def models_inside(directory: Path) -> str:
    """A hint for error messages: the folders inside `directory` that hold a model; else "".

    Old models of sentence-transformers have theirs in `0_Transformer`, a trainer's output folder in
    `checkpoint-500`, and the Hub's cache in `snapshots/REVISION`.
    """
    files = (CONFIG_FILE, ADAPTER_CONFIG_FILE)
    found = {path.parent for name in files for path in directory.glob(f"*/{name}")}
    found |= {path.parent for name in files for path in directory.glob(f"snapshots/*/{name}")}
    folders = sorted(str(folder) for folder in found if any((folder / n).is_file() for n in files))
    if not folders:
        return ""
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    which = (
        "a folder inside it holds a model: give"
        if len(folders) == 1
        else (f"{len(folders)} folders inside it hold a model; give one of")
    )
    return f". But {which} {shown}"


def listing(directory: Path) -> str:
    """The names of a directory's files, for error messages."""
    return ", ".join(sorted(p.name for p in directory.iterdir())) or "nothing"
