"""What only the encoder-decoders do: the decoder's first words, a table of words by other names."""

import jax.numpy as jnp
import numpy as np
import pytest
from loud import batch_of, loud_model
from safetensors.numpy import load_file, save_file

from qa_flax.models.layers import restarting_positions
from qa_flax.models.model import AutoModelForQuestionAnswering


def first_words(ids, segments=None):
    ids = jnp.array(ids)
    where = None if segments is None else jnp.array(segments)
    places = jnp.arange(ids.shape[1])[None] if where is None else restarting_positions(where)
    return np.asarray(loud_model(family="mbart").encoder.first_words(ids, places, where)).tolist()


def test_the_decoder_begins_with_the_last_word_that_is_not_padding():
    # The padding word (0) inside a text makes PyTorch count one too few; a row of padding has none.
    assert first_words([[7, 8, 9, 0], [7, 0, 8, 9], [0, 0, 0, 0]]) == [[9], [8], [0]]


def test_each_packed_window_begins_with_its_own():
    ids, segments = [[7, 8, 9, 5, 0, 6, 4, 0]], [[1, 1, 1, 2, 2, 2, 3, 0]]
    assert first_words(ids, segments) == [[9, 9, 9, 0, 0, 0, 4, 0]]


@pytest.mark.parametrize("family", ["bart", "mbart"])
@pytest.mark.parametrize("name", ["model.encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
def test_the_table_of_words_is_read_by_any_of_its_names(family, name, tmp_path):
    model = loud_model(0, family=family)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{name}.weight"] = tensors.pop("model.shared.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    batch = batch_of(family)
    for ours, expected in zip(found(**batch), model(**batch), strict=True):
        np.testing.assert_array_equal(ours, expected)
