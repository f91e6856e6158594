"""Batches that are built in a thread of their own."""

import threading
import time

import numpy as np
import pytest

from qa_flax.data.batches import HostBatch
from qa_flax.device.prefetch import prefetched, ready


def test_items_come_in_order_and_from_another_thread():
    def items():
        for n in range(20):
            yield n, threading.get_ident()

    with prefetched(items()) as taken:
        result = list(taken)
    assert [n for n, _ in result] == list(range(20))
    assert threading.get_ident() not in {thread for _, thread in result}


def test_no_more_items_than_asked_for_wait():
    built = []

    def items():
        for n in range(100):
            built.append(n)
            yield n

    with prefetched(items(), ahead=3) as taken:
        deadline = time.monotonic() + 60
        while len(built) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(built) == 4  # three wait, one has no room
        assert [next(taken), next(taken)] == [0, 1]
    assert len(built) <= 7
    assert not any(thread.name == "qa_flax batches" for thread in threading.enumerate())


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("window 3")

    with prefetched(items()) as taken:
        assert [next(taken), next(taken)] == [1, 2]
        with pytest.raises(ValueError, match="window 3"):
            next(taken)


def test_ids_are_checked_before_they_are_copied():
    ids = np.array([[[0, 7]]], np.int32)
    batch = HostBatch(ids[..., 0], ids[..., 0] > 0, {"input_ids": ids}, slice(0, 2), 1, 2, 2)
    with pytest.raises(ValueError, match="7"):
        ready(batch, limits=(("input_ids", 7),))
