"""The wire between host and cores: copies, slices, order, donation."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from processes import python_path

from qa_flax.device import parallel
from qa_flax.device.step import CORES
from qa_flax.distributed import processes


def test_eight_cores_take_part():
    assert parallel.core_count() == 8
    assert parallel.describe_cores() == "8 x cpu"
    assert processes.is_main()


def test_results_come_back_in_the_order_of_the_cores():
    batch = np.arange(8 * 3 * 5, dtype=np.float32).reshape(8, 3, 5)
    doubled = parallel.over_cores(lambda x: 2 * x + lax.axis_index(CORES), (0,), 0)
    result = doubled(parallel.put(batch))
    parallel.start_copy(result)
    expected = 2 * batch + np.arange(8)[:, None, None]
    np.testing.assert_array_equal(parallel.gather(result), expected)


def test_copies_go_out_and_one_comes_back():
    tree = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.int32(4)}
    copies = parallel.put_replicas(tree)
    assert copies["w"].shape == (8, 2, 3)
    assert copies["w"].addressable_shards[0].data.shape == (1, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, parallel.take_replica(copies), tree)


def test_a_donated_state_is_reused_and_never_resharded():
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param("", "3", id="by its argument"),
        pytest.param(
            "--xla_force_host_platform_device_count=5", "5", id="told", marks=pytest.mark.slow
        ),
    ],
)
def test_the_host_shows_its_processors_as_cores_unless_told_otherwise(flags, expected):
    program = (
        "from qa_flax.device.parallel import use_host_cores, core_count\n"
        "use_host_cores(3); print(core_count())"
    )
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": python_path()}
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == expected
