"""Longformer's attention: questions PyTorch's class does not find, blocks, linear cost."""

import functools

import jax
import numpy as np
import pytest
from loud import batch_of, logits_of, loud_model, relative_error

from qa_flax.models.families.longformer import windowed_attention

QUESTIONS = [
    # Separators in rows of 30, tokens of the question; the window is 4.
    pytest.param((), 0, id="no separator: no question"),
    pytest.param((2, 5, 6, 9, 29), 2, id="many separators: the first ends it"),
    pytest.param((9, 10, 29), 4, id="longer than the window: cut there"),
]


@pytest.mark.parametrize(("separators", "length"), QUESTIONS)
def test_questions_pytorch_does_not_find_by_itself(separators, length, tmp_path):
    """As PyTorch computes them when it is told how many tokens they have."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    import transformers

    batch = batch_of("longformer", 30)
    ids = batch["input_ids"]
    ids[ids == 39] = 1
    ids[:, separators] = 39
    model = loud_model(7, family="longformer")
    model.save_pretrained(tmp_path)
    theirs = transformers.LongformerForQuestionAnswering.from_pretrained(tmp_path).eval()

    def error(tokens):
        asked = torch.arange(30).expand(3, 30) < tokens
        inputs = {name: torch.tensor(values) for name, values in batch.items()}
        with torch.no_grad():
            wanted = theirs(**inputs, global_attention_mask=asked.long())
        return relative_error(logits_of(model, batch).start, wanted.start_logits.numpy())

    assert error(length) < 2e-5
    assert error(length + 1) > 1e-2


@pytest.mark.parametrize("length", [9, 16, 33])
def test_blocks_give_what_a_whole_row_gives(length):
    """Of every length against the block of 4 tokens; with gaps in the row."""
    random = np.random.default_rng(length)
    query, key, value = random.normal(size=(3, 2, length, 2, 4)).astype(np.float32)
    real = random.random((2, length)) < 0.8
    asked = real & (np.arange(length) < [[5], [2]])
    attention = jax.jit(functools.partial(windowed_attention, window=8, first=6))
    ours = attention(query, key, value, real, asked)
    near = np.abs(np.arange(length)[:, None] - np.arange(length)) <= 4
    pairs = ((near & real[:, None]) | asked[:, None])[:, None]
    weights = np.exp(np.einsum("bqad,bkad->baqk", query, key) / 2) * pairs
    wanted = np.einsum("baqk,bkad->bqad", weights / weights.sum(axis=-1, keepdims=True), value)
    assert relative_error(ours, wanted) < 1e-5


def test_work_grows_with_the_row_and_not_with_its_square():
    model = loud_model(0, family="longformer", max_position_embeddings=1026)

    def flops(length):
        ids = np.ones((1, length), np.int64)
        run = jax.jit(lambda ids: model(input_ids=ids).start)
        return run.lower(ids).compile().cost_analysis()["flops"]

    assert flops(1024) < 2.1 * flops(512)
