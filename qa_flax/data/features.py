"""Stage 2 of 7: examples -> strided windows, labels and offsets (host, NumPy).

Each distinct context and question is tokenized once, and a window is a slice of these tokens. The
arrays equal those of `prepare_train_features` and `prepare_validation_features` in Hugging Face's
`run_qa.py`, which tokenize the context again for every question. Two defects of theirs are
corrected: the label described at `_label`, and a space that byte-level tokenizers with
`add_prefix_space` and `trim_offsets` include in the offsets of a later window's first token.
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
    ContextSlices,
    Int64Array,
    Layout,
    LazyWindows,
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
    """Tokenize examples into strided windows with labels, to train on.

    Args:
        examples: see `make_windows`; every example needs `answers`, which may be an empty list.
        tokenizer: see `make_windows`.
        max_seq_length: tokens in a window.
        doc_stride: tokens that two neighbouring windows of an example share.
        settings: `pad_to_max_length`, `long_questions` or `disable_tqdm` of `make_windows`.

    Returns:
        A data set with a row for each window and Hugging Face's columns. L is `max_seq_length`, or
        the length of the longest window with `pad_to_max_length=False`.

        - `input_ids`, `attention_mask` and, if the model has them, `token_type_ids`: int32 [L].
        - `offset_mapping`: int32 [L, 2], start and end of each token in the context, in code
          points; (-1, -1) outside the context.
        - `start_positions`, `end_positions`: int32, first and last token of the example's first
          answer; both the CLS token if the window does not contain the whole answer.
        - `example_id`: str.
        - `cls_index`: int32, position of the CLS token; only if it is not always the first token.

    Raises:
        ExampleError: examples are invalid, or questions are too long; see `make_windows`.
        ValueError: the tokenizer is not supported, or a setting is out of range.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import load_examples, prepare_train_features
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> examples = load_examples("train-v1.1.json")
        >>> train = prepare_train_features(examples, tokenizer, 64, 16, disable_tqdm=True)
        >>> len(train[0]["input_ids"]), train[0]["start_positions"] <= train[0]["end_positions"]
        (64, True)
    """
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
    """Tokenize examples into strided windows, to evaluate or predict.

    Unlike Hugging Face's function of this name, it adds labels if any example has an answer, so
    that evaluation also reports a loss; `labels=False` omits them.

    Args:
        examples: see `make_windows`.
        tokenizer: see `make_windows`.
        max_seq_length: tokens in a window.
        doc_stride: tokens that two neighbouring windows of an example share.
        settings: `labels`, `pad_to_max_length`, `long_questions` or `disable_tqdm` of
            `make_windows`.

    Returns:
        A data set with a row for each window and the columns of `prepare_train_features`; without
        labels it has no `start_positions` and `end_positions`.

    Raises:
        ExampleError: examples are invalid, or questions are too long; see `make_windows`.
        ValueError: the tokenizer is not supported, or a setting is out of range.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import load_examples, prepare_validation_features
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> examples = load_examples("dev-v1.1.json")
        >>> windows = prepare_validation_features(examples, tokenizer, 64, 16, disable_tqdm=True)
        >>> windows[0]["example_id"], windows[0]["offset_mapping"][0]
        ('q0', [-1, -1])
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
) -> LazyWindows:
    """Split every example into windows of at most `max_seq_length` tokens.

    Each window contains the whole question, without leading white space, and a part of the context;
    neighbouring parts share `doc_stride` tokens. Padding is on the tokenizer's `padding_side`. If
    that is "left", the context precedes the question, as in Hugging Face.

    Args:
        examples: the result of `load_examples`, or anything that `load_examples` reads.
        tokenizer: a fast tokenizer; its truncation and padding settings are not changed.
        max_seq_length: tokens in a window; limited to the tokenizer's `model_max_length`.
        doc_stride: tokens that two neighbouring windows of an example share.
        labels: whether to compute the token positions of each example's first answer. Both are the
            CLS token if the window does not contain the whole answer, or the example has none.
            None: compute them if any example has an answer.
        pad_to_max_length: pad to `max_seq_length`; otherwise to the longest window.
        long_questions: what to do with questions that leave at most `doc_stride` tokens for a
            longer context. "truncate" shortens them and logs a warning; "refuse" raises.
        disable_tqdm: show no progress bar.

    Raises:
        ExampleError: examples are invalid, or questions are too long and are refused or cannot be
            truncated far enough.
        ValueError: the tokenizer is not supported, or a setting is out of range.
    """
    backend = _backend(tokenizer)
    if long_questions not in LONG_QUESTIONS:
        raise ValueError(f"long_questions must be one of {LONG_QUESTIONS}, got {long_questions!r}.")
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
    slices = _slice_contexts(contexts.count, room, doc_stride, tokenizer.truncation_side)
    longest = int((max_seq_length - room[slices.example] + slices.count).max(initial=1))
    length = max_seq_length if pad_to_max_length else longest
    ids = [texts["id"][e] for e in slices.example.tolist()]
    questions = dataclasses.replace(questions, offsets=questions.offsets[:0].copy())  # not needed
    windows = LazyWindows(ids, questions, contexts, slices, _layout(template, length, tokenizer))
    cls_index = _cls_positions(windows, tokenizer)
    if cls_index.any():
        windows = dataclasses.replace(windows, cls_index=cls_index)
    if answers is None:
        return windows
    starts, ends = _label(windows, answers[slices.example], cls_index)
    return dataclasses.replace(windows, start_positions=starts, end_positions=ends)


def _example_columns(
    examples: Any, labels: bool | None
) -> tuple[dict[str, list[str]], Int64[np.ndarray, "e 2"] | None]:
    """Return the columns `id`, `question` and `context`, and the answer spans to label.

    The span of an example is [start, end) of its first answer in code points, or (-1, -1) without
    an answer. The spans are None if `labels` is False, or None and no example has an answer.
    """
    # The result of load_examples has already been checked.
    if not (isinstance(examples, datasets.Dataset) and examples.features == EXAMPLE_COLUMNS):
        examples = load_examples(examples, require_answers=bool(labels))
    table = arrow_table(examples)
    columns = {name: table[name].to_pylist() for name in ("id", "question", "context")}
    columns["question"] = [question.lstrip() for question in columns["question"]]
    if labels is False:
        return columns, None
    first_answers = [_first_answer(answers) for answers in table["answers"].to_pylist()]
    spans = np.array(first_answers, np.int64).reshape(-1, 2)
    return columns, spans if labels or (spans >= 0).any() else None


def _first_answer(answers: dict[str, Any] | None) -> tuple[int, int]:
    if not answers or not answers["answer_start"]:
        return -1, -1
    start = answers["answer_start"][0]
    return start, start + len(answers["text"][0])


# --- Checks: clearer errors than the tokenizer's -------------------------------------------------


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{name} has no character offsets. A fast tokenizer (one with a tokenizer.json) is "
            "required: load it with AutoTokenizer.from_pretrained(...)."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{name} has no padding token, which is required to pad the windows. Set one, for "
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
        message = "max_seq_length=%d exceeds the model's limit of %d tokens; %d is used."
        logger.warning(message, max_seq_length, limit, limit)
    return min(max_seq_length, limit)


def _truncated(
    ids: list[str], questions: Tokens, context_tokens: Int64Array, total: int, doc_stride: int
) -> Tokens:
    """Truncate questions that leave at most `doc_stride` tokens for a longer context.

    `total` is the number of tokens for question and context together.
    """
    room = total - questions.count
    too_long = np.flatnonzero((context_tokens > room) & (room <= doc_stride))
    # The question gets half of the tokens beyond doc_stride. With more, each window would advance
    # by only a few tokens, and an example could have hundreds of windows.
    limit = (total - doc_stride) // 2
    if not len(too_long) or limit < 1:
        return questions
    names = first_few([ids[e] for e in too_long], quoted)
    message = "%d of %d questions are too long for the window and are truncated to %d tokens: %s"
    logger.warning(message, len(too_long), len(ids), limit, names)
    count = questions.count.copy()
    count[too_long] = limit
    return dataclasses.replace(questions, count=count)


def _check_room(
    ids: list[str],
    question_tokens: Int64Array,
    context_tokens: Int64Array,
    room: Int64Array,
    max_seq_length: int,
    doc_stride: int,
) -> None:
    """Check that the windows of a context that needs several advance (HF's tokenizer panics).

    Raises:
        ExampleError: questions are too long.
    """
    too_long = np.flatnonzero((context_tokens > room) & (room <= doc_stride))
    if not len(too_long):
        return

    def line(e: int) -> str:
        return (
            f'"{ids[e]}": {question_tokens[e]} question tokens leave room for {max(room[e], 0)} '
            "context tokens"
        )

    least = int(room[too_long].min())
    raise ExampleError(
        f"{len(too_long)} of {len(ids)} questions are too long for windows of max_seq_length="
        f"{max_seq_length} with doc_stride={doc_stride} (a window needs room for more than "
        "doc_stride context tokens):\n  - "
        + first_few(too_long.tolist(), line, separator="\n  - ")
        + f"\nRaise max_seq_length above {max_seq_length - least + doc_stride}"
        + (f", lower doc_stride below {least}" if least > 0 else "")
        + ', or shorten these questions, as long_questions="truncate" does (command line: '
        "--long_questions truncate)."
    )


# --- Windows -------------------------------------------------------------------------------------


def _slice_contexts(tokens: Int64Array, room: Int64Array, overlap: int, side: str) -> ContextSlices:
    """Slice contexts of `tokens` tokens into windows of `room` tokens that overlap by `overlap`.

    With truncation side "left", the first window is at the end of the context.
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
    return ContextSlices(example, start, end - start)


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
    windows: LazyWindows, answers: Int64[np.ndarray, "n 2"], cls_index: Positions
) -> tuple[Positions, Positions]:
    """Return the first and last token of each window's answer, [start, end) in code points.

    The first token is the last context token that begins at or before `start`; the last token is
    the first context token that ends at or after `end`. Both are the CLS token if the window does
    not contain the whole answer. Hugging Face's loop differs if the answer begins in the window's
    last context token: it continues beyond the context and returns a start after the end.
    """
    starts, ends = cls_index.copy(), cls_index.copy()
    for rows in blocks(len(windows), WINDOWS_AT_ONCE):
        token_start, token_end = np.moveaxis(windows.offsets(rows), -1, 0)
        in_context = token_start >= 0
        start, end = answers[rows, 0, None], answers[rows, 1, None]
        can_start = in_context & (token_start <= start)
        can_end = in_context & (token_end >= end)
        first, last = _first_true(in_context), _last_true(in_context)
        row = np.arange(len(first))
        has_answer = can_start[row, first] & can_end[row, last] & (start[:, 0] >= 0)
        starts[rows] = np.where(has_answer, _last_true(can_start), cls_index[rows])
        ends[rows] = np.where(has_answer, _first_true(can_end), cls_index[rows])
    return starts, ends


def _first_true(mask: np.ndarray) -> np.ndarray:
    return mask.argmax(axis=1)


def _last_true(mask: np.ndarray) -> np.ndarray:
    return mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)


def _cls_positions(windows: LazyWindows, tokenizer: PreTrainedTokenizerBase) -> Positions:
    """Return the position of each window's first CLS token, or first BOS token, or 0."""
    prefix, _ = windows.layout.template.blocks[0]
    padding = (
        windows.padded_length - windows.lengths
        if windows.is_left_padded
        else np.zeros(len(windows))
    )
    if tokenizer.cls_token_id in prefix and tokenizer.cls_token_id != tokenizer.pad_token_id:
        return (padding + prefix.index(tokenizer.cls_token_id)).astype(np.int32)
    # The CLS token is not in front, or is also the padding token: search all tokens.
    result = np.zeros(len(windows), np.int32)
    for rows in blocks(len(windows), WINDOWS_AT_ONCE):
        input_ids: Rows = windows.inputs(rows, windows.padded_length)["input_ids"]
        is_cls, is_bos = (
            input_ids == (-1 if token is None else token)
            for token in (tokenizer.cls_token_id, tokenizer.bos_token_id)
        )
        result[rows] = np.where(is_cls.any(axis=1), _first_true(is_cls), _first_true(is_bos))
    return result
