"""The processes of a run: how many have joined, which one this is, and its part of the rows."""

from typing import Any

from jax._src import distributed  # the key-value store has no public name


def count() -> int:
    """How many processes have joined; 1 without joining. Does not start JAX's backend."""
    return distributed.global_state.num_processes or 1


def index() -> int:
    """Which of them this one is, from 0."""
    return distributed.global_state.process_id or 0


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return index() == 0


def part_of(total: int) -> slice:
    """This process's rows of `total`, as `datasets.distributed.split_dataset_by_node` has them.

    With fewer rows than processes, some have none (which that function does not allow).
    """
    each, more = divmod(total, count())
    first = index() * each + min(index(), more)
    return slice(first, first + each + (index() < more))


def client() -> Any:
    """The key-value store of the service that every joined process is connected to."""
    return distributed.global_state.client
