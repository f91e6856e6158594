"""The processes of a run: their number, the index of this one, and its rows of a data set."""

from typing import Any

from jax._src import distributed  # the key-value store has no public name


def count() -> int:
    """The number of joined processes; 1 without joining. Unlike JAX's, it starts no backend."""
    return distributed.global_state.num_processes or 1


def index() -> int:
    """The index of this process, from 0. Unlike JAX's, it starts no backend."""
    return distributed.global_state.process_id or 0


def is_main() -> bool:
    """Whether this is process 0, which writes files and shows progress."""
    return index() == 0


def part_of(total: int) -> slice:
    """This process's slice of `total` rows, as `datasets.distributed.split_dataset_by_node` cuts.

    With fewer rows than processes some slices are empty; `datasets` raises an error there.
    """
    rows, remainder = divmod(total, count())
    first = index() * rows + min(index(), remainder)
    return slice(first, first + rows + (index() < remainder))


def client() -> Any:
    """The client of JAX's distributed service, which has a key-value store."""
    return distributed.global_state.client


_relayed_host: str | None = None


def set_coordinator_host(host: str) -> None:
    """Store the host of process 0, if JAX was given the address of a relay (`relay`) instead."""
    global _relayed_host
    _relayed_host = host


def coordinator_host() -> str:
    """The name or address of the host of process 0, as this process knows it."""
    if _relayed_host is not None:
        return _relayed_host
    return (distributed.global_state.coordinator_address or "").rpartition(":")[0].strip("[]")
