"""What processes tell each other beside what the cores exchange by themselves (`device/step.py`).

Batch widths, answers, metrics go through the key-value store of the service that every JAX process
is connected to, so that it needs no device, and every wait has an end.
"""

import json
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from qa_flax.distributed import HostError
from qa_flax.distributed.processes import client, count, index, is_main

SECONDS_TO_WAIT = 900.0
"""How long one process waits for another: tokenising, saving and uploading take minutes."""

_PIECE = 1 << 20  # bytes of one value in the store; a message of the service holds 4 MiB

_exchanges = 0


def exchange(what: str, data: bytes, timeout: float = SECONDS_TO_WAIT) -> list[bytes]:
    """What every process gave, in their order. All call it, in the same order of calls.

    Raises:
        HostError: a process did not come within `timeout` seconds; `what` says to what.
    """
    global _exchanges
    if count() == 1:
        return [data]
    store, number = client(), _exchanges
    _exchanges += 1
    pieces = [data[i : i + _PIECE] for i in range(0, len(data), _PIECE)]
    for i, piece in enumerate(pieces):
        store.key_value_set_bytes(f"qa_flax/{number}/{index()}/{i}", piece)
    head = json.dumps([what, len(pieces)]).encode()
    store.key_value_set_bytes(f"qa_flax/{number}/{index()}/head", head)
    found = [data if i == index() else _given(number, i, what, timeout) for i in range(count())]
    # Whoever is here has all of the exchange before this one.
    store.key_value_delete(f"qa_flax/{number - 1}/{index()}")
    return found


def _given(number: int, by: int, what: str, timeout: float) -> bytes:
    store, place = client(), f"qa_flax/{number}/{by}"
    try:
        head = store.blocking_key_value_get_bytes(f"{place}/head", round(timeout * 1000))
        other, count = json.loads(head)
        if other != what:
            raise HostError(
                f"process {by} is at another place ({other}) than process {index()} ({what}): "
                "start the same command, with the same arguments and data, on every worker"
            )
        pieces = [
            store.blocking_key_value_get_bytes(f"{place}/{i}", round(timeout * 1000))
            for i in range(count)
        ]
    except jax.errors.JaxRuntimeError as error:
        raise HostError(
            f"process {index()} waited {timeout:.0f} s in vain for process {by} ({what}): see that "
            f"one's log ({str(error).splitlines()[0]})"
        ) from error
    return b"".join(pieces)


def exchange_json(what: str, value: Any) -> list[Any]:
    """`exchange` of what JSON can say; NumPy's numbers and arrays become Python's."""
    if count() == 1:
        return [value]
    given = json.dumps(value, default=lambda array: array.tolist())
    return [json.loads(data) for data in exchange(what, given.encode())]


def exchange_arrays(what: str, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """`exchange` of NumPy arrays by name."""
    if count() == 1:
        return [dict(arrays)]
    given = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return [load(data) for data in exchange(what, given)]


def concatenated(what: str, tree: Any) -> Any:
    """A tree of arrays `[n, ...]` with the rows of all processes, in their order."""
    if count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    parts = exchange_arrays(what, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    joined = [np.concatenate([part[str(i)] for part in parts]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, joined)


def of_main(what: str, value: Any) -> Any:
    """The main process's value, in every process; JSON must be able to say it."""
    return exchange_json(what, value if is_main() else None)[0]


def wait_for_all(what: str) -> None:
    """Until every process is here."""
    exchange(what, b"")


def require_shared(folder: Any) -> None:
    """Refuse a folder (`pathlib` or `epath`) that is another one on each host.

    Raises:
        HostError: names the processes that do not see what process 0 writes there.
    """
    if count() == 1:
        return
    probe = folder / of_main("shared folder", f".shared-{uuid.uuid4().hex}")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    wait_for_all("a file in the shared folder")
    seen = exchange_json("the file is seen", probe.exists())
    if is_main():
        probe.unlink()
    if blind := [str(process) for process, sees in enumerate(seen) if not sees]:
        raise HostError(
            f"output_dir: what process 0 writes in {folder} is not seen by process "
            f"{', '.join(blind)}, so no checkpoint could be resumed from; give a folder that all "
            "hosts share, such as a bucket (gs://...)"
        )
