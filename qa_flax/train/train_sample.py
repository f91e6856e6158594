"""Training questions that are evaluated beside the evaluation set: `eval_train_samples` (host).

They are chosen once, at random from the seed, with all windows of each question. Their metrics have
the prefix `train`, so that they show beside those of the evaluation set how far a model overfits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from qa_flax.data.rows import ChosenRows, is_constant
from qa_flax.data.tables import example_source, span_source
from qa_flax.data.windows import Windows
from qa_flax.messages import first_few, quoted

PREFIX = "train"
"""What the names of the metrics begin with, and the stage that post-processing is passed."""

_COLUMNS = ("example_id", "offset_mapping")
# Logged by the training itself under these names, or times, which are of no interest here.
_LEFT_OUT = (
    "loss",
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "post_processing_time",
    "examples_per_second",
)


@dataclass(frozen=True)
class TrainSample:
    """Some training questions."""

    dataset: Any
    """Their windows, of the type of the training set."""
    ids: list[str] | None
    """The ids of their examples; None if the rows have none, and each counts as a question."""
    missing_columns: tuple[str, ...]
    """Which columns that answers are found with the rows do not have."""


class TrainSampler:
    """Chooses the questions again only when the training set, the number or the seed changes."""

    def __init__(self):
        self._source: tuple[Any, ...] = ()
        self._sample: TrainSample | None = None

    def sample(self, dataset: Any, count: int, seed: int) -> TrainSample:
        """Return `count` questions of the training set, or all if there are fewer."""
        source = (dataset, count, seed)
        if self._sample is None or not _is_same(source, self._source):
            self._source, self._sample = source, choose_questions(dataset, count, seed)
        return self._sample


def _is_same(source: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return source[0] is other[0] and source[1:] == other[1:]


def choose_questions(dataset: Any, count: int, seed: int) -> TrainSample:
    """Choose questions of a data set at random, and select all windows of each.

    Args:
        dataset: a training set with rows: windows, or rows with the columns of
            `prepare_train_features`. A row without `example_id`, or of a data set whose rows may
            change whenever they are read, counts as one question.
        count: number of questions; all if there are fewer.
        seed: chooses them.
    """
    columns = _columns(dataset)
    has_ids = "example_id" in columns
    ids = span_source(dataset).example_ids if has_ids else range(len(dataset))
    numbers: dict[Any, int] = {}
    question_of_row = np.array([numbers.setdefault(id_, len(numbers)) for id_ in ids], np.int64)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(numbers))[:count])
    rows = np.flatnonzero(np.isin(question_of_row, chosen))
    names = list(numbers)
    return TrainSample(
        _rows_of(dataset, rows),
        [str(names[number]) for number in chosen.tolist()] if has_ids else None,
        tuple(name for name in _COLUMNS if name not in columns),
    )


def _columns(dataset: Any) -> set[str]:
    """The columns for answers that every row has and that can be read without changing anything."""
    if isinstance(dataset, Windows):
        has_offsets = dataset.has_offsets
        return set(_COLUMNS) if has_offsets else {"example_id"}
    if not is_constant(dataset) or not len(dataset):
        return set()
    if isinstance(dataset, datasets.Dataset):
        return set(dataset.column_names)
    return set.intersection(*(set(row) for row in dataset))


def _rows_of(dataset: Any, rows: np.ndarray) -> Any:
    if isinstance(dataset, Windows):
        return dataset.select(rows)
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(rows)
    if isinstance(dataset, list | tuple):
        return [dataset[row] for row in rows.tolist()]
    return ChosenRows(dataset, rows.tolist())


def select_examples(examples: Any, ids: Sequence[str]) -> Any:
    """Return the examples with these ids, in the order of `examples`.

    Raises:
        ValueError: `examples` has no example of some of these ids.
    """
    wanted = set(ids)
    rows = [row for row, id_ in enumerate(example_source(examples).ids()) if str(id_) in wanted]
    if isinstance(examples, datasets.Dataset):
        selected, names = examples.select(rows), [examples[row]["id"] for row in rows]
    else:
        selected = [examples[row] for row in rows]
        names = [row["id"] for row in selected]
    if missing := sorted(wanted - set(map(str, names))):
        raise ValueError(
            f"train_examples: no example has the ids of {len(missing)} of {len(wanted)} chosen "
            f"questions of train_dataset ({first_few(missing, quoted)}); pass the examples that "
            "train_dataset was made from"
        )
    return selected


def missing_for_answers(sample: TrainSample, train_examples: Any) -> str | None:
    """Return what a script has to add so that the answers to the sample can be scored, if any."""
    steps = []
    if train_examples is None:
        steps.append(
            "pass train_examples, the examples that train_dataset was made from, to "
            "QuestionAnsweringTrainer"
        )
    if sample.missing_columns:
        steps.append(
            f"train_dataset needs the columns {' and '.join(sample.missing_columns)}, which "
            "qa_flax.prepare_train_features writes"
        )
    if not steps:
        return None
    return (
        "only the accuracies of the training questions are computed. For compute_metrics of their "
        f"answers, such as exact match and F1, {', and '.join(steps)}"
    )


def metrics_to_log(metrics: dict[str, Any]) -> dict[str, Any]:
    """Leave out the loss and the times, whose names with this prefix mean those of the training."""
    left_out = {f"{PREFIX}_{name}" for name in _LEFT_OUT}
    return {name: value for name, value in metrics.items() if name not in left_out}
