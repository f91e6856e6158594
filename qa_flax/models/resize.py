"""Add rows to a model's token embedding table, or remove some (host)."""

from typing import Any

import numpy as np
from jaxtyping import Float

from qa_flax.models.families import FAMILIES
from qa_flax.models.id_limits import id_limits
from qa_flax.models.layers import Table
from qa_flax.models.read_hooks import has_read_hook
from qa_flax.models.transfers import to_device, to_host

NOISE_VARIANCE = 1e-9
"""The variance of new rows, as a share of the old rows' covariance; transformers' number."""


def resize_table(model: Any, size: Any, multiple: Any, mean_resizing: bool = True) -> None:
    """Change the rows of a model's token embedding table and `config.vocab_size`.

    Args:
        model: the model, which is changed.
        size: the number of rows; None: as many as there are.
        multiple: the number is rounded up to a multiple of this; None: it is not.
        mean_resizing: whether new rows are drawn close to the mean of the old ones.

    Raises:
        ValueError: a number is invalid, the model is being trained, or it has LoRA adapters.
    """
    for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", multiple)):
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name}={value!r} must be a whole number above 0")
    rows = model.config.vocab_size if size is None else int(size)
    rows = -(-rows // multiple) * multiple if multiple else rows
    if rows == model.config.vocab_size:
        return
    if has_read_hook(model):
        raise ValueError("the token embeddings cannot be resized while the model is trained")
    if model.lora is not None:
        raise ValueError(
            "the token embeddings of a model with LoRA adapters cannot be resized, because its "
            "checkpoints hold only the adapters; call resize_token_embeddings before get_peft_model"
        )
    table, path = _token_table(model)
    old = to_host(table.embedding[...])
    table.embedding.set_value(to_device(_resized(model, path, old, rows, mean_resizing)))
    table.num_embeddings = rows
    model.config.vocab_size = rows
    model.id_limits = id_limits(
        FAMILIES[model.config.model_type].read_config(model.config.to_dict())
    )


def _token_table(model: Any) -> tuple[Table, tuple[Any, ...]]:
    """The token table and the path of its array."""
    encoder = model.encoder
    if isinstance(getattr(encoder, "word", None), Table):
        return encoder.word, ("encoder", "word", "embedding")
    return encoder.embeddings.word, ("encoder", "embeddings", "word", "embedding")


def _resized(
    model: Any, path: tuple[Any, ...], old: np.ndarray, rows: int, mean_resizing: bool
) -> Float[np.ndarray, "rows size"]:
    """The first rows of the old table and, if there are not enough, new ones."""
    if rows <= len(old):
        return old[:rows]
    random = np.random.default_rng(0)
    if mean_resizing:
        return np.concatenate([old, _near_mean(old, rows - len(old), random)])
    family = FAMILIES[model.config.model_type]
    config = family.read_config(model.config.to_dict())
    new = family.initial_array(path, (rows, old.shape[1]), config, random)
    return np.concatenate([old, new[len(old) :]])


def _near_mean(
    old: np.ndarray, count: int, random: np.random.Generator
) -> Float[np.ndarray, "count size"]:
    """Rows from a normal distribution with the old ones' mean and a tiny part of the covariance."""
    mean = old.mean(axis=0, dtype=np.float64)
    centered = old - mean
    variances, axes = np.linalg.eigh(centered.T @ centered / len(old))
    scales = np.sqrt(NOISE_VARIANCE * np.maximum(variances, 0.0))
    noise = random.standard_normal((count, len(scales))) * scales @ axes.T
    return (mean + noise).astype(np.float32)
