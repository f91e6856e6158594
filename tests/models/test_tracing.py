"""Programs are traced for their processor, and layers again where any setting differs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qa_flax.device import parallel
from qa_flax.models.blocks import Stack
from qa_flax.models.tracing import TraceSettings, trace_settings, traced_with


def test_steps_are_traced_for_the_devices_that_they_run_on():
    seen = []
    step = parallel.over_cores(lambda x: (seen.append(trace_settings().is_for_cpu), x)[1], (0,), 0)
    with traced_with(platform="tpu"):
        step(np.zeros(parallel.core_count()))
        assert not trace_settings().is_for_cpu
    assert seen == [True]
    assert trace_settings().is_for_cpu


OTHERS = {"platform": "tpu", "dropout_bits": "hardware", "sums_in_bf16": True}
SEEN: list[TraceSettings] = []


class Watched(nnx.Module):
    """A layer that notes the settings it is traced with."""

    def __init__(self, test: str):
        self.test = test  # a layer of its own for every test

    def __call__(self, hidden, *, rngs=None):
        SEEN.append(trace_settings())
        return hidden


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TraceSettings)])
def test_a_layer_is_traced_again_where_any_setting_differs(name):
    layers, hidden = Stack([Watched(name), Watched(name)]), jnp.ones((1, 2, 3))
    SEEN.clear()
    layers(hidden)
    layers(hidden)
    assert [trace_settings()] == SEEN, "layers of equal settings are traced once"
    with traced_with(**{name: OTHERS[name]}):
        layers(hidden)
    assert [trace_settings(), dataclasses.replace(trace_settings(), **{name: OTHERS[name]})] == SEEN
