"""What a model returns to a script: span logits and a loss, by name, by index or as a tuple (host).

Inside compiled functions models return `qa.SpanLogits`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn, cast

import jax


@dataclass
class QuestionAnsweringModelOutput(OrderedDict):
    """The output of a call `model(...)`, with the interface of transformers' `ModelOutput`.

    It is a dict of the entries that are not None, in the order below, whose entries are attributes,
    too. An index or a slice selects among these entries. Entries cannot be removed. As a JAX
    pytree, it may be returned by compiled functions.

    Args:
        loss: float32 scalar, if the call had start and end positions.
        start_logits: float32 `[B, L]`, each token's logit as the first of the answer. `start` is
            another name of it.
        end_logits: float32 `[B, L]`, each token's logit as the last of the answer, also `end`.
        hidden_states: None.
        attentions: None.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import AutoModelForQuestionAnswering
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> inputs = tokenizer("Who wrote it?", "Ada wrote it.", return_tensors="np")
        >>> output = model(**inputs, start_positions=[6], end_positions=[6])
        >>> type(output).__name__
        'QuestionAnsweringModelOutput'
        >>> list(output)
        ['loss', 'start_logits', 'end_logits']
        >>> output[1] is output["start_logits"] is output.start_logits
        True
    """

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None

    def __post_init__(self) -> None:
        # Libraries rebuild dicts as `type(output)({name: value})`.
        if isinstance(self.loss, Mapping):
            entries, self.loss = self.loss, None
            super().__delitem__("loss")
            for name, value in entries.items():
                self[name] = value

    @property
    def start(self) -> Any:
        """`start_logits`, by its name in `SpanLogits`."""
        return self.start_logits

    @property
    def end(self) -> Any:
        """`end_logits`, by its name in `SpanLogits`."""
        return self.end_logits

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in _FIELDS:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The entries that are not None, in their order."""
        return tuple(self.values())

    def __reduce__(self) -> Any:
        # Without its entries: they follow, and the order is theirs.
        constructor, _, *rest = cast(tuple[Any, ...], super().__reduce__())
        return constructor, (), *rest

    def __delitem__(self, key: Any) -> NoReturn:
        self._refuse("del")

    def pop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: entries cannot be removed."""
        self._refuse("pop")

    def setdefault(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: set the attribute or the key instead."""
        self._refuse("setdefault")

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: set the attributes or the keys instead."""
        self._refuse("update")

    def _refuse(self, method: str) -> NoReturn:
        raise TypeError(
            f"{method} is not supported by a {type(self).__name__}; change dict(output) instead"
        )


_FIELDS = frozenset(field.name for field in fields(QuestionAnsweringModelOutput))


def _flatten(output: QuestionAnsweringModelOutput) -> tuple[list[Any], tuple[str, ...]]:
    keys = tuple(output)
    return [(jax.tree_util.DictKey(key), output[key]) for key in keys], keys


def _unflatten(keys: tuple[str, ...], values: Iterable[Any]) -> QuestionAnsweringModelOutput:
    output = QuestionAnsweringModelOutput()
    for key, value in zip(keys, values, strict=True):
        output[key] = value
    return output


jax.tree_util.register_pytree_with_keys(QuestionAnsweringModelOutput, _flatten, _unflatten)
