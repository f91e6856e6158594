"""The steps of every encoder are compiled by the TPU compiler, which works without a TPU."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import topologies
from loud import TESTED, batch_of, loud_model

from qa_flax.device import parallel
from qa_flax.device.memory import abstract_state
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import (
    Reduction,
    Weights,
    make_eval_step,
    make_train_step,
    model_inputs,
)

pytest.importorskip("libtpu", reason="needs the compiler: pip install libtpu")
pytestmark = pytest.mark.slow


# This machine is not a TPU VM: nobody is asked, and two processes may load libtpu.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.fixture(scope="module")
def cores():
    """Eight cores of TPU v5e."""
    jax.devices()  # reads the tests' XLA_FLAGS, some of which libtpu does not know and aborts at
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)  # until the last test: libtpu reads it late
        for name, value in NO_TPU.items():
            if name not in os.environ:
                patch.setenv(name, value)
        yield topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices


def compiled_text(cores, step, in_axes, out_axes, *inputs):
    """The text of the compiled program."""
    step = parallel.over_cores(step, in_axes, out_axes, devices=cores)
    return step.lower(*inputs).compile().as_text()


def on_cores(cores, tree, *axes):
    """Shapes and dtypes of arrays with an axis of the cores and then `axes` before their own."""
    axes = len(cores), *axes
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), tree)


@pytest.mark.parametrize("family", TESTED)
def test_the_steps_compile_for_tpu(cores, family):
    model = loud_model(family=family)
    graphdef = nnx.graphdef(model)
    batch = {name: jnp.asarray(ids, jnp.int32) for name, ids in batch_of(family).items()}
    labels = jnp.zeros(len(batch["input_ids"]), jnp.int32)
    batch |= {"start_positions": labels, "end_positions": labels, "valid": labels > -1}
    key = jax.eval_shape(partial(parallel.run_key, 0))
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    texts = []
    for is_sharded in (False, True):
        state = on_cores(cores, abstract_state(model, make_optimizer(), is_sharded, len(cores)))
        step = make_train_step(graphdef, make_optimizer())
        inputs = state, on_cores(cores, batch, 1), rate, key
        texts.append(compiled_text(cores, step, (0, 0, None, None), (0, None), *inputs))
        weights = Weights(state.params, state.fixed)
        inputs = weights, on_cores(cores, model_inputs(batch))
        compiled_text(cores, make_eval_step(graphdef), (0, 0), 0, *inputs)
    replicated, sharded = texts
    assert "all-reduce" in replicated
    assert "all-gather" not in replicated
    assert "all-gather" in sharded


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_the_steps_of_packed_rows_compile_for_tpu(cores, family):
    """Rows of 384 tokens, for which a CPU would compute one attention head after the other."""
    model = loud_model(family=family)
    graphdef = nnx.graphdef(model)
    rows, width, places = 4, 384, 3
    names = [*batch_of(family), "segment_ids"]
    batch = {name: jnp.zeros((rows, width), jnp.int32) for name in names}
    labels = jnp.zeros((rows, places), jnp.int32)
    batch |= {"start_positions": labels, "end_positions": labels, "valid": labels > -1}
    key = jax.eval_shape(partial(parallel.run_key, 0))
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    state = on_cores(cores, abstract_state(model, make_optimizer(), False, len(cores)))
    inputs = state, on_cores(cores, batch, 1), rate, key
    step = make_train_step(graphdef, make_optimizer())
    train = compiled_text(cores, step, (0, 0, None, None), (0, None), *inputs)
    inputs = Weights(state.params, state.fixed), on_cores(cores, batch | {"null_positions": labels})
    step = make_eval_step(graphdef, Reduction(20, -1e4, finite=True))
    evaluation = compiled_text(cores, step, (0, 0), 0, *inputs)
    # Neither rows nor heads are computed in a loop there.
    for text in (train, evaluation):
        assert " while(" not in text
