"""Stage 4 of 7: the sizes and SHA-256 sums of a folder's files, written and compared (host).

safetensors and Orbax load a file with a flipped bit without a word. A checkpoint has a manifest of
all its files, `train/checkpoints.py`. A saved model has one, too: weights that differ from it are
refused; a config or a tokenizer that somebody edited is warned of. A folder without a manifest, of
another program, loads without the comparison.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qa_flax import storage
from qa_flax.storage import AnyPath

logger = logging.getLogger(__name__)

MODEL_MANIFEST = "qa_flax_manifest.json"
"""In a saved model's folder. transformers, PEFT and PyTorch ignore a file of this name."""

MAX_BYTES = 1 << 24
"""A larger file is no manifest: the entry of a file takes about 150 bytes."""


class ManifestError(ValueError):
    """A manifest is damaged; the message says why, without the name of its file."""


class DamagedError(OSError):
    """The weights of a saved model are not those that were saved."""


class Entry(NamedTuple):
    """What a manifest has of a file."""

    size: int
    """In bytes."""
    sha256: str
    """64 hexadecimal digits."""


def entry_of(file: Path) -> Entry:
    """Read a file, and return its entry."""
    return Entry(file.stat().st_size, _sha256(file))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def manifest_text(entries: Mapping[str, Entry]) -> str:
    """Return the content of a manifest: `{"files": {name: {"size": ..., "sha256": ...}}}`."""
    files = {name: entries[name]._asdict() for name in sorted(entries)}
    return json.dumps({"files": files}, indent=2) + "\n"


def read_manifest(file: AnyPath) -> dict[str, Entry]:
    """Read a manifest. Every name in it is one of a file inside the manifest's folder.

    Raises:
        FileNotFoundError: there is none.
        ManifestError: it is damaged.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if not file.is_file():
        raise ManifestError("it is no file")
    if storage.size_of(file) > MAX_BYTES:
        raise ManifestError(f"it has more than {MAX_BYTES} bytes")
    try:
        content = json.loads(file.read_bytes())
    except RecursionError as error:
        raise ManifestError("it is nested too deeply") from error
    except ValueError as error:
        raise ManifestError(f"it is not JSON: {error}") from error
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ManifestError('it is no object with the "files" and their sums')
    return {name: _entry(name, values) for name, values in files.items()}


def _entry(name: str, values: Any) -> Entry:
    """Check an entry of a manifest, and return it."""
    if (reason := refused_name(name)) is not None:
        raise ManifestError(f"a name in it {reason}: {_shown(name)}")
    values = values if isinstance(values, dict) else {}
    size, sha256 = values.get("size"), values.get("sha256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestError(f"the size of {_shown(name)} is {_shown(size)}")
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ManifestError(f"the sha256 of {_shown(name)} is {_shown(sha256)}")
    return Entry(size, sha256)


def refused_name(name: str) -> str | None:
    """Say why a manifest cannot have a name, relative to its folder; None if it can."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of the folder, or is none"
    if not name.isprintable():  # NUL, other control characters, half a surrogate pair
        return "has a character that no file of a checkpoint has"
    if len(parts) > 16 or any(len(part.encode()) > 255 for part in parts):
        return "is too long"
    return None


def _shown(value: Any) -> str:
    """A value of a damaged file on one line and in few characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_inside(file: AnyPath, folder: AnyPath) -> bool:
    """Whether a local path, once its links are followed, is still in `folder`; True in a bucket."""
    if storage.is_remote(folder):
        return True
    try:
        return file.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # it does not exist, or links lead in a circle
        return False


def difference(file: AnyPath, entry: Entry) -> str | None:
    """Say how a file differs from its entry; None if it does not.

    In a bucket only the size is compared, because SHA-256 needs the content.
    """
    if not file.is_file():
        return "is missing"
    if (size := storage.size_of(file)) != entry.size:
        return f"has {size} bytes, expected {entry.size}"
    if not storage.is_remote(file) and _sha256(file) != entry.sha256:
        return "has changed since it was saved (its SHA-256 differs)"
    return None


# ---- the manifest of a saved model ---------------------------------------------------------------


def add_files(folder: Path, names: Iterable[str]) -> None:
    """Add files, such as the tokenizer's, to the manifest of the model in the same folder.

    Without a manifest in the folder nothing is written.
    """
    try:
        entries = read_manifest(folder / MODEL_MANIFEST)
    except (FileNotFoundError, ManifestError):
        return
    added = {name: entry_of(folder / name) for name in names if (folder / name).is_file()}
    storage.write_text(folder / MODEL_MANIFEST, manifest_text(entries | added))


def check_model(folder: Path, weights: Collection[str]) -> None:
    """Compare a folder with the manifest that was saved with the model, if it has one.

    Log a warning of other files that have changed, such as the config. One that is missing is
    nobody's loss: the loader needs it and says so, or does without.

    Args:
        folder: a local folder.
        weights: the names of the files in it that are loaded.

    Raises:
        DamagedError: a file of weights differs from the manifest, or the manifest is damaged.
    """
    manifest = folder / MODEL_MANIFEST
    try:
        entries = read_manifest(manifest)
    except FileNotFoundError:
        return
    except ManifestError as error:
        raise DamagedError(
            f"{manifest} is damaged ({error}), so the weights beside it cannot be checked; copy or "
            "download the folder again, or delete this file to load the weights without a check"
        ) from error
    for name in sorted(weights):
        found = _difference(folder / name, entries.get(name))
        if found is not None:
            raise DamagedError(
                f"{folder / name} {found}, by {MODEL_MANIFEST} beside it; copy or download the "
                "folder again, or use an earlier checkpoint. If you changed the weights yourself, "
                f"delete {MODEL_MANIFEST}"
            )
    changed = [
        name
        for name, entry in entries.items()
        if name not in weights
        and is_inside(folder / name, folder)
        and (folder / name).is_file()
        and difference(folder / name, entry) is not None
    ]
    if changed:
        logger.warning(
            "%s: %s changed since the model was saved, by %s. If nobody edited it, copy or "
            "download the folder again; else delete %s, or save the model again.",
            folder,
            ", ".join(changed),
            MODEL_MANIFEST,
            MODEL_MANIFEST,
        )


def _difference(file: Path, entry: Entry | None) -> str | None:
    if entry is None:
        return "was not saved with the model"
    found = difference(file, entry)
    content = storage.foreign_content(file) if found is not None and file.is_file() else None
    return found if content is None else f"is {content}; it {found}"
