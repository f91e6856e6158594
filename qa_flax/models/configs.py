"""Stage 4 of 7: reads config.json into a family's config, rejects unsupported settings (host).

A family's config is a frozen dataclass of the settings that change its result. The field names are
Hugging Face's; a family whose config.json has other names uses the names of most families.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, TypeVar

from qa_flax.models.activations import ACTIVATIONS

C = TypeVar("C")
S = TypeVar("S", bound="SharedConfig")

NO_DECODER = {"is_decoder": False, "add_cross_attention": False}


@dataclass(frozen=True)
class SharedConfig:
    """The settings that change the result of nearly every family, by HF's names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    initializer_range: float

    NAMES: ClassVar[Mapping[str, str]] = {}
    SPLIT: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Setting of most families -> further settings of this family that are part of it."""
    REQUIRED: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_hf(cls: type[S], values: Mapping[str, Any]) -> S:
        """Read the values of a config.json; `ValueError` for a setting that is not supported.

        The class attributes `NAMES` and `REQUIRED` are passed to `read_config`.
        """
        return read_config(cls, values, names=cls.NAMES, required=cls.REQUIRED)


@dataclass(frozen=True)
class EncoderConfig(SharedConfig):
    """`SharedConfig` and the additional settings of the BERT-shaped families."""

    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int | None

    REQUIRED: ClassVar[Mapping[str, Any]] = {"position_embedding_type": "absolute", **NO_DECODER}


SIZES = (
    *("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "embedding_size"),
)
"""Fields that must be above 0."""


MAX_LAYERS = 10_000


def _check_number(name: str, value: Any, field: Field) -> None:
    """Refuse another type than a field's number, or a size below 1."""
    kinds = {int: int, float: (int, float)}
    kind = kinds.get(field.type)
    if kind is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        raise ValueError(f"{name}={value!r} is not supported; it must be a number")
    if field.name in SIZES and value < 1:
        raise ValueError(f"{name}={value!r} is not supported; it must be at least 1")
    if "layers" in field.name and field.type is int and not 0 <= value <= MAX_LAYERS:
        raise ValueError(f"{name}={value!r} is not supported; it must be from 0 to {MAX_LAYERS}")


def read_config(
    config_class: type[C],
    values: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    required: Mapping[str, Any] | None = None,
) -> C:
    """Build a `config_class` from `values`, a transformers config as a dict.

    Args:
        config_class: a dataclass whose fields are the settings to read.
        values: the values of a config.json, by name.
        names: the names in config.json of the fields that are named differently there.
        required: settings of which only one value is supported, with that value; a tuple holds
            several supported values.

    Raises:
        ValueError: the value of a setting is not supported; the message lists those that are.
    """
    family = values.get("model_type")
    for name, value in (required or {}).items():
        supported = value if isinstance(value, tuple) else (value,)
        if values.get(name, supported[0]) not in supported:
            raise ValueError(
                f"{name}={values[name]!r} is not supported for {family}; "
                f"supported: {', '.join(map(repr, supported))}"
            )
    settings = {}
    for field in fields(config_class):  # pyright: ignore[reportArgumentType]
        name = (names or {}).get(field.name, field.name)
        value = values[name]
        if field.name.endswith(("_act", "_activation")) and value not in ACTIVATIONS:
            raise ValueError(
                f"{name}={value!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}"
            )
        _check_number(name, value, field)
        # JSON may write a float as an integer: `"hidden_dropout_prob": 0`.
        settings[field.name] = float(value) if field.type is float else value
    size, heads = settings["hidden_size"], settings["num_attention_heads"]
    if size % heads:
        size_name, heads_name = (
            (names or {}).get(name, name) for name in ("hidden_size", "num_attention_heads")
        )
        raise ValueError(f"{size_name}={size} is not a multiple of {heads_name}={heads}")
    return config_class(**settings)
