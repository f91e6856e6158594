"""Parameters divided over the cores: the updates of the replicated step, and a piece on each."""

import json
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_batches import features
from tiny_trainers import assert_same_run, trainer_in

from qa_flax import LoraConfig, get_peft_model
from qa_flax.data.batches import train_batches
from qa_flax.device import parallel
from qa_flax.device.memory import MemoryPlan, abstract_state, memory_plan
from qa_flax.device.optim import NEED_WHOLE_PARAMETERS, OPTIMIZERS, make_optimizer
from qa_flax.device.step import TrainState, make_eval_step, make_train_step, weights_of
from qa_flax.models.sharding import (
    CORES,
    Shard,
    bytes_of,
    from_shards,
    rows_of,
    shard_shape,
    to_shards,
)
from qa_flax.train.training_arguments import TrainingArguments, check_training_arguments


@pytest.mark.parametrize(
    "shape", [(), (1,), (9,), (1001,), (7, 3), (64, 5), (401, 2), (1001, 2, 3)]
)
@pytest.mark.parametrize("cores", [1, 2, 8])
def test_pieces_are_the_array(rng, shape, cores):
    array = rng.normal(size=shape).astype(np.float32)
    pieces = to_shards(array, cores)
    assert pieces.shape == (cores, *shard_shape(shape, cores))
    assert pieces.size - array.size < max(cores, array.size / 100)
    np.testing.assert_array_equal(from_shards(pieces, shape), array)


def test_pieces_are_whole_rows_where_that_wastes_next_to_nothing():
    """A TPU lays out a matrix of flat pieces anew, with a copy of it."""
    assert shard_shape((768, 3072), 8) == (96, 3072)
    assert shard_shape((30522, 768), 8) == (3816, 768)
    assert shard_shape((2, 768), 8) == (192,)
    assert shard_shape((31, 768), 8) == (2976,)


@pytest.mark.parametrize(
    ("rows", "cores"),
    [(1021, 8), (120, 2), (9, 8)]
    + [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((240, 8), (500, 1))],
)
def test_rows_are_found_where_they_are(rng, rows, cores):
    """As `nnx.Embed` finds them, and its gradient: also ids of no row, and tables too small."""
    table = nnx.Embed(rows, 6, rngs=nnx.Rngs(0))
    array = np.asarray(table.embedding[...])
    ids = rng.integers(0, rows, (cores, 2, 5)).astype(np.int32)
    ids[0, 0, 0], ids[-1, 1, 2] = rows - 1, rows + 3
    found = partial(jax.vmap, axis_name=CORES)(lambda piece, i: rows_of(Shard(piece, (rows, 6)), i))
    np.testing.assert_array_equal(found(to_shards(array, cores), ids), table(ids))
    weights = rng.normal(size=(*ids.shape, 6)).astype(np.float32)
    grads = jax.grad(lambda pieces: jnp.nansum(found(pieces, ids) * weights))(
        to_shards(array, cores)
    )
    expected = jax.grad(lambda array: jnp.nansum(jnp.take(array, ids, axis=0) * weights))(array)
    np.testing.assert_allclose(from_shards(np.asarray(grads), (rows, 6)), expected, atol=2e-6)


@cache
def step_of(graphdef, optimizer):
    """One for equal models, so that it is compiled once for each way to put them on the cores."""
    step = make_train_step(graphdef, optimizer)
    return parallel.over_cores(step, (0, 0, None, None), (0, None), donate=True)


def updated(model, optimizer, is_sharded, batches):
    """State and measurements after an update for each batch, by `pmap` over all cores."""
    state = TrainState(jnp.int32(0), *weights_of(model), optimizer.init(weights_of(model).params))
    on_cores = parallel.put_state(state, abstract_state(model, optimizer, is_sharded))
    step, said = step_of(model.graphdef("float32"), optimizer), []
    for batch in batches:
        on_cores, measured = step(
            on_cores, parallel.put(batch.arrays), np.float32(0.01), parallel.run_key(3)
        )
        said.append([float(value) for value in measured])
    return on_cores, said


# AdamW divides by the root of a mean of squares: where a gradient is nothing but rounding (the
# keys' bias), so is its step. The epsilon keeps that below the tolerance.
OPTIMIZER_OF = {
    "adamw_torch": {"weight_decay": 0.1, "max_grad_norm": 0.05, "adam_epsilon": 1e-3},
    "sgd": {"weight_decay": 0.1, "max_grad_norm": 0.05},
}


def batches_of(rng, rows):
    """Two microbatches an update."""
    windows = features(rng, rows, tokens=64)
    return list(train_batches(windows, 8, 1, seed=1, epoch=0, accumulation=2))


def model_of_many_words():
    """More than all cores ask for at once, and 8 does not divide them."""
    return tiny.model(hidden_dropout_prob=0.1, vocab_size=1021)


MODELS = {
    "bert": model_of_many_words,
    "lora": lambda: get_peft_model(
        model_of_many_words(), LoraConfig(r=2, target_modules="all-linear")
    ),
}


@pytest.mark.parametrize("kind", ["bert", pytest.param("lora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optim", ["adamw_torch", pytest.param("sgd", marks=pytest.mark.slow)])
def test_updates_are_those_of_the_replicated_step(rng, kind, optim):
    """With dropout, accumulation, a short batch, decay, and a norm that is clipped."""
    model = MODELS[kind]()
    batches = batches_of(rng, 40)
    assert not batches[-1].valid.all()
    optimizer = make_optimizer(optim, **OPTIMIZER_OF[optim])
    replicated, expected = updated(model, optimizer, False, batches)
    sharded, found = updated(model, optimizer, True, batches)
    assert min(norm for _, norm in expected) > 0.05, "clipped"
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    one, other = parallel.gather_state(replicated), parallel.gather_state(sharded)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(close, other, one)
    first = weights_of(model).params
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), one.params, first)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_the_table_of_words_is_never_put_together(rng):
    """Nor is its gradient: no array of its size is in the program of a core."""
    model, optimizer = model_of_many_words(), make_optimizer()
    (batch,) = train_batches(features(rng, 8, tokens=64), 8, 1, seed=1, epoch=0)
    arrays = jax.tree.map(lambda a: a[0], batch.arrays)
    programs = []
    for is_sharded in (False, True):
        abstract = abstract_state(model, optimizer, is_sharded, 8)
        step = make_train_step(nnx.graphdef(model), optimizer)
        inputs = abstract, arrays, np.float32(0), parallel.run_key(0)
        programs.append(str(jax.make_jaxpr(step, axis_env=[(CORES, 8)])(*inputs)))
    assert ["f32[1021,32]" in program for program in programs] == [True, False]
    assert "f32[1024,32]" not in programs[1]


def test_each_core_holds_its_piece_and_no_more(rng):
    """Bytes as computed: rows, or numbers, that 8 does not divide are rounded up."""
    optimizer = make_optimizer("adamw_torch", **OPTIMIZER_OF["adamw_torch"])
    model = model_of_many_words()
    state, _ = updated(model, optimizer, True, batches_of(rng, 16))
    shapes = [array.shape for array in jax.tree.leaves(weights_of(model).params)]
    sizes = [math.prod(shape) for shape in shapes]
    assert any(size % 8 for size in sizes)
    assert shard_shape((1021, 32), 8) == (128, 32)
    pieces = sum(4 * math.prod(shard_shape(shape, 8)) for shape in shapes)

    def on_each_core(tree):
        found = [[s.data.nbytes for s in a.addressable_shards] for a in jax.tree.leaves(tree)]
        return {sum(one) for one in zip(*found, strict=True)}

    assert on_each_core(state.params) == {pieces}
    counts = 4 * sum(array.ndim == 1 for array in jax.tree.leaves(state.opt_state))
    assert on_each_core(state.opt_state) == {2 * pieces + counts}
    abstract = abstract_state(model, optimizer, True)
    assert bytes_of(abstract.params) == pieces
    assert bytes_of(abstract.opt_state) == 2 * pieces + counts
    assert pieces < 1.01 * bytes_of(weights_of(model).params) / 8 + 4 * len(sizes)


def test_the_plan_is_of_the_compiled_step(rng):
    model = model_of_many_words()
    optimizer = make_optimizer("adamw_torch", **OPTIMIZER_OF["adamw_torch"])
    (batch,) = batches_of(rng, 16)
    plans = []
    for is_sharded in (False, True):
        abstract = abstract_state(model, optimizer, is_sharded)
        step = step_of(model.graphdef("float32"), optimizer)
        on_cores = jax.tree.map(lambda a: jax.ShapeDtypeStruct((8, *a.shape), a.dtype), abstract)
        inputs = on_cores, batch.arrays, np.float32(0), parallel.run_key(0)
        plans.append(memory_plan(abstract, step.lower(*inputs).compile()))
    # What XLA needs beside is as its CPU compiler has it, which makes a reduce-scatter of an
    # all-reduce and a slice: whole gradients. `benchmarks/memory.py --tpu` asks a TPU's compiler.
    whole = bytes_of(weights_of(model).params)
    assert plans[0].parameters == plans[0].gradients == whole
    assert plans[0].optimizer == 2 * whole + 4
    pieces = plans[1].parameters
    assert whole / 8 <= pieces < whole / 7
    assert plans[1][:3] == (pieces, 2 * pieces + 4, pieces)
    assert plans[1].total < plans[0].total - whole


def trainer(folder, is_sharded):
    tokenizer, examples = tiny.tokenizer(), tiny.examples(answerable=True)
    settings = {"max_steps": 4, "shard_params": is_sharded, "eval_strategy": "no"}
    return trainer_in(folder, examples, tokenizer, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(is_sharded)`: the folder and the trainer of a run that came to its end."""

    @cache
    def folder_and_trainer(is_sharded):
        folder = tmp_path_factory.mktemp("run")
        found = trainer(folder, is_sharded)
        found.train()
        return folder, found

    return folder_and_trainer


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (True, True),
        (True, False),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_divided_or_not(tmp_path, run, before, after):
    """Checkpoints hold the whole state: resumed as it was, bit for bit; the other way, alike."""
    folder, whole = run(before)
    found = trainer(tmp_path, after)
    found.train(resume_from_checkpoint=folder / "checkpoint-2")
    if before == after:
        assert_same_run(whole, found)
    for one, other in zip(found.state.log_history, whole.state.log_history, strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-4)


def test_a_divided_run_has_the_answers_and_the_conditions_of_one_that_is_not(run):
    outputs, conditions = [], []
    for is_sharded in (False, True):
        folder, found = run(is_sharded)
        outputs.append(found.predict(found.eval_dataset, tiny.examples(True)))
        text = (folder / "checkpoint-4" / "run.json").read_text()
        conditions.append(json.loads(text)["conditions"])
    one, other = outputs
    assert one.metrics["test_loss"] == pytest.approx(other.metrics["test_loss"], rel=1e-4)
    assert one.predictions == other.predictions
    assert conditions[0] == conditions[1]


def test_divided_weights_give_the_same_logits(rng):
    model = tiny.model()
    batch = next(iter(train_batches(features(rng, 8, tokens=64), 8, 1, seed=1, epoch=0)))
    arrays = {name: array[:, 0] for name, array in batch.arrays.items()}
    step = parallel.over_cores(make_eval_step(nnx.graphdef(model)), (0, 0), 0)
    weights = weights_of(model)
    abstract = abstract_state(model, make_optimizer(), True)
    pieces = parallel.put_state(weights, type(weights)(abstract.params, abstract.fixed))
    one = parallel.gather(step(parallel.put_replicas(weights), parallel.put(arrays)))
    other = parallel.gather(step(pieces, parallel.put(arrays)))
    np.testing.assert_allclose(other.logits.start, one.logits.start, rtol=0, atol=2e-6)
    np.testing.assert_allclose(other.losses, one.losses, rtol=0, atol=2e-6)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_what_needs_whole_parameters_is_refused_by_name(tmp_path, optim):
    args = TrainingArguments(output_dir=str(tmp_path), optim=optim, shard_params=True)
    if optim in NEED_WHOLE_PARAMETERS:
        with pytest.raises(ValueError, match=f"optim='{optim}' needs whole parameters.*allowed"):
            check_training_arguments(args)
    else:
        check_training_arguments(args)


def test_the_plan_is_one_line_that_says_whether_it_fits():
    plan = MemoryPlan(parameters=1 << 30, optimizer=1 << 31, gradients=1 << 30, activations=5 << 20)
    assert plan.text(16 << 30, "8 x 384 tokens") == (
        "Memory on each core, 8 x 384 tokens: parameters 1.00 GiB, optimizer 2.00 GiB, "
        "gradients 1.00 GiB, activations 5.00 MiB; 4.00 GiB in all; fits in 16.00 GiB: yes"
    )
    assert plan.text(4 << 30, "x").endswith("fits in 4.00 GiB: NO")
    assert plan.text(None, "x").endswith("a core's memory is not known here")
