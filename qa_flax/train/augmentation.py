"""The arguments `augment` and `paraphrases`: the windows of each epoch of a training (host)."""

import copy
from functools import partial
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from qa_flax.data.augment import Augmenter, read_strengths
from qa_flax.data.augment_windows import EpochWindows, MakeWindows, stride_of
from qa_flax.data.columns import blocks
from qa_flax.data.examples import is_checked, load_examples
from qa_flax.data.features import make_windows
from qa_flax.data.labels import learnable_examples
from qa_flax.data.paraphrases import check_paraphrases, read_paraphrases
from qa_flax.data.windows import WINDOWS_AT_ONCE, LazyWindows, Windows
from qa_flax.train.checkpoints import windows_digest
from qa_flax.train.train_data import data_seed_of

_PASS = (
    "pass train_examples, the examples that train_dataset was made from, and processing_class, the "
    "tokenizer, to QuestionAnsweringTrainer"
)


def wants_augmentation(args: Any) -> bool:
    """Whether `augment` or `paraphrases` is set; transformers' own arguments have neither."""
    return any(getattr(args, name, None) is not None for name in ("augment", "paraphrases"))


def make_augmenter(args: Any, train_examples: Any) -> Augmenter:
    """Build what augments the training examples as the arguments say.

    Raises:
        ValueError: an argument is invalid, or the paraphrases are of other questions.
        OSError: the file of paraphrases cannot be read.
    """
    strengths = read_strengths(getattr(args, "augment", None))
    source = getattr(args, "paraphrases", None)
    table = None if source is None else read_paraphrases(source)
    if not is_checked(train_examples):
        train_examples = load_examples(train_examples, require_answers=True)
    if table is not None and not getattr(args, "_is_command_line", False):  # which has split them
        check_paraphrases(table, train_examples)
    return Augmenter(learnable_examples(train_examples), strengths, table, data_seed_of(args))


def epoch_windows(
    args: Any,
    windows: Windows,
    train_examples: Any,
    tokenizer: PreTrainedTokenizerBase | None,
) -> EpochWindows:
    """Return the windows of each epoch.

    Args:
        args: the trainer's arguments.
        windows: the training set.
        train_examples: the examples that it was made from.
        tokenizer: the one that it was made with.

    Raises:
        ValueError: there are no texts or no tokenizer, or the windows are not made of them.
        OSError: the file of paraphrases cannot be read.
    """
    name = "augment" if getattr(args, "augment", None) is not None else "paraphrases"
    if train_examples is None or tokenizer is None:
        raise ValueError(f"{name} changes texts, but the trainer has windows only: {_PASS}")
    augmenter = make_augmenter(args, train_examples)
    # A copy: the trainer's own is saved with checkpoints while a thread tokenizes.
    make = _maker(copy.deepcopy(tokenizer), "all" if windows.spans else "first")
    plain = windows
    if not isinstance(windows, LazyWindows):
        examples = augmenter.examples(0, range(len(augmenter)))
        plain = _plain_windows(make, examples, windows)
    if not isinstance(plain, LazyWindows) or plain.example_ids != _ids(plain, augmenter):
        raise ValueError(
            f"{name}: train_dataset does not have the windows that qa_flax.prepare_train_features "
            f"makes of train_examples with processing_class, in their order, so it cannot be made "
            f"anew with other texts; {_PASS}"
        )
    return EpochWindows(augmenter, plain, make, stride_of(plain))


def _maker(tokenizer: PreTrainedTokenizerBase, answers: str) -> MakeWindows:
    def make(examples: datasets.Dataset, max_seq_length: int, doc_stride: int) -> LazyWindows:
        return partial(make_windows, examples, tokenizer)(
            max_seq_length=max_seq_length,
            doc_stride=doc_stride,
            labels=True,
            disable_tqdm=True,
            warn=_leave_out,
            answers=answers,
        )

    return make


def _leave_out(message: str, *values: Any) -> None:
    """Log nothing: the warnings about the plain texts were logged when they were tokenized."""


def _ids(plain: LazyWindows, augmenter: Augmenter) -> list[str]:
    """The ids that the windows of the examples must have; [] if there are others."""
    ids, examples = augmenter.ids, plain.slices.example
    if not len(examples) or examples[-1] != len(ids) - 1:
        return []
    return [ids[example] for example in examples.tolist()]


def _plain_windows(
    make: MakeWindows, examples: datasets.Dataset, windows: Windows
) -> LazyWindows | None:
    """Return the windows of the examples, if they are the given ones.

    Rows of arrays do not say how far they overlap, so that is found from the number of the windows
    of a context and the length of the last one.
    """
    length = windows.padded_length
    plain = make(examples, length, 0)
    ids = np.array(windows.example_ids)
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    counts = np.diff(np.append(first, len(ids)))
    if len(counts) != len(examples):
        return None
    # Long questions may have been truncated; the shortest one was not.
    several = np.flatnonzero(counts > 1)
    if len(several):
        example = int(several[np.argmin(plain.questions.count[several])])
        tokens = int(plain.contexts.count[example])
        base = plain.layout.template.special_tokens + int(plain.questions.count[example])
        last = int(windows.lengths[first[example] + counts[example] - 1]) - base
        step, rest = divmod(tokens - last, int(counts[example]) - 1)
        if rest or not 0 < step <= length - base:
            return None
        plain = make(examples, length, length - base - step)
    return plain if _are_equal(plain, windows) else None


def _are_equal(plain: LazyWindows, windows: Windows) -> bool:
    room = max(plain.spans, windows.spans)
    digests = [windows_digest(part.with_span_room(room)) for part in (plain, windows)]
    if digests[0] != digests[1]:
        return False
    for rows in blocks(len(plain), WINDOWS_AT_ONCE):
        ids = [w.inputs(rows, w.padded_length)["input_ids"] for w in (plain, windows)]
        if not np.array_equal(ids[0], ids[1]):
            return False
    return True
