"""Stage 4 of 7: reads config.json into a family's config, rejects unsupported settings (host).

A family's config is a frozen dataclass of the settings that change its result. The field names are
Hugging Face's; a family whose config.json has other names uses the names of most families.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args

from qa_flax.messages import shown
from qa_flax.models.activations import ACTIVATIONS
from qa_flax.ranges import BELOW_1, Range

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


MAX_LAYERS = 1000
MAX_SIZE = 2**24
"""The largest model of the field has fewer than 100 layers and tables of fewer than 2**20 rows."""


def _whole(least: int, most: int = MAX_SIZE) -> Range:
    allowed = f"a whole number from {least:,} to {most:,}"
    return Range(allowed, lambda v: least <= v <= most, is_whole=True)


_LAYERS = _whole(0, MAX_LAYERS)
RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads"), _whole(1)),
    **dict.fromkeys(("intermediate_size", "max_position_embeddings", "embedding_size"), _whole(1)),
    **dict.fromkeys(("decoder_attention_heads", "decoder_ffn_dim", "block_size"), _whole(1)),
    **dict.fromkeys(("entity_vocab_size", "entity_emb_size"), _whole(1)),
    **dict.fromkeys(("num_hidden_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_hidden_groups", "inner_group_num"), _whole(1, MAX_LAYERS)),
    **dict.fromkeys(("type_vocab_size", "num_random_blocks", "conv_kernel_size"), _whole(0)),
    **dict.fromkeys(("local_attention", "conv_groups", "task_type_vocab_size"), _whole(1)),
    **dict.fromkeys(("intra_bottleneck_size", "true_hidden_size"), _whole(1)),
    **dict.fromkeys(("head_ratio", "num_groups", "q_groups", "k_groups", "v_groups"), _whole(1)),
    **dict.fromkeys(("post_attention_groups", "intermediate_groups", "output_groups"), _whole(1)),
    "num_feedforward_networks": _whole(1, MAX_LAYERS),
    **dict.fromkeys(("local_attention", "conv_groups", "head_size"), _whole(1)),
    **dict.fromkeys(
        ("layer_norm_eps", "initializer_range", "initializer_factor"),
        Range("a number from 0 to 1,000", lambda v: 0 <= v <= 1000),
    ),
    **dict.fromkeys(
        ("global_rope_theta", "local_rope_theta"),
        Range("a number above 0", lambda v: 0 < v < 1e30),
    ),
}
"""The values of those fields of which not every number can be computed with."""


def _check_value(name: str, value: Any, field: Field) -> None:
    """Refuse a value of another type than the field's, or outside its range."""
    kind = field.type
    types = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and type(None) in types:
        return
    value_range = BELOW_1 if "dropout" in field.name and float in types else RANGES.get(field.name)
    if value_range is None and int in types:
        value_range = _whole(-MAX_SIZE)
    if value_range is None and float in types:
        value_range = Range("a number", lambda v: abs(v) < 1e30)
    if value_range is not None:
        if not value_range.contains(value):
            raise ValueError(
                f"{name}={shown(value)} is not supported; it must be {value_range.allowed}"
            )
        return
    for plain, allowed in ((bool, "true or false"), (str, "a text")):
        if plain in types and not isinstance(value, plain):
            raise ValueError(f"{name}={shown(value)} is not supported; it must be {allowed}")


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
                f"{name}={shown(values[name])} is not supported for {family}; "
                f"supported: {', '.join(map(repr, supported))}"
            )
    settings = {}
    for field in fields(config_class):  # pyright: ignore[reportArgumentType]
        name = (names or {}).get(field.name, field.name)
        value = values[name]
        is_activation = field.name.endswith(("_act", "_activation"))
        if is_activation and not (isinstance(value, str) and value in ACTIVATIONS):
            raise ValueError(
                f"{name}={shown(value)} is not supported; "
                f"supported: {', '.join(sorted(ACTIVATIONS))}"
            )
        _check_value(name, value, field)
        # JSON may write a float as an integer: `"hidden_dropout_prob": 0`.
        settings[field.name] = float(value) if field.type is float else value
    size, heads = settings["hidden_size"], settings["num_attention_heads"]
    if "head_size" not in settings and size % heads:  # some families have heads of any size
        size_name, heads_name = (
            (names or {}).get(name, name) for name in ("hidden_size", "num_attention_heads")
        )
        raise ValueError(f"{size_name}={size} is not a multiple of {heads_name}={heads}")
    return config_class(**settings)


def least_tensors(config: Any) -> int:
    """Return a number of tensors that every checkpoint of a model of this config has.

    It is the number of blocks that have parameters of their own.
    """
    if hasattr(config, "num_hidden_groups"):  # ALBERT's layers share the blocks of their group
        return config.num_hidden_groups * config.inner_group_num
    if hasattr(config, "layer_types"):
        return len(config.layer_types)
    return config.num_hidden_layers + getattr(config, "decoder_layers", 0)
