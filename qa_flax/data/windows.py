"""Stage 2 of 7: windows, and the two ways to hold N of them (host, NumPy).

`Features` are rows of arrays, as Hugging Face's; a user's own data set becomes them. `CutWindows`
are the tokens of the distinct texts and where each window lies in them: an order of magnitude
fewer bytes, and rows are put together when a batch asks for them.
"""

import dataclasses
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from qa_flax.data.columns import (
    OUTSIDE,
    OffsetLookup,
    arrow_column,
    blocks,
    numpy_column,
    offset_lookup,
    ranges,
)
from qa_flax.data.readers import arrow_table
from qa_flax.data.tokens import Template, Tokens

Rows = Int32[np.ndarray, "n l"]
Numbers = Int64[np.ndarray, " n"]  # one an example or one a window
Positions = Int32[np.ndarray, " n"]
Some = slice | np.ndarray  # some of the windows

WINDOWS_AT_ONCE = 1024  # bounds the temporary index arrays


class Windows(ABC):
    """N windows of L tokens, of which some may be padding.

    Attributes:
        example_ids: the example that each window was cut from [N].
        start_positions, end_positions: int32 [N], tokens of the first answer, both the CLS token
            where the answer is not wholly inside the window; None without labels.
        cls_index: int32 [N], where the CLS token is; None: the first token everywhere.
    """

    example_ids: list[str]
    start_positions: Positions | None
    end_positions: Positions | None
    cls_index: Positions | None

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    @abstractmethod
    def padded_length(self) -> int:
        """L, padding included."""

    @property
    @abstractmethod
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """How many tokens of each window are not padding."""

    @property
    @abstractmethod
    def is_left_padded(self) -> bool:
        """Whether padding stands before the text."""

    @abstractmethod
    def inputs(self, rows: Some, width: int) -> dict[str, Rows]:
        """The model's inputs for some windows, without padding beyond `width` tokens."""

    @abstractmethod
    def offset_lookup(self, rows: Some) -> OffsetLookup:
        """Offsets of some windows' tokens, to be looked up by position.

        Raises:
            ValueError: there are no offsets.
        """

    @abstractmethod
    def features(self) -> "Features":
        """The same windows as rows of arrays."""

    def max_context(self, rows: Some, width: int) -> None:
        """Which tokens of the context an answer may start at: all of them (`SpanSource`)."""
        return None

    @abstractmethod
    def select(self, rows: slice) -> "Windows":
        """Some of the windows."""

    def columns(self, width: int) -> slice:
        """Which of the L columns `inputs` gives."""
        return (
            slice(self.padded_length - width, self.padded_length)
            if self.is_left_padded
            else slice(0, width)
        )


# --- Rows of arrays ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Features(Windows):
    """Windows as a struct of arrays, one row a window.

    Attributes, further to those of `Windows`:
        input_ids: int32 [N, L].
        attention_mask: int32 [N, L], 1 for a token and 0 for padding.
        token_type_ids: int32 [N, L], or None where the tokenizer does not make them.
        offsets: int32 [N, L, 2], start and end of each token in the context, in code points;
            (-1, -1) for tokens outside the context.
    """

    example_ids: list[str]
    input_ids: Rows
    attention_mask: Rows
    token_type_ids: Rows | None = None
    offsets: Int32[np.ndarray, "n l 2"] | None = None
    start_positions: Positions | None = None
    end_positions: Positions | None = None
    cls_index: Positions | None = None

    @property
    def padded_length(self) -> int:
        return self.input_ids.shape[1]

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        return self.attention_mask.sum(axis=1)

    @property
    def is_left_padded(self) -> bool:
        return bool((self.attention_mask[:, 0] == 0).any())

    def inputs(self, rows: Some, width: int) -> dict[str, Rows]:
        columns = self.columns(width)
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = {name: getattr(self, name) for name in names}
        return {n: array[rows, columns] for n, array in arrays.items() if array is not None}

    def offset_lookup(self, rows: Some) -> OffsetLookup:
        if self.offsets is None:
            raise ValueError(
                "features have no offsets, which say where in the context a token is: make them "
                "with prepare_validation_features"
            )
        return offset_lookup(self.offsets[rows], "offsets")

    def features(self) -> "Features":
        return self

    def select(self, rows: slice) -> "Features":
        given = {name: getattr(self, name) for name in _COLUMNS}
        some = {name: value[rows] for name, value in given.items() if value is not None}
        return Features(**some)

    def to_dataset(self) -> datasets.Dataset:
        """The same windows as a data set with Hugging Face's column names, without a copy."""
        columns = {name: getattr(self, field) for field, name in _COLUMNS.items()}
        arrays = {name: arrow_column(value) for name, value in columns.items() if value is not None}
        # Given no fingerprint, datasets would read all the data to make one.
        return datasets.Dataset(pa.table(arrays), fingerprint=uuid.uuid4().hex[:16])

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset) -> "Features":
        """Windows from Hugging Face style columns, the user's own or those of `to_dataset`.

        Rows may be ragged: they are padded on the right to the longest (attention mask 0). A token
        outside the context may have the offsets None, [] or (-1, -1). Without `attention_mask`
        every token of a row is real; without `example_id` a row's id is its number. Arrays may be
        read-only views of the data set's memory.

        Raises:
            ValueError: there is no column `input_ids`, a number is None, or the columns of tokens
                differ in width.
        """
        if "input_ids" not in dataset.column_names:
            found = ", ".join(dataset.column_names) or "none"
            raise ValueError(f"windows need the column input_ids; columns found: {found}.")
        table = arrow_table(dataset)
        found = {
            field: numpy_column(table[name], name)
            for field, name in _COLUMNS.items()
            if name in table.column_names and field != "example_ids"
        }
        if "attention_mask" not in found:
            found["attention_mask"] = _real_tokens(table["input_ids"], found["input_ids"].shape)
        _check_shapes(found)
        has_ids = "example_id" in table.column_names
        ids = table["example_id"].to_pylist() if has_ids else range(len(table))
        return cls(example_ids=[str(id_) for id_ in ids], **found)


_COLUMNS = {
    "input_ids": "input_ids",
    "token_type_ids": "token_type_ids",
    "attention_mask": "attention_mask",
    "example_ids": "example_id",
    "offsets": "offset_mapping",
    "start_positions": "start_positions",
    "end_positions": "end_positions",
    "cls_index": "cls_index",
}


def _real_tokens(column: pa.ChunkedArray, shape: tuple[int, ...]) -> Rows:
    """Ones over each row's own length."""
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    count = np.concatenate([*lengths, np.zeros(0, np.int64)])
    return (np.arange(shape[1]) < count[:, None]).astype(np.int32)


def _check_shapes(found: dict[str, np.ndarray]) -> None:
    length = found["input_ids"].shape[1]
    for name in ("attention_mask", "token_type_ids", "offsets"):
        if name in found and found[name].shape[1] != length:
            raise ValueError(
                f"column {_COLUMNS[name]} is {found[name].shape[1]} tokens wide, and input_ids "
                f"{length}: every row needs one value for each token."
            )


# --- Cuts of the texts' tokens -------------------------------------------------------------------


_POSITIONS = ("start_positions", "end_positions", "cls_index")


@dataclasses.dataclass(frozen=True)
class Cut:
    """Which context tokens each window holds: `count` of its example's from `start` on."""

    example: Numbers
    start: Numbers
    count: Numbers

    def __getitem__(self, rows: Some) -> "Cut":
        return Cut(self.example[rows], self.start[rows], self.count[rows])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a row is made of a question and a piece of a context."""

    template: Template
    padded_length: int
    is_left_padded: bool  # the context then stands before the question
    pad_token_id: int
    pad_token_type_id: int
    has_token_types: bool


@dataclasses.dataclass(frozen=True)
class CutWindows(Windows):
    """Windows as cuts of the tokens of questions and contexts, each distinct text once.

    Attributes, further to those of `Windows`:
        questions, contexts: the tokens of every example's texts; offsets of the contexts only.
        cut: where each window lies in its example's context [N].
        layout: how a row is put together.
    """

    example_ids: list[str]
    questions: Tokens
    contexts: Tokens
    cut: Cut
    layout: Layout
    start_positions: Positions | None = None
    end_positions: Positions | None = None
    cls_index: Positions | None = None

    @property
    def padded_length(self) -> int:
        return self.layout.padded_length

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        return self._lengths(self.cut)

    @property
    def is_left_padded(self) -> bool:
        return self.layout.is_left_padded

    def inputs(self, rows: Some, width: int) -> dict[str, Rows]:
        cut, layout = self.cut[rows], self.layout
        shape = (len(cut.example), width)
        arrays = {
            "input_ids": np.full(shape, layout.pad_token_id, np.int32),
            "attention_mask": np.zeros(shape, np.int32),
            "token_type_ids": np.full(shape, layout.pad_token_type_id, np.int32),
        }
        self._fill(cut, width, **{name: array.reshape(-1) for name, array in arrays.items()})
        if not layout.has_token_types:
            del arrays["token_type_ids"]
        return arrays

    def offset_lookup(self, rows: Some) -> OffsetLookup:
        cut, offsets = self.cut[rows], self.contexts.offsets
        begin = self._context_begins(cut)[:, None]
        first = (self.contexts.first[cut.example] + cut.start)[:, None] - begin

        def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            inside = (positions >= begin) & (positions < begin + cut.count[:, None])
            both = np.full((*positions.shape, 2), OUTSIDE, np.int32)
            both[inside] = offsets[(positions + first)[inside]]
            return both[..., 0], both[..., 1]

        return OffsetLookup(at, self.padded_length)

    def features(self) -> Features:
        shape = (len(self), self.padded_length)
        arrays: dict[str, Any] = {"offsets": np.empty((*shape, 2), np.int32)}
        for rows in blocks(len(self), WINDOWS_AT_ONCE):
            arrays["offsets"][rows] = self.offsets(rows)
            for name, values in self.inputs(rows, self.padded_length).items():
                arrays.setdefault(name, np.empty(shape, np.int32))[rows] = values
        return Features(self.example_ids, **arrays, **self._positions())

    def select(self, rows: slice) -> "CutWindows":
        some = {name: array[rows] for name, array in self._positions().items()}
        return dataclasses.replace(
            self, example_ids=self.example_ids[rows], cut=self.cut[rows], **some
        )

    def padded_to(self, length: int) -> "CutWindows":
        """The same windows with more padding, where others are longer."""
        layout = dataclasses.replace(self.layout, padded_length=length)
        shift = np.int32(length - self.padded_length if self.is_left_padded else 0)
        moved = {name: array + shift for name, array in self._positions().items()}
        return dataclasses.replace(self, layout=layout, **moved)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What another host needs to train on these windows, if it knows their layout (`joined`).

        Offsets, which say where in its text a token is, stay here.
        """
        cut = self.cut
        return {
            "example_ids": np.frombuffer(json.dumps(self.example_ids).encode(), np.uint8),
            "question_ids": self.questions.ids,
            "questions": np.stack([self.questions.first, self.questions.count]),
            "context_ids": self.contexts.ids,
            "contexts": np.stack([self.contexts.first, self.contexts.count]),
            "cut": np.stack([cut.example, cut.start, cut.count]),
        } | self._positions()

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> "CutWindows":
        """The windows of several hosts, all of this layout, as one: from their `to_arrays`."""
        examples = np.cumsum([0] + [part["questions"].shape[1] for part in parts[:-1]])
        cuts = [
            part["cut"] + np.array([[e], [0], [0]]) for part, e in zip(parts, examples, strict=True)
        ]
        positions = {
            name: np.concatenate([part[name] for part in parts])
            for name in _POSITIONS
            if all(name in part for part in parts)
        }
        return CutWindows(
            [id_ for part in parts for id_ in json.loads(part["example_ids"].tobytes())],
            _joined_tokens([(part["question_ids"], part["questions"]) for part in parts]),
            _joined_tokens([(part["context_ids"], part["contexts"]) for part in parts]),
            Cut(*np.concatenate(cuts, axis=1)),
            self.layout,
            **positions,
        )

    def _positions(self) -> dict[str, Any]:
        """Labels and the CLS token's positions, where there are some."""
        found = {name: getattr(self, name) for name in _POSITIONS}
        return {name: array for name, array in found.items() if array is not None}

    def offsets(self, rows: Some) -> Int32[np.ndarray, "n l 2"]:
        """Offsets of some windows' tokens, (-1, -1) outside the context."""
        cut = self.cut[rows]
        n = len(cut.example)
        result = np.full((n, self.padded_length, 2), OUTSIDE, np.int32)
        cell = np.arange(n) * self.padded_length + self._context_begins(cut)
        source = ranges(self.contexts.first[cut.example] + cut.start, cut.count)
        result.reshape(-1, 2)[ranges(cell, cut.count)] = self.contexts.offsets[source]
        return result

    def _lengths(self, cut: Cut) -> Numbers:
        texts = self.questions.count[cut.example] + cut.count
        return self.layout.template.special_tokens + texts

    def _context_begins(self, cut: Cut) -> Numbers:
        """The column of each window's first context token."""
        before, between, _ = (len(ids) for ids, _ in self.layout.template.blocks)
        if self.layout.is_left_padded:
            return self.layout.padded_length - self._lengths(cut) + before
        return before + self.questions.count[cut.example] + between

    def _fill(
        self,
        cut: Cut,
        width: int,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        token_type_ids: np.ndarray,
    ) -> None:
        """Write windows into flat arrays [n * width]."""
        questions, contexts, template = self.questions, self.contexts, self.layout.template
        # Of each text in the window: its tokens, the first of them and how many.
        question = (questions, questions.first[cut.example], questions.count[cut.example])
        context = (contexts, contexts.first[cut.example] + cut.start, cut.count)
        left, used = self.layout.is_left_padded, self._lengths(cut)
        cell = np.arange(len(used)) * width + (width - used if left else 0)  # the next token's
        attention_mask[ranges(cell, used)] = 1
        pieces = (context, question, None) if left else (question, context, None)
        for (ids, types), piece, type_ in zip(
            template.blocks, pieces, (*template.types, None), strict=True
        ):
            to = cell[:, None] + np.arange(len(ids))
            input_ids[to], token_type_ids[to] = ids, types
            cell = cell + len(ids)
            if piece is not None:
                tokens, first, count = piece
                to = ranges(cell, count)
                input_ids[to], token_type_ids[to] = tokens.ids[ranges(first, count)], type_
                cell = cell + count


def _joined_tokens(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tokens:
    """Tokens of several hosts' texts, each given as ids [t] and (first, count) [2, e]."""
    before = np.cumsum([0] + [len(ids) for ids, _ in parts[:-1]])
    texts = [of + np.array([[b], [0]]) for (_, of), b in zip(parts, before, strict=True)]
    first, count = np.concatenate(texts, axis=1)
    ids = np.concatenate([ids for ids, _ in parts])
    return Tokens(ids, np.zeros((0, 2), np.int32), first, count)
