"""Stage 4 of 7: ERNIE (Sun et al. 2019, 2020): BERT with an embedding of the task (device, JAX)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import Embeddings, embedding


@dataclass(frozen=True)
class ErnieConfig(EncoderConfig):
    """The fields of an ERNIE config.json that affect the result, with HF's names."""

    use_task_id: bool
    task_type_vocab_size: int


class ErnieEmbeddings(Embeddings):
    """BERT's embeddings and, with `use_task_id`, the vector of the task 0 at every token.

    In transformers, too, the task is 0 unless a script passes others.
    """

    def __init__(self, config: ErnieConfig, *, dtype: jnp.dtype):
        h = config.hidden_size
        super().__init__(
            config,
            dtype=dtype,
            size=h,
            positions=config.max_position_embeddings,
            types=config.type_vocab_size,
        )
        self.task = embedding(config.task_type_vocab_size, h) if config.use_task_id else None

    def add_up(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"] | None,
        position_ids: Int[Array, "#b l"],
    ) -> Float[Array, "b l size"]:
        """The sum of the vectors, as of `Embeddings`, and the task's vector."""
        summed = super().add_up(input_ids, token_type_ids, position_ids)
        if self.task is None:
            return summed
        return summed + self.task(jnp.zeros((1, 1), input_ids.dtype))


class ErnieEncoder(Encoder):
    """Embeddings and `num_hidden_layers` post-norm blocks."""

    def __init__(self, config: ErnieConfig, *, dtype: jnp.dtype):
        embeddings = ErnieEmbeddings(config, dtype=dtype)
        super().__init__(config, dtype=dtype, embeddings=embeddings)


WEIGHT_NAMES = (
    EMBEDDING_NAMES | {r"embeddings\.task": r"embeddings.task_type_embeddings"} | BLOCK_NAMES
)

FAMILY = Family(
    "ernie",
    ErnieConfig.from_hf,
    ErnieEncoder,
    WEIGHT_NAMES,
    prefix="ernie.",
    architecture="ErnieForQuestionAnswering",
    positional_inputs=("token_type_ids",),
)
