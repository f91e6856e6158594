"""Keywords of transformers' `from_pretrained` beside those that this package needs (host).

A keyword changes the config, asks for what is the case anyway, or is refused by name.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

logger = logging.getLogger(__name__)

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
    config: PreTrainedConfig, keywords: Mapping[str, Any], setting_names: Mapping[str, str]
) -> PreTrainedConfig:
    """Return the config with the settings that are given as keywords.

    Args:
        config: transformers' config; a copy is changed.
        keywords: further keyword arguments of `from_pretrained`.
        setting_names: the family's names of settings that most families name differently, as
            `hidden_dropout_prob` -> `dropout`.

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
        name = setting_name(config, keyword, setting_names)
        if name is None:
            dropouts = ", ".join(n for n in vars(config) if "dropout" in n)
            hint = f"; its dropout rates: {dropouts}" if "dropout" in keyword else ""
            raise ValueError(
                f"from_pretrained: {keyword} is neither a keyword of from_pretrained nor a setting "
                f"of a {config.model_type} config{hint}"
            )
        setattr(config, name, value)
    return config


def setting_name(
    config: PreTrainedConfig, name: str, setting_names: Mapping[str, str]
) -> str | None:
    """The config's own name of a setting, or None if it has no such setting."""
    own = setting_names.get(name, name)
    known = AutoConfig.for_model(config.model_type)
    return next((n for n in (own, name) if hasattr(known, n)), None)


def warn_of_unread_settings(config: PreTrainedConfig, setting_names: Mapping[str, str]) -> None:
    """Warn of a dropout rate that was set on a config whose family does not read that name."""
    known = AutoConfig.for_model(config.model_type)
    for name in config.to_dict():
        if "dropout" in name and not hasattr(known, name):
            own = setting_names.get(name)
            rates = [own] if own else [n for n in known.to_dict() if "dropout" in n]
            logger.warning(
                "%s has no effect on a %s config, which does not have this setting; it has: %s.",
                name,
                config.model_type,
                ", ".join(rates),
            )
