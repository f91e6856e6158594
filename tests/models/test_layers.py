"""Position ids that restart in each segment."""

import jax.numpy as jnp
import numpy as np

from qa_flax.models.layers import restarting_positions


def test_positions_restart_in_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5]]
    assert np.asarray(restarting_positions(segments)).tolist() == expected
