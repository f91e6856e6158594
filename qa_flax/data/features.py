"""Stage 2 of 7: examples -> strided windows, labels and offsets (host, NumPy).

Each distinct context and question is tokenized once, and a window is a slice of these tokens. The
arrays equal those of `prepare_train_features` and `prepare_validation_features` in Hugging Face's
`run_qa.py`, which tokenize the context again for every question. Two defects of theirs are
corrected: the label described at `labelling.py`, and a space that byte-level tokenizers with
`add_prefix_space` and `trim_offsets` include in the offsets of a later window's first token.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from qa_flax import messages
from qa_flax.data.answers import ANSWER_COLUMNS
from qa_flax.data.columns import blocks, ranges
from qa_flax.data.examples import (
    MISALIGNED,
    check_rows,
    is_checked,
    keeps_misaligned,
    load_examples,
)
from qa_flax.data.gold_spans import ANSWERS
from qa_flax.data.labelling import describe_single_answers, first_true, labelled
from qa_flax.data.labels import (
    NO_ANSWER,
    UNKNOWN_PLACE,
    answer_span,
    answer_spans,
    can_learn,
    nothing_to_learn,
)
from qa_flax.data.map_batches import (
    BATCH,
    Warn,
    batch_rows,
    feature_columns,
    is_batch,
    is_map_batch,
    warn_once_per_map,
)
from qa_flax.data.offsets import TokenTexts, checked_offsets
from qa_flax.data.readers import ExampleError, arrow_table
from qa_flax.data.room import check_room, check_stride, checked_length, truncated
from qa_flax.data.tokenizer_checks import (
    advice,
    check_vocabulary,
    checked_template,
    fast_backend,
    unknown_ids,
    warn_of_unknown,
)
from qa_flax.data.tokens import Template, Tokens, encode_distinct, plain_encoding
from qa_flax.data.windows import (
    WINDOWS_AT_ONCE,
    ContextSlices,
    Int64Array,
    Layout,
    LazyWindows,
    Positions,
    Rows,
)

logger = messages.logger(__name__)

LONG_QUESTIONS = ("truncate", "refuse")


def prepare_train_features(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    *,
    misaligned: str | None = None,
    pad_to_max_length: bool = True,
    long_questions: str = "truncate",
    disable_tqdm: bool = False,
    answers: str = "first",
) -> Any:
    """Tokenize examples into strided windows with labels, to train on.

    It may also be the function of `Dataset.map`, see the second example.

    Args:
        examples: the result of `load_examples`, or anything that it reads; every example needs
            `answers`, which may be an empty list. Or a batch of `Dataset.map(..., batched=True)` or
            of `with_transform`: a dict of columns.
        tokenizer: a fast tokenizer; its truncation and padding settings are not changed.
        max_seq_length: tokens in a window; limited to the tokenizer's `model_max_length`.
        doc_stride: tokens that two neighbouring windows of an example share.
        misaligned: of `load_examples`; None: what it was told, else "drop".
        pad_to_max_length: pad every window to `max_seq_length`, else to the longest window.
        long_questions: "truncate" questions that leave no room for the context, and log a
            warning, or "refuse" the examples.
        disable_tqdm: show no progress bar.
        answers: which answers of an example are labels: the "first", as in Hugging Face, or "all",
            with which the loss counts every one.

    Returns:
        A data set with a row for each window and Hugging Face's columns. An example has no windows
        if it has answers, but none whose text occurs in its context (see `misaligned`). L is
        `max_seq_length`, or the length of the longest window with `pad_to_max_length=False`.

        - `input_ids`, `attention_mask`, `token_type_ids` if the model has them: int32 [L].
        - `offset_mapping`: int32 [L, 2], start and end of each token in the context, in code
          points; (-1, -1) outside the context.
        - `start_positions`, `end_positions`: int32, first and last token of the example's first
          answer; both the CLS token if the window does not contain the whole answer. A warning
          counts the answers that no window contains.
        - `start_positions_all`, `end_positions_all`: lists of int32, only with `answers="all"`: the
          distinct spans of all answers that the window contains as a whole, or the CLS token.
        - `example_id`: str; `cls_index`: int32, only if the CLS token is not always the first one.

        For a batch: a dict of these columns, as lists. Offsets outside the context are None, as in
        Hugging Face, `pad_to_max_length=False` pads nothing, and `example_id` needs a column `id`.

    Raises:
        ExampleError: examples are invalid, or questions are too long and are refused or cannot be
            truncated far enough.
        ValueError: the tokenizer is not supported, or a setting is out of range.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import load_examples, prepare_train_features
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> examples = load_examples("train-v1.1.json")
        >>> train = prepare_train_features(examples, tokenizer, 64, 16, disable_tqdm=True)
        >>> len(train[0]["input_ids"]), train[0]["start_positions"] <= train[0]["end_positions"]
        (64, True)
        >>> settings = {"tokenizer": tokenizer, "max_seq_length": 64, "doc_stride": 16}
        >>> mapped = examples.map(prepare_train_features, batched=True, fn_kwargs=settings,
        ...                       remove_columns=examples.column_names)
        >>> mapped["input_ids"][:] == train["input_ids"][:]
        True
    """
    lengths, texts = (max_seq_length, doc_stride, pad_to_max_length), (misaligned, long_questions)
    settings = _settings(lengths, texts, disable_tqdm, answers)
    if is_batch(examples):
        return _prepare_batch(examples, tokenizer, labels=True, **settings)
    windows = make_windows(examples, tokenizer, labels=True, leaves_out=True, **settings)
    if (line := describe_single_answers(windows)) is not None:
        logger.warning("%s", line)
    return windows.features().to_dataset()


def prepare_validation_features(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    *,
    labels: bool | None = None,
    misaligned: str | None = None,
    pad_to_max_length: bool = True,
    long_questions: str = "truncate",
    disable_tqdm: bool = False,
    answers: str = "first",
) -> Any:
    """Tokenize examples into strided windows, to evaluate or predict.

    Unlike Hugging Face's function of this name, it adds labels if any example has an answer, so
    that evaluation also reports a loss; `labels=False` omits them. Like `prepare_train_features` it
    may be the function of `Dataset.map`.

    Args:
        examples: the result of `load_examples`, or anything that it reads. Or a batch of
            `Dataset.map(..., batched=True)` or of `with_transform`: a dict of columns, among them
            `id`.
        tokenizer: a fast tokenizer; its truncation and padding settings are not changed.
        max_seq_length: tokens in a window; limited to the tokenizer's `model_max_length`.
        doc_stride: tokens that two neighbouring windows of an example share.
        labels: whether to add labels, as `prepare_train_features` has them; None: if any example
            has an answer.
        misaligned: of `load_examples`; None: what it was told, else "drop".
        pad_to_max_length: pad every window to `max_seq_length`, else to the longest window.
        long_questions: "truncate" questions that leave no room for the context, and log a
            warning, or "refuse" the examples.
        disable_tqdm: show no progress bar.
        answers: which answers of an example are labels: the "first", as in Hugging Face, or "all",
            with which the loss counts every one.

    Returns:
        A data set with a row for each window and the columns of `prepare_train_features`; without
        labels it has no `start_positions` and `end_positions`. For a batch: a dict, as of
        `prepare_train_features`, with labels if the batch has a column of answers.

    Raises:
        ExampleError: examples are invalid, or questions are too long and are refused or cannot be
            truncated far enough.
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
    lengths, texts = (max_seq_length, doc_stride, pad_to_max_length), (misaligned, long_questions)
    settings = _settings(lengths, texts, disable_tqdm, answers)
    settings["labels"] = labels
    if is_batch(examples):
        return _prepare_batch(examples, tokenizer, **settings)
    windows = make_windows(examples, tokenizer, **settings)
    return windows.features().to_dataset()


def _settings(
    lengths: tuple[int, int, bool], texts: tuple[str | None, str], disable_tqdm: bool, answers: str
) -> dict[str, Any]:
    """The arguments of `make_windows` that both functions have.

    Args:
        lengths: `max_seq_length`, `doc_stride` and `pad_to_max_length`.
        texts: `misaligned` and `long_questions`.
        disable_tqdm, answers: theirs.
    """
    return {
        "max_seq_length": lengths[0],
        "doc_stride": lengths[1],
        "pad_to_max_length": lengths[2],
        "misaligned": texts[0],
        "long_questions": texts[1],
        "disable_tqdm": disable_tqdm,
        "answers": answers,
    }


def _prepare_batch(
    batch: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    labels: bool | None,
    misaligned: str | None = None,
    pad_to_max_length: bool = True,
    disable_tqdm: bool = True,
    **settings: Any,
) -> dict[str, list[Any]]:
    """Return the columns of a batch's windows, which do not depend on the other examples.

    Columns are the same for every batch of a data set, so that `Dataset.map` can concatenate them.

    Args:
        batch: columns of examples by name.
        tokenizer: see `make_windows`.
        labels: as in `make_windows`. None: compute them if the batch has a column of answers.
        misaligned: as in `make_windows`.
        pad_to_max_length: whether to pad to `max_seq_length`, or not at all.
        disable_tqdm: ignored: `Dataset.map` shows its own progress.
        settings: of `make_windows`.

    Raises:
        ExampleError: as for `make_windows`; or an id is missing.
        ValueError: as for `make_windows`; or rows without padding would be padded on the left.
    """
    warn = warn_once_per_map(batch, tokenizer)
    columns_of_answers = (*ANSWER_COLUMNS, "answer_start", "is_impossible")
    rows = batch_rows(batch, ("id", "question", "context", *columns_of_answers))
    examples = check_rows(
        BATCH, rows, misaligned=misaligned or "drop", require_answers=bool(labels), warn=warn
    )
    is_labelled, has_ids = any(name in batch for name in ANSWER_COLUMNS), "id" in batch
    _check_ids(rows, has_ids, is_training=labels is True)
    if labels is True and is_map_batch(batch):
        learnable = can_learn(examples)
        if learnable.any():  # else the windows' labels are outside: no batch may have no rows
            examples = examples.select(np.flatnonzero(learnable))
    if not pad_to_max_length and tokenizer.padding_side == "left":
        raise ValueError(
            "pad_to_max_length=False needs all examples at once if the tokenizer pads on the left, "
            "because a batch does not know the longest window of the others: pass the data set "
            "instead of mapping it, or pad to max_seq_length."
        )
    windows = make_windows(
        examples,
        tokenizer,
        labels=is_labelled if labels is None else labels,
        disable_tqdm=True,
        warn=warn,
        **settings,
    )
    if windows.cls_index is None and not _cls_is_first(windows.layout, tokenizer):
        zeros = np.zeros(len(windows), np.int32)
        windows = dataclasses.replace(windows, cls_index=zeros)
    columns = feature_columns(windows.features(), padded=pad_to_max_length)
    if not has_ids:
        del columns["example_id"]
    return columns


def _check_ids(rows: list[dict[str, Any]], has_ids: bool, *, is_training: bool) -> None:
    """Check that ids, which a batch cannot number, are not missing.

    Raises:
        ExampleError: ids are missing.
    """
    missing = sum(row.get("id") in (None, "") for row in rows)
    if missing and (has_ids or not is_training):
        raise ExampleError(
            f"{BATCH}: {missing} of {len(rows)} examples have no id, by which windows and answers "
            'are matched. Add a column before Dataset.map, such as ds.add_column("id", '
            "[str(i) for i in range(len(ds))])."
        )


def make_windows(
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    labels: bool | None,
    misaligned: str | None = None,
    leaves_out: bool = False,
    pad_to_max_length: bool = True,
    long_questions: str = "truncate",
    disable_tqdm: bool = False,
    warn: Warn = logger.warning,
    tokenizer_argument: str = "tokenizer",
    answers: str = "first",
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
        misaligned: see `load_examples`; None: as it was told, else "drop", with which the label is
            at the place nearest to the `answer_start` of the first answer whose text occurs. If
            none does, labels are outside their rows, so that they have no part in the loss.
        leaves_out: make no windows of examples whose answers do not occur.
        pad_to_max_length: pad to `max_seq_length`; otherwise to the longest window.
        long_questions: what to do with questions that leave at most `doc_stride` tokens for a
            longer context. "truncate" shortens them and logs a warning; "refuse" raises.
        disable_tqdm: show no progress bar.
        warn: logs a warning.
        tokenizer_argument: the interface's argument that gives another tokenizer, for messages.
        answers: "all": the labels include the distinct spans of all answers, see `gold_spans.py`.

    Raises:
        ExampleError: examples are invalid, or questions are too long and are refused or cannot be
            truncated far enough.
        ValueError: the tokenizer is not supported, or a setting is out of range.
    """
    if answers not in ANSWERS:
        raise ValueError(f"answers must be one of {ANSWERS}, got {answers!r}.")
    has_all = answers == "all"
    texts, spans = _example_columns(examples, labels, misaligned, leaves_out, has_all)
    windows = windows_of_texts(
        texts,
        tokenizer,
        max_seq_length=max_seq_length,
        doc_stride=doc_stride,
        pad_to_max_length=pad_to_max_length,
        long_questions=long_questions,
        disable_tqdm=disable_tqdm,
        warn=warn,
        tokenizer_argument=tokenizer_argument,
    )
    if spans is None:
        return windows
    windows, line = labelled(windows, spans, texts["id"], has_all=has_all)
    if line is not None:
        warn("%s", line)
    return windows


def windows_of_texts(
    texts: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    doc_stride: int,
    max_question_length: int | None = None,
    pad_to_max_length: bool = True,
    long_questions: str = "truncate",
    disable_tqdm: bool = False,
    words: bool = False,
    compare: bool = True,
    warn: Warn = logger.warning,
    tokenizer_argument: str = "tokenizer",
) -> LazyWindows:
    """Split texts into windows without labels, as `make_windows` does with examples.

    Args:
        texts: the columns `id`, `question` and `context`. Questions are tokenized as they are.
        tokenizer: as of `make_windows`, like the arguments that are not described here.
        max_seq_length: tokens in a window.
        doc_stride: tokens that two neighbouring windows share.
        max_question_length: longer questions are truncated to this number of tokens; None: none is.
        pad_to_max_length: see `make_windows`.
        long_questions: see `make_windows`.
        disable_tqdm: see `make_windows`.
        words: whether the contexts' tokens say where words begin.
        compare: whether to compare some of the tokens with the texts that their offsets cut out,
            and to correct wrong offsets.
        warn: see `make_windows`.
        tokenizer_argument: see `make_windows`.

    Raises:
        ExampleError: as of `make_windows`, like `ValueError`.
    """
    backend = fast_backend(tokenizer, tokenizer_argument)
    check_vocabulary(tokenizer, tokenizer_argument)
    if long_questions not in LONG_QUESTIONS:
        raise ValueError(f"long_questions must be one of {LONG_QUESTIONS}, got {long_questions!r}.")
    max_seq_length = checked_length(max_seq_length, doc_stride, tokenizer, warn)
    with plain_encoding(backend, tokenizer.split_special_tokens):
        template = checked_template(tokenizer, backend, tokenizer_argument)
        questions = encode_distinct(texts["question"], backend, disable=True, offsets=False)
        contexts = encode_distinct(texts["context"], backend, disable=disable_tqdm, words=words)
    if compare:
        contexts = _checked_tokens(texts, contexts, tokenizer, tokenizer_argument, warn)
    total = max_seq_length - template.special_tokens
    check_stride(max_seq_length, doc_stride, total, contexts.count)
    if max_question_length is not None:
        questions = dataclasses.replace(
            questions, count=np.minimum(questions.count, max_question_length)
        )
    if long_questions == "truncate":
        questions = truncated(texts["id"], questions, contexts.count, total, doc_stride, warn)
    room = total - questions.count
    check_room(texts["id"], questions.count, contexts.count, room, max_seq_length, doc_stride)
    slices = _slice_contexts(contexts.count, room, doc_stride, tokenizer.truncation_side)
    longest = int((max_seq_length - room[slices.example] + slices.count).max(initial=1))
    length = max_seq_length if pad_to_max_length else longest
    ids = [texts["id"][e] for e in slices.example.tolist()]
    windows = LazyWindows(ids, questions, contexts, slices, _layout(template, length, tokenizer))
    cls_index = _cls_positions(windows, tokenizer)
    return dataclasses.replace(windows, cls_index=cls_index) if cls_index.any() else windows


def _example_columns(
    examples: Any, labels: bool | None, misaligned: str | None, leaves_out: bool, has_all: bool
) -> tuple[dict[str, list[str]], list[list[tuple[int, int]]] | None]:
    """Return the columns `id`, `question` and `context`, and the answer spans to label.

    Each example has one span [start, end) in code points, with `has_all` one for each answer, or
    only `NO_ANSWER` or `UNKNOWN_PLACE`. They are None if `labels` is False, or None and no example
    has an answer.
    """
    if misaligned is not None and misaligned not in MISALIGNED:
        raise ValueError(f"misaligned must be one of {MISALIGNED}, got {misaligned!r}.")
    if misaligned is None:
        misaligned = "keep" if keeps_misaligned(examples) else "drop"
    # The result of load_examples has already been checked.
    if not is_checked(examples) or misaligned in ("repair", "refuse"):
        examples = load_examples(examples, misaligned=misaligned, require_answers=bool(labels))
    table = arrow_table(examples)
    columns = {name: table[name].to_pylist() for name in ("id", "question", "context")}
    columns["question"] = [question.lstrip() for question in columns["question"]]
    if labels is False:
        return columns, None
    pairs = zip(columns["context"], table["answers"].to_pylist(), strict=True)
    if has_all:
        spans = [answer_spans(*pair, misaligned=misaligned) for pair in pairs]
    else:
        spans = [[answer_span(*pair, misaligned=misaligned)] for pair in pairs]
    if not (labels or any(of_example != [NO_ANSWER] for of_example in spans)):
        return columns, None
    kept = [e for e, places in enumerate(spans) if not leaves_out or places != [UNKNOWN_PLACE]]
    if len(kept) == len(spans):
        return columns, spans
    if not any(spans[e][0][0] >= 0 for e in kept):
        raise nothing_to_learn(columns["id"])
    columns = {name: [values[e] for e in kept] for name, values in columns.items()}
    return columns, [spans[e] for e in kept]


# --- Checks: clearer errors than the tokenizer's -------------------------------------------------


def _checked_tokens(
    texts: dict[str, list[str]],
    contexts: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    argument: str,
    warn: Warn,
) -> Tokens:
    """Check that the tokens stand for the contexts, and correct their offsets if they can be.

    Raises:
        ValueError: the offsets are wrong.
    """
    backend = cast(Tokenizer, tokenizer.backend_tokenizer)
    unknown = unknown_ids(tokenizer, backend)
    warn_of_unknown(texts, contexts, unknown, argument, warn)
    token_texts = TokenTexts(backend, unknown | set(tokenizer.all_special_ids))
    tokens = (contexts.ids, contexts.offsets, contexts.first, contexts.count)
    offsets = checked_offsets(texts["context"], tokens, token_texts, warn, advice(argument))
    return (
        contexts if offsets is contexts.offsets else dataclasses.replace(contexts, offsets=offsets)
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


# --- The CLS token -------------------------------------------------------------------------------


def _cls_positions(windows: LazyWindows, tokenizer: PreTrainedTokenizerBase) -> Positions:
    """Return the position of each window's first CLS token, or first BOS token, or 0."""
    prefix, _ = windows.layout.template.blocks[0]
    padding = (
        windows.padded_length - windows.lengths
        if windows.is_left_padded
        else np.zeros(len(windows))
    )
    if _cls_is_in(prefix, tokenizer):
        return (padding + prefix.index(cast(int, tokenizer.cls_token_id))).astype(np.int32)
    # The CLS token is not in front, or is also the padding token: search all tokens.
    result = np.zeros(len(windows), np.int32)
    for rows in blocks(len(windows), WINDOWS_AT_ONCE):
        input_ids: Rows = windows.inputs(rows, windows.padded_length)["input_ids"]
        is_cls, is_bos = (
            input_ids == (-1 if token is None else token)
            for token in (tokenizer.cls_token_id, tokenizer.bos_token_id)
        )
        result[rows] = np.where(is_cls.any(axis=1), first_true(is_cls), first_true(is_bos))
    return result


def _cls_is_in(prefix: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    cls = tokenizer.cls_token_id
    return cls in prefix and cls != tokenizer.pad_token_id


def _cls_is_first(layout: Layout, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the CLS token is the first token of every window, however long it is."""
    prefix, _ = layout.template.blocks[0]
    return not layout.is_left_padded and _cls_is_in(prefix[:1], tokenizer)
