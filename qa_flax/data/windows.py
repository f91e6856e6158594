"""Stage 2 of 7: the two representations of N windows (host, NumPy).

`Features` holds one padded row of each array for each window, as Hugging Face's features do. Data
sets that users prepare are converted to it. `LazyWindows` holds the tokens of each distinct text
once, and for each window the slice of the context that it contains. It builds rows only when a
batch needs them, and takes about a tenth of the memory of `Features`.
"""

import dataclasses
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from qa_flax.data.columns import (
    OUTSIDE,
    OffsetLookup,
    arrow_column,
    blocks,
    list_lengths,
    numpy_column,
    offset_lookup,
    ranges,
)
from qa_flax.data.gold_spans import (
    ALL_LABELS,
    ragged,
    shifted,
    spans_of_table,
    with_room,
)
from qa_flax.data.readers import arrow_table
from qa_flax.data.tokens import Template, Tokens

Rows = Int32[np.ndarray, "n l"]  # one value for each token of n windows
Int64Array = Int64[np.ndarray, " n"]  # one number for each example or window
Positions = Int32[np.ndarray, " n"]  # one token position for each window
Spans = Int32[np.ndarray, "n g"]  # the positions of several answers for each window
RowIndex = slice | np.ndarray  # selects windows

WINDOWS_AT_ONCE = 1024  # bounds the temporary index arrays


class Windows(ABC):
    """N windows of L tokens, including padding.

    Attributes:
        example_ids: the id of each window's example [N].
        start_positions, end_positions: int32 [N], positions of the first and last token of the
            example's first answer. Both are the position of the CLS token if the window does not
            contain the whole answer. None without labels.
        start_positions_all, end_positions_all: int32 [N, G], all distinct spans of answers, at
            least one for each window, then `NO_SPAN`; see `gold_spans.py`. None: only the first
            answers are labels.
        cls_index: int32 [N], position of the CLS token; None if it is always the first token.
    """

    example_ids: list[str]
    start_positions: Positions | None
    end_positions: Positions | None
    start_positions_all: Spans | None
    end_positions_all: Spans | None
    cls_index: Positions | None

    def __len__(self) -> int:
        return len(self.example_ids)

    def __repr__(self) -> str:
        labels = "without labels" if self.start_positions is None else "with labels"
        examples = len(set(self.example_ids))
        return (
            f"{type(self).__name__}({len(self)} windows of {self.padded_length} tokens from "
            f"{examples} examples, {labels})"
        )

    @property
    def spans(self) -> int:
        """G, the room for spans of each window; 0 if only the first answers are labels."""
        return 0 if self.start_positions_all is None else self.start_positions_all.shape[1]

    def with_span_room(self, count: int) -> "Windows":
        """Return these windows with room for at least `count` spans, if they have all spans."""
        if self.spans in (0, count):
            return self
        changes = {name: with_room(getattr(self, name), count) for name in ALL_LABELS}
        return dataclasses.replace(cast(Any, self), **changes)

    @property
    @abstractmethod
    def padded_length(self) -> int:
        """L, the tokens of each window including padding."""

    @property
    @abstractmethod
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """The tokens of each window without padding [N]."""

    @property
    @abstractmethod
    def is_left_padded(self) -> bool:
        """Whether padding precedes the text."""

    @property
    @abstractmethod
    def has_offsets(self) -> bool:
        """Whether the offsets of context tokens are there, which answers are cut out with."""

    @abstractmethod
    def inputs(self, rows: RowIndex, width: int) -> dict[str, Rows]:
        """Return the model inputs of some windows, padded to `width` tokens instead of L.

        Args:
            rows: the windows.
            width: at most L, and at least the length of the longest of the windows.

        Returns:
            int32 [n, width] arrays `input_ids`, `attention_mask` and, if the model has them,
            `token_type_ids`.
        """

    @abstractmethod
    def offset_lookup(self, rows: RowIndex) -> OffsetLookup:
        """Return a lookup of the token offsets of some windows.

        Raises:
            ValueError: the windows have no offsets.
        """

    @abstractmethod
    def features(self) -> "Features":
        """Convert the windows to array rows."""

    def max_context(self, rows: RowIndex, width: int) -> None:
        """Return None: an answer may start at every context token.

        Only the rows of users can have `token_is_max_context`; see `WindowTable.max_context`.
        """
        return None

    @abstractmethod
    def select(self, rows: RowIndex) -> "Windows":
        """Return some of the windows."""

    def columns(self, width: int) -> slice:
        """Return which of the L columns `inputs` returns for this width."""
        return (
            slice(self.padded_length - width, self.padded_length)
            if self.is_left_padded
            else slice(0, width)
        )


# --- Array rows ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False)
class Features(Windows):
    """Windows as a struct of arrays, with one row for each window.

    Attributes, in addition to those of `Windows`:
        input_ids: int32 [N, L].
        attention_mask: int32 [N, L], 1 for a token and 0 for padding.
        token_type_ids: int32 [N, L]; None if the model does not have them.
        offsets: int32 [N, L, 2], start and end of each token in the context, in code points;
            (-1, -1) for tokens outside the context.
        extras: further arrays [N, ...] for a script's own loss function, by name.
    """

    example_ids: list[str]
    input_ids: Rows
    attention_mask: Rows
    token_type_ids: Rows | None = None
    offsets: Int32[np.ndarray, "n l 2"] | None = None
    start_positions: Positions | None = None
    end_positions: Positions | None = None
    start_positions_all: Spans | None = None
    end_positions_all: Spans | None = None
    cls_index: Positions | None = None
    extras: Mapping[str, np.ndarray] | None = None

    @property
    def padded_length(self) -> int:
        return self.input_ids.shape[1]

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        return self.attention_mask.sum(axis=1)

    @property
    def is_left_padded(self) -> bool:
        return bool((self.attention_mask[:, 0] == 0).any())

    @property
    def has_offsets(self) -> bool:
        return self.offsets is not None

    def inputs(self, rows: RowIndex, width: int) -> dict[str, Rows]:
        columns = self.columns(width)
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = {name: getattr(self, name) for name in names}
        return {n: array[rows, columns] for n, array in arrays.items() if array is not None}

    def offset_lookup(self, rows: RowIndex) -> OffsetLookup:
        if self.offsets is None:
            raise ValueError(
                "features have no offsets, which map tokens to the context: create them with "
                "prepare_validation_features"
            )
        return offset_lookup(self.offsets[rows], "offsets")

    def features(self) -> "Features":
        return self

    def select(self, rows: RowIndex) -> "Features":
        fields = {name: getattr(self, name) for name in COLUMNS if name != "example_ids"}
        selected: dict[str, Any] = {
            name: value[rows] for name, value in fields.items() if value is not None
        }
        selected["example_ids"] = _selected(self.example_ids, rows)
        extras = {name: array[rows] for name, array in (self.extras or {}).items()}
        return dataclasses.replace(Features(**selected), extras=extras or None)

    def to_dataset(self) -> datasets.Dataset:
        """Convert to a data set with Hugging Face's column names, without copying the arrays."""
        columns = {name: getattr(self, field) for field, name in COLUMNS.items()}
        arrays = {name: arrow_column(value) for name, value in columns.items() if value is not None}
        if self.start_positions_all is not None and self.end_positions_all is not None:
            lists = ragged(self.start_positions_all, self.end_positions_all)[0]
            arrays |= dict(zip(ALL_LABELS, lists, strict=True))
        # Without a fingerprint, datasets would hash all the data.
        return datasets.Dataset(pa.table(arrays), fingerprint=uuid.uuid4().hex[:16])

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset, pad_token_id: int = 0) -> "Features":
        """Convert a data set with Hugging Face's column names, from `to_dataset` or a user.

        Ragged rows are padded on the right to the longest row, with `pad_token_id` and attention
        mask 0. A token outside
        the context may have the offsets None, [] or (-1, -1). Without a column `attention_mask` no
        token is padding; without a column `example_id` a row's id is its number. A label beyond
        int32 becomes the largest int32, which is outside the window, too. Arrays may be
        read-only views of the data set's memory.

        Raises:
            ValueError: there is no column `input_ids`, a number is None or not an integer, the
                columns with a value for each token differ in width, or a column with one number
                for each row has several.
        """
        if "input_ids" not in dataset.column_names:
            names = ", ".join(dataset.column_names) or "none"
            raise ValueError(f"windows need the column input_ids; columns found: {names}.")
        table = arrow_table(dataset)
        arrays: dict[str, Any] = {
            field: numpy_column(_one_per_row(table[name], field), name, clip=field in _LABELS)
            for field, name in COLUMNS.items()
            if name in table.column_names and field not in ("example_ids", *ALL_LABELS)
        }
        arrays |= dict(zip(ALL_LABELS, spans_of_table(table) or (), strict=False))
        is_given = _default_mask(table["input_ids"], arrays["input_ids"].shape)
        if pad_token_id and not is_given.all():
            arrays["input_ids"] = np.where(is_given, arrays["input_ids"], np.int32(pad_token_id))
        arrays.setdefault("attention_mask", is_given)
        _check_shapes(arrays)
        has_ids = "example_id" in table.column_names
        ids = table["example_id"].to_pylist() if has_ids else range(len(table))
        return cls(example_ids=[str(id_) for id_ in ids], **arrays)


COLUMNS = {
    "input_ids": "input_ids",
    "token_type_ids": "token_type_ids",
    "attention_mask": "attention_mask",
    "example_ids": "example_id",
    "offsets": "offset_mapping",
    "start_positions": "start_positions",
    "end_positions": "end_positions",
    "start_positions_all": "start_positions_all",
    "end_positions_all": "end_positions_all",
    "cls_index": "cls_index",
}
"""Field of `Features` -> column of a data set."""

_LABELS = ("start_positions", "end_positions")
_POSITIONS = (*_LABELS, *ALL_LABELS, "cls_index")


def _default_mask(column: pa.ChunkedArray, shape: tuple[int, ...]) -> Rows:
    """Return an attention mask of ones for the tokens of each ragged row."""
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    count = np.concatenate([*lengths, np.zeros(0, np.int64)])
    return (np.arange(shape[1]) < count[:, None]).astype(np.int32)


def _check_shapes(arrays: dict[str, np.ndarray]) -> None:
    length = arrays["input_ids"].shape[1]
    for name in ("attention_mask", "token_type_ids", "offsets"):
        if name in arrays and arrays[name].shape[1] != length:
            raise ValueError(
                f"column {COLUMNS[name]} is {arrays[name].shape[1]} tokens wide, but input_ids is "
                f"{length}: every row needs one value for each token."
            )


def _one_per_row(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    """Flatten a column of positions whose rows are lists of one number, as Hugging Face does."""
    if field not in (*_LABELS, "cls_index") or not pa.types.is_nested(column.type):
        return column
    if not all((list_lengths(chunk) == 1).all() for chunk in column.chunks):
        raise ValueError(f"column {field}: every row needs exactly one number.")
    return pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)


# --- Slices of the texts' tokens -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ContextSlices:
    """The context tokens of each window: `start` to `start + count` of its example's context."""

    example: Int64Array  # index of the example
    start: Int64Array
    count: Int64Array

    def __getitem__(self, rows: RowIndex) -> "ContextSlices":
        return ContextSlices(self.example[rows], self.start[rows], self.count[rows])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a row is built from a question and a part of a context."""

    template: Template
    padded_length: int
    is_left_padded: bool  # if so, the context precedes the question
    pad_token_id: int
    pad_token_type_id: int
    has_token_types: bool


@dataclasses.dataclass(frozen=True, repr=False)
class LazyWindows(Windows):
    """Windows as slices of the tokens of questions and contexts; rows are built when needed.

    Attributes, in addition to those of `Windows`:
        questions, contexts: the tokens of every example's texts; only contexts have offsets.
        slices: the part of the context that each window contains [N].
        layout: how a row is built.
    """

    example_ids: list[str]
    questions: Tokens
    contexts: Tokens
    slices: ContextSlices
    layout: Layout
    start_positions: Positions | None = None
    end_positions: Positions | None = None
    start_positions_all: Spans | None = None
    end_positions_all: Spans | None = None
    cls_index: Positions | None = None

    @property
    def padded_length(self) -> int:
        return self.layout.padded_length

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        return self._lengths(self.slices)

    @property
    def is_left_padded(self) -> bool:
        return self.layout.is_left_padded

    @property
    def has_offsets(self) -> bool:
        return len(self.contexts.offsets) == len(self.contexts.ids)

    def inputs(self, rows: RowIndex, width: int) -> dict[str, Rows]:
        slices, layout = self.slices[rows], self.layout
        questions, contexts, example = self.questions, self.contexts, slices.example
        lengths = self._lengths(slices)
        begins = width - lengths if layout.is_left_padded else np.zeros_like(lengths)
        columns = np.arange(width)
        is_token = columns >= begins[:, None]
        is_token &= columns < (begins + lengths)[:, None]
        ids = np.full(is_token.shape, layout.pad_token_id, np.int32)
        types = np.full_like(ids, layout.pad_token_type_id) if layout.has_token_types else None
        question = (questions.ids, questions.first[example], questions.count[example])
        context = (contexts.ids, contexts.first[example] + slices.start, slices.count)
        texts = (context, question) if layout.is_left_padded else (question, context)
        # No text follows the last block of special tokens.
        texts_and_types = [*zip(texts, layout.template.types, strict=True), (None, None)]
        next_ = begins  # the column where each window's next token is written
        for block, (text, type_) in zip(layout.template.blocks, texts_and_types, strict=True):
            for token_id, token_type in zip(*block, strict=True):
                ids[np.arange(len(ids)), next_] = token_id
                if types is not None:
                    types[np.arange(len(ids)), next_] = token_type
                next_ = next_ + 1
            if text is None:
                break
            tokens, first, count = text
            # A few hundred tokens are copied much faster as a slice than by their indices.
            for row, (to, source, n) in enumerate(np.stack([next_, first, count], 1).tolist()):
                ids[row, to : to + n] = tokens[source : source + n]
                if types is not None:
                    types[row, to : to + n] = type_
            next_ = next_ + count
        arrays = {"input_ids": ids, "attention_mask": is_token.astype(np.int32)}
        return arrays if types is None else {**arrays, "token_type_ids": types}

    def offset_lookup(self, rows: RowIndex) -> OffsetLookup:
        slices, offsets = self.slices[rows], self.contexts.offsets
        begin = self._context_begins(slices)[:, None]
        shift = (self.contexts.first[slices.example] + slices.start)[:, None] - begin

        def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            inside = (positions >= begin) & (positions < begin + slices.count[:, None])
            pairs = np.full((*positions.shape, 2), OUTSIDE, np.int32)
            pairs[inside] = offsets[(positions + shift)[inside]]
            return pairs[..., 0], pairs[..., 1]

        return OffsetLookup(at, self.padded_length)

    def context_begins(self) -> Int64Array:
        """Return the column of each window's first context token [N]."""
        return self._context_begins(self.slices)

    def features(self) -> Features:
        shape = (len(self), self.padded_length)
        arrays: dict[str, Any] = {"offsets": np.empty((*shape, 2), np.int32)}
        for rows in blocks(len(self), WINDOWS_AT_ONCE):
            arrays["offsets"][rows] = self.offsets(rows)
            for name, values in self.inputs(rows, self.padded_length).items():
                arrays.setdefault(name, np.empty(shape, np.int32))[rows] = values
        return Features(self.example_ids, **arrays, **self._positions())

    def select(self, rows: RowIndex) -> "LazyWindows":
        positions = {name: array[rows] for name, array in self._positions().items()}
        ids = _selected(self.example_ids, rows)
        return dataclasses.replace(self, example_ids=ids, slices=self.slices[rows], **positions)

    def padded_to(self, length: int) -> "LazyWindows":
        """Return these windows padded to `length` tokens, at least `padded_length`."""
        layout = dataclasses.replace(self.layout, padded_length=length)
        shift = length - self.padded_length if self.is_left_padded else 0
        positions = {name: shifted(array, shift) for name, array in self._positions().items()}
        return dataclasses.replace(self, layout=layout, **positions)

    def to_arrays(self, *, offsets: bool = False) -> dict[str, np.ndarray]:
        """Convert to arrays that can be sent to other processes, for `joined`.

        They lack the layout and, unless they are asked for, the offsets, which training does not
        need.
        """
        slices = self.slices
        arrays = {
            "example_ids": np.frombuffer(json.dumps(self.example_ids).encode(), np.uint8),
            "question_ids": self.questions.ids,
            "questions": np.stack([self.questions.first, self.questions.count]),
            "context_ids": self.contexts.ids,
            "contexts": np.stack([self.contexts.first, self.contexts.count]),
            "slices": np.stack([slices.example, slices.start, slices.count]),
        }
        return arrays | self._positions() | ({"offsets": self.contexts.offsets} if offsets else {})

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> "LazyWindows":
        """Concatenate the windows of all processes; it has offsets if the parts have.

        Args:
            parts: the `to_arrays` of each process. All processes must use the layout of these
                windows.
        """
        first_example = np.cumsum([0] + [part["questions"].shape[1] for part in parts[:-1]])
        slices = [
            part["slices"] + np.array([[e], [0], [0]])
            for part, e in zip(parts, first_example, strict=True)
        ]
        most = max(part[ALL_LABELS[0]].shape[1] if ALL_LABELS[0] in part else 0 for part in parts)
        positions = {
            name: np.concatenate(
                [
                    with_room(part[name], most) if name in ALL_LABELS else part[name]
                    for part in parts
                ]
            )
            for name in _POSITIONS
            if all(name in part for part in parts)
        }
        return LazyWindows(
            [id_ for part in parts for id_ in json.loads(part["example_ids"].tobytes())],
            _joined_tokens([(part["question_ids"], part["questions"]) for part in parts]),
            _joined_tokens(
                [(part["context_ids"], part["contexts"]) for part in parts],
                [part["offsets"] for part in parts if "offsets" in part],
            ),
            ContextSlices(*np.concatenate(slices, axis=1)),
            self.layout,
            **positions,
        )

    def _positions(self) -> dict[str, Any]:
        """Return the labels and the CLS token's positions, if the windows have them."""
        fields = {name: getattr(self, name) for name in _POSITIONS}
        return {name: array for name, array in fields.items() if array is not None}

    def offsets(self, rows: RowIndex) -> Int32[np.ndarray, "n l 2"]:
        """Return the token offsets of some windows, (-1, -1) outside the context."""
        slices = self.slices[rows]
        n = len(slices.example)
        result = np.full((n, self.padded_length, 2), OUTSIDE, np.int32)
        target = np.arange(n) * self.padded_length + self._context_begins(slices)
        source = ranges(self.contexts.first[slices.example] + slices.start, slices.count)
        result.reshape(-1, 2)[ranges(target, slices.count)] = self.contexts.offsets[source]
        return result

    def _lengths(self, slices: ContextSlices) -> Int64Array:
        text_tokens = self.questions.count[slices.example] + slices.count
        return self.layout.template.special_tokens + text_tokens

    def _context_begins(self, slices: ContextSlices) -> Int64Array:
        """Return the column of each window's first context token."""
        before, between, _ = (len(ids) for ids, _ in self.layout.template.blocks)
        if self.layout.is_left_padded:
            return self.layout.padded_length - self._lengths(slices) + before
        return before + self.questions.count[slices.example] + between


def _selected(values: list[str], rows: RowIndex) -> list[str]:
    return values[rows] if isinstance(rows, slice) else [values[row] for row in rows.tolist()]


def _joined_tokens(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], offsets: Sequence[np.ndarray] = ()
) -> Tokens:
    """Concatenate the tokens of several processes.

    Args:
        parts: (ids [t], first and count [2, e]) of each process.
        offsets: int32 [t, 2] of each process; (): the result has none.
    """
    begins = np.cumsum([0] + [len(ids) for ids, _ in parts[:-1]])
    texts = [text + np.array([[b], [0]]) for (_, text), b in zip(parts, begins, strict=True)]
    first, count = np.concatenate(texts, axis=1)
    ids = np.concatenate([ids for ids, _ in parts])
    return Tokens(ids, np.concatenate([np.zeros((0, 2), np.int32), *offsets]), first, count)
