"""One thread waits for what another reports."""

import threading

import numpy as np
import pytest

from qa_flax.answers.arrivals import Arrivals, Cancelled


def test_a_thread_waits_for_its_windows_only():
    arrivals, done = Arrivals(6), []

    def wait():
        arrivals.wait_for(np.array([4, 1]))
        done.append(1)
        arrivals.wait_for(np.arange(6))
        done.append(2)

    thread = threading.Thread(target=wait)
    thread.start()
    arrivals.add(np.array([0, 1]))
    thread.join(0.2)
    assert done == []
    arrivals.add(np.array([4]))
    thread.join(0.2)
    assert done == [1]
    arrivals.add_all()
    thread.join(60)
    assert done == [1, 2]


def test_whoever_waits_is_told_that_nothing_comes():
    arrivals, errors = Arrivals(2), []

    def wait():
        try:
            arrivals.wait_for(np.array([1]))
        except Cancelled as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    arrivals.add(np.array([0]))
    arrivals.cancel()
    thread.join(60)
    assert len(errors) == 1
    arrivals.wait_for(np.array([0]))  # it is here
    with pytest.raises(Cancelled):
        arrivals.wait_for(np.array([0, 1]))
