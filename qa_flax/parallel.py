"""Stage 5 of 7: all that is said of devices, cores and processes (device, JAX).

The step is written for one core. Here it is wrapped by `jax.pmap`, arrays get their leading core
axis `[D, ...]`, and results come back to the host as NumPy. Nothing else in the package names a
device.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from qa_flax.step import CORES


def use_host_cores(cores: int | None = None) -> None:
    """Show the host's CPU as `cores` devices (default: one a processor), if the CPU is what JAX
    runs on.

    Call it before the first JAX computation; a count that `XLA_FLAGS` already names stays.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores or os.cpu_count() or 1)


def core_count() -> int:
    """D: how many cores of all hosts take part."""
    return jax.device_count()


def describe_cores() -> str:
    """The cores in words, as `8 x cpu`."""
    return f"{core_count()} x {jax.devices()[0].device_kind.lower()}"


def is_main_host() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def require_platform(platform: str | None) -> None:
    """Refuse another platform than the one named, as `cpu`; None: any will do."""
    if platform is not None and jax.default_backend() != platform:
        raise ValueError(
            f"use_cpu: JAX runs on {jax.default_backend()}; set JAX_PLATFORMS={platform}, which it "
            "reads before it starts"
        )


def require_one_host() -> None:
    """Refuse several processes: batches are not divided over hosts yet."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} JAX processes take part, but this version trains and evaluates "
            "with the cores of one host; start a single process"
        )


def over_cores(
    step: Callable[..., Any], in_axes: tuple, out_axes: Any, donate: bool = False
) -> Callable[..., Any]:
    """`step` on every core at once. Axis 0 is the core axis; None is one value for all.

    `donate` lets the first argument's memory be reused for the result; the argument is gone
    afterwards.
    """
    return jax.pmap(
        step,
        axis_name=CORES,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=(0,) if donate else (),
    )


def put(batch: PyTree) -> PyTree:
    """Host arrays `[D, ...]` onto the cores, one slice each; returns before the copy is done."""
    return jax.device_put(batch, _one_slice_a_core())


def put_copies(tree: PyTree) -> PyTree:
    """`tree` onto every core: each array `[...]` becomes `[D, ...]`."""

    def copies(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return np.broadcast_to(array, (core_count(), *array.shape))

    return jax.device_put(jax.tree.map(copies, tree), _one_slice_a_core())


def take_copy(tree: PyTree) -> PyTree:
    """One core's copy of what `put_copies` put there, as NumPy; waits for the cores."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0))[0], tree)


def gather(tree: PyTree) -> PyTree:
    """Sharded arrays `[D, ...]` to the host as NumPy, in the order of the cores; waits for them."""
    return jax.tree.map(np.asarray, tree)


def start_copy(tree: PyTree) -> None:
    """Begin to copy device arrays to the host without waiting; `gather` then finds them there."""
    for array in jax.tree.leaves(tree):
        array.copy_to_host_async()


def run_key(seed: int) -> Any:
    """The key of a run's dropout masks. `rbg` keys cost a TPU or a CPU far less than threefry's."""
    return jax.random.key(seed, impl="rbg")


def _one_slice_a_core() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()), (CORES,)), PartitionSpec(CORES))
