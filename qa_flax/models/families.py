"""Stage 4 of 7: the model families by `model_type`, a plain dict (device, JAX)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from qa_flax.models import bart, bert, deberta_v2, distilbert, electra, mbart, roberta
from qa_flax.models.layers import OTHER_TASKS, BlockConfig, ParamPath
from qa_flax.models.qa import HEAD_WEIGHT_NAMES, SpanHead


@dataclass(frozen=True)
class Family:
    """How one kind of checkpoint is read, computed and written."""

    read_config: Callable[[Mapping[str, Any]], BlockConfig]
    """config.json's values -> the encoder's config."""
    encoder: Callable[..., nnx.Module]
    """(config, *, dtype) -> a module called as described in `bert.BertEncoder`."""
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
    fixed_arrays: Callable[[Any], Mapping[ParamPath, np.ndarray]] = lambda config: {}
    """config -> how tensors that are never trained (`layers.Fixed`) begin, by path."""


FAMILIES = {
    "bert": Family(
        bert.BertConfig.from_hf,
        bert.BertEncoder,
        bert.WEIGHT_NAMES,
        prefix="bert.",
        architecture="BertForQuestionAnswering",
    ),
    "distilbert": Family(
        distilbert.DistilBertConfig.from_hf,
        distilbert.DistilBertEncoder,
        distilbert.WEIGHT_NAMES,
        prefix="distilbert.",
        architecture="DistilBertForQuestionAnswering",
        head=distilbert.DistilBertHead,
        unused_weights=distilbert.UNUSED_WEIGHTS,
        fixed_arrays=distilbert.fixed_arrays,
    ),
    "roberta": Family(
        roberta.RobertaConfig.from_hf,
        roberta.RobertaEncoder,
        roberta.WEIGHT_NAMES,
        prefix="roberta.",
        architecture="RobertaForQuestionAnswering",
        unused_weights=roberta.UNUSED_WEIGHTS,
    ),
    "xlm-roberta": Family(
        roberta.RobertaConfig.from_hf,
        roberta.RobertaEncoder,
        roberta.WEIGHT_NAMES,
        prefix="roberta.",
        architecture="XLMRobertaForQuestionAnswering",
        unused_weights=roberta.UNUSED_WEIGHTS,
    ),
    "camembert": Family(
        roberta.RobertaConfig.from_hf,
        roberta.RobertaEncoder,
        roberta.WEIGHT_NAMES,
        prefix="roberta.",
        architecture="CamembertForQuestionAnswering",
        unused_weights=roberta.UNUSED_WEIGHTS,
    ),
    "electra": Family(
        electra.ElectraConfig.from_hf,
        electra.ElectraEncoder,
        electra.WEIGHT_NAMES,
        prefix="electra.",
        architecture="ElectraForQuestionAnswering",
        unused_weights=electra.UNUSED_WEIGHTS,
    ),
    "deberta-v2": Family(
        deberta_v2.DebertaV2Config.from_hf,
        deberta_v2.DebertaV2Encoder,
        deberta_v2.WEIGHT_NAMES,
        prefix="deberta.",
        architecture="DebertaV2ForQuestionAnswering",
        unused_weights=deberta_v2.UNUSED_WEIGHTS,
    ),
    "bart": Family(
        bart.BartConfig.from_hf,
        bart.BartModel,
        bart.WEIGHT_NAMES,
        prefix="model.",
        architecture="BartForQuestionAnswering",
        unused_weights=bart.UNUSED_WEIGHTS,
    ),
    "mbart": Family(
        mbart.MBartConfig.from_hf,
        mbart.MBartModel,
        mbart.WEIGHT_NAMES,
        prefix="model.",
        architecture="MBartForQuestionAnswering",
        unused_weights=bart.UNUSED_WEIGHTS,
    ),
}
