"""Check that token ids are inside the model's tables: a lookup outside gives NaN (host)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.core import Tracer

from qa_flax.models.layers import BlockConfig

IdLimits = tuple[tuple[str, int], ...]
"""The name of an input, and the number of rows of the table in which it is looked up."""


def id_limits(config: BlockConfig) -> IdLimits:
    """The limits of a model with this config."""
    types = getattr(config, "type_vocab_size", 0)
    limits = (("input_ids", config.vocab_size), ("token_type_ids", types))
    return tuple((name, rows) for name, rows in limits if rows)


def check_ids(inputs: Mapping[str, Any], limits: IdLimits) -> None:
    """Check the inputs of a model before they are used. Arrays that JAX traces are skipped.

    Args:
        inputs: integer arrays of any shape by name; others than those in `limits` are ignored.
        limits: from `id_limits`.

    Raises:
        ValueError: an id is negative or too large.
    """
    for name, rows in limits:
        ids = inputs.get(name)
        if ids is None or isinstance(ids, Tracer):
            continue
        if not getattr(ids, "is_fully_addressable", True):  # spread over several processes
            continue
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= rows):
            wrong = ids.max() if ids.max() >= rows else ids.min()
            hint = "use the tokenizer of this model"
            if name == "input_ids":
                hint += ", or call model.resize_token_embeddings(len(tokenizer)) after adding "
                hint += "tokens to it"
            raise ValueError(
                f"{name} has the id {wrong}, but the model has "
                f"embeddings for the ids 0 to {rows - 1} only; {hint}"
            )
