"""Stage 4 of 7: mBART (Liu et al. 2020): BART's layers, normalised before them (device, JAX)."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Int

from qa_flax.models.seq2seq import Seq2SeqConfig, Seq2SeqEncoder


def turn_right(ids: Int[Array, "b l"], padding: int) -> Int[Array, "b l"]:
    """Every token but the last, after the row's last that is no `padding`: the language's."""
    last = jnp.maximum(jnp.sum(ids != padding, axis=1) - 1, 0)
    first = jnp.take_along_axis(ids, last[:, None], axis=1)
    return jnp.concatenate([first, ids[:, :-1]], axis=1)


class MBartEncoder(Seq2SeqEncoder):
    """Encoder and decoder of pre-norm layers."""

    def __init__(self, config: Seq2SeqConfig, *, dtype: jnp.dtype):
        shift = partial(turn_right, padding=config.pad_token_id)
        super().__init__(config, shift, pre_norm=True, dtype=dtype)
