"""What the sides of `accelerator.py` share: shapes, windows, and the arithmetic of MFU. No JAX."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH = 384
"""Tokens of a row."""

CONFIGS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    },
}
"""What differs from BERT-base; the dropout is BERT's, 0.1."""

QUANTILES = {
    0.0: 40,
    0.05: 95,
    0.25: 131,
    0.5: 160,
    0.75: 201,
    0.9: 255,
    0.95: 299,
    1.0: WIDTH,
}
"""The tokens of windows like SQuAD's (BERT's tokenizer, stride 128): this share is shorter."""

ANSWER = {24: 3, 26: 4}
"""Positions of every answer's first and last token, and their ids, which no other token has: so
easy to learn that the loss falls within few updates."""

PEAKS = {
    "a100": 312.0,
    "h100": 989.0,
    "h200": 989.0,
    "tpu v3": 61.5,
    "tpu v4": 275.0,
    "tpu v5 lite": 197.0,
    "tpu v5e": 197.0,
    "tpu v5p": 459.0,
    "tpu v5": 459.0,
    "tpu v6": 918.0,
    "tpu7x": 1153.5,
}
"""TFLOP/s of dense matrix products in bfloat16, of one JAX device. TPU v3 and 7x chips are two."""
SLOWER = ("pcie", "nvl")
"""Cards of the same names with other clocks, whose peak must be given."""


def config_of(model: str, **changes: Any) -> Any:
    """A `BertConfig`."""
    from transformers import BertConfig  # not while `accelerator.py` starts: that takes seconds

    return BertConfig(**(CONFIGS[model] | changes))


def peak_of(device_kind: str) -> float | None:
    """TFLOP/s of a JAX or CUDA device of this name; None: a CPU, or not in the table."""
    name = device_kind.lower()
    if any(word in name for word in SLOWER):
        return None
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    """The tokens of so many windows, int64 [count]: `QUANTILES` at equal distances, shuffled."""
    at = (np.arange(count) + 0.5) / count
    lengths = np.interp(at, list(QUANTILES), list(QUANTILES.values())).round().astype(np.int64)
    return np.random.default_rng(seed).permutation(lengths)


def arrays_of(model: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The windows: int32 [count, 384] inputs of random tokens, and int32 [count] labels."""
    random, lengths = np.random.default_rng(seed), lengths_of(count, seed)
    mask = (np.arange(WIDTH) < lengths[:, None]).astype(np.int32)
    vocabulary = config_of(model).vocab_size
    ids = random.integers(5, vocabulary, (count, WIDTH), dtype=np.int32)
    ids[:, list(ANSWER)] = list(ANSWER.values())
    starts, ends = (np.full(count, position, np.int32) for position in ANSWER)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": mask * (np.arange(WIDTH) >= 16),
        "start_positions": starts,
        "end_positions": ends,
    }


def forward_flops(config: Any, lengths: Sequence[int] | np.ndarray) -> float:
    """Of the forward passes of windows without padding: their mean.

    2 for each weight of the encoder's matrices and token, and attention's two products, each 2 for
    each pair of tokens and unit. Embeddings and the span head are left out.
    """
    h, f = config.hidden_size, config.intermediate_size
    tokens, pairs = (np.mean(np.asarray(lengths, np.float64) ** n) for n in (1, 2))
    return float(config.num_hidden_layers * (2 * (4 * h * h + 2 * h * f) * tokens + 4 * h * pairs))


def model_flops(config: Any, lengths: Sequence[int] | np.ndarray, stage: str) -> float:
    """Of a window in a stage; the backward pass counts twice the forward pass."""
    return forward_flops(config, lengths) * (3 if stage == "training" else 1)


class Batches(NamedTuple):
    """Rows of 384 positions that a core computes at once."""

    training: int
    evaluation: int

    def windows(self, stage: str, *, is_full: bool) -> int:
        """How many windows are as many positions.

        Args:
            stage: "training" or "evaluation".
            is_full: whether rows have no padding, because windows are packed or of equal lengths.
        """
        rows = getattr(self, stage)
        return round(rows * WIDTH / lengths_of(1000).mean()) if is_full else rows


def batches_of(backend: str, model: str) -> Batches:
    """The rows that suit a backend, "tpu", "gpu" or "cpu".

    A TPU core works through 8 rows at once, see `docs/performance.md`. A GPU is the faster the more
    it has; these need about 40 GiB.
    """
    if model == "tiny":
        return Batches(2, 6)
    if backend == "gpu":
        return Batches(64, 128) if model == "base" else Batches(32, 128)
    return {"tpu": Batches(8, 32)}.get(backend, Batches(4, 8))


class Job(NamedTuple):
    """What a process measures, given to it as JSON."""

    model: str
    side: str
    seconds: float
    """How long each stage is timed."""
    training_rows: int | None
    evaluation_rows: int | None
    peak: float | None
    """TFLOP/s of a device; None: from its name."""
    peer_device: str

    def batches(self, backend: str) -> Batches:
        rows = batches_of(backend, self.model)
        return Batches(self.training_rows or rows.training, self.evaluation_rows or rows.evaluation)


UPDATES = 32
"""Updates in an epoch: packed epochs of fewer than 16 have fuller or emptier rows."""


def row(
    job: Job, stage: str, windows: float, seconds: float, devices: tuple[str, int], **further: Any
) -> dict[str, Any]:
    """A line of the table; `devices` are their kind and number."""
    config, lengths = config_of(job.model), lengths_of(1000)
    rate = windows / seconds
    peak = job.peak or peak_of(devices[0])
    achieved = rate * model_flops(config, lengths, stage) / 1e12 / devices[1]
    return {
        "model": job.model,
        "side": job.side,
        "stage": stage,
        "windows_per_second": rate,
        "tflops_per_device": achieved,
        "mfu": None if peak is None else achieved / peak,
    } | further
