"""Stage 4 of 7: mBART (Liu et al. 2020): BART that normalises first and begins with a row's end."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int

from qa_flax.models.families import bart
from qa_flax.models.family import Family


@dataclass(frozen=True)
class MBartConfig(bart.SharedFields):
    """The fields of an mBART config.json that change the result; its names are in `NAMES`."""


class MBartModel(bart.SharedModel):
    """As BART, but sublayers read normalised states and the decoder begins with the last word."""

    def __init__(self, config: MBartConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, norm_first=True)

    def first_words(
        self,
        input_ids: Int[Array, "b l"],
        places: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b #l"]:
        """The last word of each token's window, where in pretraining the language is named.

        As PyTorch counts: as many words as are not padding, from the window's first on.
        """
        own = jnp.ones((1, 1, 1), bool)
        if segment_ids is not None:
            own = segment_ids[:, :, None] == segment_ids[:, None, :]
        words = (input_ids != self.padding)[:, None, :]
        last = jnp.sum(own & words, axis=-1, keepdims=True) - 1
        return jnp.sum(jnp.where(own & (places[:, None, :] == last), input_ids[:, None, :], 0), -1)


WEIGHT_NAMES = bart.WEIGHT_NAMES | {r"(..coder)\.norm": r"\1.layer_norm"}

FAMILY = Family(
    "mbart",
    MBartConfig.from_hf,
    MBartModel,
    WEIGHT_NAMES,
    prefix="model.",
    architecture="MBartForQuestionAnswering",
    unused_weights=bart.UNUSED_WEIGHTS,
    other_names=bart.OTHER_NAMES,
)
