"""Keywords of transformers' `from_pretrained` beside those that this package needs (host).

A keyword changes the config, asks for what is the case anyway, or is refused by name.
"""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from qa_flax import messages
from qa_flax.models.family import DROPOUT_RATES, Family

logger = messages.logger(__name__)

# Keyword -> accepted values, and what to do instead of passing another.
FIXED_KEYWORDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "from_tf": ((False, None), "convert the checkpoint to safetensors with transformers 4"),
    "from_flax": ((False, None), "convert flax_model.msgpack with `qa-flax convert FOLDER`"),
    "from_pt": ((True, False, None), "leave it out"),
    "_do_init": ((True, None), "the model holds its parameters; read them with nnx.state(model)"),
    "trust_remote_code": ((False, None), "only the package's own model code is run"),
    "use_safetensors": ((True, None), "convert pickled weights with `qa-flax convert FOLDER`"),
    "output_attentions": ((False, None), "attention weights are not returned"),
    "output_hidden_states": ((False, None), "hidden states are not returned"),
    "force_download": ((False, None), "delete the file from the Hub's cache"),
    "output_loading_info": ((False, None), "differences are reported in an error"),
    "num_labels": ((2, None), "a span head has two outputs, start and end"),
    "attn_implementation": (
        (None, "eager", "sdpa"),
        "attention is compiled by XLA; leave the keyword out",
    ),
    "load_in_8bit": ((False, None), "use dtype='bfloat16'"),
    "load_in_4bit": ((False, None), "use dtype='bfloat16'"),
    "quantization_config": ((None,), "use dtype='bfloat16'"),
}
# They tell PyTorch where and how to put weights; JAX places them when they are used.
PLACEMENT_KEYWORDS = frozenset(
    {
        "low_cpu_mem_usage",
        "device_map",
        "max_memory",
        "offload_folder",
        "offload_state_dict",
        "_fast_init",
        "proxies",
        "resume_download",
        "mirror",
        "input_shape",
    }
)


def config_with_keywords(
    config: PreTrainedConfig, keywords: Mapping[str, Any], family: Family
) -> PreTrainedConfig:
    """Return the config with the settings that are given as keywords.

    Args:
        config: transformers' config; a copy is changed.
        keywords: further keyword arguments of `from_pretrained`.
        family: has its own names for settings that most families name differently, such as
            `dropout` for `hidden_dropout_prob`.

    Raises:
        ValueError: a keyword is neither a setting of the config nor a known keyword, or its value
            asks for what is not supported.
    """
    config = copy.deepcopy(config)
    for keyword, value in keywords.items():
        if keyword in PLACEMENT_KEYWORDS:
            continue
        if keyword in FIXED_KEYWORDS:
            accepted, instead = FIXED_KEYWORDS[keyword]
            if not any(value is item or value == item for item in accepted):
                raise ValueError(
                    f"from_pretrained: {keyword}={value!r} is not supported (accepted: "
                    f"{', '.join(map(repr, accepted))}): {instead}"
                )
            continue
        if keyword in DROPOUT_RATES and value is None:  # the config's own, as most configs have it
            continue
        if keyword in DROPOUT_RATES and not (isinstance(value, int | float) and 0 <= value < 1):
            raise ValueError(
                f"from_pretrained: {keyword}={value!r}: it must be at least 0 and below 1"
            )
        names = own_settings(config, keyword, family)
        if not names and keyword in DROPOUT_RATES:
            raise ValueError(f"from_pretrained: {keyword}={value!r}: {no_such_dropout(family)}")
        if not names:
            rates = ", ".join(family.dropout_settings)
            hint = f"; its dropout rates: {rates}" if "dropout" in keyword else ""
            raise ValueError(
                f"from_pretrained: {keyword} is neither a keyword of from_pretrained nor a setting "
                f"of a {config.model_type} config{hint}"
            )
        for name in names:
            setattr(config, name, value)
    return config


def own_settings(config: PreTrainedConfig, name: str, family: Family) -> tuple[str, ...]:
    """The config's own names of a setting; none if it has no such setting, or none that acts."""
    known = AutoConfig.for_model(config.model_type)
    own = family.own_names(name)
    if own and all(hasattr(known, n) for n in own):
        return own
    return (name,) if own and hasattr(known, name) else ()


def no_such_dropout(family: Family) -> str:
    """Say that a family has no dropout at a place, and which rates it has."""
    rates = ", ".join(family.dropout_settings)
    return f"{family.architecture} has no such dropout; the dropout rates that it has: {rates}"


def warn_of_unread_settings(config: PreTrainedConfig, family: Family) -> None:
    """Warn of a dropout rate that was set on a config whose family does not read that name."""
    known = AutoConfig.for_model(config.model_type)
    for name in config.to_dict():
        if "dropout" in name and not hasattr(known, name):
            own = family.own_names(name)
            rates = own if own and own != (name,) else family.dropout_settings
            logger.warning(
                "%s has no effect on a %s config, which does not have this setting; it has: %s.",
                name,
                config.model_type,
                ", ".join(rates),
            )
