"""Programs know the kind of processor that they are traced for."""

import numpy as np

from qa_flax.device import parallel
from qa_flax.models.platform import is_for_cpu, traced_for


def test_steps_are_traced_for_the_devices_that_they_run_on():
    seen = []
    step = parallel.over_cores(lambda x: (seen.append(is_for_cpu()), x)[1], (0,), 0)
    with traced_for("tpu"):
        step(np.zeros(parallel.core_count()))
        assert not is_for_cpu()
    assert seen == [True]
    assert is_for_cpu()
