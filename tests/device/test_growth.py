"""What the cores exchange, and how often steps are compiled, does not depend on their number."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.device import parallel, programs
from qa_flax.device.memory import abstract_state
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import make_eval_step, make_train_step, model_inputs

ROWS, LENGTH = 2, 24
COUNTS = 3  # valid rows, their start labels and their end labels
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}


def shapes(tree, *axes):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), tree)


def batch():
    ids = jnp.zeros((ROWS, LENGTH), jnp.int32)
    labels = jnp.zeros(ROWS, jnp.int32)
    return {
        "input_ids": ids,
        "attention_mask": ids,
        "token_type_ids": ids,
        "start_positions": labels,
        "end_positions": labels,
        "valid": labels > -1,
    }


def collectives(text):
    """The bytes that one core puts into each kind of collective of a compiled program."""
    found = {}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        sizes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        size = sum(BYTES[t] * math.prod(map(int, filter(None, s.split(",")))) for t, s in sizes)
        found[kind] = found.get(kind, 0) + size
    return found


def compiled_steps(cores, is_sharded=False):
    """The texts of the training and the evaluation step on so many cores."""
    model, devices = tiny.model(), parallel.cores()[:cores]
    graphdef, optimizer = model.graphdef("float32"), make_optimizer()
    state = shapes(abstract_state(model, optimizer, is_sharded, cores), cores)
    key = jax.eval_shape(lambda: jax.random.key_data(parallel.run_key(0)))
    step = make_train_step(graphdef, optimizer)
    train = parallel.over_cores(
        lambda *x: step(*x[:3], parallel.wrap_key(x[3])),
        (0, 0, None, None),
        (0, None),
        devices=devices,
    )
    inputs = state, shapes(batch(), cores, 1), jax.ShapeDtypeStruct((), jnp.float32), key
    evaluate = parallel.over_cores(make_eval_step(graphdef), (0, 0), 0, devices=devices)
    eval_inputs = state.weights, shapes(model_inputs(batch()), cores)
    parameters = sum(array.size for array in jax.tree.leaves(model))
    texts = [s.lower(*x).compile().as_text() for s, x in ((train, inputs), (evaluate, eval_inputs))]
    return parameters, *texts


@pytest.mark.parametrize(
    "cores", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 8]
)
def test_each_core_adds_up_its_gradients_once(cores):
    """On paper: 4 bytes of each parameter, of the loss and of three counts."""
    parameters, train, evaluate = compiled_steps(cores)
    assert collectives(evaluate) == {}
    if cores == 1:
        assert collectives(train) in ({}, {"all-reduce": 4 * (parameters + 1 + COUNTS)})
    else:
        assert collectives(train) == {"all-reduce": 4 * (parameters + 1 + COUNTS)}


@pytest.mark.parametrize("cores", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_shards_are_gathered_and_their_gradients_scattered(cores):
    """No core adds up whole gradients: only scalars and the small arrays' norms."""
    parameters, train, _ = compiled_steps(cores, is_sharded=True)
    found = collectives(train)
    assert found["all-reduce"] < 4 * 0.1 * parameters
    # At most all for the forward pass and once more for the backward pass; of tables only rows.
    assert 0 < found["all-gather"] <= 1.1 * 2 * 4 * parameters
    assert 0 < found["reduce-scatter"] <= 1.1 * 4 * parameters / cores + 4096


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 4])
def test_more_windows_compile_no_more_programs(tmp_path, factor):
    examples = tiny.repeated_examples(24 * factor)
    windows = prepare_train_features(examples, tiny.tokenizer(), disable_tqdm=True, **WINDOW)
    compiled = []

    def count(name, seconds, **kwargs):
        is_step = "one_core" in kwargs.get("fun_name", "")
        if is_step and name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    programs.clear()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        args = arguments(tmp_path, per_device_train_batch_size=4, per_device_eval_batch_size=4)
        trainer = Trainer(tiny.model(), args, train_dataset=windows, eval_dataset=windows)
        trainer.train()
        trainer.evaluate()
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert trainer.state.global_step == -(-len(windows) // 32)
    assert len(compiled) <= 2 + 3
    assert np.isfinite(trainer.state.log_history[-1]["eval_loss"])
