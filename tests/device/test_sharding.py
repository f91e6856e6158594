"""Sharded parameters: updates equal those of replicated ones, and each core holds one shard."""

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
def test_an_array_is_restored_from_its_shards(rng, shape, cores):
    array = rng.normal(size=shape).astype(np.float32)
    shards = to_shards(array, cores)
    assert shards.shape == (cores, *shard_shape(shape, cores))
    assert shards.size - array.size < max(cores, array.size / 100)
    np.testing.assert_array_equal(from_shards(shards, shape), array)


def test_shards_are_rows_where_that_needs_little_padding():
    """A matrix gathered from shards of rows needs no copy into the tiled layout of a TPU."""
    assert shard_shape((768, 3072), 8) == (96, 3072)
    assert shard_shape((30522, 768), 8) == (3816, 768)
    assert shard_shape((50265, 768), 8) == (6288, 768)  # 6284 would not fill the tiles
    assert shard_shape((401, 768), 1) == (401, 768)
    assert shard_shape((2, 768), 8) == (192,)
    assert shard_shape((31, 768), 8) == (2976,)


@pytest.mark.parametrize(
    ("rows", "cores"),
    [(1021, 8), (120, 2), (9, 8)]
    + [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((240, 8), (500, 1))],
)
def test_a_sharded_table_looks_up_rows_as_flax_does(rng, rows, cores):
    """Rows and gradient equal those of `nnx.Embed`, also for ids out of range and small tables."""
    table = nnx.Embed(rows, 6, rngs=nnx.Rngs(0))
    array = np.asarray(table.embedding[...])
    ids = rng.integers(0, rows, (cores, 2, 5)).astype(np.int32)
    ids[0, 0, 0], ids[-1, 1, 2] = rows - 1, rows + 3
    look_up = partial(jax.vmap, axis_name=CORES)(lambda x, i: rows_of(Shard(x, (rows, 6)), i))
    np.testing.assert_array_equal(look_up(to_shards(array, cores), ids), table(ids))
    weights = rng.normal(size=(*ids.shape, 6)).astype(np.float32)
    grads = jax.grad(lambda shards: jnp.nansum(look_up(shards, ids) * weights))(
        to_shards(array, cores)
    )
    expected = jax.grad(lambda array: jnp.nansum(jnp.take(array, ids, axis=0) * weights))(array)
    np.testing.assert_allclose(from_shards(np.asarray(grads), (rows, 6)), expected, atol=2e-6)


@cache
def step_of(graphdef, optimizer):
    """The step over all cores; equal models get the same object, so that it is compiled once."""
    step = make_train_step(graphdef, optimizer)
    return parallel.over_cores(step, (0, 0, None, None), (0, None), donate=True)


def updated(model, optimizer, is_sharded, batches):
    """The state on the cores after one update per batch, and the measurements of each update."""
    state = TrainState(jnp.int32(0), *weights_of(model), optimizer.init(weights_of(model).params))
    on_cores = parallel.put_state(state, abstract_state(model, optimizer, is_sharded))
    step, measurements = step_of(model.graphdef("float32"), optimizer), []
    for batch in batches:
        on_cores, measured = step(
            on_cores, parallel.put(batch.arrays), np.float32(0.01), parallel.run_key(3)
        )
        measurements.append([float(value) for value in measured])
    return on_cores, measurements


# The gradient of the bias of the attention's keys is zero except for rounding errors. AdamW divides
# it by the root of its mean square, which scales the errors up. The large epsilon keeps these
# updates below the tolerance.
OPTIMIZER_OF = {
    "adamw_torch": {"weight_decay": 0.1, "max_grad_norm": 0.05, "adam_epsilon": 1e-3},
    "sgd": {"weight_decay": 0.1, "max_grad_norm": 0.05},
}


def batches_of(rng, rows):
    """Batches of two microbatches each."""
    windows = features(rng, rows, tokens=64)
    return list(train_batches(windows, 8, 1, seed=1, epoch=0, accumulation=2))


def model_with_large_vocabulary():
    """A model with more token embeddings than all cores look up at once, not a multiple of 8."""
    return tiny.model(hidden_dropout_prob=0.1, vocab_size=1021)


MODELS = {
    "bert": model_with_large_vocabulary,
    "lora": lambda: get_peft_model(
        model_with_large_vocabulary(), LoraConfig(r=2, target_modules="all-linear")
    ),
}


@pytest.mark.parametrize("kind", ["bert", pytest.param("lora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optim", ["adamw_torch", pytest.param("sgd", marks=pytest.mark.slow)])
def test_sharded_updates_equal_replicated_updates(rng, kind, optim):
    """The runs have dropout, accumulation, padding rows, weight decay and gradient clipping."""
    model = MODELS[kind]()
    batches = batches_of(rng, 40)
    assert not batches[-1].valid.all()
    optimizer = make_optimizer(optim, **OPTIMIZER_OF[optim])
    replicated, expected = updated(model, optimizer, False, batches)
    sharded, actual = updated(model, optimizer, True, batches)
    assert min(norm for _, norm in expected) > 0.05, "the gradients are not clipped"
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    replicated, sharded = parallel.gather_state(replicated), parallel.gather_state(sharded)
    assert_close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(assert_close, sharded, replicated)
    initial = weights_of(model).params
    changes = jax.tree.map(lambda a, b: float(abs(a - b).max()), replicated.params, initial)
    assert max(jax.tree.leaves(changes)) > 1e-4


def test_the_token_table_is_never_gathered(rng):
    """Neither the table nor its gradient: the program of a core has no array of that size."""
    model, optimizer = model_with_large_vocabulary(), make_optimizer()
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


def test_each_core_holds_only_its_shard(rng):
    """The bytes on each core are those computed from the shapes, padding included."""
    optimizer = make_optimizer("adamw_torch", **OPTIMIZER_OF["adamw_torch"])
    model = model_with_large_vocabulary()
    state, _ = updated(model, optimizer, True, batches_of(rng, 16))
    shapes = [array.shape for array in jax.tree.leaves(weights_of(model).params)]
    sizes = [math.prod(shape) for shape in shapes]
    assert any(size % 8 for size in sizes)
    assert shard_shape((1021, 32), 8) == (128, 32)
    shard_bytes = sum(4 * math.prod(shard_shape(shape, 8)) for shape in shapes)

    def bytes_per_core(tree):
        sizes = [[s.data.nbytes for s in a.addressable_shards] for a in jax.tree.leaves(tree)]
        return {sum(core) for core in zip(*sizes, strict=True)}

    assert bytes_per_core(state.params) == {shard_bytes}
    counts = 4 * sum(array.ndim == 1 for array in jax.tree.leaves(state.opt_state))
    assert bytes_per_core(state.opt_state) == {2 * shard_bytes + counts}
    abstract = abstract_state(model, optimizer, True)
    assert bytes_of(abstract.params) == shard_bytes
    assert bytes_of(abstract.opt_state) == 2 * shard_bytes + counts
    assert shard_bytes < 1.01 * bytes_of(weights_of(model).params) / 8 + 4 * len(sizes)


def test_the_memory_plan_describes_the_compiled_step(rng):
    model = model_with_large_vocabulary()
    optimizer = make_optimizer("adamw_torch", **OPTIMIZER_OF["adamw_torch"])
    (batch,) = batches_of(rng, 16)
    plans = []
    for is_sharded in (False, True):
        abstract = abstract_state(model, optimizer, is_sharded)
        step = step_of(model.graphdef("float32"), optimizer)
        on_cores = jax.tree.map(lambda a: jax.ShapeDtypeStruct((8, *a.shape), a.dtype), abstract)
        inputs = on_cores, batch.arrays, np.float32(0), parallel.run_key(0)
        plans.append(memory_plan(abstract, step.lower(*inputs).compile()))
    # XLA's CPU compiler computes a reduce-scatter as an all-reduce and a slice, so its buffers hold
    # unsharded gradients. `tests/benchmarks/memory.py --tpu` uses the TPU compiler.
    unsharded = bytes_of(weights_of(model).params)
    assert plans[0].parameters == plans[0].gradients == unsharded
    assert plans[0].optimizer == 2 * unsharded + 4
    sharded = plans[1].parameters
    assert unsharded / 8 <= sharded < unsharded / 7
    assert plans[1][:3] == (sharded, 2 * sharded + 4, sharded)
    assert plans[1].total < plans[0].total - unsharded


def trainer(folder, is_sharded):
    tokenizer, examples = tiny.tokenizer(), tiny.examples(answerable=True)
    settings = {"max_steps": 4, "shard_params": is_sharded, "eval_strategy": "no"}
    return trainer_in(folder, examples, tokenizer, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(is_sharded)`: the folder and the trainer of a finished run."""

    @cache
    def folder_and_trainer(is_sharded):
        folder = tmp_path_factory.mktemp("run")
        finished = trainer(folder, is_sharded)
        finished.train()
        return folder, finished

    return folder_and_trainer


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_sharded_or_replicated(tmp_path, run, before, after):
    """Checkpoints are unsharded; without a change the resumed run is equal bit for bit."""
    folder, uninterrupted = run(before)
    resumed = trainer(tmp_path, after)
    resumed.train(resume_from_checkpoint=folder / "checkpoint-2")
    if before == after:
        assert_same_run(uninterrupted, resumed)
    histories = (resumed.state.log_history, uninterrupted.state.log_history)
    for actual, expected in zip(*histories, strict=True):
        assert actual.get("loss", 0) == pytest.approx(expected.get("loss", 0), rel=1e-4)


def test_a_sharded_run_has_the_answers_and_conditions_of_a_replicated_one(run):
    outputs, conditions = [], []
    for is_sharded in (False, True):
        folder, finished = run(is_sharded)
        outputs.append(finished.predict(finished.eval_dataset, tiny.examples(True)))
        text = (folder / "checkpoint-4" / "run.json").read_text()
        conditions.append(json.loads(text)["conditions"])
    replicated, sharded = outputs
    assert sharded.metrics["test_loss"] == pytest.approx(replicated.metrics["test_loss"], rel=1e-4)
    assert sharded.predictions == replicated.predictions
    assert conditions[0] == conditions[1]


def test_sharded_weights_give_the_same_logits(rng):
    model = tiny.model()
    batch = next(iter(train_batches(features(rng, 8, tokens=64), 8, 1, seed=1, epoch=0)))
    arrays = {name: array[:, 0] for name, array in batch.arrays.items()}
    step = parallel.over_cores(make_eval_step(nnx.graphdef(model)), (0, 0), 0)
    weights = weights_of(model)
    abstract = abstract_state(model, make_optimizer(), True)
    shards = parallel.put_state(weights, type(weights)(abstract.params, abstract.fixed))
    expected = parallel.gather(step(parallel.put_replicas(weights), parallel.put(arrays)))
    actual = parallel.gather(step(shards, parallel.put(arrays)))
    np.testing.assert_allclose(actual.logits.start, expected.logits.start, rtol=0, atol=2e-6)
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=0, atol=2e-6)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_optimizers_that_need_whole_parameters_are_rejected(tmp_path, optim):
    args = TrainingArguments(output_dir=str(tmp_path), optim=optim, shard_params=True)
    if optim in NEED_WHOLE_PARAMETERS:
        with pytest.raises(ValueError, match=f"optim='{optim}' needs whole parameters.*allowed"):
            check_training_arguments(args)
    else:
        check_training_arguments(args)


def test_the_plan_reports_whether_it_fits_in_one_line():
    plan = MemoryPlan(parameters=1 << 30, optimizer=1 << 31, gradients=1 << 30, activations=5 << 20)
    assert plan.text(16 << 30, "8 x 384 tokens") == (
        "Memory on each core, 8 x 384 tokens: parameters 1.00 GiB, optimizer 2.00 GiB, "
        "gradients 1.00 GiB, activations 5.00 MiB; 4.00 GiB in all; fits in 16.00 GiB: yes"
    )
    assert plan.text(4 << 30, "x").endswith("fits in 4.00 GiB: NO")
    assert plan.text(None, "x").endswith("the memory of a core is unknown")
