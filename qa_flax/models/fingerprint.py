"""Stage 4 of 7: a short text that tells whether a model still has the same parameters (host)."""

import hashlib

import numpy as np

from qa_flax.models.families import FAMILIES
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.transfers import to_host
from qa_flax.models.weights import parameters, weight_name

SAMPLES = 1024
"""How many values of an array are hashed; of smaller arrays all."""


def fingerprint(model: AutoModelForQuestionAnswering) -> str:
    """Return a text that is the same for models with the same parameters, and else another one.

    It depends on the name, shape and float32 values of every parameter, trained or frozen, also of
    LoRA adapters; not on the compute dtype, the devices, or whether the model was saved and loaded
    since. It is no protection against a forged model: of large arrays only evenly spaced values and
    a checksum of all values are hashed, which takes a tenth of a second for 400 MB.

    Example:
        >>> from qa_flax import AutoModelForQuestionAnswering
        >>> from qa_flax.models.fingerprint import fingerprint
        >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> fingerprint(model) == fingerprint(model.with_dtype("bfloat16"))
        True
    """
    family = FAMILIES[model.config.model_type]
    named = {weight_name(path, family, family.prefix): p for path, p in parameters(model)}
    hashed = hashlib.sha256()
    for name in sorted(named):
        array = to_host(named[name][...]).astype(np.float32)
        hashed.update(f"{name} {list(array.shape)} {_checksum(array)}\n".encode())
        hashed.update(_samples(array).tobytes())
    return hashed.hexdigest()[:32]


def _samples(array: np.ndarray) -> np.ndarray:
    """Return evenly spaced values with the first and the last, little endian."""
    flat = array.reshape(-1)
    if len(flat) > SAMPLES:
        flat = flat[np.arange(SAMPLES) * (len(flat) - 1) // (SAMPLES - 1)]
    return flat.astype("<f4")


def _checksum(array: np.ndarray) -> int:
    """Return the sum of the values' bits as 64-bit integers, which any single change alters."""
    # Of an odd number of values the last one is left out; it is among the samples.
    flat = np.ascontiguousarray(array).reshape(-1)
    return int(flat[: len(flat) // 2 * 2].view("<u8").sum(dtype=np.uint64))
