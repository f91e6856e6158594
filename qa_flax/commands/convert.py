"""`qa-flax convert`: PyTorch's pickled weights -> safetensors; only this needs PyTorch (host).

A pickle can run code, so that it is read only on this request and only as plain tensors.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from qa_flax.commands.errors import usage_errors

SUMMARY = "pytorch_model.bin -> model.safetensors (needs PyTorch)"

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"


def parser() -> argparse.ArgumentParser:
    """One directory."""
    parser = argparse.ArgumentParser(
        prog="qa-flax convert",
        description="Write model.safetensors beside a checkpoint's pytorch_model.bin. A pickle can "
        "run code: only plain tensors are read.",
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="of the checkpoint")
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Convert, and print which file was written.

    Raises:
        UsageError: there is nothing to convert, it holds more than tensors, or PyTorch is absent.
    """
    with usage_errors(ValueError, OSError, ModuleNotFoundError):
        print(f"{convert(parsed.directory)} written")


def convert(directory: str | os.PathLike[str]) -> Path:
    """Write `model.safetensors` from the `pytorch_model.bin` in `directory`; returns its path.

    Names, shapes and dtypes are kept; tensors that share memory are written once each. The pickle
    stays where it is.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
        OSError: there is no such file, or there are weights in safetensors already.
        ValueError: a file does not hold tensors by name, or wants to run code.
    """
    from qa_flax.models.files import WEIGHTS_FILE
    from qa_flax.storage import replacing

    directory = Path(directory)
    if (directory / WEIGHTS_FILE).exists():
        raise FileExistsError(f"{directory / WEIGHTS_FILE} exists already; nothing to convert")
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {PICKLE_FILE} needs PyTorch: pip install 'qa-flax[torch]'"
        ) from error
    tensors: dict[str, Any] = {}
    for file in _files(directory):
        tensors |= _tensors(file)
    with replacing(directory / WEIGHTS_FILE) as temporary:
        save_file({n: t.clone() for n, t in tensors.items()}, temporary, {"format": "pt"})
    return directory / WEIGHTS_FILE


def _files(directory: Path) -> list[Path]:
    from qa_flax.models.files import CONFIG_FILE, listing, shard_names

    if (directory / PICKLE_FILE).is_file():
        return [directory / PICKLE_FILE]
    index = directory / PICKLE_INDEX_FILE
    if not index.is_file():
        found = listing(directory) if directory.is_dir() else "no such directory"
        raise FileNotFoundError(
            f"{directory} has no {PICKLE_FILE} and no {PICKLE_INDEX_FILE} ({found}); give the "
            f"directory that holds them and {CONFIG_FILE}"
        )
    return [directory / name for name in shard_names(index)]


def _tensors(file: Path) -> dict[str, Any]:
    """The tensors of one pickle by name."""
    import pickle

    import torch

    from qa_flax.data.messages import first_few

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{file} is no pickle of plain tensors: {reason}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not tensors by name")
    if bad := [str(n) for n, t in found.items() if not isinstance(t, torch.Tensor)]:
        raise ValueError(f"{file}: {first_few(bad)} ({len(bad)} in all) are no tensors")
    return {name: tensor.contiguous() for name, tensor in found.items()}
