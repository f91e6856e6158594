"""Stage 4 of 7: the model families by `model_type`, a plain dict (device, JAX)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from qa_flax.models.families import (
    albert,
    bart,
    bert,
    big_bird,
    deberta_v2,
    distilbert,
    electra,
    longformer,
    mbart,
    modernbert,
    mpnet,
    roberta,
    roberta_prelayernorm,
    roformer,
    xlm_roberta_xl,
)
from qa_flax.models.layers import OTHER_TASKS, BlockConfig, ParamPath, initial_array
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
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Another name of a tensor -> its own, which a checkpoint without that is read by."""
    fixed_arrays: Callable[[Any], Mapping[ParamPath, np.ndarray]] = lambda config: {}
    """config -> how tensors that are never trained (`layers.Fixed`) begin, by path."""
    initial_array: Callable[..., np.ndarray] = initial_array
    """(path, shape, config, random) -> how a parameter begins, float32."""


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
    "albert": Family(
        albert.AlbertConfig.from_hf,
        albert.AlbertEncoder,
        albert.WEIGHT_NAMES,
        prefix="albert.",
        architecture="AlbertForQuestionAnswering",
        unused_weights=albert.UNUSED_WEIGHTS,
    ),
    "deberta-v2": Family(
        deberta_v2.DebertaV2Config.from_hf,
        deberta_v2.DebertaV2Encoder,
        deberta_v2.WEIGHT_NAMES,
        prefix="deberta.",
        architecture="DebertaV2ForQuestionAnswering",
        unused_weights=deberta_v2.UNUSED_WEIGHTS,
    ),
    "modernbert": Family(
        modernbert.ModernBertConfig.from_hf,
        modernbert.ModernBertEncoder,
        modernbert.WEIGHT_NAMES,
        prefix="model.",
        architecture="ModernBertForQuestionAnswering",
        head=modernbert.ModernBertHead,
        head_weight_names=modernbert.HEAD_WEIGHT_NAMES,
        unused_weights=modernbert.UNUSED_WEIGHTS,
        initial_array=modernbert.initial_array,
    ),
    "mpnet": Family(
        mpnet.MPNetConfig.from_hf,
        mpnet.MPNetEncoder,
        mpnet.WEIGHT_NAMES,
        prefix="mpnet.",
        architecture="MPNetForQuestionAnswering",
        unused_weights=mpnet.UNUSED_WEIGHTS,
    ),
    "roberta-prelayernorm": Family(
        roberta_prelayernorm.RobertaPreLayerNormConfig.from_hf,
        roberta_prelayernorm.RobertaPreLayerNormEncoder,
        roberta_prelayernorm.WEIGHT_NAMES,
        prefix="roberta_prelayernorm.",
        architecture="RobertaPreLayerNormForQuestionAnswering",
        unused_weights=roberta_prelayernorm.UNUSED_WEIGHTS,
    ),
    "roformer": Family(
        roformer.RoFormerConfig.from_hf,
        roformer.RoFormerEncoder,
        roformer.WEIGHT_NAMES,
        prefix="roformer.",
        architecture="RoFormerForQuestionAnswering",
        unused_weights=roformer.UNUSED_WEIGHTS,
        fixed_arrays=roformer.fixed_arrays,
    ),
    "xlm-roberta-xl": Family(
        xlm_roberta_xl.XLMRobertaXLConfig.from_hf,
        xlm_roberta_xl.XLMRobertaXLEncoder,
        xlm_roberta_xl.WEIGHT_NAMES,
        prefix="roberta.",
        architecture="XLMRobertaXLForQuestionAnswering",
        unused_weights=xlm_roberta_xl.UNUSED_WEIGHTS,
    ),
    "longformer": Family(
        longformer.LongformerConfig.from_hf,
        longformer.LongformerEncoder,
        longformer.WEIGHT_NAMES,
        prefix="longformer.",
        architecture="LongformerForQuestionAnswering",
        unused_weights=longformer.UNUSED_WEIGHTS,
    ),
    "big_bird": Family(
        big_bird.BigBirdConfig.from_hf,
        big_bird.BigBirdEncoder,
        big_bird.WEIGHT_NAMES,
        prefix="bert.",
        architecture="BigBirdForQuestionAnswering",
        head=big_bird.BigBirdHead,
        head_weight_names=big_bird.HEAD_WEIGHT_NAMES,
    ),
    "bart": Family(
        bart.BartConfig.from_hf,
        bart.BartModel,
        bart.WEIGHT_NAMES,
        prefix="model.",
        architecture="BartForQuestionAnswering",
        unused_weights=bart.UNUSED_WEIGHTS,
        other_names=bart.OTHER_NAMES,
    ),
    "mbart": Family(
        mbart.MBartConfig.from_hf,
        mbart.MBartModel,
        mbart.WEIGHT_NAMES,
        prefix="model.",
        architecture="MBartForQuestionAnswering",
        unused_weights=bart.UNUSED_WEIGHTS,
        other_names=bart.OTHER_NAMES,
    ),
}
