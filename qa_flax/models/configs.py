"""Stage 4 of 7: config.json's values -> a family's config, or what in it cannot be computed (host).

A family's config is a frozen dataclass of the values that change its result; the names are
Hugging Face's or, where a family has names of its own, those most families have.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from qa_flax.models.activations import ACTIVATIONS

C = TypeVar("C")


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
