"""Stage 4 of 7: reads config.json, and says which of its values is not valid (host).

transformers sets every name of the file as an attribute of its config, so a file may replace what
the config computes with: `to_dict` its method, `attribute_map` its other names of settings.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from qa_flax.messages import escaped, short, shown
from qa_flax.models.families import FAMILIES, Family
from qa_flax.models.files import CONFIG_FILE, listing, models_inside, read_json
from qa_flax.models.layers import BlockConfig
from qa_flax.models.relatives import near_relative

DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "double", "auto")
"""What `dtype`, and `torch_dtype` in older files, may be; without effect on the parameters."""

MAX_LABELS = 10_000  # transformers makes a name for each

_DERIVED = ("model_type", "num_labels", "use_return_dict", "name_or_path", "output_attentions")


def check_json(path: Path, values: Mapping[str, Any], config_class: type) -> None:
    """Refuse names that are no settings, and dtypes that are none.

    Args:
        path: the file, for messages.
        values: its values.
        config_class: transformers' config class of its model type.

    Raises:
        ValueError: names the first such value.
    """
    settings = {field.name for field in fields(config_class)}
    for name, value in values.items():
        own = inspect.getattr_static(config_class, name, None)
        if name in settings or name in _DERIVED or own is None or isinstance(own, property):
            is_setting = not name.startswith("__")
        else:
            is_setting = not callable(own) and own == value
        if not is_setting:
            raise ValueError(
                f"{path}: {shown(name)}={shown(value)} is no setting of a model; remove it"
            )
    code = values.get("auto_map", {})
    if not isinstance(code, dict):
        raise ValueError(f"{path}: auto_map={shown(code)} is not supported; remove it")
    labels = values.get("num_labels")
    is_count = isinstance(labels, int) and 0 <= labels <= MAX_LABELS
    if labels is not None and not is_count:
        raise ValueError(
            f"{path}: num_labels={shown(labels)} is not supported; it must be a whole number from "
            f"0 to {MAX_LABELS:,}"
        )
    for name in ("dtype", "torch_dtype"):
        value = values.get(name)
        text = value.removeprefix("torch.") if isinstance(value, str) else value
        if text is not None and not (isinstance(text, str) and text in DTYPES):
            raise ValueError(
                f"{path}: {name}={shown(value)} is not supported; supported: {', '.join(DTYPES)}"
            )


# ---- the file ----------------------------------------------------------------------------------


def load_config(directory: Path) -> PreTrainedConfig:
    """Read `directory`'s config.json; `OSError` if unreadable, `ValueError` if not supported."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has no {CONFIG_FILE}; it contains: {listing(directory)}. "
            f"A Hugging Face checkpoint directory is expected{models_inside(directory)}"
        )
    values = read_json(path)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"{path}: {_unsupported(model_type)}")
    check_json(path, values, type(AutoConfig.for_model(model_type)))

    def is_valid(values: dict[str, Any]) -> bool:
        try:
            _usable(AutoConfig.for_model(**{"model_type": model_type, **values}))
        except Exception:
            return False
        return True

    try:
        return _usable(
            AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        )
    except Exception as error:  # transformers raises many kinds for values of wrong types
        raise ValueError(
            f"{path} is not a valid config: {_invalid(values, error, is_valid)}"
        ) from error


def _usable(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config itself; raises what its methods raise for values of wrong types."""
    config = copy.deepcopy(config)
    config.to_json_string()
    hash(config.num_labels)
    return config


def _unsupported(model_type: object) -> str:
    relative = near_relative(model_type, FAMILIES)
    advice = "" if relative is None else f"; the nearest of them is {relative}"
    return (
        f"model_type={shown(model_type)} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        f"{advice}"
    )


# ---- the family's config -----------------------------------------------------------------------


def family_of(config: PreTrainedConfig) -> Family:
    """The family of `config.model_type`; `ValueError` if the model type is not supported."""
    if config.model_type not in FAMILIES:
        raise ValueError(_unsupported(config.model_type))
    return FAMILIES[config.model_type]


def read_family_config(config: PreTrainedConfig) -> tuple[Family, BlockConfig]:
    """The family of a config, and its own config; `ValueError` for a value of a wrong type."""
    family = family_of(config)
    values = config.to_dict()
    try:
        return family, family.read_config(values)
    except WRONG_TYPES as error:
        defaults = AutoConfig.for_model(family.model_type).to_dict()

        def is_read(values: dict[str, Any]) -> bool:
            try:
                family.read_config(defaults | values)
            except (ValueError, *WRONG_TYPES):
                return False
            return True

        raise ValueError(_invalid(values, error, is_read)) from error


WRONG_TYPES = (TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What is raised where a config's value has another type or size than it should have."""


def _invalid(
    values: Mapping[str, Any], error: Exception, is_valid: Callable[[dict[str, Any]], bool]
) -> str:
    """Say what is wrong with values: the name of the one without which they are valid, if any."""
    reason = short(" ".join(str(error).split()), 500)
    if is_valid(dict(values)):
        return reason
    for name, value in values.items():
        if is_valid({other: v for other, v in values.items() if other != name}):
            return f"{escaped(name)}={shown(value)} is of a wrong type or size: {reason}"
    return reason
