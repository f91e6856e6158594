"""Exchange host values (batch widths, answers, metrics) between processes.

They go through the key-value store of JAX's distributed service, so no device is needed and every
wait has a timeout. Collectives between cores are in `device/step.py`.
"""

import itertools
import json
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from qa_flax.distributed import ProcessError
from qa_flax.distributed.processes import client, count, index, is_main

SECONDS_TO_WAIT = 900.0
"""How long a process waits for another one, which may tokenise, save or upload for minutes."""

_CHUNK = 1 << 20  # bytes of one value in the store; the service limits messages to 4 MiB

# All processes make the same exchanges in the same order, so their numbers serve as keys.
_numbers = itertools.count()


def all_gather_bytes(label: str, data: bytes, timeout: float = SECONDS_TO_WAIT) -> list[bytes]:
    """The bytes of every process, in the order of the processes.

    Every process must call this, and all functions of this module, in the same order.

    Args:
        label: names the exchange in error messages; the same in every process.
        data: this process's bytes.
        timeout: seconds to wait for each other process.

    Raises:
        ProcessError: another process did not call it within `timeout`, or with another label.
    """
    if count() == 1:
        return [data]
    store, number = client(), next(_numbers)
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    for i, chunk in enumerate(chunks):
        store.key_value_set_bytes(f"qa_flax/{number}/{index()}/{i}", chunk)
    head = json.dumps([label, len(chunks)]).encode()
    store.key_value_set_bytes(f"qa_flax/{number}/{index()}/head", head)
    values = [data if i == index() else _receive(number, i, label, timeout) for i in range(count())]
    # Every process that reaches this line has read all of the previous exchange.
    store.key_value_delete(f"qa_flax/{number - 1}/{index()}")
    return values


def _receive(number: int, process: int, label: str, timeout: float) -> bytes:
    store, prefix = client(), f"qa_flax/{number}/{process}"
    try:
        head = store.blocking_key_value_get_bytes(f"{prefix}/head", round(timeout * 1000))
        other_label, length = json.loads(head)
        if other_label != label:
            raise ProcessError(
                f"process {process} exchanges {other_label!r} while process {index()} exchanges "
                f"{label!r}: start the same command, with the same arguments and data, on every "
                "worker"
            )
        chunks = [
            store.blocking_key_value_get_bytes(f"{prefix}/{i}", round(timeout * 1000))
            for i in range(length)
        ]
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f"process {index()} timed out after {timeout:.0f} s waiting for process {process} "
            f"({label}): see the log of process {process} ({str(error).splitlines()[0]})"
        ) from error
    return b"".join(chunks)


def all_gather_json(label: str, value: Any, timeout: float = SECONDS_TO_WAIT) -> list[Any]:
    """`all_gather_bytes` for JSON values; NumPy values become numbers and lists."""
    if count() == 1:
        return [value]
    encoded = json.dumps(value, default=lambda array: array.tolist())
    return [json.loads(data) for data in all_gather_bytes(label, encoded.encode(), timeout)]


def all_gather_arrays(label: str, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """`all_gather_bytes` for NumPy arrays by name."""
    if count() == 1:
        return [dict(arrays)]
    encoded = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return [load(data) for data in all_gather_bytes(label, encoded)]


def all_gather_rows(label: str, tree: Any) -> Any:
    """Concatenate each array `[n, ...]` of a tree over all processes; n may differ among them."""
    if count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    parts = all_gather_arrays(label, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    all_rows = [np.concatenate([part[str(i)] for part in parts]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, all_rows)


def broadcast_from_main(label: str, value: Any, timeout: float = SECONDS_TO_WAIT) -> Any:
    """The JSON value of the main process; other processes' values are ignored."""
    return all_gather_json(label, value if is_main() else None, timeout)[0]


def barrier(label: str) -> None:
    """Wait until every process has called this with the same label."""
    all_gather_bytes(label, b"")


def check_shared_folder(folder: Any) -> None:
    """Check that all processes share a folder (a `pathlib` or `epath` path), which is created.

    Raises:
        ProcessError: some processes do not see a file that process 0 writes there.
    """
    if count() == 1:
        return
    probe = folder / broadcast_from_main("shared folder", f".shared-{uuid.uuid4().hex}")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    barrier("file written to the shared folder")
    exists = all_gather_json("file exists in the shared folder", probe.exists())
    if is_main():
        probe.unlink()
    if without := [str(process) for process, is_visible in enumerate(exists) if not is_visible]:
        raise ProcessError(
            f"output_dir={folder}: process {', '.join(without)} cannot see the files that process "
            "0 writes there, and so could not resume from a checkpoint; use a folder that all "
            "hosts share, such as a bucket (gs://...)"
        )
