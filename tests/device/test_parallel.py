"""Copies between host and cores: slices, replicas, order, donation."""

import gc
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from processes import python_path

from qa_flax.device import parallel
from qa_flax.device.step import CORES
from qa_flax.distributed import processes


def test_all_eight_cores_are_used():
    assert parallel.core_count() == 8
    assert parallel.describe_cores() == "8 x cpu"
    assert processes.is_main()


def test_the_number_of_processes_is_reported(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert parallel.describe_cores() == "8 x cpu, 2 processes"


def test_results_are_in_the_order_of_the_cores():
    batch = np.arange(8 * 3 * 5, dtype=np.float32).reshape(8, 3, 5)
    doubled = parallel.over_cores(lambda x: 2 * x + lax.axis_index(CORES), (0,), 0)
    result = doubled(parallel.put(batch))
    parallel.start_copy(result)
    expected = 2 * batch + np.arange(8)[:, None, None]
    np.testing.assert_array_equal(parallel.gather(result), expected)


def test_replicas_are_put_on_every_core_and_one_is_taken_back():
    tree = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.int32(4)}
    replicas = parallel.put_replicas(tree)
    assert replicas["w"].shape == (8, 2, 3)
    assert replicas["w"].addressable_shards[0].data.shape == (1, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, parallel.take_replica(replicas), tree)


def test_a_donated_state_is_deleted_and_keeps_its_sharding():
    step = parallel.over_cores(
        lambda state, x: (state + lax.psum(x.sum(), CORES), state.sum()),
        (0, 0),
        (0, None),
        donate=True,
    )
    state = parallel.put_replicas(jnp.ones((4, 4)))
    for _ in range(3):
        before = state
        state, _ = step(state, parallel.put(np.ones((8, 2), np.float32)))
        assert before.is_deleted()
        assert state.sharding == parallel.put(np.ones((8, 1))).sharding
    np.testing.assert_array_equal(parallel.take_replica(state), np.full((4, 4), 49.0))


def test_nothing_keeps_a_step_that_the_caller_drops():
    """`jax.pmap` keeps each one, and its compiled program, until the process ends."""

    def step(state, x):
        return state + lax.psum(x.sum(), CORES), state.sum()

    def compiled():
        return len(jax.devices()[0].client.live_executables())

    mapped = parallel.over_cores(step, (0, 0), (0, None), donate=True)
    arguments = parallel.put_replicas(np.ones(4)), parallel.put(np.ones((8, 2), np.float32))
    gc.collect()
    before = compiled()
    mapped.lower(*arguments).compile()(*arguments)
    assert compiled() > before
    kept = weakref.ref(step)
    del step, mapped
    gc.collect()
    assert kept() is None
    assert compiled() <= before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param("", "3", id="by argument"),
        pytest.param(
            "--xla_force_host_platform_device_count=5",
            "5",
            id="by XLA_FLAGS",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_number_of_cpu_devices_is_set_by_argument_or_xla_flags(flags, expected):
    program = (
        "from qa_flax.device.parallel import use_host_cores, core_count\n"
        "use_host_cores(3); print(core_count())"
    )
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": python_path()}
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == expected
