"""BART and mBART: the decoder's first token, and the other names of the embedding table."""

import jax.numpy as jnp
import numpy as np
import pytest
from loud import batch_of, loud_model
from safetensors.numpy import load_file, save_file

from qa_flax.models.layers import restarting_positions
from qa_flax.models.model import AutoModelForQuestionAnswering


def first_tokens(ids, segments=None):
    ids = jnp.array(ids)
    if segments is None:
        positions = jnp.arange(ids.shape[1])[None]
    else:
        segments = jnp.array(segments)
        positions = restarting_positions(segments)
    first = loud_model(family="mbart").encoder.first_tokens(ids, positions, segments)
    return np.asarray(first).tolist()


def test_the_first_decoder_token_is_the_last_one_that_is_not_padding():
    # The padding token (0) inside a text makes PyTorch count one too few. A row of padding gets 0.
    assert first_tokens([[7, 8, 9, 0], [7, 0, 8, 9], [0, 0, 0, 0]]) == [[9], [8], [0]]


def test_each_packed_window_has_its_own_first_decoder_token():
    ids, segments = [[7, 8, 9, 5, 0, 6, 4, 0]], [[1, 1, 1, 2, 2, 2, 3, 0]]
    assert first_tokens(ids, segments) == [[9, 9, 9, 0, 0, 0, 4, 0]]


@pytest.mark.parametrize("family", ["bart", pytest.param("mbart", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["model.encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
def test_the_embedding_table_is_loaded_under_any_of_its_names(family, name, tmp_path):
    model = loud_model(0, family=family)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{name}.weight"] = tensors.pop("model.shared.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    batch = batch_of(family)
    for actual, expected in zip(loaded(**batch)[:2], model(**batch)[:2], strict=True):
        np.testing.assert_array_equal(actual, expected)
