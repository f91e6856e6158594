"""Write, verify, find and delete the checkpoints of a run (host).

`checkpoint-<step>/` holds:

- the model and the tokenizer, as `save_pretrained` writes them;
- `trainer_state.json`, as transformers writes it, with `null` for NaN;
- `train_state/`, the arrays that a step changes, as an Orbax checkpoint;
- `run.json`, the position of the run and the conditions that a resumed run must share;
- `manifest.json`, the size and SHA-256 of every other file.

The manifest is written last. A folder without a manifest, or with files that differ from it, is not
a valid checkpoint. A file or a link that has the name of a checkpoint is not one of this trainer:
it is left alone, and so is what it leads to.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import PyTree
from transformers.trainer_callback import TrainerState

from qa_flax import storage
from qa_flax.data.windows import Windows
from qa_flax.distributed import processes
from qa_flax.models.manifest import (
    MODEL_MANIFEST,
    Entry,
    ManifestError,
    difference,
    entry_of,
    is_inside,
    manifest_text,
    read_manifest,
    refused_name,
)
from qa_flax.storage import AnyPath
from qa_flax.train.root_handlers import keep_root_handlers, orbax_errors_raised_only

logger = logging.getLogger(__name__)


class ResumeError(ValueError):
    """The run cannot be resumed from this checkpoint."""


TRAINER_STATE = "trainer_state.json"
_TRAIN_STATE, _RUN, _MANIFEST = "train_state", "run.json", "manifest.json"

_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
# Also names that somebody may take for it: zeros before the number, digits of other scripts.
_SIMILAR_NAME = re.compile(r"checkpoint-\d+")

# Names beside `checkpoint-5`: the new folder while it is filled, the old one while it is replaced,
# and a folder while it is deleted. There is a number if something else has the name without one.
_TEMPORARY = re.compile(r"\.(checkpoint-[0-9]+)(?:\.[0-9]+)?\.(new|old|deleted)")

_warned: set[str] = set()  # foreign things, each of which is named once in a process


# ---- folders on disk -----------------------------------------------------------------------------


@contextmanager
def new_folder(directory: AnyPath) -> Iterator[Path]:
    """Yield a temporary local folder to write into; when the context exits it becomes `directory`.

    After an error in the context, `directory` is unchanged. A local folder is flushed to the disk
    and then renamed; if the process is killed at any moment, `recover` leaves either the previous
    or the new checkpoint. A bucket has no atomic rename, so the previous checkpoint is deleted
    first, and the manifest is uploaded last: a folder without one is not a valid checkpoint.

    Raises:
        OSError: it cannot be written, whichever library found out; see `storage.write_errors`.
    """
    with storage.write_errors(directory), orbax_errors_raised_only():
        yield from _new_folder(directory)


def _new_folder(directory: AnyPath) -> Iterator[Path]:
    if storage.is_remote(directory):
        with tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
            yield Path(folder)
            _write_manifest(Path(folder))
            _publish(Path(folder), directory)
        return
    new, old = _temporary(directory, "new"), _temporary(directory, "old")
    new.mkdir(parents=True)
    try:
        yield new
        _write_manifest(new)
        _fsync(new)
    except BaseException:
        _delete_while_written(new)
        raise
    if directory.exists():  # a resumed run saves the same step again
        directory.rename(old)
    new.rename(directory)
    _fsync(directory.parent, recursive=False)
    if old.exists():
        storage.delete(old)


def _delete_while_written(folder: Path, seconds: float = 2.0) -> None:
    """Delete a folder into which Orbax's threads may still write after one of them has failed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return
    storage.delete(folder)


def _temporary(directory: Path, kind: str) -> Path:
    """A name that nothing has, for a folder that becomes `directory` or was it."""
    path, number = directory.with_name(f".{directory.name}.{kind}"), 0
    while storage.is_taken(path):
        number += 1
        path = directory.with_name(f".{directory.name}.{number}.{kind}")
    return path


def recover(output_dir: AnyPath) -> None:
    """Clean up after a process that was killed while it wrote or deleted a file or a checkpoint.

    Call it on the main process only, and while no other run writes there.
    """
    if storage.is_remote(output_dir) or not output_dir.is_dir():
        return
    storage.delete_left_files(cast(Path, output_dir))
    for path in list(output_dir.iterdir()):
        if (match := _TEMPORARY.fullmatch(path.name)) is None or _is_foreign(path):
            continue
        directory = path.with_name(match[1])
        if match[2] == "old" and not storage.is_taken(directory):
            path.rename(directory)
        elif match[2] != "old" or not _is_foreign(directory):
            storage.delete(path)


def list_checkpoints(output_dir: AnyPath) -> list[AnyPath]:
    """Return all folders named `checkpoint-<step>`, valid or not, sorted by step.

    A link or a file of such a name is left out, with a warning.
    """
    if not output_dir.is_dir():
        return []
    paths = [path for path in output_dir.iterdir() if _SIMILAR_NAME.fullmatch(path.name)]
    steps = {path: int(path.name.partition("-")[2]) for path in paths if not _is_foreign(path)}
    return sorted(steps, key=steps.__getitem__)


def is_free(directory: AnyPath) -> bool:
    """Whether a checkpoint can be saved as `directory`: nothing foreign has that name."""
    return not storage.is_taken(directory) or not _is_foreign(directory)


def _is_foreign(path: AnyPath) -> bool:
    """Whether this trainer has not made what is at `path`; a warning says so, once."""
    is_ours = _NAME.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)
    if is_ours and storage.is_real_folder(path):
        return False
    if str(path) not in _warned:
        _warned.add(str(path))
        is_link = not storage.is_remote(path) and path.is_symlink()
        what = "a link" if is_link else "a folder" if path.is_dir() else "a file"
        logger.warning(
            "%s is %s, and no checkpoint of this trainer, which are folders named "
            "checkpoint-<step>. It is left alone; move it away if it should not be there.",
            path,
            what,
        )
    return True


def write_trainer_state(state: TrainerState, folder: Path) -> None:
    """Write `trainer_state.json` as transformers does, but with `null` for NaN and infinity."""
    text = storage.json_text(dataclasses.asdict(state), indent=2, sort_keys=True)
    storage.write_text(folder / TRAINER_STATE, text + "\n")


def latest(output_dir: AnyPath) -> AnyPath | None:
    """Return the latest valid checkpoint, or None; warn of each later one that is invalid."""
    for path in reversed(list_checkpoints(output_dir)):
        if (problem := _problem(path)) is None:
            return path
        logger.warning("Skipping %s: %s.", path, problem)
    return None


def find(checkpoint: str | os.PathLike | bool, output_dir: AnyPath) -> Path:
    """Return the checkpoint to resume from, as a local folder; download it from a bucket.

    Args:
        checkpoint: its path, or True for the latest valid one in `output_dir`.
        output_dir: the folder of the run.

    Raises:
        ResumeError: there is none, it is incomplete or damaged, or it has no training state.
    """
    if checkpoint is True:
        path = latest(output_dir)
        if path is None:
            raise ResumeError(
                f"resume_from_checkpoint: there is no checkpoint-<step> in {output_dir} that can "
                "be resumed from. Pass the path of a checkpoint, or leave the argument out to "
                "start from the beginning"
            )
    else:
        path = storage.path(str(checkpoint))
        if (problem := _problem(path)) is not None:
            raise ResumeError(
                f"resume_from_checkpoint: cannot resume from {path}: {problem}. Pass another "
                "checkpoint, or True (on the command line, leave the flag out) for the latest "
                "valid one in output_dir"
            )
    copy = storage.local_copy(path)
    # In a bucket only names and sizes were checked. The local copy is checked completely.
    if copy != path and (problem := _problem(copy)) is not None:
        raise ResumeError(
            f"resume_from_checkpoint: cannot resume from {path}: the downloaded copy is invalid: "
            f"{problem}"
        )
    return copy


def rotate(output_dir: AnyPath, limit: int | None, saved: AnyPath, best: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never `saved` or `best`.

    This is transformers' `rotate_checkpoints`, also for buckets, with one difference: transformers
    never deletes the checkpoint with the most steps, this function never deletes `saved`. The two
    differ after resuming from an earlier step, when the one with the most steps may be invalid.

    Args:
        output_dir: the folder of the run.
        limit: transformers' `save_total_limit`; None or 0: no limit.
        saved: the checkpoint that was just saved.
        best: the checkpoint of the best model, if there is one.
    """
    paths = list_checkpoints(output_dir)
    if limit is None or limit <= 0 or len(paths) <= limit:
        return
    retained = {str(saved)} | ({str(storage.path(best))} if best is not None else set())
    excess = len(paths) - max(limit, len(retained))
    for path in [path for path in paths if str(path) not in retained][:excess]:
        _delete(path)


def delete_others(output_dir: AnyPath, retained: AnyPath | None) -> None:
    """Delete every checkpoint in `output_dir` except `retained`; None: delete all."""
    for path in list_checkpoints(output_dir):
        if path != retained:
            _delete(path)


def _delete(directory: AnyPath) -> None:
    """Delete a checkpoint; it becomes invalid or is renamed before its first file is deleted."""
    if storage.is_remote(directory):
        (directory / _MANIFEST).unlink(missing_ok=True)
    else:
        directory = directory.rename(_temporary(directory, "deleted"))
    storage.delete(directory)


def _problem(path: AnyPath) -> str | None:
    """Return the reason why a run cannot be resumed from this folder; None if it can.

    In a bucket only names and sizes are checked, because SHA-256 needs the content.
    """
    if not path.is_dir():
        return "the folder does not exist"
    names = (TRAINER_STATE, _TRAIN_STATE, _RUN)
    if missing := [name for name in names if not (path / name).exists()]:
        return (
            f"it has no {', '.join(missing)}: it is not a checkpoint of this trainer, it was saved "
            "with save_only_model, or saving it was interrupted"
        )
    try:
        if storage.is_taken(path / _MANIFEST) and not is_inside(path / _MANIFEST, path):
            raise ManifestError("it is a link that leads out of the folder")
        entries = read_manifest(path / _MANIFEST)
    except FileNotFoundError:
        return f"it has no {_MANIFEST}: saving it was interrupted"
    except ManifestError as error:
        return f"its {_MANIFEST} is damaged ({error})"
    if missing := _not_listed(path, names, entries):
        return f"its {_MANIFEST} is damaged (it has no sum of {', '.join(missing)})"
    for name, entry in entries.items():
        file = path / name
        if file.exists() and not is_inside(file, path):
            return f"{name} is a link that leads out of the folder"
        if (found := difference(file, entry)) is not None:
            return f"{name} {found}"
    return None


def _not_listed(path: AnyPath, names: Iterable[str], entries: Mapping[str, Entry]) -> list[str]:
    """The names, and the files of the training state, that a manifest lacks."""
    listed = {name.partition("/")[0] for name in entries}
    if missing := [name for name in names if name not in listed]:
        return missing
    if storage.is_remote(path):  # its local copy is checked
        return []
    files = (file for file in cast(Path, path / _TRAIN_STATE).rglob("*") if file.is_file())
    return [name for file in files if (name := file.relative_to(path).as_posix()) not in entries]


def _write_manifest(folder: Path) -> None:
    known = _known_entries(folder)
    entries = {
        name: known.get(name) or entry_of(path)
        for path in folder.rglob("*")
        if path.is_file() and refused_name(name := path.relative_to(folder).as_posix()) is None
    }
    (folder / _MANIFEST).write_text(manifest_text(entries))


def _known_entries(folder: Path) -> dict[str, Entry]:
    """The sums that were computed when the model was saved into a new checkpoint just now.

    Files that are not older than the model's manifest may have changed since, and are left out.
    """
    try:
        entries = read_manifest(folder / MODEL_MANIFEST)
        written = (folder / MODEL_MANIFEST).stat().st_mtime_ns
    except (FileNotFoundError, ManifestError):  # a script's own `save_model` may write anything
        return {}
    return {
        name: entry
        for name, entry in entries.items()
        if (folder / name).is_file() and (folder / name).stat().st_mtime_ns < written
    }


def _fsync(folder: Path, recursive: bool = True) -> None:
    """Flush a folder, and with `recursive` everything in it, to the disk."""
    for path in [*folder.rglob("*"), folder] if recursive else [folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(folder: Path, directory: AnyPath) -> None:
    """Upload a checkpoint, its manifest last; an existing checkpoint there is deleted first."""
    if directory.exists():
        _delete(directory)
    manifest = (folder / _MANIFEST).read_text()
    (folder / _MANIFEST).unlink()
    storage.copy(folder, directory)
    storage.write_text(directory / _MANIFEST, manifest)


# ---- the training state --------------------------------------------------------------------------


def save_state(directory: Path, state: PyTree, run: dict[str, Any]) -> None:
    """Write the training state and `run.json` into a checkpoint.

    Args:
        directory: the folder of the checkpoint.
        state: a tree of NumPy arrays; each is saved under its path in the tree.
        run: the content of `run.json`, as JSON values.
    """
    with _checkpointer() as checkpointer:
        checkpointer.save((directory / _TRAIN_STATE).absolute(), _leaves_by_path(state))
    (directory / _RUN).write_text(json.dumps(run, indent=2) + "\n")


def load_run(directory: Path) -> dict[str, Any]:
    """Read `run.json` of a checkpoint."""
    return json.loads((directory / _RUN).read_text())


def load_state(directory: Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read what `save_state` wrote: the state, with the structure of `like`, and `run.json`.

    Raises:
        ResumeError: names, shapes or dtypes of the arrays differ from those of `like`.
    """
    with _checkpointer() as checkpointer:
        saved = checkpointer.restore((directory / _TRAIN_STATE).absolute())
    expected = _leaves_by_path(like)
    differences = [f"{name} is not in the checkpoint" for name in expected.keys() - saved.keys()]
    differences += [f"{name} is only in the checkpoint" for name in saved.keys() - expected.keys()]
    for name in expected.keys() & saved.keys():
        for kind in ("shape", "dtype"):
            before, now = getattr(saved[name], kind), getattr(expected[name], kind)
            if before != now:
                differences.append(f"{name} has {kind} {before} in the checkpoint, {now} now")
    if differences:
        shown = "\n  ".join(sorted(differences)[:10])
        raise ResumeError(
            f"{directory}: the saved state does not fit the model and the optimizer "
            f"({len(differences)} differences):\n  {shown}\nResume with the model and the optim of "
            "the saved run."
        )
    leaves = [np.asarray(saved[name]) for name in expected]
    run = load_run(directory)
    return jax.tree.unflatten(jax.tree.structure(like), leaves), run


@contextmanager
def _checkpointer() -> Iterator[Any]:
    """Yield an Orbax checkpointer that does not synchronize with the other processes.

    Only the main process writes, and every process reads by itself.
    """
    with keep_root_handlers():
        import orbax.checkpoint as ocp  # imported here because it takes a second

        index = processes.index()
        this_process_only = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
        )
        with ocp.StandardCheckpointer(multiprocessing_options=this_process_only) as checkpointer:
            yield checkpointer


def _leaves_by_path(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# ---- the conditions of a run ---------------------------------------------------------------------


def windows_digest(windows: Windows) -> str:
    """Return a short hash of the training windows: their example ids, lengths and labels."""
    sha256 = hashlib.sha256("\n".join(windows.example_ids).encode())
    spans = windows.start_positions_all, windows.end_positions_all
    for array in (windows.lengths, windows.start_positions, windows.end_positions, *spans):
        if array is not None:
            sha256.update(np.ascontiguousarray(array, np.int64).tobytes())
    return sha256.hexdigest()[:16]


def tensors_digest(tensors: PyTree) -> str | None:
    """Return a short hash of the paths and values of a tree's tensors; None for an empty tree."""
    leaves = _leaves_by_path(tensors)
    sha256 = hashlib.sha256("\n".join(leaves).encode())
    for array in leaves.values():
        sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()[:16] if leaves else None


def check_same_run(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the conditions of a run are those of the run that saved the checkpoint.

    Args:
        before: the conditions in the checkpoint, from `resume.conditions_of`.
        now: the conditions of the current run.

    Raises:
        ResumeError: they differ; the message lists every difference.
    """
    differences = _differences(before, now)
    if differences:
        raise ResumeError(
            "resume_from_checkpoint: this run differs from the one that saved the checkpoint:\n  "
            + "\n  ".join(differences)
            + "\nRestore these settings, or resume anyway with train(..., accept_changes=True) (on "
            "the command line, --accept_changes)."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe each value that differs, of a setting within a dict of settings only that one."""
    texts: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            texts += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            texts.append(f"{prefix}{name}: {old!r} in the checkpoint, {new!r} now")
    return texts
