"""Real processes of one run on this machine, each with its own simulated cores."""

import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

# Everything that is compiled is kept in `QA_FLAX_TEST_COMPILED`, and read from there.
COMPILED_FOR_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}
# A `sitecustomize` for processes that are started: there is no torch, as where only qa_flax's own
# dependencies are installed. transformers would import it, for longer than all else takes.
WITHOUT_TORCH = Path(__file__).parent / "without_torch"


def compiler_flags(cores: int) -> str:
    """XLA's, for thousands of small programs that run a few times each.

    LLVM's optimising is left out, XLA's own is not; and XLA's older code generator for CPUs, where
    there still is one, takes a third of the newer one's time for the same fusions. To have both
    back: `XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"`.
    """
    flags = [
        f"--xla_force_host_platform_device_count={cores}",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if Version(version("jaxlib")) < Version("0.11"):  # a flag that XLA does not know ends a process
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


class Ended(NamedTuple):
    """How a process ended: its exit status, and all that it wrote."""

    status: int
    text: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def joining(count: int, port: int) -> list[list[str]]:
    """The arguments by which each of `count` processes finds the others."""
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
    """That of the tests, but for the number of cores; what is compiled is kept for all."""
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
