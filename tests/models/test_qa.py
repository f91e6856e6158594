"""Span losses compared with a float64 loop, including HF's treatment of positions outside a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_flax.models.qa import BANNED, SpanLogits, span_losses, span_terms, term_scales

RANDOM = np.random.default_rng(0)
LOGITS = SpanLogits(*(jnp.asarray(RANDOM.normal(0, 5, (6, 9)), jnp.float32) for _ in range(2)))


def loop(logits: np.ndarray, positions) -> np.ndarray:
    terms = []
    for row, position in zip(np.asarray(logits, np.float64), positions, strict=True):
        position = max(position, 0)
        terms.append(np.log(np.exp(row).sum()) - row[position] if position < len(row) else 0.0)
    return np.array(terms)


@pytest.mark.parametrize(
    ("start", "end"),
    [([0, 1, 2, 3, 4, 8], [8, 8, 2, 3, 0, 8]), ([9, 0, -1, 500, 3, -7], [9, 9, 4, 2, -1, 8])],
)
def test_losses_equal_a_plain_loop(start, end):
    ours = span_losses(LOGITS, jnp.array(start), jnp.array(end))
    expected = (loop(LOGITS.start, start) + loop(LOGITS.end, end)) / 2
    assert ours.dtype == jnp.float32
    assert np.abs(np.asarray(ours) - expected).max() < 1e-5


def test_a_position_beyond_the_row_has_no_gradient():
    outside = jnp.full((6,), 9)
    gradient = jax.grad(lambda logits: span_losses(logits, outside, outside).sum())(LOGITS)
    assert not np.asarray(gradient.start).any()
    assert not np.asarray(gradient.end).any()


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_those_of_transformers_with_labels_outside_the_rows(seed):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[parity]'")
    from transformers.loss.loss_utils import ForQuestionAnsweringLoss

    rng = np.random.default_rng(seed)
    rows, length = 12, 9
    logits = [rng.normal(0, 20, (rows, length)).astype(np.float32) for _ in range(2)]
    labels = rng.choice([-100, -1, 0, 4, 8, 9, 10, 2**31 - 1], (2, rows))
    labels[0, :3] = [3, 9, 9]  # at least one inside, and not as many starts as ends
    labels[1, :3] = [3, 8, 7]

    def mean_loss(logits):
        terms = span_terms(logits, *(jnp.array(x, jnp.int32) for x in labels))
        inside = [jnp.float32((x < length).sum()) for x in labels]
        scales = term_scales(jnp.stack([jnp.float32(rows), *inside]))
        return (scales @ jnp.stack(terms)).mean() / 2

    ours, gradient = jax.value_and_grad(mean_loss)(SpanLogits(*map(jnp.asarray, logits)))
    tensors = [torch.tensor(x, requires_grad=True) for x in logits]
    expected = ForQuestionAnsweringLoss(*tensors, *map(torch.tensor, labels))
    expected.backward()
    assert float(ours) == pytest.approx(expected.item(), rel=1e-6)
    for x, tensor in zip(gradient, tensors, strict=True):
        np.testing.assert_allclose(x, tensor.grad.numpy(), rtol=0, atol=1e-7)


def test_a_label_on_a_masked_token_counts_with_its_own_logit():
    """So the loss is finite, and does not depend on the other padding."""
    mask = jnp.asarray(np.arange(9) < 4, jnp.int32)[None].repeat(6, axis=0)
    labels = jnp.array([6, 6, 3, 0, 9, 6])
    terms = span_terms(LOGITS, labels, labels, mask)
    for row, label in enumerate(labels.tolist()):
        kept = sorted({0, 1, 2, 3, label} - {9})
        for actual, x in zip(terms, LOGITS, strict=True):
            expected = loop(
                x[row : row + 1, np.array(kept)], [kept.index(label)] if label < 9 else [9]
            )
            np.testing.assert_allclose(actual[row], expected[0], rtol=1e-5, atol=1e-6)


def test_label_smoothing_excludes_tokens_that_the_head_banned():
    real = jnp.ones(LOGITS.start.shape, jnp.int32)
    label = jnp.full((6,), 8)
    banned = SpanLogits(*(x.at[:, 1:4].add(-BANNED) for x in LOGITS))
    allowed = SpanLogits(*(jnp.delete(x, jnp.arange(1, 4), axis=1) for x in LOGITS))
    ours = span_losses(banned, label, label, smoothing=0.2, smoothed_over=real)
    expected = span_losses(allowed, label - 3, label - 3, smoothing=0.2, smoothed_over=real[:, 3:])
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_huge_logits_stay_finite():
    huge = SpanLogits(LOGITS.start * 1e30, LOGITS.end * 1e30)
    inside = jnp.zeros((6,), jnp.int32)
    assert np.isfinite(np.asarray(span_losses(huge, inside, inside))).all()


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e8, 1e8, 1e13, -1e13, 3e37])
def test_large_logits_have_the_loss_and_gradient_of_pytorch(offset):
    """A diverged run must not report the loss 0."""
    functional = pytest.importorskip("torch.nn.functional")
    import torch

    rows = np.asarray(LOGITS.start) + np.float32(offset)
    labels = np.array([6, 1, 3, 0, 8, 6])
    tensor = torch.tensor(rows, requires_grad=True)
    expected = functional.cross_entropy(tensor, torch.tensor(labels), reduction="none")
    expected.sum().backward()
    # Padding is masked: its logits, which are the largest here, do not count.
    padded = np.pad(rows, ((0, 0), (0, 2)), constant_values=np.finfo(np.float32).max)
    mask = jnp.asarray(np.arange(11) < 9, jnp.int32)[None].repeat(6, axis=0)

    def total(x, mask=None):
        terms = span_terms(SpanLogits(x, x), jnp.array(labels), jnp.array(labels), mask).start
        return terms.sum(), terms

    for x, real in ((rows, None), (padded, mask)):
        gradient, losses = jax.grad(total, has_aux=True)(jnp.asarray(x), real)
        np.testing.assert_allclose(losses, expected.detach(), rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(gradient[:, :9], tensor.grad, rtol=0, atol=1e-6)
        assert not gradient[:, 9:].any()


def test_a_row_without_tokens_and_label_has_no_loss_and_no_gradient():
    def total(x):
        labels, mask = jnp.full((6,), 9), jnp.zeros(x.shape, jnp.int32)
        return span_losses(SpanLogits(x, x), labels, labels, mask, smoothing=0.1).sum()

    value, gradient = jax.value_and_grad(total)(LOGITS.start)
    assert value == 0.0
    assert not gradient.any()


def test_span_logits_have_hugging_face_names():
    assert LOGITS.start_logits is LOGITS.start
    assert LOGITS.end_logits is LOGITS.end
    assert len(jax.tree.leaves(LOGITS)) == 2


def marginal_loop(logits, starts, ends, mask=None):
    """Minus half the logarithm of the spans' probability, by a float64 loop."""
    losses = []
    for row, (row_starts, row_ends) in enumerate(zip(starts, ends, strict=True)):
        length = logits.start.shape[1]
        spans = {
            (max(int(s), 0), max(int(e), 0))
            for s, e in zip(row_starts, row_ends, strict=True)
            if s < length and e < length
        }
        probabilities = []
        for array, ends_of in zip(logits, (0, 1), strict=True):
            values = np.exp(np.asarray(array[row], np.float64))
            if mask is not None:
                is_kept = mask[row] > 0
                is_kept[[span[ends_of] for span in spans]] = True
                values = np.where(is_kept, values, 0.0)
            probabilities.append(values / values.sum())
        joint = sum(probabilities[0][s] * probabilities[1][e] for s, e in spans)
        losses.append(-np.log(joint) / 2 if spans else 0.0)
    return np.array(losses)


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_loss_of_several_spans_is_that_of_their_joint_probability(is_masked):
    rng = np.random.default_rng(1)
    starts, ends = rng.permuted(np.tile(np.arange(9), (2, 6, 1)), axis=2)[:, :, :4]
    starts[0, 1:] = 9  # one span
    starts[1, :], ends[2, :3] = 9, 2**31 - 1  # none; one, whose others have ends outside
    mask = (np.arange(9) < rng.integers(3, 9, (6, 1))).astype(np.int32) if is_masked else None
    masks = () if mask is None else (jnp.array(mask),)
    ours = span_losses(LOGITS, jnp.array(starts), jnp.array(ends), *masks)
    expected = marginal_loop(LOGITS, starts, ends, mask)
    assert np.abs(np.asarray(ours) - expected).max() < 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_span_has_the_usual_loss_and_gradient(smoothing):
    starts, ends = jnp.array([0, 1, 2, 3, 4, 8]), jnp.array([8, 8, 2, 3, 0, 8])
    smoothed = {"smoothing": smoothing, "smoothed_over": jnp.ones((6, 9), jnp.int32)}
    padded = [jnp.stack([x, jnp.full(6, 2**31 - 1)], axis=1) for x in (starts, ends)]
    losses = [
        jax.value_and_grad(lambda logits, s=s, e=e: span_losses(logits, s, e, **smoothed).sum())
        for s, e in ((starts, ends), padded)
    ]
    (usual, gradient), (ours, own_gradient) = (loss(LOGITS) for loss in losses)
    assert abs(usual - ours) < 1e-5
    for a, b in zip(gradient, own_gradient, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-7)


def test_a_row_without_a_span_has_no_gradient_and_no_nan():
    outside = jnp.full((6, 3), 9)
    gradient = jax.grad(lambda logits: span_losses(logits, outside, outside).sum())(LOGITS)
    assert not np.asarray(gradient.start).any()


def test_loud_logits_give_finite_losses_of_several_spans():
    loud = SpanLogits(*(x * 1e4 for x in LOGITS))
    spans = jnp.array([[0, 1, 2]] * 6), jnp.array([[1, 2, 3]] * 6)
    value, gradient = jax.value_and_grad(lambda logits: span_losses(logits, *spans).sum())(loud)
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient.start)).all()
