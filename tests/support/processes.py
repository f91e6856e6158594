"""Start processes of one run on this machine, each with its own simulated cores."""

import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

# JAX's settings to cache every compiled program, in the folder `QA_FLAX_TEST_COMPILED`.
COMPILED_FOR_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}
# A folder with a `sitecustomize` that hides torch from started processes, as if only qa_flax's
# dependencies were installed. Otherwise transformers imports torch, which takes most of the start.
WITHOUT_TORCH = Path(__file__).parent / "without_torch"


def compiler_flags(cores: int) -> str:
    """XLA flags that compile fast, for thousands of small programs that run only a few times.

    They turn off LLVM's optimisations, but not XLA's. They also choose XLA's older code generator
    for CPUs, where it still exists: it needs a third of the newer one's time. To restore both, set
    `XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"`.
    """
    flags = [
        f"--xla_force_host_platform_device_count={cores}",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if Version(version("jaxlib")) < Version("0.11"):  # XLA aborts at an unknown flag
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


class ProcessResult(NamedTuple):
    """The exit status of a process, and its output: stdout and stderr together."""

    status: int
    output: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def join_arguments(count: int, port: int) -> list[list[str]]:
    """The command line arguments with which each of `count` processes joins the run."""
    if count == 1:
        return [[]]
    return [
        [
            "--distributed",
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={count}",
            f"--process_id={index}",
            "--initialization_timeout=120",
        ]
        for index in range(count)
    ]


def environment(cores: int) -> dict[str, str]:
    """The environment of a process with `cores` cores that shares the tests' compilation cache."""
    return os.environ | {
        "XLA_FLAGS": compiler_flags(cores),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ["QA_FLAX_TEST_COMPILED"],
        **{name: str(value) for name, value in COMPILED_FOR_ALL.items()},
    }


def python_path() -> str:
    return os.pathsep.join([str(WITHOUT_TORCH), str(Path(__file__).parent), *sys.path])
