"""Stage 5 of 7: run a step on all cores, copy arrays to them and back (device, JAX).

A core is a JAX device. `step.py` is written for one core, and `over_cores` maps it over the cores
of all processes. The arrays of a process have a leading axis of its D cores, `[D, ...]`. "The host"
is the memory and the CPU of this process. No other module handles devices;
`distributed/processes.py` gives the number and the index of the processes.
"""

import contextlib
import functools
import glob
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
from qa_flax.models.padded import PaddedTable, is_padded, is_wrapped, to_padded, without_padding
from qa_flax.models.sharding import CORES, Shard, is_shard
from qa_flax.models.tracing import traced_with
from qa_flax.models.transfers import implicit_transfers, to_host

_KEY_IMPL = "rbg"  # far faster on TPUs and CPUs than JAX's default, threefry


def use_host_cores(cores: int | None = None) -> None:
    """Split the CPU into `cores` JAX devices, by default one for each logical CPU.

    Call it before the first JAX computation. It has no effect if JAX runs on another backend. A
    device count in `XLA_FLAGS` takes precedence.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores or os.cpu_count() or 1)


def cores() -> tuple[Any, ...]:
    """Return the devices of all processes, ordered by process and then by device id."""
    return tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def core_count() -> int:
    """Return the number of cores of all processes."""
    return jax.device_count()


def describe_cores() -> str:
    """Return the number and kind of cores: `8 x cpu`, or `32 x tpu v5 lite, 4 processes`."""
    suffix = f", {processes.count()} processes" if processes.count() > 1 else ""
    return f"{core_count()} x {jax.devices()[0].device_kind.lower()}{suffix}"


def describe_backend() -> str:
    """Return the backend and the cores: `cpu: 1 x cpu, JAX 0.10.2`."""
    return f"{jax.default_backend()}: {describe_cores()}, JAX {jax.__version__}"


def unused_accelerator() -> str | None:
    """Say which accelerator of this host JAX has no package for, and how to install it.

    Returns:
        None if JAX runs on an accelerator, or on the CPU because `JAX_PLATFORMS` or
        `jax_platforms` says so, or if there is no accelerator.
    """
    if jax.default_backend() != "cpu" or jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    for card, files, extra in _ACCELERATORS:
        if any(glob.iglob(files)):
            return (
                f"this host has {card}, but JAX runs on the CPU: install the package for it, pip "
                f"install 'qa-flax[{extra}]', or set JAX_PLATFORMS=cpu if the CPU is meant"
            )
    return None


_ACCELERATORS = [
    ("an NVIDIA card", "/proc/driver/nvidia/gpus/*", "cuda"),
    ("a TPU", "/dev/accel*", "tpu"),
]
"""What its driver shows of an accelerator, and the extra with JAX's package for it."""


def process_core_count() -> int:
    """Return the number of this process's cores."""
    return jax.local_device_count()


def is_one_cpu() -> bool:
    """Return whether the cores of all processes are one, and that is a CPU."""
    return core_count() == 1 and jax.devices()[0].platform == "cpu"


def has_tiles() -> bool:
    """Whether the cores store arrays in tiles of several rows, as TPUs do; see `models/padded`."""
    return cores()[0].platform == "tpu"


def process_cores() -> slice:
    """Return the positions in `cores()` of this process's cores, which are consecutive."""
    first = [device.process_index for device in cores()].index(processes.index())
    return slice(first, first + process_core_count())


def require_backend(name: str | None, argument: str) -> None:
    """Check that JAX runs on a backend.

    Args:
        name: `cpu`, `gpu` or `tpu`; None: any.
        argument: the argument with which the user required the backend, for the error message.

    Raises:
        ValueError: JAX runs on another backend, or on none.
    """
    if name is None:
        return
    if name == "tpu" and not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "tpu,cpu")  # JAX then reports why it finds no TPU
    try:
        backend, reason = jax.default_backend(), ""
    except RuntimeError as error:
        backend, reason = "none", f" ({error})"
    if backend != name:
        raise ValueError(
            f"{argument}: {name} is required, but JAX runs on {backend}{reason}; set "
            f"JAX_PLATFORMS={name} in the environment"
        )


def over_cores(
    step: Callable[..., Any],
    in_axes: tuple,
    out_axes: Any,
    donate: bool = False,
    devices: Sequence[Any] | None = None,
) -> Callable[..., Any]:
    """Map `step` over the cores of all processes; the axis is named `CORES`.

    Every process must call the returned function equally often and with arrays of the same shapes.
    The arrays of a process hold the slices of its own cores.

    With one process, nothing keeps the compiled step when the caller drops the function.

    Args:
        step: a function for one core.
        in_axes, out_axes: as in `jax.pmap`: 0 for a leading axis of cores, None for one value
            that all cores share.
        donate: whether to donate the first argument: the result may reuse its memory, and the
            call deletes it.
        devices: the cores, by default `cores()`. Pass other devices only to compile for them.
    """
    devices = cores() if devices is None else devices

    @functools.wraps(step)
    def traced(*arguments: Any) -> Any:
        with traced_with(platform=devices[0].platform):
            return step(*arguments)

    donated = (0,) if donate else ()
    if processes.count() == 1 or _are_own(devices):
        return _jit_over(devices, traced, in_axes, out_axes, donated)
    # `pmap` turns arrays of one process's cores into arrays of all cores and back, ten times
    # faster than JAX's public functions can. But its cache keeps each compiled step for ever.
    return jax.pmap(
        traced,
        axis_name=CORES,
        devices=devices,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donated,
    )


def _are_own(devices: Sequence[Any]) -> bool:
    return all(device.process_index == processes.index() for device in devices)


def _jit_over(
    devices: Sequence[Any],
    step: Callable[..., Any],
    in_axes: tuple,
    out_axes: Any,
    donated: tuple[int, ...],
) -> Callable[..., Any]:
    """What `jax.pmap` is made of, without its cache, from which no entry ever goes.

    The key of an entry there is the step, held weakly; but the entry's value holds the step, too.
    """
    mesh = Mesh(np.array(devices), (CORES,))

    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(CORES)

    def one_core(*arguments: Any) -> Any:
        rows = (_first_of(axis, tree) for axis, tree in zip(in_axes, arguments, strict=True))
        results = step(*rows)
        if not isinstance(out_axes, tuple):
            return _as_first(out_axes, results)
        return tuple(_as_first(axis, tree) for axis, tree in zip(out_axes, results, strict=True))

    in_specs, out_specs = tuple(map(spec, in_axes)), jax.tree.map(spec, out_axes, is_leaf=_is_none)
    to_sharding = functools.partial(NamedSharding, mesh)
    return jax.jit(
        jax.shard_map(one_core, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False),
        donate_argnums=donated,
        in_shardings=jax.tree.map(to_sharding, in_specs),
        out_shardings=jax.tree.map(to_sharding, out_specs),
    )


def _is_none(node: Any) -> bool:
    return node is None


def _first_of(axis: int | None, tree: PyTree) -> PyTree:
    """Take a core's slice of arrays `[1, ...]` if they have an axis of cores."""
    return tree if axis is None else jax.tree.map(lambda array: lax.squeeze(array, [axis]), tree)


def _as_first(axis: int | None, tree: PyTree) -> PyTree:
    return tree if axis is None else jax.tree.map(lambda a: lax.expand_dims(a, [axis]), tree)


def put(batch: PyTree) -> PyTree:
    """Start to copy host arrays `[D, ...]` to this process's D cores, one slice to each."""
    return jax.device_put(batch, _one_slice_per_core())


def put_replicas(tree: PyTree) -> PyTree:
    """Copy a tree to each of this process's D cores: arrays `[...]` become `[D, ...]`."""
    return put(jax.tree.map(_same_for_every_core, tree))


def _same_for_every_core(array: Any) -> np.ndarray:
    array = to_host(array)
    return np.broadcast_to(array, (process_core_count(), *array.shape))


def copy_first_replica(arrays: list[Any]) -> list[Any]:
    """Start to copy replicated arrays within the memory of this process's first core.

    The caller may donate the original arrays as soon as this function returns.

    Args:
        arrays: from `put_state`, `[D, ...]`; `PaddedTable`s may be among them.

    Returns:
        The arrays `[...]` without padding, on the first core.
    """
    return _first_rows(jax.tree.map(lambda array: array.addressable_data(0), arrays))


@jax.jit
def _first_rows(arrays: list[Any]) -> list[Any]:
    first = jax.tree.map(lambda array: array[0], arrays)
    return jax.tree.map(without_padding, first, is_leaf=is_padded)


def take_replica(tree: PyTree) -> PyTree:
    """Copy the arrays of `put_replicas` from one core to NumPy arrays `[...]`; wait for them."""
    return jax.tree.map(lambda array: to_host(array.addressable_data(0))[0], tree)


def put_state(tree: PyTree, abstract: PyTree) -> PyTree:
    """Copy a tree to the cores: sharded where `abstract` has a `Shard`, else replicated.

    Args:
        tree: host arrays, each of its full shape.
        abstract: a tree of the same structure, from `memory.abstract_state`. Its leaves may be
            arrays on the cores. Where it has a `PaddedTable`, rows of zeros are added.
    """
    nodes, structure = jax.tree.flatten(abstract, is_leaf=is_wrapped)
    arrays = jax.tree.leaves(tree)
    replicated = [a for a, node in zip(arrays, nodes, strict=True) if not is_wrapped(node)]
    replicas, on_cores = iter(put_replicas(replicated)), []
    for array, node in zip(arrays, nodes, strict=True):
        # One array at a time: its shards, or its rows with padding, are a second copy on the host.
        if is_shard(node):
            shards = sharding.to_shards(to_host(array), core_count())
            on_cores.append(Shard(put(shards[process_cores()]), node.shape))
        elif is_padded(node):
            rows = to_padded(to_host(array), node.data.shape[-2])
            on_cores.append(PaddedTable(put_replicas(rows), node.shape))
        else:
            on_cores.append(next(replicas))
    return structure.unflatten(on_cores)


def gather_state(tree: PyTree) -> PyTree:
    """Copy the tree of `put_state` back to the host, as NumPy arrays of full shape.

    Every process must call it. Shards are gathered one array at a time. Padding is removed.
    """

    def take(node: Any) -> Any:
        if not is_shard(node):
            return without_padding(take_replica(node))
        shards = (
            gather(node.data)
            if processes.count() == 1
            else to_host(_all_gather_on_cores()(node.data))
        )
        return sharding.from_shards(shards, node.shape)

    return jax.tree.map(take, tree, is_leaf=is_wrapped)


def on_host() -> Any:
    """Return a context in which new JAX arrays are created in the host's memory.

    Use it for a model that will be sharded: it may not fit in the memory of one core.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return contextlib.nullcontext()


def memory_limit() -> int | None:
    """Return the memory of a core in bytes; None if the backend does not report it."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min((limit for limit in limits if limit is not None), default=None)


def gather(tree: PyTree) -> PyTree:
    """Copy arrays `[D, ...]` of this process's cores to NumPy arrays; wait for them."""
    return jax.tree.map(to_host, tree)


def start_copy(tree: PyTree) -> None:
    """Start to copy device arrays to the host; `gather` waits for the copies and returns them."""
    for array in jax.tree.leaves(tree):
        array.copy_to_host_async()


def wait(tree: PyTree) -> None:
    """Wait until the cores have computed these arrays, without copying them."""
    jax.block_until_ready(tree)


def put_key(key: Any) -> Any:
    """Copy the raw data of a key from `run_key` to every core; a step calls `wrap_key` on it."""
    # JAX would copy a typed key through the host at each call if there are several processes.
    return put_replicas(jax.random.key_data(key))


def wrap_key(key_data: Any) -> Any:
    """Turn the raw data of `put_key` into a typed key; for use inside a step."""
    return jax.random.wrap_key_data(key_data, impl=_KEY_IMPL)


def no_implicit_transfers() -> Any:
    """Return a context in which an implicit copy between host and device is an error."""
    return jax.transfer_guard("disallow")


def run_key(seed: int) -> Any:
    """Return the key from which all dropout masks of a run are drawn."""
    with implicit_transfers():
        return jax.random.key(seed, impl=_KEY_IMPL)


@functools.cache
def _all_gather_on_cores() -> Callable[..., Any]:
    """Build a function that returns the shards of all cores, `[D, k, ...]`, on every core."""
    return over_cores(lambda shard: lax.all_gather(shard, CORES), (0,), None)


def _one_slice_per_core() -> NamedSharding:
    local_cores = np.array(cores()[process_cores()])
    return NamedSharding(Mesh(local_cores, (CORES,)), PartitionSpec(CORES))
