"""Validation questions about texts that are in the training set: found and described (host)."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np

from qa_flax.data.columns import blocks, list_lengths, numpy_column
from qa_flax.data.loaders import as_windows
from qa_flax.data.readers import arrow_table
from qa_flax.data.rows import is_constant
from qa_flax.data.splits import contexts_of
from qa_flax.messages import first_few

_SUMMED = 4  # tokens at the end of a context

ADVICE = "--validation_split (in Python qa_flax.split_examples) splits by context"


def describe_shared_examples(
    train: datasets.Dataset, validation: datasets.Dataset, advice: str = ADVICE
) -> str | None:
    """Describe the validation examples whose contexts are also in the training set.

    Args:
        train, validation: from `load_examples`.
        advice: the next step.

    Returns:
        A sentence with their number and some ids; None if there are none.
    """
    pairs = _questions_and_contexts(validation)
    known = _questions_and_contexts(train)
    return describe_shared(known, pairs, validation["id"][:], len(known), advice)


def describe_shared(
    train: Iterable[tuple[Any, Any]],
    validation: Sequence[tuple[Any, Any]],
    ids: Sequence[str],
    train_count: int,
    advice: str = ADVICE,
) -> str | None:
    """Describe the validation questions whose contexts are also in the training set.

    Args:
        train: a key of the question and one of the context, for each training question. Those
            whose contexts are certainly not in the validation set may be left out.
        validation: the same of the validation questions.
        ids: the ids of the validation questions.
        train_count: the number of training questions.
        advice: the next step.

    Returns:
        A sentence with their number and some ids; None if there are none.
    """
    known = set(train)
    contexts = {context for _, context in known}
    shared = [id_ for id_, (_, context) in zip(ids, validation, strict=True) if context in contexts]
    if not shared:
        return None
    if len(shared) == len(ids) == train_count and known == set(validation):
        return (
            f"the {len(ids):,} validation questions are the training questions, so validation "
            "scores say nothing about other questions"
        )
    equal = sum(pair in known for pair in validation)
    detail = f" ({equal:,} of them are themselves in the training set)" if equal else ""
    return (
        f"{len(shared):,} of {len(ids):,} validation questions (ids {first_few(shared)}) are about "
        f"contexts that are in the training set{detail}, so validation scores say little about new "
        f"texts; {advice}"
    )


def _questions_and_contexts(examples: datasets.Dataset) -> list[tuple[str, str]]:
    questions = [" ".join(question.split()) for question in examples["question"][:]]
    return list(zip(questions, contexts_of(examples), strict=True))


# --- Windows -------------------------------------------------------------------------------------


def describe_shared_windows(train: Any, validation: Any) -> str | None:
    """Describe the validation questions whose contexts are in the training set, by their tokens.

    Args:
        train, validation: data sets of windows, as the trainer takes them, without texts.

    Returns:
        As `describe_shared_examples`; None also if the windows cannot be compared, because their
        rows are not fixed, or where the context begins is not known.
    """
    if train is validation:
        return (
            f"the {len(validation):,} windows to validate on are the training set, so validation "
            "scores say nothing about other questions"
        )
    if not all(is_constant(dataset) and len(dataset) for dataset in (train, validation)):
        return None
    try:
        parts = [_questions(*_tokens(dataset)) for dataset in (train, validation)]
    except ValueError:  # the training or the evaluation itself reports invalid windows
        return None
    if any(part is None for part in parts):
        return None
    known, asked = (part for part in parts if part is not None)
    # Where the windows of a long context end depends on the question, so only as many tokens of its
    # first and last window are compared as all long contexts have there.
    head, tail = map(min, zip(known.limits, asked.limits, strict=True))
    # Most contexts differ in their last tokens, which are compared much faster than all.
    sums = [part.end_sums(tail) for part in (known, asked)]
    candidates = np.flatnonzero(np.isin(sums[0], sums[1]))
    if not len(candidates):
        return None
    everything = np.arange(len(asked.ids))
    return describe_shared(
        known.keys(candidates, head, tail),
        asked.keys(everything, head, tail),
        asked.ids.tolist(),
        len(known.ids),
    )


class _Questions(NamedTuple):
    """Of n questions, the first and the last window of the context."""

    ids: np.ndarray  # [n], str
    input_ids: np.ndarray  # int32 [N, L], of all windows
    first: np.ndarray  # the window [n]
    last: np.ndarray
    begin: np.ndarray  # of the context in each window [N]
    end: np.ndarray

    @property
    def limits(self) -> tuple[int, int]:
        """The fewest context tokens in the first and in the last window of a long context."""
        is_long = self.first != self.last
        count = self.end - self.begin
        width = self.input_ids.shape[1]
        firsts, lasts = count[self.first[is_long]], count[self.last[is_long]]
        return int(firsts.min(initial=width)), int(lasts.min(initial=width))

    def end_sums(self, tail: int) -> np.ndarray:
        """Return a checksum of the last tokens of each question's context, at most four."""
        begin, end = self.begin[self.last], self.end[self.last]
        columns = end[:, None] - 1 - np.arange(min(tail, _SUMMED))
        is_inside = columns >= begin[:, None]
        tokens = self.input_ids[self.last[:, None], np.maximum(columns, 0)].astype(np.int64)
        factors = 1_000_003 ** np.arange(1, columns.shape[1] + 1)
        return np.where(is_inside, tokens + 1, 0) @ factors  # may overflow, as checksums may

    def keys(self, questions: np.ndarray, head: int, tail: int) -> list[tuple[int, Any]]:
        """Return hashes of some questions and of the ends of their contexts.

        Args:
            questions: their numbers.
            head: tokens of the context's beginning to compare.
            tail: tokens of its end to compare.
        """
        first, last, ids = self.first[questions], self.last[questions], self.input_ids
        rows = zip(
            first.tolist(),
            self.begin[first].tolist(),
            np.minimum(self.end[first], self.begin[first] + head).tolist(),
            last.tolist(),
            np.maximum(self.begin[last], self.end[last] - tail).tolist(),
            self.end[last].tolist(),
            strict=True,
        )
        return [
            (
                hash(ids[row, :begin].tobytes()),
                (
                    hash(ids[row, begin:head_end].tobytes()),
                    hash(ids[last_row, tail_begin:end].tobytes()),
                ),
            )
            for row, begin, head_end, last_row, tail_begin, end in rows
        ]


def _tokens(dataset: Any) -> tuple[np.ndarray, np.ndarray, Sequence[Any] | None]:
    """Return the token ids [N, L] of windows, their lengths [N] and the ids of their examples.

    The other columns are not decoded. There are no lengths if rows are padded on the left, and the
    ids are None if the rows have none.
    """
    if not isinstance(dataset, datasets.Dataset):
        features = as_windows(dataset).features()
        lengths = np.zeros(0) if features.is_left_padded else features.lengths
        ids = features.example_ids
        if isinstance(dataset, list | tuple):
            ids = [row.get("example_id") for row in dataset]
        return features.input_ids, lengths, None if None in ids else ids
    table = arrow_table(dataset)
    names = table.column_names
    input_ids = numpy_column(table["input_ids"], "input_ids")
    if "attention_mask" in names:
        mask = numpy_column(table["attention_mask"], "attention_mask")
        lengths = mask.sum(axis=1) if mask[:, :1].all() else np.zeros(0)
    else:
        lengths = np.concatenate([list_lengths(chunk) for chunk in table["input_ids"].chunks])
    ids = table["example_id"].to_pylist() if "example_id" in names else None
    return input_ids, lengths, ids


def _questions(
    input_ids: np.ndarray, lengths: np.ndarray, example_ids: Sequence[Any] | None
) -> _Questions | None:
    """Find the questions and where their contexts are; None if there are no lengths."""
    if not len(lengths):
        return None
    end = np.maximum(lengths.astype(np.int64) - 1, 0)
    begin = np.zeros_like(end)
    for rows in blocks(len(end), 4096):
        begin[rows] = _context_begins(input_ids[rows], end[rows])
    if example_ids is None:
        ids = np.arange(len(end)).astype(str)
        is_same = _continues(input_ids, begin, end)
    else:
        ids = np.array(example_ids).astype(str)
        is_same = ids[1:] == ids[:-1]
    first = np.flatnonzero(np.concatenate([[True], ~is_same]))
    last = np.concatenate([first[1:], [len(ids)]]) - 1
    return _Questions(ids[first], input_ids, first, last, begin, end)


def _continues(input_ids: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return whether each window after the first continues the context of the one before [N - 1].

    It does if its question is the same and the window before is as long as any.
    """
    is_same = (end[:-1] == end.max()) & (begin[:-1] == begin[1:])
    for row in np.flatnonzero(is_same):
        question = slice(0, begin[row])
        is_same[row] = np.array_equal(input_ids[row, question], input_ids[row + 1, question])
    return is_same


def _context_begins(input_ids: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the column after the separator that precedes each row's context.

    Args:
        input_ids: int32 [n, L], rows of a question, a context, and a separator after each.
        end: the column of the last separator [n].
    """
    rows = np.arange(len(end))
    is_separator = input_ids == input_ids[rows, end][:, None]
    is_separator[rows, end] = False
    width = input_ids.shape[1]
    return np.where(is_separator.any(axis=1), width - is_separator[:, ::-1].argmax(axis=1), 0)
