"""Longformer's attention: questions that PyTorch's class rejects, blocks, and linear cost."""

import functools

import jax
import numpy as np
import pytest
from loud import batch_of, logits_of, loud_model, relative_error

from qa_flax.models.families.longformer import windowed_attention

QUESTIONS = [
    # Positions of separators in rows of 30 tokens, tokens of the question. The window is 4.
    pytest.param((), 0, id="no separator: no question"),
    pytest.param((2, 5, 6, 9, 29), 2, id="many separators: the first ends the question"),
    pytest.param((9, 10, 29), 4, id="longer than the window: cut to the window"),
]


@pytest.mark.parametrize(("separators", "length"), QUESTIONS)
def test_the_question_has_global_attention_as_in_pytorch(separators, length, tmp_path):
    """PyTorch computes the same logits if `global_attention_mask` marks the question."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    import transformers

    batch = batch_of("longformer", 30)
    ids = batch["input_ids"]
    ids[ids == 39] = 1
    ids[:, separators] = 39
    model = loud_model(7, family="longformer")
    model.save_pretrained(tmp_path)
    torch_model = transformers.LongformerForQuestionAnswering.from_pretrained(tmp_path).eval()

    def error(tokens):
        question = torch.arange(30).expand(3, 30) < tokens
        inputs = {name: torch.tensor(values) for name, values in batch.items()}
        with torch.no_grad():
            expected = torch_model(**inputs, global_attention_mask=question.long())
        return relative_error(logits_of(model, batch).start, expected.start_logits.numpy())

    assert error(length) < 2e-5
    assert error(length + 1) > 1e-2


@pytest.mark.parametrize("length", [9, 16, 33])
def test_attention_in_blocks_equals_attention_over_the_row(length):
    """Lengths that are multiples of the block of 4 tokens and others; some tokens are masked."""
    random = np.random.default_rng(length)
    query, key, value = random.normal(size=(3, 2, length, 2, 4)).astype(np.float32)
    real = random.random((2, length)) < 0.8
    question = real & (np.arange(length) < [[5], [2]])
    attention = jax.jit(functools.partial(windowed_attention, window=8, max_question=6))
    actual = attention(query, key, value, real, question)
    near = np.abs(np.arange(length)[:, None] - np.arange(length)) <= 4
    mask = ((near & real[:, None]) | question[:, None])[:, None]
    weights = np.exp(np.einsum("bqad,bkad->baqk", query, key) / 2) * mask
    expected = np.einsum("baqk,bkad->bqad", weights / weights.sum(axis=-1, keepdims=True), value)
    assert relative_error(actual, expected) < 1e-5


def test_work_grows_linearly_with_the_length_of_a_row():
    model = loud_model(0, family="longformer", max_position_embeddings=1026)

    def flops(length):
        ids = np.ones((1, length), np.int64)
        run = jax.jit(lambda ids: model(input_ids=ids).start)
        return run.lower(ids).compile().cost_analysis()["flops"]

    assert flops(1024) < 2.1 * flops(512)
