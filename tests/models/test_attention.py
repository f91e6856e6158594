"""Attention masks, float32 scores, and rows whose keys are all masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import (
    TESTED,
    assert_same_gradients,
    batch_of,
    loud_model,
    relative_error,
    torch_gradients,
)

from qa_flax.models import attention as attention_module
from qa_flax.models.attention import attention, make_attention_mask, make_causal_mask
from qa_flax.models.tracing import traced_with


def test_masks_from_padding_and_from_segments():
    mask = jnp.array([[1, 1, 0]])
    assert np.asarray(make_attention_mask(mask)).tolist() == [[[[True, True, False]]]]
    segments = jnp.array([[1, 1, 2, 0]])
    mask = np.asarray(make_attention_mask(jnp.ones_like(segments), segments))[0, 0]
    assert mask.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    mask = np.asarray(make_causal_mask(jnp.ones((1, 3), jnp.int32)))[0, 0]
    assert mask.astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    mask = np.asarray(make_causal_mask(segments, segments))[0, 0]
    assert mask.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


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


@pytest.mark.parametrize(
    ("bias", "rate", "packed"),
    [
        (None, 0.0, False),
        (None, 0.3, True),
        ("shared", 0.3, False),
        ("of heads", 0.0, True),
        ("of heads and rows", 0.3, True),
    ],
)
def test_a_cpu_computes_the_same_by_heads(monkeypatch, bias, rate, packed):
    b, l, a, d = 3, 24, 4, 8
    random = np.random.default_rng(1)
    arrays = [jnp.asarray(random.normal(0, 2, (b, l, a, d)), jnp.float32) for _ in range(3)]
    is_real = jnp.asarray(np.arange(l) < np.array([[l], [9], [1]]), jnp.int32)
    segments = is_real * jnp.asarray(1 + (np.arange(l) > 5))[None]
    mask = make_attention_mask(is_real, segments if packed else None)
    shapes = {"shared": (1, 1), "of heads": (1, a), "of heads and rows": (b, a)}
    if bias is not None:
        shape = (*shapes[bias], l, l)
        arrays.append(jnp.asarray(random.normal(0, 2, shape), jnp.float32))

    def loss(arrays):
        rngs = nnx.Rngs(dropout=5) if rate else None
        mixed = attention(*arrays[:3], mask, *arrays[3:], dropout_rate=rate, rngs=rngs)
        return jnp.sum(jnp.sin(mixed) * is_real[:, :, None, None]), mixed

    def has_scan():
        return "scan" in str(jax.make_jaxpr(lambda arrays: loss(arrays))(arrays))

    assert not has_scan()
    whole = jax.grad(loss, has_aux=True)(arrays)
    monkeypatch.setattr(attention_module, "SCORES_AT_ONCE", 1)
    assert has_scan()
    by_heads = jax.grad(loss, has_aux=True)(arrays)
    for actual, expected in zip(jax.tree.leaves(by_heads), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    with traced_with(platform="tpu"):
        assert not has_scan()


@pytest.mark.slow
@pytest.mark.parametrize("family", TESTED)
def test_a_model_computes_the_same_by_heads(monkeypatch, request, family):
    """Logits and gradients, with loud weights, over padding."""
    graphdef, params, rest = nnx.split(loud_model(family=family), nnx.Param, ...)
    batch = batch_of(family)

    def loss(params, batch):
        logits = nnx.merge(graphdef, params, rest).span_logits(**batch)
        is_real = batch["attention_mask"] > 0
        return sum(jnp.sum(jnp.where(is_real, jnp.sin(x), 0)) for x in logits), logits

    def computed(at_once):
        monkeypatch.setattr(attention_module, "SCORES_AT_ONCE", at_once)
        jax.clear_caches()  # the blocks' traces, which do not know the constant
        scans = str(jax.make_jaxpr(lambda *args: loss(*args))(params, batch)).count("scan[")
        return scans, jax.jit(lambda *args: jax.grad(loss, has_aux=True)(*args))(params, batch)

    request.addfinalizer(jax.clear_caches)
    scans, (gradients, logits) = computed(attention_module.SCORES_AT_ONCE)
    scans_by_heads, (gradients_by_heads, logits_by_heads) = computed(1)
    assert scans_by_heads > scans
    for actual, expected in zip(logits_by_heads, logits, strict=True):
        assert relative_error(actual, expected) < 2e-5
    assert_same_gradients(*(torch_gradients(g, family) for g in (gradients_by_heads, gradients)))
