"""Statistics of dropout masks and of the random words they are made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qa_flax.device.parallel import run_key
from qa_flax.models.attention import attention
from qa_flax.models.dropout import (
    dropout,
    random_words,
)
from qa_flax.models.tracing import trace_settings, traced_with


def dropped(seed: int, rate: float = 0.1, shape=(64, 4096), **settings) -> np.ndarray:
    rngs = nnx.Rngs(dropout=run_key(seed) if trace_settings().has_hardware_bits else seed)
    return np.asarray(dropout(jnp.ones(shape), rate, rngs, **settings))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_the_given_rate_and_preserves_the_mean(rate):
    out = dropped(0, rate)
    spread = 5 * np.sqrt(rate * (1 - rate) / out.size)
    assert abs((out == 0).mean() - rate) < spread
    assert np.allclose(out[out != 0], 1 / (1 - rate))
    assert abs(out.mean() - 1) < spread / (1 - rate)


def test_dropout_is_off_without_rngs_or_rate():
    x = jnp.arange(6.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, nnx.Rngs(dropout=0)) is x
    assert not np.asarray(dropout(x, 1.0, nnx.Rngs(dropout=0))).any()


def test_dropout_masks_are_independent():
    """Uncorrelated between neighbours, shifted rows, different keys, and draws of the same key."""
    rngs = nnx.Rngs(dropout=0)
    first, following = (np.asarray(dropout(jnp.ones((64, 4096)), 0.5, rngs)) for _ in range(2))
    a = first - 1
    others = [following - 1, *(dropped(seed, 0.5) - 1 for seed in range(1, 6))]
    pairs = [(a, b) for b in others]
    pairs += [(a[:, :-lag], a[:, lag:]) for lag in (1, 2, 3, 4, 8, 16, 64, 1024)]
    pairs += [(a[:-lag], a[lag:]) for lag in (1, 2, 4, 8, 16, 32)]
    correlations = [float((x * y).mean() * np.sqrt(x.size)) for x, y in pairs]
    # Each is normal(0, 1) if the masks are independent.
    assert np.abs(correlations).max() < 4.5, correlations


def test_every_bit_of_a_random_word_is_fair():
    words = np.asarray(random_words(jax.random.key(3), (1 << 18,)))
    ones = np.array([((words >> bit) & 1).mean() for bit in range(32)])
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(words.size)
    assert len(np.unique(words)) == words.size  # the hash is one-to-one


def test_the_same_key_gives_the_same_words_with_any_generator():
    for generator in ("threefry2x32", "rbg"):
        first, second = (random_words(jax.random.key(0, impl=generator), (5,)) for _ in range(2))
        assert (first == second).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.001, 0.999])
@pytest.mark.parametrize("is_scores", [False, True])
def test_hardware_bits_have_the_rate_in_steps_of_256_and_preserve_the_mean(rate, is_scores):
    with traced_with(dropout_bits="hardware"):
        out = dropped(0, rate, is_scores=is_scores)
        again, other = dropped(0, rate, is_scores=is_scores), dropped(1, rate, is_scores=is_scores)
    np.testing.assert_array_equal(out, again)
    assert (out != other).any()
    actual = np.clip(round(rate * 256), 1, 255) / 256
    spread = 5 * np.sqrt(actual * (1 - actual) / out.size)
    assert abs((out == 0).mean() - actual) < spread
    np.testing.assert_allclose(out[out != 0], 1 / (1 - actual), rtol=1e-6)
    assert abs(out.mean() - 1) < spread / (1 - actual)


def test_hardware_bits_drop_everything_or_nothing_where_that_is_asked_for():
    with traced_with(dropout_bits="hardware"):
        assert not dropped(0, 1.0).any()
        assert (dropped(0, 0.0) == 1).all()
    assert (dropped(0, 0.1) != dropped(1, 0.1)).any()


def test_hardware_masks_are_independent():
    """Uncorrelated between rows, columns, keys, and draws of the same key."""
    with traced_with(dropout_bits="hardware"):
        rngs = nnx.Rngs(dropout=run_key(0))
        first, second = (dropout(jnp.ones((64, 4096)), 0.5, rngs) for _ in range(2))
        a, b = np.asarray(first) - 1, np.asarray(second) - 1
        pairs = [(a, b), *((a, dropped(seed, 0.5) - 1) for seed in range(1, 4))]
    pairs += [(a[:, :-lag], a[:, lag:]) for lag in (1, 2, 4, 16, 64)]
    pairs += [(a[:-lag], a[lag:]) for lag in (1, 2, 8)]
    correlations = [float((x * y).mean() * np.sqrt(x.size)) for x, y in pairs]
    assert np.abs(correlations).max() < 4.5, correlations


@pytest.mark.parametrize("rows", [1, 8])
def test_attention_drops_with_hardware_bits_in_either_form(rng, rows):
    """All heads at once and one after the other, as on a CPU with many scores."""
    b, l, a, d = rows, 192, 4, 8
    query, key = (jnp.asarray(rng.normal(size=(b, l, a, d)), jnp.float32) for _ in range(2))
    value = jnp.ones((b, l, a, d), jnp.float32)
    mask = jnp.ones((b, 1, 1, l), bool)

    @jax.jit
    def with_key(dropout_key):
        rngs = nnx.Rngs(dropout=dropout_key)
        return attention(query, key, value, mask, dropout_rate=0.25, rngs=rngs)

    def mixed(seed):
        with traced_with(dropout_bits="hardware"):
            return with_key(run_key(seed))

    out = np.asarray(mixed(0))
    np.testing.assert_array_equal(out, mixed(0))
    assert (out != mixed(1)).any()
    # The values are 1, so the result is what is left of the probabilities' sum; it keeps the mean.
    assert abs(out.mean() - 1) < 0.01
    assert out.std() > 0.01
    assert np.abs(out[:, :, 0] - out[:, :, 1]).max() > 0.01  # heads have masks of their own
