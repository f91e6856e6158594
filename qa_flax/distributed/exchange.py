"""Exchange host values between processes; what the cores exchange is in `device/step.py`.

Batch widths, answers and metrics go through the key-value store of the service that every JAX
process is connected to, so no device is needed, and every wait has an end.
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
"""How long one process waits for another: tokenising, saving and uploading take minutes."""

_CHUNK = 1 << 20  # bytes of one value in the store; a message of the service holds 4 MiB

# Exchanges are numbered, and all processes make the same ones: the number is the key in the store.
_numbers = itertools.count()


def all_gather_bytes(what: str, data: bytes, timeout: float = SECONDS_TO_WAIT) -> list[bytes]:
    """The bytes of every process, in their order. All call it, in the same order of calls.

    Raises:
        ProcessError: a process did not come within `timeout` seconds; `what` says to what.
    """
    if count() == 1:
        return [data]
    store, number = client(), next(_numbers)
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    for i, chunk in enumerate(chunks):
        store.key_value_set_bytes(f"qa_flax/{number}/{index()}/{i}", chunk)
    head = json.dumps([what, len(chunks)]).encode()
    store.key_value_set_bytes(f"qa_flax/{number}/{index()}/head", head)
    values = [data if i == index() else _received(number, i, what, timeout) for i in range(count())]
    # Every process that reaches this line has read all of the previous exchange.
    store.key_value_delete(f"qa_flax/{number - 1}/{index()}")
    return values


def _received(number: int, process: int, what: str, timeout: float) -> bytes:
    store, place = client(), f"qa_flax/{number}/{process}"
    try:
        head = store.blocking_key_value_get_bytes(f"{place}/head", round(timeout * 1000))
        other, length = json.loads(head)
        if other != what:
            raise ProcessError(
                f"process {process} is at another place ({other}) than process {index()} ({what}): "
                "start the same command, with the same arguments and data, on every worker"
            )
        chunks = [
            store.blocking_key_value_get_bytes(f"{place}/{i}", round(timeout * 1000))
            for i in range(length)
        ]
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f"process {index()} waited {timeout:.0f} s in vain for process {process} ({what}): see "
            f"that one's log ({str(error).splitlines()[0]})"
        ) from error
    return b"".join(chunks)


def all_gather_json(what: str, value: Any) -> list[Any]:
    """`all_gather_bytes` of JSON values; NumPy's numbers and arrays become Python's."""
    if count() == 1:
        return [value]
    encoded = json.dumps(value, default=lambda array: array.tolist())
    return [json.loads(data) for data in all_gather_bytes(what, encoded.encode())]


def all_gather_arrays(what: str, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """`all_gather_bytes` of NumPy arrays by name."""
    if count() == 1:
        return [dict(arrays)]
    encoded = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return [load(data) for data in all_gather_bytes(what, encoded)]


def all_gather_rows(what: str, tree: Any) -> Any:
    """A tree of arrays `[n, ...]` with the rows of all processes, in their order."""
    if count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    parts = all_gather_arrays(what, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    joined = [np.concatenate([part[str(i)] for part in parts]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, joined)


def broadcast_from_main(what: str, value: Any) -> Any:
    """The main process's value, in every process; a JSON value."""
    return all_gather_json(what, value if is_main() else None)[0]


def barrier(what: str) -> None:
    """Wait until every process has called this, with the same `what`."""
    all_gather_bytes(what, b"")


def check_shared_folder(folder: Any) -> None:
    """Refuse a folder (`pathlib` or `epath`) that is another one on each host.

    Raises:
        ProcessError: names the processes that do not see what process 0 writes there.
    """
    if count() == 1:
        return
    probe = folder / broadcast_from_main("shared folder", f".shared-{uuid.uuid4().hex}")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    barrier("a file in the shared folder")
    seen = all_gather_json("the file is seen", probe.exists())
    if is_main():
        probe.unlink()
    if blind := [str(process) for process, sees in enumerate(seen) if not sees]:
        raise ProcessError(
            f"output_dir: what process 0 writes in {folder} is not seen by process "
            f"{', '.join(blind)}, so no checkpoint could be resumed from; give a folder that all "
            "hosts share, such as a bucket (gs://...)"
        )
