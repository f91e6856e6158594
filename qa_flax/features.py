"""Stage 2 of 7: examples -> strided windows, labels and offsets (host, NumPy).

Each distinct context and question is tokenised once; the windows are then cut and put together with
NumPy. The arrays are those of Hugging Face's `prepare_train_features` and
`prepare_validation_features`, which encode the whole context again for every question; two defects
of theirs are left out: the label described at `_label`, and the space that byte-level tokenizers
with `add_prefix_space` and `trim_offsets` leave in the offsets of a later window's first token.
"""

import dataclasses
import logging
import uuid
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from qa_flax.columns import OUTSIDE, arrow_column, numpy_column, ranges
from qa_flax.examples import FEATURES as EXAMPLE_COLUMNS
from qa_flax.examples import SHOWN, ExampleError, arrow_table, load_examples
from qa_flax.tokens import Template, Tokens, encode_distinct, plain_encoding, read_template

logger = logging.getLogger(__name__)

WINDOWS_AT_ONCE = 1024  # bounds the temporary index arrays
LONG_QUESTIONS = ("truncate", "refuse")

Rows = Int32[np.ndarray, "n l"]
Numbers = Int64[np.ndarray, " n"]  # one an example or one a window


@dataclasses.dataclass(frozen=True)
class Features:
    """Windows as a struct of arrays, one row a window.

    Attributes:
        example_ids: the example that each window was cut from [N].
        input_ids: int32 [N, L].
        attention_mask: int32 [N, L], 1 for a token and 0 for padding.
        token_type_ids: int32 [N, L], or None where the tokenizer does not make them.
        offsets: int32 [N, L, 2], start and end of each token in the context, in code points;
            (-1, -1) for tokens outside the context.
        start_positions, end_positions: int32 [N], tokens of the first answer, both the CLS token
            where the answer is not wholly inside the window.
        cls_index: int32 [N], where the CLS token is; None: the first token everywhere.
    """

    example_ids: list[str]
    input_ids: Rows
    attention_mask: Rows
    token_type_ids: Rows | None = None
    offsets: Int32[np.ndarray, "n l 2"] | None = None
    start_positions: Int32[np.ndarray, " n"] | None = None
    end_positions: Int32[np.ndarray, " n"] | None = None
    cls_index: Int32[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

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


def prepare_train_features(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    **settings: Any,
) -> datasets.Dataset:
    """`make_windows` with labels, as a data set with Hugging Face's column names."""
    lengths = {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    return make_windows(examples, tokenizer, labels=True, **lengths, **settings).to_dataset()


def prepare_validation_features(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    **settings: Any,
) -> datasets.Dataset:
    """`make_windows` without labels, as a data set with Hugging Face's column names."""
    lengths = {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    return make_windows(examples, tokenizer, labels=False, **lengths, **settings).to_dataset()


def make_windows(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    labels: bool,
    pad_to_max_length: bool = True,
    long_questions: str = "truncate",
    disable_tqdm: bool = False,
) -> Features:
    """Cut every example into windows of at most `max_seq_length` tokens.

    The question, stripped on the left, is whole in every window; the context is cut into pieces
    that share `doc_stride` tokens. The order of question and context and the side of the padding
    follow `tokenizer.padding_side`.

    Args:
        examples: a `datasets.Dataset` with the columns of `load_examples`, or anything that
            `load_examples` reads.
        tokenizer: a fast tokenizer; its truncation and padding settings are left as they were.
        max_seq_length: tokens in a window, at most the tokenizer's `model_max_length`.
        doc_stride: tokens that two neighbouring windows of an example share.
        labels: whether to find the token positions of each example's first answer. Both are the
            CLS token where the window does not hold the whole answer, or there is none.
        pad_to_max_length: pad to `max_seq_length`; else to the longest window there is.
        long_questions: "truncate" cuts questions that leave a context no room to advance, and warns
            with their number and ids; "refuse" raises.
        disable_tqdm: no progress bar.

    Raises:
        ExampleError: a column is missing, or questions leave too little room for the context and
            are refused or cannot be cut.
        ValueError: the tokenizer cannot be used, or a setting is out of range.
    """
    backend = _backend(tokenizer)
    if long_questions not in LONG_QUESTIONS:
        allowed = " or ".join(LONG_QUESTIONS)
        raise ValueError(f"long_questions is {long_questions!r}; it must be {allowed}.")
    max_seq_length = _checked_length(max_seq_length, doc_stride, tokenizer)
    texts, answers = _example_columns(examples, labels)
    with plain_encoding(backend, tokenizer.split_special_tokens):
        template = read_template(backend)
        questions = encode_distinct(texts["question"], backend, disable=True)
        contexts = encode_distinct(texts["context"], backend, disable=disable_tqdm)
    total = max_seq_length - template.special_tokens
    if long_questions == "truncate":
        questions = _truncated(texts["id"], questions, contexts.count, total, doc_stride)
    room = total - questions.count
    _check_room(texts["id"], questions.count, contexts.count, room, max_seq_length, doc_stride)
    plan = _cut(contexts.count, room, doc_stride, tokenizer.truncation_side)
    longest = int((max_seq_length - room[plan.example] + plan.count).max(initial=1))
    length = max_seq_length if pad_to_max_length else longest
    arrays = _assemble(plan, questions, contexts, template, length, tokenizer)
    cls_index = _cls_positions(arrays["input_ids"], tokenizer)
    if answers is not None:
        labelled = _label(arrays["offsets"], answers[plan.example], cls_index)
        arrays["start_positions"], arrays["end_positions"] = labelled
    if cls_index.any():
        arrays["cls_index"] = cls_index
    return Features(example_ids=[texts["id"][e] for e in plan.example.tolist()], **arrays)


def _example_columns(
    examples: Any, labels: bool
) -> tuple[dict[str, list[str]], Int64[np.ndarray, "e 2"] | None]:
    """Ids, questions and contexts; for labels each first answer's [start, end), else (-1, -1)."""
    # What load_examples returns has been checked; anything else it reads and checks here.
    if not (isinstance(examples, datasets.Dataset) and examples.features == EXAMPLE_COLUMNS):
        examples = load_examples(examples, require_answers=labels)
    table = arrow_table(examples)
    columns = {name: table[name].to_pylist() for name in ("id", "question", "context")}
    columns["question"] = [question.lstrip() for question in columns["question"]]
    if not labels:
        return columns, None
    spans = [_first_answer(answers) for answers in table["answers"].to_pylist()]
    return columns, np.array(spans, np.int64).reshape(-1, 2)


def _first_answer(answers: dict[str, Any] | None) -> tuple[int, int]:
    if not answers or not answers["answer_start"]:
        return -1, -1
    start = answers["answer_start"][0]
    return start, start + len(answers["text"][0])


# --- Checks, before the tokenizer fails in its own way --------------------------------------------


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{name} gives no character offsets. A fast tokenizer (one with a tokenizer.json) "
            "is needed: load it with AutoTokenizer.from_pretrained(...)."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{name} has no padding token, and windows are padded to one length. Set one, for "
            "example tokenizer.pad_token = tokenizer.eos_token."
        )
    return cast(Tokenizer, tokenizer.backend_tokenizer)


def _checked_length(
    max_seq_length: int, doc_stride: int, tokenizer: PreTrainedTokenizerBase
) -> int:
    if max_seq_length < 1 or doc_stride < 0:
        raise ValueError(
            "max_seq_length must be at least 1 and doc_stride at least 0; got "
            f"{max_seq_length} and {doc_stride}."
        )
    limit = tokenizer.model_max_length
    if max_seq_length > limit:
        message = "max_seq_length %d is more than the model's %d tokens; %d is used."
        logger.warning(message, max_seq_length, limit, limit)
    return min(max_seq_length, limit)


def _truncated(
    ids: list[str], questions: Tokens, context_tokens: Numbers, total: int, doc_stride: int
) -> Tokens:
    """Cut the questions that leave a context no room to advance, to half of what is there for both.

    Where a question leaves hardly more room than `doc_stride`, every window advances by a token or
    two and there are hundreds; half and half keeps them few.
    """
    room = total - questions.count
    bad = np.flatnonzero((context_tokens > room) & (room <= doc_stride))
    most = (total - doc_stride) // 2
    if not len(bad) or most < 1:
        return questions
    some = ", ".join(f'"{ids[e]}"' for e in bad[:SHOWN].tolist()) + ", ..." * (len(bad) > SHOWN)
    message = "%d of %d questions are too long for the window and are cut to %d tokens: %s"
    logger.warning(message, len(bad), len(ids), most, some)
    count = questions.count.copy()
    count[bad] = most
    return dataclasses.replace(questions, count=count)


def _check_room(
    ids: list[str],
    question_tokens: Numbers,
    context_tokens: Numbers,
    room: Numbers,
    max_seq_length: int,
    doc_stride: int,
) -> None:
    """Where a context has to be cut, its windows must advance (the Rust tokenizer panics)."""
    bad = np.flatnonzero((context_tokens > room) & (room <= doc_stride))
    if not len(bad):
        return
    lines = [
        f'  - "{ids[e]}": {question_tokens[e]} question tokens leave room for {max(room[e], 0)}'
        for e in bad[:SHOWN].tolist()
    ]
    least = int(room[bad].min())
    raise ExampleError(
        f"{len(bad)} of {len(ids)} questions are too long for windows of max_seq_length="
        f"{max_seq_length} with doc_stride={doc_stride} (the room for the context must be more "
        "than doc_stride):\n"
        + "\n".join(lines + ["  - ..."] * (len(bad) > SHOWN))
        + f"\nRaise max_seq_length above {max_seq_length - least + doc_stride}"
        + (f", lower doc_stride below {least}" if least > 0 else "")
        + ", or shorten these questions (long_questions=truncate does)."
    )


# --- Windows -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which context tokens each window holds: `count` of its example's from `start` on."""

    example: Numbers
    start: Numbers
    count: Numbers

    def __getitem__(self, rows: slice) -> "_Plan":
        return _Plan(self.example[rows], self.start[rows], self.count[rows])


def _cut(tokens: Numbers, room: Numbers, overlap: int, side: str) -> _Plan:
    """Windows of `room` context tokens, `overlap` shared, until the context's end is reached.

    With truncation side "left" they are cut from the end of the context backwards.
    """
    step = np.maximum(room - overlap, 1)
    windows = 1 + np.maximum(-((room - tokens) // step), 0)
    example = np.repeat(np.arange(len(tokens)), windows)
    skipped = ranges(np.zeros_like(windows), windows) * step[example]
    if side == "left":
        end = tokens[example] - skipped
        start = np.maximum(end - room[example], 0)
    else:
        start = skipped
        end = np.minimum(start + room[example], tokens[example])
    return _Plan(example, start, end - start)


def _assemble(
    plan: _Plan,
    questions: Tokens,
    contexts: Tokens,
    template: Template,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, np.ndarray]:
    """The arrays of all windows [N, length]."""
    shape = (len(plan.example), length)
    arrays = {
        "input_ids": np.full(shape, tokenizer.pad_token_id, np.int32),
        "attention_mask": np.zeros(shape, np.int32),
        "token_type_ids": np.full(shape, tokenizer.pad_token_type_id, np.int32),
        "offsets": np.full((*shape, 2), OUTSIDE, np.int32),
    }
    left = tokenizer.padding_side == "left"
    for begin in range(0, len(plan.example), WINDOWS_AT_ONCE):
        rows = slice(begin, begin + WINDOWS_AT_ONCE)
        views = {name: array[rows] for name, array in arrays.items()}
        _fill(views, plan[rows], questions, contexts, template, left)
    if "token_type_ids" not in tokenizer.model_input_names:
        del arrays["token_type_ids"]
    return arrays


def _fill(
    arrays: dict[str, np.ndarray],
    plan: _Plan,
    questions: Tokens,
    contexts: Tokens,
    template: Template,
    left: bool,
) -> None:
    """Write the windows of `plan` into `arrays` [n, l], padded on the left or on the right."""
    n, length = arrays["input_ids"].shape
    # Of each text in the window: its tokens, the first of them and how many.
    question = (questions, questions.first[plan.example], questions.count[plan.example])
    context = (contexts, contexts.first[plan.example] + plan.start, plan.count)
    used = template.special_tokens + question[2] + context[2]
    cell = np.arange(n) * length + (length - used if left else 0)  # flat place of the next token
    input_ids, token_types = arrays["input_ids"].reshape(-1), arrays["token_type_ids"].reshape(-1)
    arrays["attention_mask"].reshape(-1)[ranges(cell, used)] = 1
    pieces = (context, question, None) if left else (question, context, None)
    for (ids, types), piece, type_ in zip(
        template.blocks, pieces, (*template.types, None), strict=True
    ):
        to = cell[:, None] + np.arange(len(ids))
        input_ids[to], token_types[to] = ids, types
        cell = cell + len(ids)
        if piece is not None:
            tokens, first, count = piece
            source, to = ranges(first, count), ranges(cell, count)
            input_ids[to], token_types[to] = tokens.ids[source], type_
            cell = cell + count
            if piece is context:
                arrays["offsets"].reshape(-1, 2)[to] = tokens.offsets[source]


# --- Labels --------------------------------------------------------------------------------------


def _label(
    offsets: Int32[np.ndarray, "n l 2"],
    answers: Int64[np.ndarray, "n 2"],
    cls_index: Int32[np.ndarray, " n"],
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """First and last token of each window's answer, [start, end) in characters, or CLS twice.

    Inside the context: the last token that begins at or before the answer's start, and the first
    that ends at or after its end. (Hugging Face's scan for the start runs on over the padding when
    the answer begins in the window's last context token; this rule does not.)
    """
    n = len(offsets)
    starts, ends = np.zeros(n, np.int32), np.zeros(n, np.int32)
    for begin in range(0, n, WINDOWS_AT_ONCE):
        rows = slice(begin, begin + WINDOWS_AT_ONCE)
        token_start, token_end = np.moveaxis(offsets[rows], -1, 0)
        in_context = token_start >= 0
        start, end = answers[rows, 0, None], answers[rows, 1, None]
        begins = in_context & (token_start <= start)
        ends_ = in_context & (token_end >= end)
        first, last = _first_true(in_context), _last_true(in_context)
        row = np.arange(len(first))
        held = begins[row, first] & ends_[row, last] & (start[:, 0] >= 0)
        starts[rows] = np.where(held, _last_true(begins), cls_index[rows])
        ends[rows] = np.where(held, _first_true(ends_), cls_index[rows])
    return starts, ends


def _first_true(mask: np.ndarray) -> np.ndarray:
    return mask.argmax(axis=1)


def _last_true(mask: np.ndarray) -> np.ndarray:
    return mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)


def _cls_positions(input_ids: Rows, tokenizer: PreTrainedTokenizerBase) -> Int32[np.ndarray, " n"]:
    """Where the CLS token is first; for tokenizers without one the BOS token, else position 0."""
    result = np.zeros(len(input_ids), np.int32)
    for begin in range(0, len(input_ids), WINDOWS_AT_ONCE):
        rows = slice(begin, begin + WINDOWS_AT_ONCE)
        is_cls, is_bos = (
            input_ids[rows] == (-1 if token is None else token)
            for token in (tokenizer.cls_token_id, tokenizer.bos_token_id)
        )
        result[rows] = np.where(is_cls.any(axis=1), _first_true(is_cls), _first_true(is_bos))
    return result


# --- Checks of a data set's columns --------------------------------------------------------------


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
