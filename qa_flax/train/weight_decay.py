"""Which parameters weight decay changes: those that transformers' Trainer chooses (host)."""

import re

from qa_flax.device.optim import ParameterNames
from qa_flax.models.model import AutoModelForQuestionAnswering, family_of
from qa_flax.models.weights import named_parameters

# transformers searches these in the full name, so the encoder of `roberta_prelayernorm` never
# decays, nor does MPNet's table `relative_attention_bias`.
_EXCLUDED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


def decayed_parameters(model: AutoModelForQuestionAnswering) -> ParameterNames:
    """The paths of the parameters that decay: no biases, and nothing of a normalization layer."""
    family = family_of(model.config)
    named = named_parameters(model, family, family.prefix)
    return frozenset(
        tuple(map(str, path))
        for name, (path, _) in named.items()
        if path[-1] != "scale" and not _EXCLUDED.search(name.lower())
    )
