"""Statistics of dropout masks and of the random words they are made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qa_flax.models.dropout import dropout, random_words


def dropped(seed: int, rate: float = 0.1, shape=(64, 4096)) -> np.ndarray:
    rngs = nnx.Rngs(dropout=seed)
    return np.asarray(dropout(jnp.ones(shape), rate, rngs))


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
