"""Stage 4 of 7: the model families by `model_type`, a plain dict (device, JAX)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from qa_flax.models import bert
from qa_flax.models.layers import BlockConfig


@dataclass(frozen=True)
class Family:
    """How one kind of checkpoint is read, computed and written."""

    read_config: Callable[[Mapping[str, Any]], BlockConfig]
    """config.json's values -> the encoder's config."""
    encoder: Callable[..., nnx.Module]
    """(config, *, dtype) -> a module called as described in `bert.BertEncoder`."""
    weight_names: Mapping[str, str]
    """Regular expression of a module's path -> its name in the checkpoint, without `prefix`."""
    unused_weights: tuple[str, ...]
    """Regular expressions of tensors a checkpoint may have and question answering does not use."""
    prefix: str
    """What HF's question answering model puts before the encoder's names."""
    architecture: str
    """HF's class of the whole model, for `architectures` in config.json."""


FAMILIES = {
    "bert": Family(
        bert.BertConfig.from_hf,
        bert.BertEncoder,
        bert.WEIGHT_NAMES,
        bert.UNUSED_WEIGHTS,
        prefix="bert.",
        architecture="BertForQuestionAnswering",
    ),
}
