"""Stage 4 of 7: config.json's values -> a family's config, or what in it cannot be computed (host).

A family's config is a frozen dataclass of the values that change its result; the names are
Hugging Face's or, where a family has names of its own, those most families have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from qa_flax.models.activations import ACTIVATIONS

C = TypeVar("C")
S = TypeVar("S", bound="SharedConfig")

NO_DECODER = {"is_decoder": False, "add_cross_attention": False}


@dataclass(frozen=True)
class SharedConfig:
    """The fields of a config.json that change the result in nearly every family, by HF's names."""

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
    REQUIRED: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_hf(cls: type[S], values: Mapping[str, Any]) -> S:
        """Read config.json's values; `ValueError` for what this encoder cannot compute.

        `NAMES` and `REQUIRED` are `names` and `required` of `read_config`.
        """
        return read_config(cls, values, names=cls.NAMES, required=cls.REQUIRED)


@dataclass(frozen=True)
class EncoderConfig(SharedConfig):
    """And what the BERT-shaped families have beside."""

    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int | None

    REQUIRED: ClassVar[Mapping[str, Any]] = {"position_embedding_type": "absolute", **NO_DECODER}


def read_config(
    kind: type[C],
    values: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    required: Mapping[str, Any] | None = None,
) -> C:
    """A `kind` of `values`, a transformers config as a dict.

    Args:
        names: fields of `kind` whose names in config.json are others.
        required: settings that would need another encoder, with the only value this one computes
            (or a tuple of them).

    Raises:
        ValueError: a setting that this encoder cannot compute; it names the known values.
    """
    family = values.get("model_type")
    for name, known in (required or {}).items():
        allowed = known if isinstance(known, tuple) else (known,)
        if values.get(name, allowed[0]) not in allowed:
            raise ValueError(
                f"{name}={values[name]!r} is not supported for {family}; "
                f"known: {', '.join(map(repr, allowed))}"
            )
    found = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        name = (names or {}).get(field.name, field.name)
        value = values[name]
        if field.name.endswith(("_act", "_activation")) and value not in ACTIVATIONS:
            raise ValueError(
                f"{name}={value!r} is not known here; known: {', '.join(sorted(ACTIVATIONS))}"
            )
        # JSON may write a float as an integer: `"hidden_dropout_prob": 0`.
        found[field.name] = float(value) if field.type is float else value
    if found["hidden_size"] % found["num_attention_heads"]:
        said = {n: (names or {}).get(n, n) for n in ("hidden_size", "num_attention_heads")}
        raise ValueError(
            f"{said['hidden_size']}={found['hidden_size']} is not a multiple of "
            f"{said['num_attention_heads']}={found['num_attention_heads']}"
        )
    return kind(**found)
