"""What mBART's decoder reads first, by hand."""

import jax.numpy as jnp
import numpy as np
from loud import loud_model

from qa_flax.models.layers import restarting_positions


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
