"""Stage 4 of 7: mBART (Liu et al. 2020): pre-norm BART; the row's last token starts the decoder."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int

from qa_flax.models.families import bart
from qa_flax.models.family import Family


@dataclass(frozen=True)
class MBartConfig(bart.BartBaseConfig):
    """The fields of an mBART config.json that affect the result; `NAMES` has HF's names."""


class MBartModel(bart.BartBaseModel):
    """BART with pre-norm blocks; the decoder's first token is the last one of the window."""

    def __init__(self, config: MBartConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, norm_first=True)

    def first_tokens(
        self,
        input_ids: Int[Array, "b l"],
        window_positions: Int[Array, "#b l"],
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b #l"]:
        """The last token of each token's window; in pretraining it names the language.

        As in PyTorch, its position is the number of tokens that are not `pad_token_id`, minus 1:
        too low if the padding token occurs inside the text.
        """
        same_window = jnp.ones((1, 1, 1), bool)
        if segment_ids is not None:
            same_window = segment_ids[:, :, None] == segment_ids[:, None, :]
        not_padding = (input_ids != self.padding)[:, None, :]
        last = jnp.sum(same_window & not_padding, axis=-1, keepdims=True) - 1
        is_last = same_window & (window_positions[:, None, :] == last)
        return jnp.sum(jnp.where(is_last, input_ids[:, None, :], 0), axis=-1)


WEIGHT_NAMES = bart.WEIGHT_NAMES | {r"(encoder|decoder)\.norm": r"\1.layer_norm"}

FAMILY = Family(
    "mbart",
    MBartConfig.from_hf,
    MBartModel,
    WEIGHT_NAMES,
    prefix="model.",
    architecture="MBartForQuestionAnswering",
    positional_inputs=(),
    unused_weights=bart.UNUSED_WEIGHTS,
    tied_names=bart.TIED_NAMES,
    other_names=bart.OTHER_NAMES,
)
