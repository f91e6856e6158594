"""The classes for one family, such as `BertForQuestionAnswering`, by transformers' names (host)."""

import sys
from typing import Any

from qa_flax.models.family import Family

_DOCSTRING = """`{base}` for {model_type} models only.

    It has the arguments and methods of `{base}`. A checkpoint or config of another
    family is refused.

    Example:
        >>> from transformers import GPT2Config
        >>> from qa_flax import {name}
        >>> {name}(GPT2Config())
        Traceback (most recent call last):
        ValueError: model_type='gpt2' is not supported...
        >>> {name}.MODEL_TYPE
        {model_type!r}
    """


def class_of_family(base: type[Any], family: Family) -> type[Any]:
    """The subclass of `base` for one family.

    Args:
        base: a class for all families. It has `NAME_PREFIX`, with which the subclass's name begins,
            and `MODEL_TYPE`, which is None.
        family: the family.
    """
    name = base.NAME_PREFIX + family.architecture
    module = sys.modules[base.__module__]
    known = getattr(module, name, None)
    if known is None or family.model_type != known.MODEL_TYPE:
        values = {"base": base.__name__, "name": name, "model_type": family.model_type}
        attributes = {
            "MODEL_TYPE": family.model_type,
            "__doc__": _DOCSTRING.format(**values),
            "__module__": base.__module__,
        }
        make_class: Any = type(base)
        known = make_class(name, (base,), attributes)
        # As an attribute of its module it can be imported and pickled.
        setattr(module, name, known)
    return known


def class_for(cls: type[Any], family: Family, source: str) -> type[Any]:
    """The class of which `cls.from_pretrained` returns an instance.

    Args:
        cls: a class for all families, for one, or a script's own subclass.
        family: the family of the config.
        source: where the config comes from, for the error message.

    Raises:
        ValueError: `cls` is for another family.
    """
    is_for_all = "NAME_PREFIX" in vars(cls)
    if is_for_all:
        return class_of_family(cls, family)
    if cls.MODEL_TYPE in (None, family.model_type):
        return cls
    raise ValueError(
        f"{cls.__name__} is for {cls.MODEL_TYPE} models, but {source} is of a {family.model_type} "
        f"model; use {cls.NAME_PREFIX}{family.architecture}, or "
        f"{cls.NAME_PREFIX}AutoModelForQuestionAnswering, which is for all families"
    )
