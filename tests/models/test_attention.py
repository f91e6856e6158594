"""Attention masks, float32 scores, and rows whose keys are all masked."""

import jax
import jax.numpy as jnp
import numpy as np

from qa_flax.models.attention import attention, make_attention_mask


def test_masks_from_padding_and_from_segments():
    mask = jnp.array([[1, 1, 0]])
    assert np.asarray(make_attention_mask(mask)).tolist() == [[[[True, True, False]]]]
    segments = jnp.array([[1, 1, 2, 0]])
    mask = np.asarray(make_attention_mask(jnp.ones_like(segments), segments))[0, 0]
    assert mask.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_attention_is_finite_if_all_keys_are_masked():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    mask = jnp.zeros((1, 1, 1, 4), bool)
    out = attention(x, x, x, mask)
    assert np.allclose(np.asarray(out), np.asarray(x).mean(1, keepdims=True), atol=1e-6)
    gradient = jax.grad(lambda y: attention(y, y, y, mask).sum())(x)
    assert np.isfinite(np.asarray(gradient)).all()


def test_scores_and_softmax_are_float32_in_bfloat16_compute():
    """In bfloat16, scores near 60 would have errors of 0.25, and probabilities of a quarter."""
    random = np.random.default_rng(0)
    arrays = [random.normal(0, size, (1, 50, 1, 64)) for size in (3, 3, 1)]
    query, key, value = (jnp.asarray(array, jnp.bfloat16) for array in arrays)
    mask = jnp.ones((1, 1, 1, 50), bool)
    ours = np.asarray(attention(query, key, value, mask), np.float64)[0, :, 0]
    q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in (query, key, value))
    weights = np.exp(q @ k.T / 8 - (q @ k.T / 8).max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    # The remaining error is the rounding of the probabilities and of the result to 8 bits.
    assert np.abs(ours - exact).max() < 2**-7 * np.abs(v).max()
