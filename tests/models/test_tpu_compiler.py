"""The steps of every encoder are compiled by the TPU compiler, which works without a TPU."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from loud import TESTED, batch_of, loud_model
from tpu_program import TpuProgram
from tpu_topology import NO_TPU, cores_of, obstacle

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
from qa_flax.train.layer_rates import rate_factors

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))]


@pytest.fixture(scope="module")
def cores():
    """Eight cores of TPU v5e."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XLA_FLAGS", *NO_TPU):  # to have them back after the last test
            patch.setenv(name, os.environ[name]) if name in os.environ else patch.delenv(
                name, False
            )
        # What is compiled without a TPU cannot be read back from the compilation cache.
        folder = jax.config.jax_compilation_cache_dir
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
        yield cores_of("v5e:2x4")
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def compiled_text(cores, step, in_axes, out_axes, *inputs):
    """The text of the compiled program."""
    step = parallel.over_cores(step, in_axes, out_axes, devices=cores)
    return step.lower(*inputs).compile().as_text()


def replicated_or_sharded(model, is_sharded, count):
    """The shapes of the training state, as on TPUs."""
    return abstract_state(model, make_optimizer(), is_sharded, count, is_padded=True)


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
        state = on_cores(cores, replicated_or_sharded(model, is_sharded, len(cores)))
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
    state = on_cores(cores, replicated_or_sharded(model, False, len(cores)))
    inputs = state, on_cores(cores, batch, 1), rate, key
    step = make_train_step(graphdef, make_optimizer())
    train = compiled_text(cores, step, (0, 0, None, None), (0, None), *inputs)
    inputs = Weights(state.params, state.fixed), on_cores(cores, batch | {"null_positions": labels})
    step = make_eval_step(graphdef, Reduction(20, -1e4, finite=True))
    evaluation = compiled_text(cores, step, (0, 0), 0, *inputs)
    # Neither rows nor heads are computed in a loop there.
    for text in (train, evaluation):
        assert " while(" not in text


VOCABULARY = 2003  # no multiple of 8


def train_program(cores, rows=2, width=128, is_padded=True, rate_decay=None, **settings):
    """The training step of a small BERT, whose vectors fill the lanes of a TPU."""
    model = tiny.model(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        max_position_embeddings=384,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    factors = None if rate_decay is None else rate_factors(model, rate_decay)
    optimizer = make_optimizer(rate_factors=factors)
    is_averaged = "ema_decay" in settings
    abstract = partial(abstract_state, model, optimizer, False, is_averaged=is_averaged)
    state = on_cores(cores, abstract(is_padded=is_padded))
    tokens, label = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((rows, width), (rows,)))
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)
    batch |= {"start_positions": label, "end_positions": label}
    batch["valid"] = jax.ShapeDtypeStruct((rows,), jnp.bool)
    step = make_train_step(model.graphdef("bfloat16"), optimizer, **settings)
    key = jax.eval_shape(partial(parallel.run_key, 0))
    inputs = state, on_cores(cores, batch, 1), jax.ShapeDtypeStruct((), jnp.float32), key
    return TpuProgram(compiled_text(cores, step, (0, 0, None, None), (0, None), *inputs))


@pytest.fixture(scope="module")
def program(cores):
    return train_program(cores)


def test_a_padded_table_is_not_laid_out_anew(cores, program):
    """The program without padding copies the table, its gradient or its moments."""
    unpadded = train_program(cores, is_padded=False)
    rows = f"{VOCABULARY},128]", "2008,128]"
    copies = [sum(p.copies_of(end) for end in rows) for p in (unpadded, program)]
    assert copies[0] >= 3
    assert copies[1] == 0
    assert sum(program.cycles.values()) < sum(unpadded.cycles.values())


def test_gradients_are_reduced_in_bfloat16(cores, program):
    """Half as many bytes are sent; the loss and the counts of labels stay float32."""
    reduced = train_program(cores, bf16_gradients=True)
    sums = []
    for each in (program, reduced):
        assert {c.opcode.removesuffix("-start") for c in each.collectives} == {"all-reduce"}
        sums.append({})
        for collective in each.collectives:
            for dtype, size in collective.bytes_by_dtype.items():
                sums[-1][dtype] = sums[-1].get(dtype, 0) + size
    assert sums[0].keys() == {"f32"}
    assert sums[1]["f32"] < 64
    assert 0.49 < sums[1]["bf16"] / sums[0]["f32"] < 0.51


def test_an_average_and_layer_rates_compile(cores, program):
    """They only add to the optimizer's work: nothing else is exchanged."""
    more = train_program(cores, rate_decay=0.9, ema_decay=0.99)
    assert more.cycles["optimizer"] > program.cycles["optimizer"]
    assert [c.bytes for c in more.collectives] == [c.bytes for c in program.collectives]


def test_hardware_bits_are_drawn_by_the_chip(cores, program):
    drawn = train_program(cores, dropout_bits="hardware")
    rows, heads, width = 2, 4, 128
    arrays = drawn.arrays_of("rng-bit-generator")
    assert {array.dtype for array in arrays} == {"u8"}
    assert max(array.size for array in arrays) == rows * heads * width * width
    assert max(array.size for array in program.arrays_of("rng-bit-generator")) == 2
    assert drawn.cycles["attention"] < program.cycles["attention"]


def test_sixteen_rows_are_worked_through_in_two_blocks(cores):
    program = train_program(cores, rows=16, width=384)
    assert program.loops == 1
    assert program.cycles["attention"] > 0


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_another_process_is_one_line(tmp_path, monkeypatch):
    lock = tmp_path / "libtpu_lockfile"
    assert obstacle(lock) is None
    lock.touch()
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "0")
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    assert obstacle(lock) is None
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        assert f"locked {lock}" in obstacle(lock)
        assert "\n" not in obstacle(lock)
        monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        assert obstacle(lock) is None
        holder.stdin.close()
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "0")
    assert obstacle(lock) is None
