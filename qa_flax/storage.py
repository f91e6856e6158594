"""Files and folders wherever they are: on this machine, or in a bucket by their URL (`gs://...`).

Buckets are read and written through etils and fsspec. Libraries that know only files of this
machine get a copy (`local_copy`) or a folder that is uploaded when it is full (`output_folder`).
"""

import atexit
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
    """A path on this machine or in a bucket: of etils, which has `pathlib.Path`'s methods."""


def is_remote(given: Any) -> bool:
    """Whether this is a URL."""
    return "://" in os.fspath(given)


def path(given: str | os.PathLike) -> AnyPath:
    """What can be done with a `pathlib.Path`, also with a URL.

    Raises:
        ValueError: no file system for that kind of URL is known, or installed.
    """
    if not is_remote(given):
        return Path(given)
    scheme = os.fspath(given).partition("://")[0]
    if scheme not in _SCHEMES:
        raise ValueError(
            f"{given}: {scheme}:// is not known; give a path, or a URL of "
            f"{', '.join(f'{known}://' for known in _SCHEMES)}"
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        help_ = ": pip install 'qa-flax[gcs]'" if scheme == "gs" else ""
        raise ValueError(f"{given}: {error}{help_}") from error
    return cast(AnyPath, epath.Path(given))


_SCHEMES = ("gs", "s3", "az", "hf")  # those of etils

_copies: dict[str, tempfile.TemporaryDirectory] = {}


def local_copy(given: str | os.PathLike) -> Path:
    """A file or folder of this machine with what is at `given`; itself, if it is of this machine.

    A copy is made at each call, and stays until the next one of the same, or the process's end.

    Raises:
        FileNotFoundError: there is nothing.
    """
    source = path(given)
    if not is_remote(given):
        return source
    if not source.exists():
        raise FileNotFoundError(f"{given} does not exist")
    holder = tempfile.TemporaryDirectory(prefix="qa_flax-")
    if (before := _copies.pop(str(given), None)) is not None:
        before.cleanup()
    _copies[str(given)] = holder
    target = Path(holder.name) / source.name
    copy(source, target)
    return target


@atexit.register
def _remove_copies() -> None:
    while _copies:
        _copies.popitem()[1].cleanup()


@contextmanager
def output_folder(given: str | os.PathLike) -> Iterator[Path]:
    """A folder of this machine to write files into, which end up in the folder `given`.

    It is that folder itself where it is of this machine; it is made. To a bucket the files are
    uploaded at the end, and none after an error.
    """
    if not is_remote(given):
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    target = path(given)
    with tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
        yield Path(folder)
        copy(Path(folder), target)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file to write in place of `file`, which has what it had until that is whole.

    After an error `file` stays as it was, and nothing else is left.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: AnyPath, text: str) -> None:
    """Write a small file so that it is whole at any moment; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(file):
        file.write_text(text)  # an object appears when it is whole
        return
    with replacing(file) as temporary:
        temporary.write_text(text)


def delete(folder: AnyPath) -> None:
    """Delete a folder and all that is in it."""
    if is_remote(folder):
        cast(Any, folder).rmtree()
    else:
        shutil.rmtree(folder)


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file, or a folder with all that is in it, between this machine and a bucket."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for one in source.iterdir():
            copy(one, target / one.name)
    else:
        with source.open("rb") as read, target.open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 22)
