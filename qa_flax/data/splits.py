"""Split examples into training and validation parts that share no text (host, text).

Questions about the same context, or about contexts with the same title, are never separated: a
model that was trained on a text answers further questions about it better than about new texts.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from qa_flax.ranges import SEED, SHARE, at_least, check_numbers

SPLIT_BY = ("auto", "title", "context")

Indices = list[int]  # of examples, ascending


def split_examples(
    examples: Any, share: float, *, seed: int = 42, by: str = "auto"
) -> tuple[Any, Any]:
    """Split examples into a training and a validation part that have no context in common.

    Args:
        examples: from `load_examples`; or a `datasets.Dataset` or list of dicts with `context` and,
            for a split by title, `title`.
        share: the part of the questions to validate on, above 0 and below 1. The result comes as
            near to it as is possible without separating questions about one text.
        seed: chooses the texts; the same examples and seed give the same split.
        by: what is never separated. "context": questions about the same context (white space does
            not count). "title": also questions about contexts with the same title. "auto": as
            "title" if there are at least two different titles, else as "context".

    Returns:
        The examples to train on and those to validate on, in their order, as the type that was
        passed. Neither is empty.

    Raises:
        ValueError: an argument is invalid, or all examples are about one text.

    Example:
        >>> from qa_flax import load_examples, split_examples
        >>> train, validation = split_examples(load_examples("train-v1.1.json"), 0.25)
        >>> len(train) > len(validation) > 0
        True
        >>> set(train["context"]) & set(validation["context"])
        set()
    """
    check_numbers({"share": SHARE, "seed": SEED}, share=share, seed=seed)
    groups = _groups(examples, by)
    _require_groups(groups, 2, "a split", by)
    random = np.random.default_rng(seed)
    chosen = _choose(groups, share * len(examples), random)
    validation = sorted(index for group in chosen for index in groups[group])
    return _without(examples, validation), _select(examples, validation)


def fold_examples(
    examples: Any, count: int, *, seed: int = 42, by: str = "auto"
) -> list[tuple[Any, Any]]:
    """Split examples for cross-validation: each is validated on in exactly one of several folds.

    Args:
        examples: see `split_examples`.
        count: the number of folds, at least 2.
        seed: as in `split_examples`.
        by: as in `split_examples`.

    Returns:
        For each fold the examples to train on and those to validate on, which have no context in
        common. The validation parts are of nearly equal size and together are all examples.

    Raises:
        ValueError: an argument is invalid, or there are fewer texts than folds.

    Example:
        >>> from qa_flax import fold_examples, load_examples
        >>> folds = fold_examples(load_examples("train-v1.1.json"), 3)
        >>> [len(train) + len(validation) for train, validation in folds]
        [24, 24, 24]
        >>> sum(len(validation) for _, validation in folds)
        24
    """
    check_numbers({"count": at_least(2), "seed": SEED}, count=count, seed=seed)
    groups = _groups(examples, by)
    _require_groups(groups, count, f"{count} folds", by)
    # The largest groups come first, each in the fold that is smallest so far, so that the small
    # groups at the end even the sizes out. The shuffle decides between groups of equal size.
    order = np.random.default_rng(seed).permutation(len(groups))
    order = sorted(order, key=lambda group: -len(groups[group]))
    folds: list[Indices] = [[] for _ in range(count)]
    for group in order:
        min(folds, key=len).extend(groups[group])
    return [(_without(examples, fold), _select(examples, sorted(fold))) for fold in folds]


def contexts_of(examples: Any) -> list[str]:
    """Return the context of each example, with every run of white space as one space."""
    return [" ".join(str(context).split()) for context in _column(examples, "context")]


def splits_by_title(examples: Any, by: str) -> bool:
    """Return whether contexts with the same title stay together.

    Raises:
        ValueError: `by` is unknown, or asks for titles and there are none.
    """
    if by not in SPLIT_BY:
        raise ValueError(f"by={by!r}: it must be one of {', '.join(map(repr, SPLIT_BY))}")
    if by == "context":
        return False
    titles = set(_titles(examples)) - {""}
    if by == "title" and not titles:
        raise ValueError(
            "by='title', but no example has a title; use 'context' (command line: --split_by "
            "context), or give the examples a column title"
        )
    return by == "title" or len(titles) > 1


# --- Groups --------------------------------------------------------------------------------------


def _groups(examples: Any, by: str) -> list[Indices]:
    """Return the groups of examples that stay together, in the order of their first examples."""
    by_title = splits_by_title(examples, by)
    contexts = _numbered(contexts_of(examples))
    group_of_context = list(range(len(contexts)))  # more than there are distinct contexts
    if by_title:
        _join(group_of_context, contexts, _titles(examples))
    groups: dict[int, Indices] = {}
    for index, context in enumerate(contexts):
        groups.setdefault(_root(group_of_context, context), []).append(index)
    return list(groups.values())


def _join(parents: list[int], contexts: Sequence[int], titles: Sequence[str]) -> None:
    """Join the contexts that have a title in common: a union-find forest.

    Args:
        parents: of each context; changed in place.
        contexts: the context of each example.
        titles: the title of each example, which may differ for one context; "" joins nothing.
    """
    first: dict[str, int] = {}
    for context, title in zip(contexts, titles, strict=True):
        if title:
            other = _root(parents, first.setdefault(title, context))
            root = _root(parents, context)
            parents[max(root, other)] = min(root, other)


def _root(parents: list[int], node: int) -> int:
    while parents[node] != node:
        parents[node] = node = parents[parents[node]]
    return node


def _numbered(texts: list[str]) -> list[int]:
    """Return a number for each text, the same for equal texts."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]


def _require_groups(groups: list[Indices], needed: int, what: str, by: str) -> None:
    if len(groups) >= needed:
        return
    number = f"there {'is' if len(groups) == 1 else 'are'} only {len(groups)}"
    advice = (
        "Add questions about other texts"
        if by == "context"
        else "Split by context (command line: --split_by context) if there are titles, or add "
        "questions about other texts"
    )
    raise ValueError(
        f"{what} needs questions about at least {needed} different texts, but {number}: questions "
        f"about one text are never separated. {advice}."
    )


# --- The choice of groups ------------------------------------------------------------------------


def _choose(groups: list[Indices], wanted: float, random: np.random.Generator) -> Indices:
    """Choose groups at random whose sizes add up as nearly as possible to a wanted number.

    At least one group is chosen, and one is left. Sets of sums are integers here: bit s of
    `sums[k]` is set if s is the sum of some groups of the k smallest sizes.
    """
    of_size: dict[int, Indices] = {}
    for number, group in enumerate(groups):
        of_size.setdefault(len(group), []).append(number)
    sizes = sorted(of_size)
    sums = [1]
    for size in sizes:
        sums.append(_with_size(sums[-1], size, len(of_size[size])))
    total = sum(map(len, groups))
    rest = _nearest_sum(sums[-1], wanted, total)
    chosen: Indices = []
    # From the largest size down, each in proportion to its part of what is left, as far as the
    # smaller sizes can make up the rest.
    for number, size in reversed(list(enumerate(sizes))):
        candidates = of_size[size]
        possible = [
            count
            for count in range(min(len(candidates), rest // size) + 1)
            if sums[number] >> (rest - count * size) & 1
        ]
        drawn = random.binomial(len(candidates), rest / total)
        count = min(possible, key=lambda c: abs(c - drawn))
        chosen += random.permutation(candidates)[:count].tolist()
        rest -= count * size
        total -= len(candidates) * size
    return chosen


def _with_size(sums: int, size: int, count: int) -> int:
    """Return the sums that are possible with up to `count` more groups of one size."""
    part = 1
    while count:
        part = min(part, count)
        sums |= sums << (part * size)
        count, part = count - part, 2 * part
    return sums


def _nearest_sum(sums: int, wanted: float, total: int) -> int:
    """Return the possible sum from 1 to `total - 1` that is nearest to the wanted number."""
    near = min(max(round(wanted), 1), total - 1)
    possible = (s for d in range(total) for s in (near - d, near + d) if 0 < s < total)
    first = next(s for s in possible if sums >> s & 1)
    # The nearest whole number may be on either side of the wanted one.
    distance = abs(first - near)
    both = [s for s in (near - distance, near + distance) if 0 < s < total and sums >> s & 1]
    return min(both, key=lambda s: abs(s - wanted))


# --- Data sets and lists -------------------------------------------------------------------------


def _column(examples: Any, name: str, default: Any = None) -> list[Any]:
    """Return a column of a data set or of a list of dicts, or `default` for every row."""
    if isinstance(examples, datasets.Dataset):
        if name not in examples.column_names:
            return _missing_column(examples.column_names, name, len(examples), default)
        return examples.with_format(None)[name][:]
    if not isinstance(examples, list) or not all(isinstance(row, dict) for row in examples):
        raise ValueError(
            f"examples is a {type(examples).__name__}; pass what load_examples returns, another "
            "datasets.Dataset, or a list of dicts"
        )
    names = list(dict.fromkeys(key for row in examples for key in row))
    if examples and name not in names:
        return _missing_column(names, name, len(examples), default)
    return [row.get(name, default) for row in examples]


def _missing_column(names: list[str], name: str, count: int, default: Any) -> list[Any]:
    if default is None:
        raise ValueError(f"examples have no column {name}; their columns: {', '.join(names)}")
    return [default] * count


def _titles(examples: Any) -> list[str]:
    """Return the title of each example; "" for none, which pandas stores as NaN."""
    titles = _column(examples, "title", "")
    return ["" if title is None or title != title else str(title).strip() for title in titles]


def _select(examples: Any, indices: Indices) -> Any:
    if isinstance(examples, list):
        return [examples[index] for index in indices]
    return examples.select(indices)


def _without(examples: Any, indices: Indices) -> Any:
    left_out = set(indices)
    return _select(examples, [n for n in range(len(examples)) if n not in left_out])
