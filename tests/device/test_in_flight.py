"""Calls that are computed while the host continues."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from qa_flax.device import parallel
from qa_flax.device.in_flight import InFlight


@pytest.fixture(params=[True, False], ids=["one CPU", "several cores"])
def is_one_cpu(request, monkeypatch) -> bool:
    monkeypatch.setattr(parallel, "is_one_cpu", lambda: request.param)
    return request.param


def test_results_come_as_numpy_and_in_the_order_of_the_calls(is_one_cpu):
    results = []
    with InFlight() as calls:
        calls.add("compiled by this one", jnp.full(2, -1))
        for n in range(7):
            calls.call(n, lambda n=n: {"out": jnp.full(2, n)})
            results += calls.due()
            assert len(results) <= n + 1
        results += calls.all()
    assert [label for label, _ in results] == ["compiled by this one", *range(7)]
    assert isinstance(results[0][1], np.ndarray)
    assert [result["out"].tolist() for _, result in results[1:]] == [[n, n] for n in range(7)]


def test_a_cpu_of_one_device_computes_two_calls_at_a_time(monkeypatch):
    monkeypatch.setattr(parallel, "is_one_cpu", lambda: True)
    both = threading.Barrier(2, timeout=60)
    with InFlight() as calls:
        for n in range(2):
            calls.call(n, lambda: jnp.int32(both.wait() >= 0))  # each waits for the other
        assert [result.item() for _, result in calls.all()] == [1, 1]


def test_an_error_of_a_call_reaches_whoever_takes_its_result(is_one_cpu):
    def fail():
        raise FloatingPointError("of the second call")

    def run():
        with InFlight() as calls:
            calls.call(0, lambda: jnp.zeros(()))
            calls.call(1, fail)
            list(calls.all())

    with pytest.raises(FloatingPointError, match="second"):
        run()


def test_calls_that_have_not_begun_are_dropped_at_an_error(monkeypatch):
    monkeypatch.setattr(parallel, "is_one_cpu", lambda: True)
    begun, finish = [], threading.Event()

    def wait(n):
        begun.append(n)
        assert finish.wait(60)
        return jnp.zeros(())

    def interrupted():
        with InFlight() as calls:
            for n in range(5):
                calls.call(n, lambda n=n: wait(n))
            threading.Timer(0.2, finish.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(begun) <= {0, 1}
