"""`qa-flax convert`: convert PyTorch's pickled weights or Flax's msgpack to safetensors (host).

Reading a pickle is the only thing that needs PyTorch. It can run code when it is loaded, so it is
read only by this command, and only if it consists of plain tensors.
"""

import argparse
import os
import zipfile
from pathlib import Path
from typing import Any

from qa_flax.commands.errors import usage_errors
from qa_flax.messages import first_few, printable, printable_errors, shown

SUMMARY = "convert pytorch_model.bin (needs PyTorch) or flax_model.msgpack to model.safetensors"

# What training scripts call a state dict inside a checkpoint, beside the optimizer and the epoch.
STATE_DICT_NAMES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"


def parser() -> argparse.ArgumentParser:
    """Return the parser; its only argument is the checkpoint's directory."""
    parser = argparse.ArgumentParser(
        prog="qa-flax convert",
        description="Write model.safetensors next to the pytorch_model.bin or flax_model.msgpack "
        "of a checkpoint, or adapter_model.safetensors next to PEFT's adapter_model.bin. A pickle "
        "can run code when it is loaded, so one that holds more than tensors is rejected.",
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
        print(printable(f"{convert(parsed.directory)} written"))


@printable_errors()
def convert(directory: str | os.PathLike[str]) -> Path:
    """Convert the weights in `directory` to `model.safetensors`, or those of adapters.

    The dtypes do not change, except that bfloat16 in Flax's file becomes float32. PyTorch's tensors
    that share memory are each written in full; Flax's get PyTorch's names and layout. The original
    is not deleted.

    Args:
        directory: a checkpoint with `pytorch_model.bin` or `flax_model.msgpack`, or with shards of
            one of them and their index; or PEFT's adapters in `adapter_model.bin`.

    Returns:
        The path of `model.safetensors`, or of `adapter_model.safetensors`.

    Raises:
        ModuleNotFoundError: PyTorch is not installed and needed.
        OSError: there is nothing to convert, or the file to write already exists.
        ValueError: a pickle is not a dict of tensors by name or would run code when loaded, a file
            of Flax is not one or of an unsupported model, or there are weights of both kinds.
    """
    from qa_flax.models import files
    from qa_flax.storage import replacing

    directory = Path(directory)
    flax, pickles, adapters = (
        [name for name in names if (directory / name).is_file()]
        for names in (
            (files.FLAX_FILE, files.FLAX_INDEX_FILE),
            (PICKLE_FILE, PICKLE_INDEX_FILE),
            (files.ADAPTER_PICKLE_FILE,),
        )
    )
    if adapters and not flax and not pickles:
        file = directory / files.ADAPTER_WEIGHTS_FILE
        _refuse_existing(file)
        with replacing(file) as temporary:
            _write_tensors([directory / adapters[0]], temporary)
            _remove_manifest(directory)
        return file
    _refuse_existing(directory / files.WEIGHTS_FILE, directory / files.INDEX_FILE)
    if flax and pickles:
        raise ValueError(
            f"{directory} has both {flax[0]} and {pickles[0]}, which may differ; move the one that "
            "you do not want to another directory"
        )
    with replacing(directory / files.WEIGHTS_FILE) as temporary:
        (_convert_flax if flax else _convert_pickles)(directory, temporary)
        _remove_manifest(directory)
    return directory / files.WEIGHTS_FILE


def _refuse_existing(*files: Path) -> None:
    for file in files:
        if file.exists():
            raise FileExistsError(f"{file} already exists; nothing to convert")


def _remove_manifest(directory: Path) -> None:
    """Remove the manifest of weights that were here before: it would refuse the new ones."""
    from qa_flax.models.manifest import MODEL_MANIFEST

    (directory / MODEL_MANIFEST).unlink(missing_ok=True)


def _convert_flax(directory: Path, file: Path) -> None:
    from safetensors.numpy import save_file

    from qa_flax.models.flax_checkpoint import flax_tensors

    save_file(flax_tensors(directory), file, {"format": "pt"})


def _convert_pickles(directory: Path, file: Path) -> None:
    _write_tensors(_files(directory), file)


def _write_tensors(pickles: list[Path], file: Path) -> None:
    """Write the tensors of some pickles to one safetensors file."""
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {pickles[0].name} needs PyTorch: pip install 'qa-flax[torch]'"
        ) from error
    tensors: dict[str, Any] = {}
    for pickle in pickles:
        tensors |= _tensors(pickle)
    save_file({n: t.clone() for n, t in tensors.items()}, file, {"format": "pt"})


def _files(directory: Path) -> list[Path]:
    """Return the pickle, or the shards that its index names."""
    from qa_flax.models.files import (
        ADAPTER_PICKLE_FILE,
        CONFIG_FILE,
        FLAX_FILE,
        listing,
        models_inside,
        shard_names,
    )

    if (directory / PICKLE_FILE).is_file():
        return [directory / PICKLE_FILE]
    index = directory / PICKLE_INDEX_FILE
    if not index.is_file():
        contents, inside = "no such directory", ""
        if directory.is_dir():
            contents, inside = listing(directory), models_inside(directory)
        raise FileNotFoundError(
            f"{directory} has no {PICKLE_FILE}, no {PICKLE_INDEX_FILE}, no {FLAX_FILE} and no "
            f"{ADAPTER_PICKLE_FILE} ({contents}); give the directory that contains one of them and "
            f"{CONFIG_FILE}, and name PyTorch's file {PICKLE_FILE} if it has another name{inside}"
        )
    return [directory / name for name in shard_names(index)]


def _tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of one pickle by name.

    Raises:
        ValueError: the file is not a pickled dict of plain tensors.
    """

    import torch

    _refuse_compressed(file)
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise ValueError(
            f"{file} is not a pickle of plain tensors: {_what_it_is(file) or reason}"
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(f"{file} contains a {type(contents).__name__}, not tensors by name")
    contents = _state_dict(contents, torch.Tensor)
    if bad := [n for n, t in contents.items() if not isinstance(t, torch.Tensor)]:
        raise ValueError(
            f"{file}: {first_few(bad)} ({len(bad)} in all) are not tensors; a state dict is "
            f"expected, or one inside the file as {', '.join(STATE_DICT_NAMES)}"
        )
    if not contents:
        raise ValueError(f"{file} contains no tensors")
    for name, tensor in contents.items():
        if (problem := _unwritable(name, tensor)) is not None:
            raise ValueError(f"{file}: {shown(name)} {problem}")
    size, most = sum(t.nbytes for t in contents.values()), MAX_GROWTH * file.stat().st_size
    if size > most:
        raise ValueError(
            f"{file}: its tensors take {size:,} bytes, more than {MAX_GROWTH} times the size of "
            "the file, because they repeat what is stored; save contiguous copies of them"
        )
    return {name: tensor.contiguous() for name, tensor in contents.items()}


MAX_GROWTH = 8
"""How much larger than the file its tensors may be, whose shared memory is written in full."""


def _unwritable(name: object, tensor: Any) -> str | None:
    """Say why a tensor cannot be written to safetensors; None: it can."""
    import torch

    from qa_flax.data.answers import is_unicode

    if not isinstance(name, str) or not is_unicode(name) or name in ("", "__metadata__"):
        return "is not the name of a tensor; a text is expected"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type == "meta":
        return "is not a dense tensor; save it with to_dense()"
    if tensor.is_quantized or tensor.dtype not in _dtypes():
        return f"has the dtype {tensor.dtype}, which safetensors files do not have"
    return None


def _dtypes() -> set[Any]:
    """The dtypes that are written; `load` then says which of them a model may have."""
    import torch

    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    integers = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return {*floats, *integers}


def _refuse_compressed(file: Path) -> None:
    """Refuse an archive that may hold far more than its size; `torch.save` never compresses."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [m.filename for m in archive.infolist() if m.compress_type]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return  # `torch.load` says what is wrong with it
    if names:
        raise ValueError(
            f"{file} is compressed ({first_few(names)}); write it again with torch.save"
        )


def _what_it_is(file: Path) -> str | None:
    """Say what took the place of a pickle; None: nothing that is known."""
    from safetensors import SafetensorError, safe_open

    from qa_flax.storage import foreign_content

    try:
        with safe_open(file, "np"):
            return "it is a safetensors file; name it model.safetensors"
    except SafetensorError:
        content = foreign_content(file)
    # torch.save writes a zip archive, too.
    return None if content is None or content.startswith("a zip") else f"it is {content}"


def _state_dict(contents: dict[str, Any], tensor: type) -> dict[str, Any]:
    """The state dict inside a training script's checkpoint; `contents` itself if it is one."""
    if any(isinstance(value, tensor) for value in contents.values()):
        return contents
    named = [contents[n] for n in STATE_DICT_NAMES if isinstance(contents.get(n), dict)]
    with_tensors = [d for d in named if any(isinstance(value, tensor) for value in d.values())]
    return with_tensors[0] if len(with_tensors) == 1 else contents
