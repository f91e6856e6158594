"""The batches of several epochs."""

import threading

import pytest

from qa_flax.train.epochs import Epochs


def make(calls, is_ahead, count=3):
    def batches(epoch, skip):
        calls.append((epoch, skip))
        for update in range(skip, 4):
            yield epoch, update

    def prepare(batch):
        return (*batch, threading.get_ident())

    return Epochs(batches, prepare, count, is_ahead=is_ahead)


@pytest.mark.parametrize("is_ahead", [True, False])
def test_an_epoch_has_all_its_batches_whatever_the_one_before_has_used(is_ahead):
    calls = []
    with make(calls, is_ahead) as epochs:
        first = list(epochs.batches(0, 2))
        second = [next(batches) for batches in [epochs.batches(1, 0)] for _ in range(2)]
        third = list(epochs.batches(2, 0))
        again = list(epochs.batches(1, 3))
    assert [x[:2] for x in first] == [(0, 2), (0, 3)]
    assert [x[:2] for x in second] == [(1, 0), (1, 1)]  # stopped early
    assert [x[:2] for x in third] == [(2, n) for n in range(4)]
    assert [x[:2] for x in again] == [(1, 3)]
    threads = {x[2] for x in first + second + third}
    assert (threading.get_ident() in threads) == (not is_ahead)
    assert not any(thread.name == "qa_flax batches" for thread in threading.enumerate())


def test_the_next_epoch_begins_while_one_ends():
    calls, has_begun = [], threading.Event()
    epochs = make(calls, is_ahead=True)
    make_batches = epochs._make_batches

    def batches(epoch, skip):
        if epoch == 1:
            has_begun.set()
        return make_batches(epoch, skip)

    epochs._make_batches = batches
    with epochs:
        of_first = epochs.batches(0, 0)
        for _ in range(3):
            next(of_first)
        assert has_begun.wait(60)
        assert len(list(of_first)) == 1
        assert len(list(epochs.batches(1, 0))) == 4
    assert calls[:2] == [(0, 0), (1, 0)]
    assert calls.count((1, 0)) == 1


def test_a_loader_of_a_script_is_not_read_ahead():
    calls = []
    with make(calls, is_ahead=False) as epochs:
        list(epochs.batches(0, 0))
        assert calls == [(0, 0)]
