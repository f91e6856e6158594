"""Checkpoints of a run: complete or not there, and what a run must share with the one it resumes.

`checkpoint-<step>/` holds the model and tokenizer as `save_pretrained` writes them,
`trainer_state.json` as transformers does, and two things of this package: `train_state/`, what a
step changes as Orbax arrays named by their place in the state, and `run.json`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from qa_flax import hosts
from qa_flax.windows import Windows


class ResumeError(ValueError):
    """A run cannot be resumed from what was given."""


TRAINER_STATE = "trainer_state.json"
_TRAIN_STATE, _RUN = "train_state", "run.json"


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is complete; after an error none is left."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary)
        raise
    if directory.exists():  # a resumed run comes by the same step again
        shutil.rmtree(directory)
    temporary.rename(directory)


def find(given: str | os.PathLike | bool, output_dir: Path) -> Path:
    """The checkpoint to resume from: the path given, or with True the last one in `output_dir`.

    Raises:
        ResumeError: there is none, or it has no state to resume from.
    """
    if given is True:
        last = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
        if last is None:
            raise ResumeError(
                f"resume_from_checkpoint: there is no checkpoint-<step> in {output_dir}; give its "
                "path, or start without it"
            )
        given = last
    path = Path(str(given))
    missing = [n for n in (TRAINER_STATE, _TRAIN_STATE, _RUN) if not (path / n).exists()]
    if missing:
        raise ResumeError(
            f"resume_from_checkpoint: {path} has no {', '.join(missing)}: it is no checkpoint of "
            "this trainer, or was saved with save_only_model"
        )
    return path


def delete_others(output_dir: Path, kept: Path) -> None:
    """Delete every checkpoint in `output_dir` but one."""
    for path in sort_checkpoints(str(output_dir)):
        if Path(path) != kept:
            shutil.rmtree(path)


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
    if differences:
        shown = "\n  ".join(sorted(differences)[:10])
        raise ResumeError(
            f"{directory}: the state does not fit model and optimizer ({len(differences)} "
            f"differences):\n  {shown}\nResume with the model and optim that it was saved with."
        )
    leaves = [np.asarray(found[name]) for name in wanted]
    run = json.loads((directory / _RUN).read_text())
    return jax.tree.unflatten(jax.tree.structure(like), leaves), run


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax's, of this process alone: the main host writes, and each reads for itself."""
    me = hosts.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# ---- the same run? -------------------------------------------------------------------------------


def digest(windows: Windows) -> str:
    """A short text that is another for other training windows: ids, lengths and labels."""
    hashed = hashlib.sha256("\n".join(windows.example_ids).encode())
    for array in (windows.counts, windows.start_positions, windows.end_positions):
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
