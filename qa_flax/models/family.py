"""Stage 4 of 7: what a file of a model family hands over (device, JAX).

Every file in `families/` ends with `FAMILY = Family(...)`, or with a tuple of these where one
encoder serves several model types; `families/__init__.py` finds them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from qa_flax.models.blocks import OTHER_TASKS
from qa_flax.models.layers import BlockConfig, ParamPath, initial_array
from qa_flax.models.qa import HEAD_WEIGHT_NAMES, SpanHead


@dataclass(frozen=True)
class Family:
    """How one kind of checkpoint is read, computed and written."""

    model_type: str
    """The kind, as config.json says it: Hugging Face's `model_type`."""
    read_config: Callable[[Mapping[str, Any]], BlockConfig]
    """config.json's values -> the encoder's config."""
    encoder: Callable[..., nnx.Module]
    """(config, *, dtype) -> a module called as described in `encoder.Encoder`."""
    weight_names: Mapping[str, str]
    """Regular expression of a module's path -> its name in the checkpoint, without `prefix`."""
    prefix: str
    """What HF's question answering model puts before the encoder's names."""
    architecture: str
    """HF's class of the whole model, for `architectures` in config.json."""
    head: Callable[..., nnx.Module] = SpanHead
    """(config, *, dtype) -> a module called as described in `qa.SpanHead`."""
    head_weight_names: Mapping[str, str] = field(default_factory=lambda: HEAD_WEIGHT_NAMES)
    """As `weight_names`; never prefixed. Its `outputs` is the layer that makes the span logits."""
    unused_weights: tuple[str, ...] = OTHER_TASKS
    """Regular expressions of tensors a checkpoint may have and question answering does not use."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Another name of a tensor -> its own, which a checkpoint without that is read by."""
    fixed_arrays: Callable[[Any], Mapping[ParamPath, np.ndarray]] = lambda config: {}
    """config -> how tensors that are never trained (`layers.Fixed`) begin, by path."""
    initial_array: Callable[..., np.ndarray] = initial_array
    """(path, shape, config, random) -> how a parameter begins, float32."""
