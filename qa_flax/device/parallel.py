"""Stage 5 of 7: all that is said of devices and cores (device, JAX).

The step is written for one core. Here it is wrapped by `jax.pmap` over the cores of all hosts,
arrays get the leading axis `[D, ...]` of this host's cores, and results come back to the host as
NumPy. Nothing else in the package names a device; `hosts.py` knows of the other processes.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from qa_flax.distributed import processes
from qa_flax.models import sharding
from qa_flax.models.sharding import CORES, Shard, is_shard

_KEYS = "rbg"


def use_host_cores(cores: int | None = None) -> None:
    """Show the host's CPU as `cores` devices (default: one a processor), if the CPU is what JAX
    runs on.

    Call it before the first JAX computation; a count that `XLA_FLAGS` already names stays.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores or os.cpu_count() or 1)


def cores() -> tuple[Any, ...]:
    """All D devices, those of one host next to each other, in the order of the processes."""
    return tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def core_count() -> int:
    """D: how many cores of all hosts take part."""
    return jax.device_count()


def describe_cores() -> str:
    """The cores in words, as `8 x cpu`."""
    on_hosts = f", {processes.count()} hosts" if processes.count() > 1 else ""
    return f"{core_count()} x {jax.devices()[0].device_kind.lower()}{on_hosts}"


def process_core_count() -> int:
    """How many of the cores are this host's."""
    return jax.local_device_count()


def process_cores() -> slice:
    """Which of the D cores are this host's: those of one host follow one another."""
    first = [device.process_index for device in cores()].index(processes.index())
    return slice(first, first + process_core_count())


def require_backend(name: str | None, argument: str) -> None:
    """Refuse another backend than `cpu`, `gpu` or `tpu`, whichever is named; None: any will do.

    Raises:
        ValueError: JAX runs, or can only run, on another; `argument` asked for this one.
    """
    if name is None:
        return
    if name == "tpu" and not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "tpu,cpu")  # JAX then says why it has none
    try:
        found, why = jax.default_backend(), ""
    except RuntimeError as error:
        found, why = "none", f" ({error})"
    if found != name:
        raise ValueError(
            f"{argument}: {name} is asked for, and JAX runs on {found}{why}; set "
            f"JAX_PLATFORMS={name}, which it reads before it starts"
        )


def over_cores(
    step: Callable[..., Any],
    in_axes: tuple,
    out_axes: Any,
    donate: bool = False,
    devices: Sequence[Any] | None = None,
) -> Callable[..., Any]:
    """`step` on every core of every host. Axis 0 is the core axis; None is one value for all.

    All hosts call it equally often, with arrays of the same shapes, each with its own cores'.

    `donate` lets the first argument's memory be reused for the result; the argument is gone
    afterwards. `devices` are others than those that are here, to compile for.
    """
    return jax.pmap(
        step,
        axis_name=CORES,
        devices=cores() if devices is None else devices,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=(0,) if donate else (),
    )


def put(batch: PyTree) -> PyTree:
    """Host arrays `[D, ...]` onto the cores, one slice each; returns before the copy is done."""
    return jax.device_put(batch, _one_slice_a_core())


def put_replicas(tree: PyTree) -> PyTree:
    """`tree` onto every core of this host: each array `[...]` becomes `[D, ...]`."""
    return put(jax.tree.map(_same_for_every_core, tree))


def _same_for_every_core(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return np.broadcast_to(array, (process_core_count(), *array.shape))


def copy_first_replica(arrays: list[Any]) -> list[Any]:
    """What `put_replicas` put there as new arrays of this process's first core; does not wait.

    They are copies: the originals may be given away (`donate`) as soon as this returns.
    """
    return _first_rows([array.addressable_data(0) for array in arrays])


@jax.jit
def _first_rows(arrays: list[Any]) -> list[Any]:
    return [array[0] for array in arrays]


def take_replica(tree: PyTree) -> PyTree:
    """One core's copy of what `put_replicas` put there, as NumPy; waits for the cores."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0))[0], tree)


def put_state(tree: PyTree, abstract: PyTree) -> PyTree:
    """`tree` onto the cores, divided where `abstract` has a `Shard`, and elsewhere as copies."""
    nodes, structure = jax.tree.flatten(abstract, is_leaf=is_shard)
    arrays = jax.tree.leaves(tree)
    whole = [a for a, node in zip(arrays, nodes, strict=True) if not is_shard(node)]
    copies, placed = iter(put_replicas(whole)), []
    for array, node in zip(arrays, nodes, strict=True):
        if is_shard(node):  # one at a time: its pieces are a second copy on the host
            pieces = sharding.to_shards(np.asarray(array), core_count())
            placed.append(Shard(put(pieces[process_cores()]), node.shape))
        else:
            placed.append(next(copies))
    return structure.unflatten(placed)


def gather_state(tree: PyTree) -> PyTree:
    """What `put_state` put there, as NumPy; all hosts call it. One array at a time is gathered."""

    def take(node: Any) -> Any:
        if not is_shard(node):
            return take_replica(node)
        pieces = (
            gather(node.data)
            if processes.count() == 1
            else np.asarray(_all_gather_on_cores()(node.data))
        )
        return sharding.from_shards(pieces, node.shape)

    return jax.tree.map(take, tree, is_leaf=is_shard)


def on_host() -> Any:
    """Inside, new arrays are in the host's memory: what is divided does not fit on one core."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names one backend, and not this
        return contextlib.nullcontext()


def memory_limit() -> int | None:
    """A core's memory in bytes, where it is known."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min((limit for limit in limits if limit is not None), default=None)


def gather(tree: PyTree) -> PyTree:
    """Sharded arrays `[D, ...]` to the host as NumPy, in the order of the cores; waits for them."""
    return jax.tree.map(np.asarray, tree)


def start_copy(tree: PyTree) -> None:
    """Begin to copy device arrays to the host without waiting; `gather` then finds them there."""
    for array in jax.tree.leaves(tree):
        array.copy_to_host_async()


def put_key(key: Any) -> Any:
    """`run_key`'s words onto every core of this process; there `key_of` makes a key of them.

    Keys themselves would go through the host at each call in several processes.
    """
    return put_replicas(jax.random.key_data(key))


def key_of(words: Any) -> Any:
    """The key whose words these are."""
    return jax.random.wrap_key_data(words, impl=_KEYS)


def no_implicit_transfers() -> Any:
    """Inside, JAX raises if an array goes from host to device or back without being asked to."""
    return jax.transfer_guard("disallow")


def run_key(seed: int) -> Any:
    """The key of a run's dropout masks. `rbg` keys cost a TPU or a CPU far less than threefry's."""
    return jax.random.key(seed, impl=_KEYS)


@functools.cache
def _all_gather_on_cores() -> Callable[..., Any]:
    """`[D, k]` -> the same on every core, so that a host sees those of the others."""
    return over_cores(lambda part: lax.all_gather(part, CORES), (0,), None)


def _one_slice_a_core() -> NamedSharding:
    mine = np.array(cores()[process_cores()])
    return NamedSharding(Mesh(mine, (CORES,)), PartitionSpec(CORES))
