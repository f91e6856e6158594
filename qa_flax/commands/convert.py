"""`qa-flax convert`: convert PyTorch's pickled weights or Flax's msgpack to safetensors (host).

Reading a pickle is the only thing that needs PyTorch. It can run code when it is loaded, so it is
read only by this command, and only if it consists of plain tensors.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from qa_flax.commands.errors import usage_errors

SUMMARY = "convert pytorch_model.bin (needs PyTorch) or flax_model.msgpack to model.safetensors"

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"


def parser() -> argparse.ArgumentParser:
    """Return the parser; its only argument is the checkpoint's directory."""
    parser = argparse.ArgumentParser(
        prog="qa-flax convert",
        description="Write model.safetensors next to the pytorch_model.bin or flax_model.msgpack "
        "of a checkpoint. A pickle can run code when it is loaded, so one that holds more than "
        "tensors is rejected.",
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="the checkpoint")
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Convert the checkpoint and print the path of the new file.

    Raises:
        UsageError: there is nothing to convert, a pickle holds more than tensors, or PyTorch is
            not installed.
    """
    with usage_errors(ValueError, OSError, ModuleNotFoundError):
        print(f"{convert(parsed.directory)} written")


def convert(directory: str | os.PathLike[str]) -> Path:
    """Convert the weights in `directory` to `model.safetensors`.

    The dtypes do not change, except that bfloat16 in Flax's file becomes float32. PyTorch's tensors
    that share memory are each written in full; Flax's get PyTorch's names and layout. The original
    is not deleted.

    Args:
        directory: a checkpoint with `pytorch_model.bin` or `flax_model.msgpack`, or with shards of
            one of them and their index.

    Returns:
        The path of `model.safetensors`.

    Raises:
        ModuleNotFoundError: PyTorch is not installed and needed.
        OSError: there is nothing to convert, or `model.safetensors` already exists.
        ValueError: a pickle is not a dict of tensors by name or would run code when loaded, a file
            of Flax is not one or of an unsupported model, or there are weights of both kinds.
    """
    from qa_flax.models.files import FLAX_FILE, FLAX_INDEX_FILE, INDEX_FILE, WEIGHTS_FILE
    from qa_flax.storage import replacing

    directory = Path(directory)
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (directory / name).exists():
            raise FileExistsError(f"{directory / name} already exists; nothing to convert")
    flax, pickles = (
        [name for name in names if (directory / name).is_file()]
        for names in ((FLAX_FILE, FLAX_INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX_FILE))
    )
    if flax and pickles:
        raise ValueError(
            f"{directory} has both {flax[0]} and {pickles[0]}, which may differ; move the one that "
            "you do not want to another directory"
        )
    with replacing(directory / WEIGHTS_FILE) as temporary:
        (_convert_flax if flax else _convert_pickles)(directory, temporary)
    return directory / WEIGHTS_FILE


def _convert_flax(directory: Path, file: Path) -> None:
    from safetensors.numpy import save_file

    from qa_flax.models.flax_checkpoint import flax_tensors

    save_file(flax_tensors(directory), file, {"format": "pt"})


def _convert_pickles(directory: Path, file: Path) -> None:
    files = _files(directory)
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {PICKLE_FILE} needs PyTorch: pip install 'qa-flax[torch]'"
        ) from error
    tensors: dict[str, Any] = {}
    for pickle in files:
        tensors |= _tensors(pickle)
    save_file({n: t.clone() for n, t in tensors.items()}, file, {"format": "pt"})


def _files(directory: Path) -> list[Path]:
    """Return the pickle, or the shards that its index names."""
    from qa_flax.models.files import CONFIG_FILE, FLAX_FILE, listing, shard_names

    if (directory / PICKLE_FILE).is_file():
        return [directory / PICKLE_FILE]
    index = directory / PICKLE_INDEX_FILE
    if not index.is_file():
        contents = listing(directory) if directory.is_dir() else "no such directory"
        raise FileNotFoundError(
            f"{directory} has no {PICKLE_FILE}, no {PICKLE_INDEX_FILE} and no {FLAX_FILE} "
            f"({contents}); give the directory that contains one of them and {CONFIG_FILE}"
        )
    return [directory / name for name in shard_names(index)]


def _tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of one pickle by name.

    Raises:
        ValueError: the file is not a pickled dict of plain tensors.
    """
    import pickle

    import torch

    from qa_flax.data.messages import first_few

    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{file} is not a pickle of plain tensors: {reason}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{file} contains a {type(contents).__name__}, not tensors by name")
    if bad := [str(n) for n, t in contents.items() if not isinstance(t, torch.Tensor)]:
        raise ValueError(f"{file}: {first_few(bad)} ({len(bad)} in all) are not tensors")
    return {name: tensor.contiguous() for name, tensor in contents.items()}
