"""Stage 2 of 7: examples -> strided windows, labels and offsets (host, NumPy).

Each distinct context and question is tokenised once; the windows are cuts of these tokens. As rows
of arrays they are those of Hugging Face's `prepare_train_features` and
`prepare_validation_features`, which encode the whole context again for every question; two defects
of theirs are left out: the label described at `_label`, and the space that byte-level tokenizers
with `add_prefix_space` and `trim_offsets` leave in the offsets of a later window's first token.
"""

import dataclasses
import logging
from typing import Any, cast

import datasets
import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from qa_flax.data.columns import blocks, ranges
from qa_flax.data.examples import FEATURES as EXAMPLE_COLUMNS
from qa_flax.data.examples import load_examples
from qa_flax.data.messages import first_few, quoted
from qa_flax.data.readers import ExampleError, arrow_table
from qa_flax.data.tokens import Template, Tokens, encode_distinct, plain_encoding, read_template
from qa_flax.data.windows import (
    WINDOWS_AT_ONCE,
    Cut,
    CutWindows,
    Layout,
    Numbers,
    Positions,
    Rows,
)

logger = logging.getLogger(__name__)

LONG_QUESTIONS = ("truncate", "refuse")


def prepare_train_features(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    **settings: Any,
) -> datasets.Dataset:
    """`make_windows` with labels, as a data set with Hugging Face's column names."""
    lengths = {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    windows = make_windows(examples, tokenizer, labels=True, **lengths, **settings)
    return windows.features().to_dataset()


def prepare_validation_features(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    **settings: Any,
) -> datasets.Dataset:
    """`make_windows` as a data set with Hugging Face's column names, to evaluate on.

    Unlike Hugging Face's, the windows have labels if any of the examples has an answer, so that
    evaluation gives a loss, too; `labels=False` leaves them out.
    """
    settings = {
        "labels": None,
        "max_seq_length": max_seq_length,
        "doc_stride": doc_stride,
    } | settings
    windows = make_windows(examples, tokenizer, **settings)
    return windows.features().to_dataset()


def make_windows(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    labels: bool | None,
    pad_to_max_length: bool = True,
    long_questions: str = "truncate",
    disable_tqdm: bool = False,
) -> CutWindows:
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
            CLS token where the window does not hold the whole answer, or there is none. None: if
            any example has an answer.
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
    cut = _cut(contexts.count, room, doc_stride, tokenizer.truncation_side)
    longest = int((max_seq_length - room[cut.example] + cut.count).max(initial=1))
    length = max_seq_length if pad_to_max_length else longest
    ids = [texts["id"][e] for e in cut.example.tolist()]
    questions = dataclasses.replace(questions, offsets=questions.offsets[:0].copy())  # not needed
    windows = CutWindows(ids, questions, contexts, cut, _layout(template, length, tokenizer))
    cls_index = _cls_positions(windows, tokenizer)
    if cls_index.any():
        windows = dataclasses.replace(windows, cls_index=cls_index)
    if answers is None:
        return windows
    starts, ends = _label(windows, answers[cut.example], cls_index)
    return dataclasses.replace(windows, start_positions=starts, end_positions=ends)


def _example_columns(
    examples: Any, labels: bool | None
) -> tuple[dict[str, list[str]], Int64[np.ndarray, "e 2"] | None]:
    """Ids, questions and contexts; for labels each first answer's [start, end), else (-1, -1).

    The latter is None without labels, and where they are None and no example has an answer.
    """
    # What load_examples returns has been checked; anything else it reads and checks here.
    if not (isinstance(examples, datasets.Dataset) and examples.features == EXAMPLE_COLUMNS):
        examples = load_examples(examples, require_answers=bool(labels))
    table = arrow_table(examples)
    columns = {name: table[name].to_pylist() for name in ("id", "question", "context")}
    columns["question"] = [question.lstrip() for question in columns["question"]]
    if labels is False:
        return columns, None
    spans = [_first_answer(answers) for answers in table["answers"].to_pylist()]
    found = np.array(spans, np.int64).reshape(-1, 2)
    return columns, found if labels or (found >= 0).any() else None


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
    some = first_few([ids[e] for e in bad], quoted)
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

    def line(e: int) -> str:
        return f'"{ids[e]}": {question_tokens[e]} question tokens leave room for {max(room[e], 0)}'

    least = int(room[bad].min())
    raise ExampleError(
        f"{len(bad)} of {len(ids)} questions are too long for windows of max_seq_length="
        f"{max_seq_length} with doc_stride={doc_stride} (the room for the context must be more "
        "than doc_stride):\n  - "
        + first_few(bad.tolist(), line, separator="\n  - ")
        + f"\nRaise max_seq_length above {max_seq_length - least + doc_stride}"
        + (f", lower doc_stride below {least}" if least > 0 else "")
        + ", or shorten these questions (long_questions=truncate does)."
    )


# --- Windows -------------------------------------------------------------------------------------


def _cut(tokens: Numbers, room: Numbers, overlap: int, side: str) -> Cut:
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
    return Cut(example, start, end - start)


def _layout(template: Template, length: int, tokenizer: PreTrainedTokenizerBase) -> Layout:
    return Layout(
        template,
        length,
        is_left_padded=tokenizer.padding_side == "left",
        pad_token_id=cast(int, tokenizer.pad_token_id),
        pad_token_type_id=tokenizer.pad_token_type_id,
        has_token_types="token_type_ids" in tokenizer.model_input_names,
    )


# --- Labels --------------------------------------------------------------------------------------


def _label(
    windows: CutWindows, answers: Int64[np.ndarray, "n 2"], cls_index: Positions
) -> tuple[Positions, Positions]:
    """First and last token of each window's answer, [start, end) in characters, or CLS twice.

    Inside the context: the last token that begins at or before the answer's start, and the first
    that ends at or after its end. (Hugging Face's scan for the start runs on over the padding when
    the answer begins in the window's last context token; this rule does not.)
    """
    starts, ends = cls_index.copy(), cls_index.copy()
    for rows in blocks(len(windows), WINDOWS_AT_ONCE):
        token_start, token_end = np.moveaxis(windows.offsets(rows), -1, 0)
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


def _cls_positions(windows: CutWindows, tokenizer: PreTrainedTokenizerBase) -> Positions:
    """Where the CLS token is first; for tokenizers without one the BOS token, else position 0."""
    before, _ = windows.layout.template.blocks[0]
    padding = (
        windows.padded_length - windows.lengths
        if windows.is_left_padded
        else np.zeros(len(windows))
    )
    if tokenizer.cls_token_id in before and tokenizer.cls_token_id != tokenizer.pad_token_id:
        return (padding + before.index(tokenizer.cls_token_id)).astype(np.int32)
    result = np.zeros(len(windows), np.int32)
    for rows in blocks(len(windows), WINDOWS_AT_ONCE):
        input_ids: Rows = windows.inputs(rows, windows.padded_length)["input_ids"]
        is_cls, is_bos = (
            input_ids == (-1 if token is None else token)
            for token in (tokenizer.cls_token_id, tokenizer.bos_token_id)
        )
        result[rows] = np.where(is_cls.any(axis=1), _first_true(is_cls), _first_true(is_bos))
    return result
