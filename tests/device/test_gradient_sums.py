"""`bf16_gradients`: the cores exchange gradients in bfloat16, and only that changes."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from tiny_trainers import assert_same_run, base_model, trainer_in, watched_trainer, watched_windows

from qa_flax.device import parallel
from qa_flax.models.sharding import (
    CORES,
    Shard,
    all_gather,
    sum_gradients,
    to_shards,
)
from qa_flax.models.tracing import traced_with
from qa_flax.train.checkpoints import ResumeError


def summed(gradients, is_on):
    """The sum over the cores of gradients [D, ...] by `sum_gradients`, and its program."""

    def step(gradient):
        with traced_with(sums_in_bf16=is_on):
            return sum_gradients({"kernel": gradient})["kernel"]

    cores = jax.devices()[: len(gradients)]
    program = parallel.over_cores(step, (0,), None, devices=cores)
    return np.asarray(program(gradients)), program.lower(gradients).as_text()


def test_gradients_are_rounded_before_they_are_summed(rng):
    gradients = rng.normal(size=(8, 5, 7)).astype(np.float32)
    rounded = gradients.astype(ml_dtypes.bfloat16).astype(np.float32)
    plain, plain_text = summed(gradients, is_on=False)
    actual, text = summed(gradients, is_on=True)
    assert "tensor<5x7xbf16>" in text
    assert "bf16" not in plain_text
    assert actual.dtype == np.float32
    np.testing.assert_allclose(plain, gradients.sum(axis=0), rtol=1e-5, atol=1e-5)
    # The sum itself is rounded to bfloat16, too: half a unit of its 8 bits.
    np.testing.assert_allclose(actual, rounded.sum(axis=0), rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(actual, actual.astype(ml_dtypes.bfloat16).astype(np.float32))
    # Equal gradients show that each is rounded before: float32 sums would be rounded only once.
    equal = np.broadcast_to(np.float32(1 + 2**-9), (8, 1))
    assert summed(equal, is_on=False)[0] == 8 * (1 + 2**-9)
    assert summed(equal, is_on=True)[0] == 8.0


def test_one_core_rounds_nothing(rng):
    gradients = rng.normal(size=(1, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(summed(gradients, is_on=True)[0], gradients[0])


def test_gradients_of_shards_are_scattered_in_bfloat16(rng):
    """The weights that are gathered stay exact."""
    array = rng.normal(size=(16, 3)).astype(np.float32)
    factors = rng.normal(size=(8, 16, 3)).astype(np.float32)

    @partial(jax.vmap, axis_name=CORES)
    def gradient(shard, factor):
        with traced_with(sums_in_bf16=True):
            loss = lambda data: jnp.sum(all_gather(Shard(data, (16, 3))) * factor)  # noqa: E731
            return all_gather(Shard(shard, (16, 3))), jax.grad(loss)(shard)

    gathered, grads = gradient(to_shards(array, 8), factors)
    np.testing.assert_array_equal(gathered[3], array)
    rounded = factors.astype(ml_dtypes.bfloat16).astype(np.float32).sum(axis=0)
    np.testing.assert_allclose(grads.reshape(16, 3), rounded, rtol=2**-7, atol=2e-2)
    assert np.abs(grads.reshape(16, 3) - factors.sum(axis=0)).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"shard_params": True}], ids=["replicated", "sharded"])
def test_training_learns_nearly_the_same(tmp_path, changes):
    """The weights differ, but by far less than an update moves them."""
    windows, models = watched_windows(), []
    for is_on in (False, True):
        models.append(base_model())
        folder = tmp_path / str(is_on)
        watched_trainer(folder, models[-1], windows, bf16_gradients=is_on, **changes).train()
    first, plain, rounded = (
        np.asarray(model.head.outputs.kernel[...]) for model in (base_model(), *models)
    )
    assert (plain != rounded).any()
    assert np.abs(plain - rounded).mean() < 0.1 * np.abs(plain - first).mean()


@pytest.mark.slow
def test_a_resumed_run_must_share_it(tmp_path):
    examples, tokenizer = tiny.examples(answerable=True), tiny.tokenizer()
    new = partial(trainer_in, examples=examples, tokenizer=tokenizer, bf16_gradients=True)
    whole = new(tmp_path / "whole")
    whole.train()
    part = new(tmp_path / "part", max_steps=2)
    part.train()
    other = trainer_in(tmp_path / "part", examples, tokenizer)
    with pytest.raises(ResumeError, match="bf16_gradients"):
        other.train(resume_from_checkpoint=True)
    resumed = new(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_run(whole, resumed)
