"""`qa-flax env`: versions, devices, processes, memory, cache, and what is wrong with them."""

import os
import platform
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement

from qa_flax.commands.arguments import DistributedArguments
from qa_flax.device import parallel
from qa_flax.distributed import exchange, join


def start(arguments: DistributedArguments) -> None:
    """Join the other processes, and refuse another backend, as the arguments say.

    Raises:
        ProcessError: the processes do not come together.
        ValueError: JAX runs on another backend.
    """
    if arguments.distributed:
        join.join(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            arguments.initialization_timeout,
        )
    parallel.require_backend(arguments.require_backend, "--require_backend")


PACKAGES = [
    "qa-flax",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "etils",
    "gcsfs",
]
_GIB = 1 << 30


def report(arguments: DistributedArguments) -> tuple[list[str], list[str]]:
    """Lines that describe what a run would find here, and what is wrong with it.

    Every process gets the same.
    """
    try:
        start(arguments)
        jax.default_backend()
    except (ValueError, RuntimeError) as error:
        return [f"{name}: {found}" for name, found in _versions().items()], [str(error)]
    every = exchange.all_gather_json("environment", _of_this_process())
    return list(_lines(every)), list(_problems(every))


def _of_this_process() -> dict[str, Any]:
    devices = jax.local_devices()
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return {
        "host": socket.gethostname(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "device memory": limits,
        "host memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "processors": os.cpu_count(),
        "versions": _versions(),
        "misfits": _misfits(),
        "cache": cache,
        "cache problem": _cache_problem(cache),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _misfits() -> list[str]:
    """jaxlib and libtpu where they are not those that this JAX was released with."""
    wrong = {}
    for line in requires("jax") or []:
        wanted = Requirement(line)
        extra = {"extra": "tpu" if wanted.name == "libtpu" else ""}
        if wanted.name not in ("jaxlib", "libtpu"):
            continue
        if wanted.marker is not None and not wanted.marker.evaluate(extra):
            continue
        found = _versions()[wanted.name]
        if found != "not installed" and not wanted.specifier.contains(found, prereleases=True):
            wrong[wanted.name] = (
                f"{wanted.name} is {found}, and jax {version('jax')} needs {wanted.specifier}: "
                'pip install -U "jax[tpu]" on every worker'
            )
    return list(wrong.values())


def _cache_problem(folder: str | None) -> str | None:
    if folder is None or "://" in folder:
        return None
    path = Path(folder)
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not os.access(existing, os.W_OK):
        return f"the compilation cache {folder} cannot be written to"
    return None


def _lines(every: list[dict[str, Any]]) -> Iterator[str]:
    first = every[0]
    for name, found in first["versions"].items():
        yield f"{name}: {found}"
    yield f"backend: {first['backend']}"
    cores = sum(len(one["devices"]) for one in every)
    yield f"cores: {cores}, of {len(every)} processes" if len(every) > 1 else f"cores: {cores}"
    for number, one in enumerate(every):
        kinds = sorted(set(one["devices"]))
        known = {limit for limit in one["device memory"] if limit is not None}
        each = f", {min(known) / _GIB:.1f} GiB each" if known else ", memory not told"
        yield (
            f"process {number}: {one['host']}, {len(one['devices'])} x {', '.join(kinds)}{each}; "
            f"{one['processors']} processors, {one['host memory'] / _GIB:.1f} GiB"
        )
    cache = first["cache"] or "none (set JAX_COMPILATION_CACHE_DIR and steps are compiled once)"
    yield f"compilation cache: {cache}"


def _problems(every: list[dict[str, Any]]) -> Iterator[str]:
    first = every[0]
    for number, one in enumerate(every):
        prefix = f"process {number}: " if len(every) > 1 else ""
        for problem in [*one["misfits"], *filter(None, [one["cache problem"]])]:
            yield prefix + problem
        if one["versions"]["libtpu"] != "not installed" and one["backend"] != "tpu":
            yield (
                f"{prefix}libtpu is installed, but JAX runs on {one['backend']}: is there a TPU, "
                "and does no other process hold it (sudo lsof /dev/accel* /dev/vfio/*)?"
            )
        differences = [
            f"{name} {found} (process 0: {first['versions'][name]})"
            for name, found in one["versions"].items()
            if found != first["versions"][name]
        ]
        if differences:
            yield f"{prefix}has {', '.join(differences)}: all hosts need the same"
        if len(one["devices"]) != len(first["devices"]):
            yield f"{prefix}{len(one['devices'])} cores, process 0 has {len(first['devices'])}"
