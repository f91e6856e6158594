"""Check before a training whether its checkpoints can be written: permissions and room (host)."""

import errno
import math
import shutil
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from qa_flax import storage
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.weights import parameters
from qa_flax.storage import AnyPath


class Room(NamedTuple):
    """What is about to be written, in bytes."""

    total: int
    largest: int
    """The largest file."""


def model_room(model: AutoModelForQuestionAnswering) -> Room:
    """The room that the saved weights take: of adapters only what is trained."""
    count = model.num_parameters(only_trainable=True) if model.lora is not None else 0
    count = count or sum(math.prod(p.shape) for _, p in parameters(model))
    return Room(4 * count, 4 * count)


def checkpoint_room(model: AutoModelForQuestionAnswering, state: PyTree) -> Room:
    """The room that a checkpoint takes at most: Orbax compresses the training state.

    Args:
        model: its weights are saved.
        state: the arrays of the training state that are saved; None without them.
    """
    weights, state_bytes = model_room(model), sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return Room(weights.total + state_bytes, weights.largest)


def check_room(folder: AnyPath, room: Room, what: str) -> None:
    """Check that a folder can be written to, and has room; of a bucket nothing is known.

    Args:
        folder: it is created if necessary.
        room: what will be written.
        what: what it is, such as "a checkpoint".

    Raises:
        OSError: it cannot be written to, or it has too little room; the message has both figures.
    """
    if storage.is_remote(folder):
        return
    storage.check_writable(folder)
    free = shutil.disk_usage(folder).free
    if free < room.total:
        raise OSError(
            errno.ENOSPC,
            f"{what} of this run takes {_size(room.total)}, and there is room for "
            f"{_size(free)}; free some space there, or give another output_dir",
            str(folder),
        )
    limit = _file_size_limit()
    if limit is not None and limit < room.largest:
        raise OSError(
            errno.EFBIG,
            f"{what} of this run has a file of {_size(room.largest)}, and the limit of a "
            f"file's size is {_size(limit)}; raise it (`ulimit -f`)",
            str(folder),
        )


def _file_size_limit() -> int | None:
    """How large a file of this process may be, in bytes; None: any size."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return None
    limit: Any = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 1e6 else f"{count / 1e6:,.1f} MB"
