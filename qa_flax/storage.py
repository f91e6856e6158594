"""Read and write files and folders on this machine or in a bucket (`gs://...`).

Buckets are accessed through etils and fsspec. For libraries that need local files, `local_copy`
downloads a file or folder, and `output_folder` uploads a local folder.
"""

import atexit
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

import fsspec
from etils import epath

if TYPE_CHECKING:
    AnyPath = Path
else:
    AnyPath = PurePath
    """A `pathlib.Path`, or an `etils.epath.Path` with the same methods for a bucket."""


def is_remote(location: Any) -> bool:
    """Whether a path or string is a URL."""
    return "://" in os.fspath(location)


def path(location: str | os.PathLike) -> AnyPath:
    """A path object for a local path or a URL, with `pathlib.Path`'s methods.

    Raises:
        ValueError: the URL's scheme is not supported, or its file system is not installed.
    """
    if not is_remote(location):
        return Path(location)
    scheme = os.fspath(location).partition("://")[0]
    if scheme not in _SCHEMES:
        raise ValueError(
            f"{location}: {scheme}:// is not supported; use a local path, or a URL with "
            f"{', '.join(f'{supported}://' for supported in _SCHEMES)}"
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        help_ = ": pip install 'qa-flax[gcs]'" if scheme == "gs" else ""
        raise ValueError(f"{location}: {error}{help_}") from error
    return cast(AnyPath, epath.Path(location))


_SCHEMES = ("gs", "s3", "az", "hf")  # those that etils supports

_copies: dict[str, tempfile.TemporaryDirectory] = {}


def local_copy(location: str | os.PathLike) -> Path:
    """Download a remote file or folder to a temporary folder; a local path is returned as it is.

    Every call downloads again. A copy exists until the next call for the same URL, or until the
    process exits.

    Raises:
        FileNotFoundError: the URL does not exist.
        ValueError: see `path`.
    """
    source = path(location)
    if not is_remote(location):
        return source
    if not source.exists():
        raise FileNotFoundError(f"{location} does not exist")
    folder = tempfile.TemporaryDirectory(prefix="qa_flax-")
    if (previous := _copies.pop(str(location), None)) is not None:
        previous.cleanup()
    _copies[str(location)] = folder
    target = Path(folder.name) / source.name
    copy(source, target)
    return target


@atexit.register
def _remove_copies() -> None:
    while _copies:
        _copies.popitem()[1].cleanup()


@contextmanager
def output_folder(location: str | os.PathLike) -> Iterator[Path]:
    """A context with a local folder whose files end up in the folder `location`.

    A local `location` is created and used directly. For a URL, the context has a temporary folder,
    which is uploaded on exit, but not after an exception.
    """
    if not is_remote(location):
        Path(location).mkdir(parents=True, exist_ok=True)
        yield Path(location)
        return
    target = path(location)
    with tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
        yield Path(folder)
        copy(Path(folder), target)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A context with a temporary path that replaces `file` atomically on exit.

    After an exception `file` is unchanged and the temporary file is deleted.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


PARTIAL_SUFFIX = ".partial"


@contextmanager
def completing(file: AnyPath) -> Iterator[Path]:
    """A context with a local path whose file becomes `file` on exit.

    Meanwhile it is `{file}.partial`, and stays there after an exception, for what was written is
    worth keeping; but not if that is nothing. For a URL it is uploaded on exit, under one of the
    two names.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + PARTIAL_SUFFIX)
    if not is_remote(file):
        try:
            yield partial
        except BaseException:
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()
            raise
        os.replace(partial, file)
        return
    with tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
        local = Path(folder) / file.name
        try:
            yield local
        except BaseException:
            if local.exists() and local.stat().st_size:
                copy(local, partial)
            raise
        copy(local, file)
        partial.unlink(missing_ok=True)  # of an earlier attempt


# What the first bytes of a file say that it is, if it took the place of another, and what to do.
_FOREIGN = (
    ((b"version https://git-lfs",), "a pointer of Git LFS", "run `git lfs pull` in its folder"),
    ((b"<!doctype", b"<html", b"<head", b"<?xml"), "a web page", "download the file itself"),
    ((b"pk\x03\x04",), "a zip archive", "unpack it, or convert it if torch.save wrote it"),
    ((b"\x1f\x8b",), "a gzip archive", "unpack it"),
    ((b"\x89hdf",), "an HDF5 file", "use the weights in safetensors instead"),
)


def foreign_content(file: Path) -> str | None:
    """Say what a file is if something else took its place, such as a failed download; else None.

    The text fits after "it is": what the file holds, and what to do about it.
    """
    with file.open("rb") as opened:
        head = opened.read(64)
    if not head:
        return "empty; download it or write it again"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginnings, name, advice in _FOREIGN:
        if start.startswith(beginnings):
            return f"{name}; {advice}"
    return None


def write_text(file: AnyPath, text: str) -> None:
    """Write a small text file atomically; its folder is created if necessary."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(file):
        file.write_text(text)  # an object in a bucket appears once its upload is complete
        return
    with replacing(file) as temporary:
        temporary.write_text(text)


def json_text(value: Any, **settings: Any) -> str:
    """Return a value as JSON. NaN and infinite numbers, which JSON does not have, become `null`.

    Args:
        value: dicts, lists, strings, numbers, booleans and None.
        settings: arguments of `json.dumps`, such as `indent`.
    """
    try:
        return json.dumps(value, allow_nan=False, **settings)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def delete(folder: AnyPath) -> None:
    """Delete a folder and its contents, local or remote."""
    if is_remote(folder):
        cast(Any, folder).rmtree()
    else:
        shutil.rmtree(folder)


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file, or a folder and its contents; both paths may be local or remote.

    Files are copied in the order of their names, so that the index of a checkpoint
    (`model.safetensors.index.json`) comes after its shards (`model-00001-of-...`).
    """
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for child in sorted(source.iterdir(), key=lambda path: path.name):
            copy(child, target / child.name)
    else:
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 22)
