"""Which data a model card names: of `qa-flax run`, of arguments, or of a trainer (host)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qa_flax.train.model_card import EvaluatedData, widget_example

# Builders of files and lists, which are no data sets of the Hub.
_FILE_BUILDERS = ("csv", "json", "pandas", "parquet", "text", "arrow", "generator")


@dataclass(frozen=True)
class CardFacts:
    """What `qa-flax run` knows for the model card beside the arguments of `create_model_card`.

    Args:
        data: the evaluated data.
        language: of the answers' scorer.
        revision: of the base model on the Hub.
        cache_dir: where it was downloaded to.
    """

    data: Sequence[EvaluatedData] = ()
    language: str | None = None
    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None


def data_of_arguments(
    tags: str | Sequence[str] | None,
    names: str | Sequence[str] | None,
    arguments: str | Sequence[str] | None,
) -> list[EvaluatedData]:
    """The data sets that the arguments of `create_model_card` name, by position as in HF."""
    ids, names, arguments = _listed(tags), _listed(names or tags), _listed(arguments)
    return [
        EvaluatedData(
            name=names[n] if n < len(names) else ids[n],
            hub_id=ids[n] if n < len(ids) else None,
            config=arguments[n] if n < len(arguments) and isinstance(arguments[n], str) else None,
            args=arguments[n] if n < len(arguments) else None,
        )
        for n in range(max(len(ids), len(names)))
    ]


def data_of_trainer(trainer: Any) -> list[EvaluatedData]:
    """The data sets that a script's trainer evaluates, as far as they tell their names."""
    evaluated, examples = trainer.eval_dataset, getattr(trainer, "eval_examples", None)
    if isinstance(evaluated, Mapping):
        by_name = examples if isinstance(examples, Mapping) else {}
        return [
            _of_dataset(dataset, by_name.get(name), str(name), f"{name}_")
            for name, dataset in evaluated.items()
        ]
    if evaluated is None:
        return []
    return [_of_dataset(evaluated, None if isinstance(examples, Mapping) else examples)]


def _of_dataset(
    dataset: Any, examples: Any, name: str | None = None, prefix: str = ""
) -> EvaluatedData:
    builder = getattr(dataset, "builder_name", None)
    hub_id = builder if isinstance(builder, str) and builder not in _FILE_BUILDERS else None
    has_config = hub_id is not None and isinstance(dataset.config_name, str)
    split = getattr(dataset, "split", None)
    columns = getattr(examples, "column_names", ())
    has_texts = isinstance(columns, list) and {"question", "context", "answers"} <= set(columns)
    return EvaluatedData(
        name=name or hub_id or "evaluation",
        hub_id=hub_id,
        # The Hub merges results whose type, configuration and split are the same.
        config=dataset.config_name if has_config else name,
        split=None if split is None else str(split),
        prefix=prefix,
        widget=widget_example(examples) if has_texts else None,
    )


def _listed(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
