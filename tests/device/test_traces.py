"""Traces of the cores and their summaries."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_flax.device.traces import Summary, start_trace, stop_trace, union


def test_the_gaps_between_programs_are_found(tmp_path):
    program = jax.jit(lambda x: jnp.tanh(x @ x).sum())
    x = jnp.ones((1000, 1000))
    program(x).block_until_ready()
    start_trace(tmp_path)
    began, ended = [], []
    for pause in (0.0, 0.4, 0.0, 0.2):
        time.sleep(pause)
        began.append(time.perf_counter())
        program(x).block_until_ready()
        ended.append(time.perf_counter())
    summary = stop_trace(tmp_path)
    assert summary is not None
    assert summary.seconds > 0.6
    first, second = summary.gaps[:2]
    # A gap is inside of the two calls around it, which take their time on a busy machine.
    assert 0.4 <= began[1] - ended[0] <= first.seconds <= ended[1] - began[0]
    assert 0.2 <= began[3] - ended[2] <= second.seconds <= ended[3] - began[2]
    assert second.begin > first.begin + first.seconds
    idle = sum(gap.seconds for gap in summary.gaps)
    assert summary.busy == pytest.approx(1 - idle / summary.seconds, abs=0.05)
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_trace_without_work_has_no_summary(tmp_path):
    start_trace(tmp_path)
    assert stop_trace(tmp_path) is None


def test_union_of_random_intervals(rng):
    begins = rng.integers(0, 300, 40)
    intervals = np.stack([begins, begins + rng.integers(1, 9, 40)], axis=1).astype(float)
    covered = np.zeros(400, bool)
    for begin, end in intervals.astype(int):
        covered[begin:end] = True
    joined = union(intervals)
    assert (joined[1:, 0] > joined[:-1, 1]).all()
    again = np.zeros(400, bool)
    for begin, end in joined.astype(int):
        again[begin:end] = True
    assert (again == covered).all()
    assert len(union(np.zeros((0, 2)))) == 0


def test_the_text_of_a_summary():
    assert Summary(2.0, 1.0, []).text() == "the cores computed 100.0% of 2.00 s, without gaps"
