"""The windows of augmented epochs: as many as the plain ones, with the same answers, no wider."""

import numpy as np
import pytest
import tiny

from qa_flax.data.augment import Augmenter, read_strengths
from qa_flax.data.augment_windows import EpochWindows, stride_of
from qa_flax.data.batches import train_widths, update_widths
from qa_flax.data.features import make_windows
from qa_flax.data.labels import holds_answer

STRONG = "shuffle:1,distract:1,noise:0.2,question_dropout:0.5"


def windows_of(examples, length, stride):
    return make_windows(
        examples,
        tiny.tokenizer(),
        max_seq_length=length,
        doc_stride=stride,
        labels=True,
        warn=lambda *_: None,
    )


def epochs_of(length, stride, augment=STRONG, table=None):
    examples = tiny.examples()
    plain = windows_of(examples, length, stride)
    augmenter = Augmenter(examples, read_strengths(augment), table, 1)
    return EpochWindows(augmenter, plain, windows_of, stride_of(plain))


def labelled_tokens(windows):
    """The tokens of the answers of each example, as a set."""
    held = np.flatnonzero(holds_answer(windows))
    ids = windows.inputs(held, windows.padded_length)["input_ids"]
    spans = zip(windows.start_positions[held], windows.end_positions[held], strict=True)
    tokens = {}
    for row, window, (start, end) in zip(ids, held, spans, strict=True):
        tokens.setdefault(windows.example_ids[window], set()).add(tuple(row[start : end + 1]))
    return tokens


@pytest.mark.parametrize(("length", "stride"), [(64, 16), (40, 12), (256, 128)])
def test_an_epoch_has_the_windows_and_the_answers_of_the_plain_set(length, stride):
    epochs = epochs_of(length, stride)
    plain = epochs.plain
    for epoch in range(3):
        windows = epochs.windows(epoch)
        assert windows.example_ids == plain.example_ids
        assert windows.padded_length == plain.padded_length
        assert (windows.lengths <= length).all()
        counts = [
            np.unique(np.array(w.example_ids)[holds_answer(w)], return_counts=True)
            for w in (windows, plain)
        ]
        np.testing.assert_array_equal(*(names for names, _ in counts))
        np.testing.assert_array_equal(*(numbers for _, numbers in counts))
        assert labelled_tokens(windows) == labelled_tokens(plain)
    inputs = [w.inputs(slice(None), length)["input_ids"] for w in (plain, epochs.windows(0))]
    assert (inputs[0] != inputs[1]).any(axis=1).mean() > 0.8


def test_the_next_epoch_is_made_ahead_and_is_what_it_is_without():
    epochs, others = epochs_of(64, 16), epochs_of(64, 16)
    epochs.begin(1)
    ahead, alone = epochs.windows(1), others.windows(1)
    for name in ("start_positions", "end_positions", "lengths"):
        np.testing.assert_array_equal(getattr(ahead, name), getattr(alone, name))
    assert ahead.inputs(slice(0, 4), 64)["input_ids"].tolist() == (
        alone.inputs(slice(0, 4), 64)["input_ids"].tolist()
    )
    assert epochs.windows(1) is ahead


def test_short_contexts_get_no_wider_batches():
    """All plain windows fit into half of the length, as must those with inserted sentences."""
    examples = tiny.examples().select([0, 1, 2, 10, 11])
    plain = windows_of(examples, 256, 128)
    epochs = EpochWindows(
        Augmenter(examples, read_strengths("distract:1"), None, 1), plain, windows_of, 128
    )
    assert train_widths(256) == [128, 256]
    new = epochs.windows(0)
    assert new.lengths.sum() > plain.lengths.sum()
    for windows in (plain, new):
        assert set(update_widths(windows, 2, 0, 0)) == {128}


def test_windows_that_several_processes_have_made_give_the_same():
    examples = tiny.examples()
    parts = [windows_of(examples.select(rows), 64, 16) for rows in (range(5), range(5, 12))]
    joined = parts[0].joined([part.to_arrays() for part in parts])
    augmenter = Augmenter(examples, read_strengths(STRONG), None, 1)
    both = EpochWindows(augmenter, joined, windows_of, stride_of(joined)), epochs_of(64, 16)
    inputs = [epochs.windows(2).inputs(slice(None), 64)["input_ids"] for epochs in both]
    np.testing.assert_array_equal(*inputs)


def test_some_examples_or_all_stay_as_they_are():
    epochs = epochs_of(64, 16)
    assert epochs.windows(0, 0.0) is epochs.plain
    inputs = [
        epochs.windows(0, share).inputs(slice(None), 64)["input_ids"] for share in (0.0, 0.5, 1.0)
    ]
    changed = [(inputs[0] != other).any(axis=1).mean() for other in inputs[1:]]
    assert 0.1 < changed[0] < 0.9 < changed[1]


@pytest.mark.parametrize("stride", [0, 5, 16])
def test_the_stride_is_found(stride):
    assert stride_of(windows_of(tiny.examples(), 64, stride)) == stride
    assert stride_of(windows_of(tiny.examples().select([10, 11]), 64, stride)) == 0
