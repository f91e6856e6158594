"""Stage 4 of 7: BART (Lewis et al. 2019): the span is read from the decoder (device, JAX)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from qa_flax.models.configs import read_config
from qa_flax.models.seq2seq import NAMES, REQUIRED, Seq2SeqConfig, Seq2SeqEncoder


@dataclass(frozen=True)
class BartConfig(Seq2SeqConfig):
    """`seq2seq.Seq2SeqConfig`, and the token that the decoder reads first."""

    decoder_start_token_id: int

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "BartConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        Seq2SeqConfig.from_hf(values)
        return read_config(cls, values, names=NAMES, required=REQUIRED)


def shift_right(ids: Int[Array, "b l"], first: int) -> Int[Array, "b l"]:
    """Every token but the last, after `first`."""
    return jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=first)


class BartEncoder(Seq2SeqEncoder):
    """Encoder and decoder of post-norm layers."""

    def __init__(self, config: BartConfig, *, dtype: jnp.dtype):
        shift = partial(shift_right, first=config.decoder_start_token_id)
        super().__init__(config, shift, pre_norm=False, dtype=dtype)
