"""Sliding-window attention in blocks equals full attention with all other pairs masked."""

import functools
import itertools

import jax
import numpy as np
import pytest
from loud import relative_error

from qa_flax.models.local_attention import block_size, local_attention, make_local_mask


def attention_loop(query, key, value, mask, segments, window):
    """A loop over rows, tokens and heads in float64; zeros for tokens without any key."""
    b, l, heads, size = query.shape
    mixed = np.zeros((b, l, heads, size))
    for row, i, head in itertools.product(range(b), range(l), range(heads)):
        keys = [
            j
            for j in range(max(0, i - window), min(l, i + window + 1))
            if mask[row, j] and (segments is None or segments[row, i] == segments[row, j])
        ]
        if keys:
            scores = key[row, keys, head].astype(np.float64) @ query[row, i, head] / size**0.5
            weights = np.exp(scores - scores.max())
            mixed[row, i, head] = weights / weights.sum() @ value[row, keys, head]
    return mixed


def inputs(length, packed, seed=0):
    random = np.random.default_rng(seed)
    query, key, value = random.standard_normal((3, 2, length, 2, 4)).astype(np.float32)
    mask = (np.arange(length) < np.array([[length], [length // 2]])).astype(np.int32)
    segments = np.sort(random.integers(1, 4, (2, length)), axis=1).astype(np.int32) * mask
    return query, key, value, mask, segments if packed else None


@functools.partial(jax.jit, static_argnums=5)
def ours(query, key, value, mask, segments, window):
    return local_attention(query, key, value, make_local_mask(mask, segments, window), window)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "window"), [(3, 0), (9, 1), (12, 3), (13, 3), (24, 3), (31, 5), (40, 20)]
)
def test_each_token_attends_to_its_window(length, window, packed):
    arrays = inputs(length, packed)
    assert relative_error(ours(*arrays, window), attention_loop(*arrays, window)) < 1e-6


def test_the_sizes_above_include_split_and_unsplit_rows():
    sizes = ((3, 0), (9, 1), (12, 3), (13, 3), (24, 3), (40, 20))
    assert [block_size(*size) for size in sizes] == [1, 1, None, 3, 3, None]


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_the_same_with_and_without_blocks(packed, monkeypatch):
    query, key, value, *masks = inputs(29, packed)

    def loss(query, key, value):
        return (ours(query, key, value, *masks, 4) ** 2).sum()

    in_blocks = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    ours.clear_cache()  # it was traced with the original `block_size`
    monkeypatch.setattr("qa_flax.models.local_attention.block_size", lambda length, window: None)
    masked = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    for actual, expected in zip(in_blocks, masked, strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("packed", [False, True])
def test_memory_is_linear_in_the_length_of_rows(packed):
    def largest(length):
        query, *others = inputs(length, packed)
        jaxpr = jax.make_jaxpr(jax.grad(lambda query: ours(query, *others, 8).sum()))(query)
        return max(
            int(np.prod(out.aval.shape)) for each in equations(jaxpr.jaxpr) for out in each.outvars
        )

    assert largest(2048) == 2 * largest(1024)
    assert largest(2048) < 2048**2


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)
