"""The report of `qa-flax env`: collects each process's environment and checks it for problems."""

import os
import platform
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement

from qa_flax.commands.arguments import DistributedArguments
from qa_flax.device import parallel
from qa_flax.device.compilation_cache import use_compilation_cache
from qa_flax.distributed import exchange, join


def start(arguments: DistributedArguments) -> None:
    """Join the other processes with `--distributed`, and check `--require_backend`.

    Raises:
        ProcessError: not all processes joined in time.
        ValueError: JAX runs on another backend than `--require_backend`.
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
    """Describe the environment that `qa-flax run` would have with the same arguments.

    Every process returns the same.

    Returns:
        The lines of the report, and the problems, one line each.
    """
    try:
        start(arguments)
        jax.default_backend()
    except (ValueError, RuntimeError) as error:
        return [f"{name}: {version}" for name, version in _versions().items()], [str(error)]
    environments = exchange.all_gather_json("environment", _environment())
    return list(_lines(environments)), list(_problems(environments))


def _environment() -> dict[str, Any]:
    """The environment of this process, as JSON values; memory is in bytes, None if unknown."""
    devices = jax.local_devices()
    cache = use_compilation_cache()
    memory = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return {
        "host": socket.gethostname(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "device memory": memory,
        "host memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "processors": os.cpu_count(),
        "versions": _versions(),
        "incompatible": _incompatible(),
        "cache": cache,
        "cache problem": _cache_problem(cache),
        "unused": parallel.unused_accelerator(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _incompatible() -> list[str]:
    """A message for jaxlib and for libtpu if their version is not what the installed JAX needs."""
    messages = {}
    for line in metadata.requires("jax") or []:
        requirement = Requirement(line)
        name = requirement.name
        if name not in ("jaxlib", "libtpu"):
            continue
        extra = {"extra": "tpu" if name == "libtpu" else ""}
        if requirement.marker is not None and not requirement.marker.evaluate(extra):
            continue
        installed = _versions()[name]
        if installed == "not installed":
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            messages[name] = (
                f"{name} is {installed}, but jax {_versions()['jax']} needs "
                f'{requirement.specifier}: run pip install -U "jax[tpu]" on every host'
            )
    return list(messages.values())


def _cache_problem(folder: str | None) -> str | None:
    if folder is None or "://" in folder:
        return None
    path = Path(folder)
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return f"the compilation cache {folder} is not writable"
    return None


def _lines(environments: list[dict[str, Any]]) -> Iterator[str]:
    main = environments[0]
    for name, version in main["versions"].items():
        yield f"{name}: {version}"
    yield f"backend: {main['backend']}"
    cores = sum(len(environment["devices"]) for environment in environments)
    count = len(environments)
    yield f"cores: {cores}, of {count} processes" if count > 1 else f"cores: {cores}"
    for index, environment in enumerate(environments):
        kinds = sorted(set(environment["devices"]))
        limits = {limit for limit in environment["device memory"] if limit is not None}
        memory = f"{min(limits) / _GIB:.1f} GiB each" if limits else "memory not reported"
        yield (
            f"process {index}: {environment['host']}, {len(environment['devices'])} x "
            f"{', '.join(kinds)}, {memory}; {environment['processors']} processors, "
            f"{environment['host memory'] / _GIB:.1f} GiB"
        )
    cache = main["cache"] or "none, so that steps are compiled in every run"
    yield f"compilation cache: {cache}"


def _problems(environments: list[dict[str, Any]]) -> Iterator[str]:
    main = environments[0]
    for index, environment in enumerate(environments):
        prefix = f"process {index}: " if len(environments) > 1 else ""
        cache_problem = environment["cache problem"]
        found = [*environment["incompatible"], cache_problem, environment["unused"]]
        for problem in filter(None, found):
            yield prefix + problem
        versions, backend = environment["versions"], environment["backend"]
        if versions["libtpu"] != "not installed" and backend != "tpu":
            yield (
                f"{prefix}libtpu is installed, but JAX runs on {backend}: check that this host has "
                "a TPU and that no other process uses it (sudo lsof /dev/accel* /dev/vfio/*)"
            )
        differences = [
            f"{name} {version} (process 0: {main['versions'][name]})"
            for name, version in versions.items()
            if version != main["versions"][name]
        ]
        if differences:
            yield f"{prefix}has {', '.join(differences)}: all processes need the same versions"
        if len(environment["devices"]) != len(main["devices"]):
            yield (
                f"{prefix}has {len(environment['devices'])} cores, but process 0 has "
                f"{len(main['devices'])}"
            )
