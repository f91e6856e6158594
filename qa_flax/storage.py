"""Read and write files and folders on this machine or in a bucket (`gs://...`).

Buckets are accessed through etils and fsspec. For libraries that need local files, `local_copy`
downloads a file or folder, and `output_folder` uploads a local folder.

Whatever a library raises when a file cannot be written becomes an `OSError` here: `write_errors`.
"""

import atexit
import errno
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
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


# Why a file cannot be written, and what to do about it.
_ADVICE = {
    errno.ENOSPC: "free some space there, or write to another folder",
    errno.EDQUOT: "free some space there, or write to another folder",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or write to another file system",
    errno.EROFS: "write to another folder",
    errno.EACCES: "write to another folder, or change its permissions",
    errno.EPERM: "write to another folder, or change its permissions",
    errno.EIO: "the disk may be damaged; write to another one",
}
# How the libraries in Rust (safetensors, tokenizers) and C++ (tensorstore) name the system's error.
_ERROR_NUMBER = re.compile(r"os[ _]error(?:_code=')? ?(\d+)", re.IGNORECASE)


@contextmanager
def write_errors(location: AnyPath | str) -> Iterator[None]:
    """Turn what libraries raise when a file cannot be written into an `OSError`.

    safetensors, tokenizers and Orbax each raise a type of their own.

    Args:
        location: the file or folder that is written; the error names it.

    Raises:
        OSError: with the system's number, its text and what to do, in place of another exception.
            An `OSError` that names its file is raised as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno is None):
            raise
        if (number := _error_number(error)) is None:
            raise
        raise write_error(number, location) from error


def write_error(number: int, location: AnyPath | str) -> OSError:
    """The error that a file or folder cannot be written, with what to do; `number` as in errno."""
    return OSError(number, f"{os.strerror(number)}; {_ADVICE[number]}", os.fspath(location))


def _error_number(error: BaseException | None) -> int | None:
    """The system's number of an error that a library raised, or that was the cause of it."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if (match := _ERROR_NUMBER.search(str(error))) is not None:
            number = int(match[1])
        if number in _ADVICE:
            return number
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def make_folder(folder: AnyPath) -> None:
    """Create a folder and those above it, unless the disk or its permissions do not allow it.

    `check_writable` says so; any other error is one of the name.

    Raises:
        OSError: the name is that of a file, too long, or below a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in _ADVICE:
            raise


def check_writable(folder: AnyPath) -> None:
    """Create a local folder if necessary, and a file in it, which is deleted again.

    Raises:
        OSError: names the folder, and what to do.
    """
    if is_remote(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".qa_flax-") as file:
            file.write(bytes(4096))
    except OSError as error:
        if error.errno in _ADVICE:
            raise write_error(error.errno, folder) from error
        raise


def check_encodable(location: str | os.PathLike, argument: str) -> None:
    """Check that the libraries in Rust and C++ can open a path, which need it in UTF-8.

    Raises:
        ValueError: they cannot, because Python takes file names for ASCII; with what to do.
    """
    text = os.fspath(location)
    try:
        if os.fsencode(text) == text.encode():
            return
    except UnicodeEncodeError:
        pass
    raise ValueError(
        f"{argument}={text!a} has letters that Python, whose encoding of file names is "
        f"{sys.getfilesystemencoding()}, cannot pass on; set PYTHONUTF8=1 or LC_ALL=C.UTF-8 in the "
        "environment, or give a path in UTF-8"
    )


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
    with write_errors(target), tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
        yield Path(folder)
        copy(Path(folder), target)


TEMPORARY_SUFFIX = ".qa_flax.tmp"
"""No other program's files end so: what is left of them is deleted."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A context with a temporary path that replaces `file` atomically on exit.

    After an exception `file` is unchanged and the temporary file is deleted; see `write_errors`.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with write_errors(file):
            yield temporary
            os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def delete_left_files(folder: Path) -> None:
    """Delete the temporary files of `replacing` in a folder that no running process writes to."""
    for file in list(folder.iterdir()):
        is_ours = file.name.startswith(".") and file.name.endswith(TEMPORARY_SUFFIX)
        if is_ours and file.is_file() and not file.is_symlink():
            file.unlink(missing_ok=True)


PARTIAL_SUFFIX = ".partial"


@contextmanager
def completing(file: AnyPath) -> Iterator[Path]:
    """A context with a local path whose file becomes `file` on exit.

    Meanwhile it is `{file}.partial`, and stays there after an exception, for what was written is
    worth keeping; but not if that is nothing. For a URL it is uploaded on exit, under one of the
    two names. See `write_errors`.
    """
    with write_errors(file):
        yield from _completing(file)


def _completing(file: AnyPath) -> Iterator[Path]:
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
        temporary.write_text(text, encoding="utf-8")


def write_texts(file: AnyPath, texts: Iterable[str]) -> None:
    """Write a text file that is made piece by piece, as `write_text` does a small one."""
    if is_remote(file):
        write_text(file, "".join(texts))
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as opened:
        opened.writelines(texts)


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


def size_of(file: AnyPath) -> int:
    """The size of a file in bytes, local or remote."""
    status: Any = file.stat()  # etils' paths call the size `length`
    return int(status.length if is_remote(file) else status.st_size)


def is_real_folder(folder: AnyPath) -> bool:
    """Whether a path is a folder itself, and no link to one, which may lead anywhere."""
    return folder.is_dir() and (is_remote(folder) or not folder.is_symlink())


def is_taken(location: AnyPath) -> bool:
    """Whether a file, a folder or a link has this name, also a link that leads nowhere."""
    return location.exists() or (not is_remote(location) and location.is_symlink())


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
