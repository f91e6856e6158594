"""Loss and gradient of a step equal those over all valid rows, on any number of cores."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from qa_flax import LoraConfig, get_peft_model
from qa_flax.device import parallel
from qa_flax.device.step import (
    CORES,
    TrainState,
    _rows_at_once,
    make_eval_step,
    make_train_step,
    model_inputs,
    weights_of,
)
from qa_flax.models.layers import Fixed
from qa_flax.models.lora import LoraLinear, dense_layers
from qa_flax.models.qa import span_losses
from qa_flax.models.tracing import traced_with

LEARNING_RATE = 1.0  # the direction is the gradient, so the parameters change by it


def split_over_cores(batch, cores, microbatches=1):
    """Reshape arrays `[D * A * B, ...]` to `[D, A, B, ...]`: D cores, A microbatches of B rows."""
    return {
        k: v.reshape(microbatches, cores, -1, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()
    }


def plain_loss_and_gradient(model, batch):
    """The mean loss of the valid rows and its gradient, without cores or padding rows."""
    graphdef = model.graphdef("float32")  # equal for equal models, so compiled once
    params, fixed = weights_of(model)
    real = {k: jnp.asarray(v[batch["valid"]]) for k, v in batch.items()}
    return _plain_loss_and_gradient(params, graphdef, fixed, real)


@partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def _plain_loss_and_gradient(params, graphdef, fixed, real):
    logits = nnx.merge(graphdef, params, fixed).span_logits(**model_inputs(real))
    labels = (real["start_positions"], real["end_positions"])
    return span_losses(logits, *labels).mean()


def first_state(model, optimizer, step=0):
    params, fixed = weights_of(model)
    return TrainState(np.int32(step), params, fixed, optimizer.init(params))


IDENTITY, ZERO = optax.identity(), optax.set_to_zero()


@cache
def step_of(graphdef, optimizer, smoothing=0.0):
    """The step, the same object for equal models, so that it is compiled once."""
    return make_train_step(graphdef, optimizer, smoothing)


def one_step(model, batch, cores, wrap, seed=0, microbatches=1, smoothing=0.0):
    step = step_of(model.graphdef("float32"), IDENTITY, smoothing)
    state = first_state(model, IDENTITY)
    return wrap(step, state, split_over_cores(batch, cores, microbatches), parallel.run_key(seed))


@cache
def vmapped(step):
    return jax.jit(jax.vmap(step, in_axes=(0, 0, None, None), out_axes=(0, None), axis_name=CORES))


def by_vmap(step, state, batch, key):
    states = jax.tree.map(lambda x: np.stack([x] * len(batch["valid"])), state)
    state, measurements = vmapped(step)(states, batch, LEARNING_RATE, key)
    return jax.tree.map(lambda x: np.asarray(x)[0], state), measurements


def by_pmap(step, state, batch, key):
    pmapped = parallel.over_cores(step, (0, 0, None, None), (0, None), donate=True)
    rate = np.float32(LEARNING_RATE)
    state, measurements = pmapped(parallel.put_replicas(state), parallel.put(batch), rate, key)
    return parallel.take_replica(state), measurements


@pytest.mark.parametrize(
    ("cores", "microbatches", "wrap", "valid_rows"),
    [(8, 2, by_pmap, 11)]
    + [
        pytest.param(*layout, marks=pytest.mark.slow)
        for layout in (
            *((cores, 1, by_vmap, rows) for cores in (1, 2, 8) for rows in (16, 11, 1)),
            *((1, 4, by_vmap, 11), (2, 2, by_vmap, 16), (2, 8, by_vmap, 1)),
            *((8, 1, by_pmap, 16), (8, 1, by_pmap, 1)),
        )
    ],
)
def test_any_number_of_cores_and_microbatches_gives_the_plain_gradient(
    rng, cores, microbatches, wrap, valid_rows
):
    model = tiny.model()
    batch = tiny.random_batch(rng, 16)
    batch["valid"] = np.arange(16) < valid_rows
    loss, gradient = plain_loss_and_gradient(model, batch)
    state, measurements = one_step(model, batch, cores, wrap, microbatches=microbatches)

    np.testing.assert_allclose(measurements.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(measurements.grad_norm, optax.tree.norm(gradient), rtol=1e-5)
    assert_stepped_by(gradient, model, state)
    assert state.step == 1


def assert_stepped_by(gradient, model, state):
    before = weights_of(model).params
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    for old, new, grad in zip(*map(jax.tree.leaves, (before, state.params, gradient)), strict=True):
        np.testing.assert_allclose(old - new, grad, rtol=0, atol=2e-6 * max(scale, 1))


@pytest.mark.parametrize(("cores", "wrap"), [(1, by_vmap), (8, by_pmap)])
def test_lora_trains_only_adapters_and_head_with_the_plain_gradient(rng, cores, wrap):
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["query", "value"]))
    for _, layer in dense_layers(model.encoder):
        if isinstance(layer, LoraLinear):  # with B zero, A would have no gradient
            layer.lora_b[...] = jnp.asarray(rng.normal(0, 0.3, layer.lora_b.shape), jnp.float32)
    batch = tiny.random_batch(rng, 16)
    _, gradient = plain_loss_and_gradient(model, batch)
    assert len(jax.tree.leaves(gradient)) == 2 * 2 + 2
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(gradient["encoder"]))
    state, _ = one_step(model, batch, cores, wrap)
    assert_stepped_by(gradient, model, state)
    jax.tree.map(np.testing.assert_array_equal, state.fixed, weights_of(model).fixed)


def test_fixed_weights_do_not_change_and_have_no_optimizer_state(rng):
    """Not even under weight decay, which changes weights without a gradient."""
    model = tiny.model()
    table = model.encoder.embeddings.position
    trained = len(jax.tree.leaves(weights_of(model).params))
    table.embedding = Fixed(table.embedding[...])
    optimizer = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1))
    before = first_state(model, optimizer)
    assert len(jax.tree.leaves(before.params)) == trained - 1
    assert len(jax.tree.leaves(before.opt_state)) == 2 * (trained - 1) + 1
    batch = split_over_cores(tiny.random_batch(rng, 16), 8)
    step = make_train_step(nnx.graphdef(model), optimizer)
    after, _ = by_pmap(step, before, batch, parallel.run_key(0))
    jax.tree.map(np.testing.assert_array_equal, after.fixed, before.fixed)
    np.testing.assert_array_equal(*jax.tree.leaves(after.fixed), table.embedding[...])
    for old, new in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert (np.asarray(old) != new).any()


def test_padding_rows_do_not_change_the_update(rng):
    batch = tiny.random_batch(rng, 8)
    batch["valid"] = np.arange(8) < 5
    other = {k: v.copy() for k, v in batch.items()}
    other["input_ids"][5:] = 7
    other["end_positions"][5:] = 3
    states = [one_step(tiny.model(), b, 8, by_vmap)[0].params for b in (batch, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def with_labels_outside(batch, rows):
    """Put the start labels of the first `rows` rows, and fewer end labels, outside the rows."""
    length = batch["input_ids"].shape[1]
    changed = {k: v.copy() for k, v in batch.items()}
    changed["start_positions"][:rows] = length
    changed["end_positions"][: rows // 3] = 2**31 - 1
    return changed


@pytest.mark.parametrize(
    ("cores", "microbatches", "smoothing"),
    [
        pytest.param(1, 1, 0.0, marks=pytest.mark.slow),
        (2, 4, 0.2),
        pytest.param(8, 2, 0.0, marks=pytest.mark.slow),
    ],
)
def test_labels_outside_their_rows_take_no_part_in_the_mean(rng, cores, microbatches, smoothing):
    """They are unevenly distributed over cores and microbatches, and some rows are padding."""
    model = tiny.model()
    batch = with_labels_outside(tiny.random_batch(rng, 16), 7)
    batch["valid"] = np.arange(16) != 9
    valid = {k: v[batch["valid"]] for k, v in batch.items()}

    @jax.value_and_grad
    def mean_loss(params, fixed, inputs):
        logits = nnx.merge(model.graphdef("float32"), params, fixed).span_logits(**inputs)
        means = []
        for x, labels in zip(
            logits, (valid["start_positions"], valid["end_positions"]), strict=True
        ):
            inside = np.flatnonzero(labels < x.shape[1])
            logs = jax.nn.log_softmax(x[inside])
            target = jax.nn.one_hot(labels[inside], x.shape[1]) * (1 - smoothing)
            mask = valid["attention_mask"][inside]
            target += smoothing * mask / mask.sum(axis=1, keepdims=True)
            means.append(-(target * logs).sum(axis=1).mean())
        return sum(means) / 2

    loss, gradient = jax.jit(mean_loss)(
        *weights_of(model), model_inputs(jax.tree.map(jnp.asarray, valid))
    )
    settings = {"microbatches": microbatches, "smoothing": smoothing}
    state, measurements = one_step(model, batch, cores, by_vmap, **settings)
    np.testing.assert_allclose(measurements.loss, loss, rtol=1e-6)
    assert_stepped_by(gradient, model, state)


def test_a_batch_without_a_label_inside_has_no_loss_and_no_gradient(rng):
    model = tiny.model()
    batch = with_labels_outside(tiny.random_batch(rng, 8), 24)
    state, measurements = one_step(model, batch, 8, by_vmap)
    assert [float(x) for x in measurements] == [0.0, 0.0]
    jax.tree.map(np.testing.assert_array_equal, state.params, weights_of(model).params)


def test_padding_tokens_count_in_the_training_loss_but_not_in_evaluation(rng):
    """The training loss is Hugging Face's; `eval_loss` does not depend on padding."""
    model = tiny.model()
    batch = tiny.random_batch(rng, 8)
    wide = {k: np.pad(v, ((0, 0), (0, 40))) if v.ndim == 2 else v for k, v in batch.items()}
    trained, evaluated = [], []
    for b in (batch, wide):
        trained.append(float(one_step(model, b, 8, by_vmap)[1].loss))
        step = make_eval_step(model.graphdef("float32"))
        evaluated.append(jax.jit(step)(weights_of(model), b).losses)
    assert trained[1] > trained[0] + 0.1
    np.testing.assert_allclose(*evaluated, rtol=1e-5)


def test_label_smoothing_follows_its_definition(rng):
    """Cross entropy with a target of 1 - s at the label plus s spread over all real tokens."""
    model, smoothing = tiny.model(), 0.2
    batch = tiny.random_batch(rng, 8)
    graphdef, params = nnx.split(model)
    inputs = model_inputs(jax.tree.map(jnp.asarray, batch))
    logits = jax.jit(nnx.merge(graphdef, params).span_logits)(**inputs)
    real = batch["attention_mask"] / batch["attention_mask"].sum(axis=1, keepdims=True)
    losses = []
    for x, labels in zip(logits, (batch["start_positions"], batch["end_positions"]), strict=True):
        target = (1 - smoothing) * np.eye(x.shape[1])[labels] + smoothing * real
        losses.append(-(target * np.asarray(jax.nn.log_softmax(x))).sum(axis=1))
    loss = one_step(model, batch, 8, by_vmap, smoothing=smoothing)[1].loss
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    assert abs(loss - one_step(model, batch, 8, by_vmap)[1].loss) > 0.01


def test_dropout_depends_on_core_step_and_seed_alone(rng):
    model = tiny.model(hidden_dropout_prob=0.3)
    row = tiny.random_batch(rng, 1)
    same_row_everywhere = {k: np.repeat(v, 2, axis=0) for k, v in row.items()}
    losses = {}
    for seed, step in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        _, measurements = by_vmap(
            step_of(model.graphdef("float32"), ZERO),
            first_state(model, ZERO, step),
            split_over_cores(same_row_everywhere, 2),
            parallel.run_key(seed),
        )
        losses.setdefault((seed, step), []).append(float(measurements.loss))
    assert losses[0, 0][0] == losses[0, 0][1]
    assert len({values[0] for values in losses.values()}) == 3

    one_core = one_step(model, row, 1, by_vmap)[1].loss
    # The second core draws other masks, so the mean over both differs.
    assert losses[0, 0][0] != pytest.approx(float(one_core), rel=1e-6)


def test_training_and_evaluation_work_through_blocks_of_rows_on_a_tpu():
    """The model's hidden states are those of 8 rows in either step, nowhere those of all 16."""
    model, rows, width = tiny.model(max_position_embeddings=384), 16, 384
    ids = jax.ShapeDtypeStruct((rows, width), jnp.int32)
    label = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask"), ids)
    batch |= dict.fromkeys(("start_positions", "end_positions"), label)
    batch["valid"] = jax.ShapeDtypeStruct((rows,), jnp.bool)
    stacked = {k: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for k, a in batch.items()}
    graphdef, state = model.graphdef("float32"), first_state(model, IDENTITY)
    train = make_train_step(graphdef, IDENTITY), state, stacked, 1.0, parallel.run_key(0)
    evaluation = make_eval_step(graphdef), weights_of(model), batch
    for step, *inputs in (train, evaluation):
        with traced_with(platform="tpu"):
            text = str(jax.make_jaxpr(step, axis_env=[(CORES, 1)])(*inputs))
        hidden = {int(count) for count in re.findall(r"f32\[(\d+),384,32\]", text)}
        assert 8 in hidden
        assert 16 not in hidden


@pytest.mark.parametrize(
    ("platform", "rows", "width", "expected"),
    [
        ("tpu", 16, 384, 8),
        ("tpu", 8, 384, 8),
        ("tpu", 12, 384, 6),
        ("tpu", 11, 384, 11),  # no even blocks
        ("tpu", 16, 192, 16),
        ("tpu", 16, 512, 4),
        ("gpu", 64, 384, 64),
        ("cpu", 8, 384, 2),
    ],
)
def test_a_step_works_through_as_many_rows_as_suit_the_processor(platform, rows, width, expected):
    with traced_with(platform=platform):
        assert _rows_at_once(rows, width) == expected
