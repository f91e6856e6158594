"""Stage 4 of 7: the description of a model family (device, JAX).

Every file in `families/` ends with `FAMILY = Family(...)`, or with a tuple of `Family` objects if
its encoder is used for several model types. `families/__init__.py` collects them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from flax import nnx

from qa_flax.models.blocks import OTHER_TASKS
from qa_flax.models.layers import BlockConfig, ParamPath, initial_array
from qa_flax.models.qa import HEAD_WEIGHT_NAMES, SpanHead

DROPOUT_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
"""Dropout rates of embeddings and layer outputs, of attention weights, and before the span head."""


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one model type are read, computed and written."""

    model_type: str
    """Hugging Face's `model_type`, as in config.json."""
    read_config: Callable[[Mapping[str, Any]], BlockConfig]
    """config.json's values -> the encoder's config."""
    encoder: Callable[..., nnx.Module]
    """(config, *, dtype) -> a module that is called like `encoder.Encoder`."""
    weight_names: Mapping[str, str]
    """Regular expression of a module's path in the encoder -> its checkpoint name, not prefixed.

    A parameter that is no kernel, bias, scale or table of a module is listed with its own path.

    The expressions, and the alternatives in their groups, are in the order in which HF's model
    lists these modules.
    """
    prefix: str
    """Prefix of the encoder's weight names in HF's question answering model."""
    architecture: str
    """Name of HF's question answering class, for `architectures` in config.json."""
    base_model_prefix: str = ""
    """HF's attribute of that name in families without `prefix`."""
    head: Callable[..., nnx.Module] = SpanHead
    """(config, *, dtype) -> a module that is called like `qa.SpanHead`."""
    head_weight_names: Mapping[str, str] = field(default_factory=lambda: HEAD_WEIGHT_NAMES)
    """As `weight_names`, for the head. The module `outputs` computes the span logits."""
    positional_inputs: tuple[str, ...] = ("token_type_ids", "position_ids")
    """What may follow input_ids and attention_mask in a call without a name, as in HF's class."""
    unused_weights: tuple[str, ...] = OTHER_TASKS
    """Regular expressions of tensors in checkpoints that question answering does not use."""
    tied_names: Mapping[str, str] = field(default_factory=dict)
    """Further names that HF's model has for a tensor -> its name, both not prefixed."""
    head_first: bool = False
    """Whether HF's model lists the head's parameters before the encoder's."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Alternative name of a tensor -> its usual name; read if a checkpoint lacks the usual one."""
    ignored_token_ids: tuple[str, ...] = ()
    """Special tokens whose ids in config.json need not be the tokenizer's, such as "pad": HF's
    class writes those of another family into it, and no result depends on them."""
    dropout_remarks: Mapping[str, str] = field(default_factory=dict)
    """Dropout rate -> where it has no effect, although the family has it."""
    fixed_arrays: Callable[[Any], Mapping[ParamPath, np.ndarray]] = lambda config: {}
    """config -> initial values, by path, of tensors that are never trained (`layers.Fixed`)."""
    initial_array: Callable[..., np.ndarray] = initial_array
    """(path, shape, config, random) -> initial values of a parameter, float32."""

    def own_names(self, name: str) -> tuple[str, ...]:
        """The settings of config.json that a setting's name in most families stands for.

        A dropout rate (`DROPOUT_RATES`) that changes nothing in this family stands for none.
        """
        config = self._config_class
        if name in DROPOUT_RATES and name not in {field.name for field in fields(config)}:
            return ()
        return config.NAMES.get(name, name), *config.SPLIT.get(name, ())

    @property
    def dropout_settings(self) -> tuple[str, ...]:
        """The dropout rates in config.json that change something in this family."""
        names = self._config_class.NAMES
        rates = [f.name for f in fields(self._config_class) if "dropout" in f.name]
        return tuple(names.get(rate, rate) for rate in rates)

    @property
    def _config_class(self) -> Any:
        return getattr(self.read_config, "__self__")  # noqa: B009
