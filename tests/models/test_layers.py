"""Dropout's statistics, attention masks, restarting positions, activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qa_flax.models.layers import (
    ACTIVATIONS,
    attention,
    attention_pairs,
    dropout,
    random_words,
    restarting_positions,
)


def dropped(seed: int, rate: float = 0.1, shape=(64, 4096)) -> np.ndarray:
    rngs = nnx.Rngs(dropout=seed)
    return np.asarray(dropout(jnp.ones(shape), rate, rngs))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_rate_and_the_mean(rate):
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
    """Of neighbours in each axis, of other keys, of shifted rows, and of the next draw of a key."""
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
    assert len(np.unique(words)) == words.size  # both mixings are one-to-one


def test_same_key_same_words_of_any_generator():
    for kind in ("threefry2x32", "rbg"):
        one, two = (random_words(jax.random.key(0, impl=kind), (5,)) for _ in range(2))
        assert (one == two).all()


def test_attention_pairs_of_lengths_and_of_segments():
    mask = jnp.array([[1, 1, 0]])
    assert np.asarray(attention_pairs(mask)).tolist() == [[[[True, True, False]]]]
    segments = jnp.array([[1, 1, 2, 0]])
    pairs = np.asarray(attention_pairs(jnp.ones_like(segments), segments))[0, 0]
    assert pairs.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_positions_restart_in_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5]]
    assert np.asarray(restarting_positions(segments)).tolist() == expected


def test_attention_is_finite_where_nothing_may_be_seen():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    nothing = jnp.zeros((1, 1, 1, 4), bool)
    out = attention(x, x, x, nothing)
    assert np.allclose(np.asarray(out), np.asarray(x).mean(1, keepdims=True), atol=1e-6)
    gradient = jax.grad(lambda y: attention(y, y, y, nothing).sum())(x)
    assert np.isfinite(np.asarray(gradient)).all()


def test_scores_and_softmax_are_float32_in_bfloat16_compute():
    """Scores near 60 would be off by 0.25 in bfloat16, probabilities by a quarter."""
    random = np.random.default_rng(0)
    arrays = [random.normal(0, size, (1, 50, 1, 64)) for size in (3, 3, 1)]
    query, key, value = (jnp.asarray(array, jnp.bfloat16) for array in arrays)
    everywhere = jnp.ones((1, 1, 1, 50), bool)
    ours = np.asarray(attention(query, key, value, everywhere), np.float64)[0, :, 0]
    q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in (query, key, value))
    weights = np.exp(q @ k.T / 8 - (q @ k.T / 8).max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    # What is left is the rounding of the probabilities and of the result to 8 bits.
    assert np.abs(ours - exact).max() < 2**-7 * np.abs(v).max()


def test_gelu_is_the_exact_one():
    x = np.linspace(-4, 4, 9)
    from math import erf

    exact = np.array([v * 0.5 * (1 + erf(v / np.sqrt(2))) for v in x])
    assert np.abs(np.asarray(ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32))) - exact).max() < 1e-6
