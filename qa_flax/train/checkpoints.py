"""Checkpoints of a run: complete or not there, and what a run must share with the one it resumes.

`checkpoint-<step>/` holds the model and tokenizer as `save_pretrained` writes them,
`trainer_state.json` as transformers does, and three things of this package: `train_state/`, what a
step changes as Orbax arrays named by their place in the state; `run.json`; and `manifest.json`, the
size and SHA-256 of every other file. The manifest is written last: a folder that has none, or
another content than it says, is no checkpoint.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qa_flax import storage
from qa_flax.data.windows import Windows
from qa_flax.distributed import processes
from qa_flax.storage import AnyPath
from qa_flax.train.root_handlers import keep_root_handlers

logger = logging.getLogger(__name__)


class ResumeError(ValueError):
    """A run cannot be resumed from what was given."""


TRAINER_STATE = "trainer_state.json"
_TRAIN_STATE, _RUN, _MANIFEST = "train_state", "run.json", "manifest.json"

# Beside `checkpoint-5`: while it is filled, while another takes its place, while it is deleted.
_TEMPORARY = re.compile(r"\.(checkpoint-\d+)\.(new|old|deleted)")


# ---- complete or not there -----------------------------------------------------------------------


@contextmanager
def new_folder(directory: AnyPath) -> Iterator[Path]:
    """A folder of this machine to fill, which becomes `directory` when it is complete.

    After an error, or a kill at any moment, there is what was there before. On this machine the
    folder gets its name in one step, after all of it is on the disk; in a bucket, which has no such
    step, the manifest is uploaded last.
    """
    if storage.is_remote(directory):
        with tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
            yield Path(folder)
            _write_manifest(Path(folder))
            _publish(Path(folder), directory)
        return
    new, old = (directory.with_name(f".{directory.name}.{kind}") for kind in ("new", "old"))
    if new.exists():
        storage.delete(new)
    new.mkdir(parents=True)
    try:
        yield new
        _write_manifest(new)
        _onto_disk(new)
    except BaseException:
        storage.delete(new)
        raise
    if directory.exists():  # a resumed run comes by the same step again
        directory.rename(old)
    new.rename(directory)
    _onto_disk(directory.parent, alone=True)
    if old.exists():
        storage.delete(old)


def recover(output_dir: AnyPath) -> None:
    """Put right what a process left that was killed while it saved or deleted; the main host's."""
    if storage.is_remote(output_dir) or not output_dir.is_dir():
        return
    for path in output_dir.iterdir():
        if (match := _TEMPORARY.fullmatch(path.name)) is None:
            continue
        directory = path.with_name(match[1])
        if match[2] == "old" and not directory.exists():
            path.rename(directory)
        else:
            storage.delete(path)


def all_of(output_dir: AnyPath) -> list[AnyPath]:
    """The folders that are named as checkpoints are, by their steps."""
    if not output_dir.is_dir():
        return []
    named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.iterdir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def last(output_dir: AnyPath) -> AnyPath | None:
    """The newest checkpoint that can be resumed from; those that are passed over are warned of."""
    for path in reversed(all_of(output_dir)):
        if (problem := _problem(path)) is None:
            return path
        logger.warning("%s is passed over: %s.", path, problem)
    return None


def find(given: str | os.PathLike | bool, output_dir: AnyPath) -> Path:
    """The checkpoint to resume from: the path given, or with True the last one in `output_dir`.

    A folder of this machine: a copy, if the checkpoint is in a bucket.

    Raises:
        ResumeError: there is none, or it is not whole, or it has no state to resume from.
    """
    if given is True:
        found = last(output_dir)
        if found is None:
            raise ResumeError(
                f"resume_from_checkpoint: there is no checkpoint-<step> in {output_dir} that could "
                "be resumed from; give its path, or start without it"
            )
    else:
        found = storage.path(str(given))
        if (problem := _problem(found)) is not None:
            raise ResumeError(
                f"resume_from_checkpoint: {found} cannot be resumed from: {problem}. Give another, "
                "or True (on the command line: nothing) for the last one that can"
            )
    copy = storage.local_copy(found)
    # What a bucket has is looked at when it is here.
    if copy != found and (problem := _problem(copy)) is not None:
        raise ResumeError(f"resume_from_checkpoint: {found}, as fetched: {problem}")
    return copy


def rotate(output_dir: AnyPath, limit: int | None, saved: AnyPath, best: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never the one just saved, nor the best.

    As transformers' `rotate_checkpoints`, in buckets, too; but that keeps the one of the most
    steps, which may be one that could not be resumed from.
    """
    found = all_of(output_dir)
    if limit is None or limit <= 0 or len(found) <= limit:
        return
    kept = {str(saved)} | ({str(storage.path(best))} if best is not None else set())
    more = len(found) - max(limit, len(kept))
    for path in [path for path in found if str(path) not in kept][:more]:
        _delete(path)


def delete_others(output_dir: AnyPath, kept: AnyPath) -> None:
    """Delete every checkpoint in `output_dir` but one."""
    for path in all_of(output_dir):
        if path != kept:
            _delete(path)


def _delete(directory: AnyPath) -> None:
    """So that no moment shows half a checkpoint under its name."""
    if storage.is_remote(directory):
        (directory / _MANIFEST).unlink(missing_ok=True)
    else:
        directory = directory.rename(directory.with_name(f".{directory.name}.deleted"))
    storage.delete(directory)


def _problem(path: AnyPath) -> str | None:
    """Why a folder is no checkpoint to resume from; None if it is one.

    Of a bucket only names and sizes are looked at.
    """
    if not path.is_dir():
        return "there is no such folder"
    names = (TRAINER_STATE, _TRAIN_STATE, _RUN)
    if missing := [name for name in names if not (path / name).exists()]:
        return (
            f"it has no {', '.join(missing)}: it is no checkpoint of this trainer, was saved with "
            "save_only_model, or its saving was cut off"
        )
    try:
        files: dict[str, dict[str, Any]] = json.loads((path / _MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {_MANIFEST}: its saving was cut off"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {_MANIFEST} cannot be read ({error})"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size if not storage.is_remote(path) else _size(file)) != (
            expected["size"]
        ):
            return f"{name} has {size} bytes, of {expected['size']}"
        if not storage.is_remote(path) and _sha256(file) != expected["sha256"]:
            return f"{name} has another content than was saved (SHA-256)"
    return None


def _size(file: AnyPath) -> int:
    return int(file.stat().length)  # pyright: ignore[reportAttributeAccessIssue]  # etils' name


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in files
    }
    (folder / _MANIFEST).write_text(json.dumps({"files": found}, indent=2) + "\n")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _onto_disk(folder: Path, alone: bool = False) -> None:
    """Have the disk hold a folder (alone, or with all in it) before anything else is done."""
    for path in [folder] if alone else [*folder.rglob("*"), folder]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _publish(folder: Path, directory: AnyPath) -> None:
    """Upload, the manifest last; what was there before is no checkpoint from the first file on."""
    if directory.exists():
        _delete(directory)
    manifest = (folder / _MANIFEST).read_text()
    (folder / _MANIFEST).unlink()
    storage.copy(folder, directory)
    storage.write_text(directory / _MANIFEST, manifest)


# ---- the state on the cores ----------------------------------------------------------------------


def save_state(directory: Path, state: PyTree, run: dict[str, Any]) -> None:
    """Write the step's state (NumPy) and what describes the run."""
    with _checkpointer() as checkpointer:
        checkpointer.save((directory / _TRAIN_STATE).absolute(), _named(state))
    (directory / _RUN).write_text(json.dumps(run, indent=2) + "\n")


def load_state(directory: Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """What `save_state` wrote, the state in the form of `like`.

    Raises:
        ResumeError: the arrays are not those of `like`.
    """
    with _checkpointer() as checkpointer:
        found = checkpointer.restore((directory / _TRAIN_STATE).absolute())
    wanted = _named(like)
    differences = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    differences += [f"{name} is not of this run" for name in found.keys() - wanted.keys()]
    differences += [
        f"{name} has the shape {found[name].shape}, here {np.shape(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != np.shape(wanted[name])
    ]
    differences += [
        f"{name} is {found[name].dtype}, here {wanted[name].dtype}"
        for name in wanted.keys() & found.keys()
        if found[name].dtype != wanted[name].dtype
    ]
    if differences:
        shown = "\n  ".join(sorted(differences)[:10])
        raise ResumeError(
            f"{directory}: the state does not fit model and optimizer ({len(differences)} "
            f"differences):\n  {shown}\nResume with the model and optim that it was saved with."
        )
    leaves = [np.asarray(found[name]) for name in wanted]
    run = json.loads((directory / _RUN).read_text())
    return jax.tree.unflatten(jax.tree.structure(like), leaves), run


@contextmanager
def _checkpointer() -> Iterator[Any]:
    """Orbax's, of this process alone: the main process writes, and each reads for itself."""
    with keep_root_handlers():
        import orbax.checkpoint as ocp  # here: it takes a second, and who saves nothing needs none

        me = processes.index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            yield checkpointer


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# ---- the same run? -------------------------------------------------------------------------------


def digest(windows: Windows) -> str:
    """A short text that is another for other training windows: ids, lengths and labels."""
    hashed = hashlib.sha256("\n".join(windows.example_ids).encode())
    for array in (windows.lengths, windows.start_positions, windows.end_positions):
        hashed.update(np.ascontiguousarray(array, np.int64).tobytes())
    return hashed.hexdigest()[:16]


def digest_of(tensors: PyTree) -> str | None:
    """A short text that is another for other tensors; None where there are none."""
    named = _named(tensors)
    hashed = hashlib.sha256("\n".join(named).encode())
    for array in named.values():
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()[:16] if named else None


def check_same_run(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run under other conditions: what follows would belong to neither.

    Raises:
        ResumeError: names every difference.
    """
    names = sorted(before.keys() | now.keys())
    differences = [
        f"{name}: {before.get(name)!r} in the checkpoint, {now.get(name)!r} now"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ResumeError(
            "resume_from_checkpoint: this is not the run that was stopped:\n  "
            + "\n  ".join(differences)
            + "\nRestore these, or accept the difference with train(..., accept_changes=True) or "
            "--accept_changes."
        )
