"""With sharded parameters every encoder has the gradients of replicated parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loud import TESTED, batch_of, loud_model

from qa_flax.device import parallel
from qa_flax.device.memory import abstract_state
from qa_flax.device.step import TrainState, make_train_step, weights_of


@pytest.mark.slow  # `test_sharding.py` tests BERT by default
@pytest.mark.parametrize("family", TESTED)
def test_sharded_gradients_equal_replicated_gradients(family):
    model = loud_model(family=family)
    rows = {
        name: np.int32(values)[np.arange(8) % len(values)]
        for name, values in batch_of(family).items()
    }
    batch = {name: values.reshape(8, 1, 1, -1) for name, values in rows.items()}
    labels = np.arange(8, dtype=np.int32).reshape(8, 1, 1) % 5
    batch |= {"start_positions": labels, "end_positions": labels + 1}
    batch["valid"] = np.ones((8, 1, 1), bool)
    optimizer = optax.identity()
    state = TrainState(jnp.int32(0), *weights_of(model), optimizer.init(weights_of(model).params))
    results = []
    for is_sharded in (False, True):
        step = make_train_step(nnx.graphdef(model), optimizer)
        step = parallel.over_cores(step, (0, 0, None, None), (0, None))
        on_cores = parallel.put_state(state, abstract_state(model, optimizer, is_sharded))
        after, measured = step(on_cores, parallel.put(batch), np.float32(1.0), parallel.run_key(0))
        results.append((parallel.gather_state(after.params), float(measured.grad_norm)))
    (replicated, norm), (sharded, sharded_norm) = results
    assert sharded_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6 * max(1.0, norm))
    jax.tree.map(close, sharded, replicated)
