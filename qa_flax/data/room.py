"""Stage 2 of 7: how many tokens of question and context fit into a window (host, NumPy)."""

import dataclasses

import numpy as np
from transformers import PreTrainedTokenizerBase

from qa_flax.data.map_batches import Warn
from qa_flax.data.readers import ExampleError
from qa_flax.data.tokens import Int64Array, Tokens
from qa_flax.messages import first_few, quoted
from qa_flax.ranges import at_least, check_numbers

_RANGES = {"max_seq_length": at_least(1), "doc_stride": at_least(0)}


def checked_length(
    max_seq_length: int, doc_stride: int, tokenizer: PreTrainedTokenizerBase, warn: Warn
) -> int:
    """Return `max_seq_length`, or the model's limit if that is lower.

    Raises:
        ValueError: `max_seq_length` or `doc_stride` is outside its range.
    """
    check_numbers(_RANGES, max_seq_length=max_seq_length, doc_stride=doc_stride)
    limit = tokenizer.model_max_length
    if max_seq_length > limit:
        message = "max_seq_length=%d exceeds the model's limit of %d tokens; %d is used."
        warn(message, max_seq_length, limit, limit)
    return min(max_seq_length, limit)


def check_stride(max_seq_length: int, doc_stride: int, total: int, contexts: Int64Array) -> None:
    """Check that a window of a long context can advance, whatever the question.

    Raises:
        ExampleError: the overlap of windows leaves no room for a question and a further token.
    """
    if total - doc_stride < 2 and (contexts >= total).any():
        special = max_seq_length - total
        lower = f"lower doc_stride below {total - 1}, or " if total > 1 else ""
        raise ExampleError(
            f"doc_stride={doc_stride} is too large for max_seq_length={max_seq_length}: beside "
            f"{special} special tokens a window has room for {max(total, 0)} tokens, which are the "
            "question, the doc_stride tokens that it shares with the window before, and at least "
            f"one more; {lower}raise max_seq_length above {special + doc_stride + 1}"
        )


def truncated(
    ids: list[str],
    questions: Tokens,
    context_tokens: Int64Array,
    total: int,
    doc_stride: int,
    warn: Warn,
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
    warn(message, len(too_long), len(ids), limit, names)
    count = questions.count.copy()
    count[too_long] = limit
    return dataclasses.replace(questions, count=count)


def check_room(
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
        + ', or shorten these questions, as long_questions="truncate" does.'
    )
