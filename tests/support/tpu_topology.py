"""The cores of a TPU topology to compile for, on a machine that need not have a TPU."""

import fcntl
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

# This machine is not a TPU VM: nobody is asked, and two processes may load libtpu.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
LOCK = Path("/tmp/libtpu_lockfile")


def obstacle(lock: Path = LOCK) -> str | None:
    """Return in one line why the TPU's compiler cannot be used; None if it can.

    libtpu aborts if another process has its lock file locked, unless both share it.
    """
    if importlib.util.find_spec("libtpu") is None:
        return "the TPU's compiler is not installed: pip install libtpu"
    is_shared = os.environ.get("ALLOW_MULTIPLE_LIBTPU_LOAD", "1").lower() in ("1", "true")
    # Closing the file would release a lock of this process's own.
    if is_shared or "libtpu" in sys.modules or not lock.exists():
        return None
    with lock.open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return (
                f"another process has loaded libtpu and locked {lock}: wait until it ends, or set "
                "ALLOW_MULTIPLE_LIBTPU_LOAD=1, which is enough to compile"
            )
    return None


def cores_of(topology: str) -> list[Any]:
    """Return the cores of a topology, such as `v5e:2x4`. Call `obstacle` before.

    libtpu reads the environment late, so it must stay as it is while programs are compiled.
    """
    for name, value in NO_TPU.items():
        if "WARNING" in os.environ.setdefault(name, value):  # set by `import jax`
            os.environ[name] = value
    jax.devices()  # reads XLA_FLAGS, some of which libtpu does not know and aborts at
    os.environ.pop("XLA_FLAGS", None)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
