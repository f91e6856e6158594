"""Stage 4 of 7: Splinter (Ram et al. 2021): BERT with a question-aware span head (device, JAX)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import layer_norm, linear
from qa_flax.models.qa import SpanLogits

# The epsilon of the head's LayerNorms, whatever config.json says: it is PyTorch's default.
HEAD_EPSILON = 1e-5


@dataclass(frozen=True)
class SplinterConfig(EncoderConfig):
    """The fields of a Splinter config.json that affect the result, with HF's names."""

    question_token_id: int

    REQUIRED: ClassVar = {"position_embedding_type": "absolute"}


class SplinterEncoder(Encoder):
    """BERT's embeddings and `num_hidden_layers` post-norm blocks."""


# ---- the head ------------------------------------------------------------------------------------


class Transform(nnx.Module):
    """A dense layer, GELU and LayerNorm: `[b, n, h] -> [b, n, h]`."""

    def __init__(self, size: int, *, dtype: jnp.dtype):
        self.dense = linear(size, size, dtype)
        self.norm = layer_norm(size, HEAD_EPSILON, dtype)

    def __call__(self, hidden: Float[Array, "b n h"]) -> Float[Array, "b n h"]:
        """Transform every vector."""
        return self.norm(nnx.gelu(self.dense(hidden), approximate=False))


class BilinearOutputs(nnx.Module):
    """The matrices that compare the question's vectors with those of every token, float32."""

    def __init__(self, size: int):
        # Always float32, whatever the encoder's compute dtype.
        self.start, self.end = (linear(size, size, jnp.dtype("float32"), bias=False) for _ in "se")

    def __call__(
        self,
        queries: tuple[Float[Array, "b q h"], Float[Array, "b q h"]],
        tokens: tuple[Float[Array, "b l h"], Float[Array, "b l h"]],
    ) -> SpanLogits:
        """The logits of starts and ends; there is one question for all tokens, or one for each."""
        pairs = zip((self.start, self.end), queries, tokens, strict=True)
        return SpanLogits(*(jnp.sum(matrix(q) * t, axis=-1) for matrix, q, t in pairs))


class QuestionAwareHead(nnx.Module):
    """Question-aware span selection (QASS): the question is read from its `[QUESTION]` token.

    The tokenizer puts this token after the question. A token's logit is the bilinear product of its
    vector and that of the question token; a row without one uses its first token. As in PyTorch,
    tokens of the padding have the lowest float32 number.
    """

    def __init__(self, config: SplinterConfig, *, dtype: jnp.dtype):
        self.question_token = config.question_token_id
        self.query_start, self.query_end, self.start, self.end = (
            Transform(config.hidden_size, dtype=dtype) for _ in range(4)
        )
        self.outputs = BilinearOutputs(config.hidden_size)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """Compute float32 logits; with `segment_ids` every window has its own question token."""
        places = question_places(input_ids == self.question_token, segment_ids)
        questions = jnp.take_along_axis(hidden, places[..., None], axis=1)
        logits = self.outputs(
            (self.query_start(questions), self.query_end(questions)),
            (self.start(hidden), self.end(hidden)),
        )
        if attention_mask is None:
            return logits
        penalty = jnp.where(attention_mask > 0, 0.0, jnp.finfo(jnp.float32).min)
        return SpanLogits(logits.start + penalty, logits.end + penalty)


def question_places(is_question: Array, segment_ids: Int[Array, "b l"] | None) -> Int[Array, "b q"]:
    """The place of the question token, or of the first token where there is none.

    Args:
        is_question: `[b, l]`, True for question tokens.
        segment_ids: numbers of the windows packed into a row.

    Returns:
        `[b, 1]`, or with `segment_ids` `[b, l]`: for each token the place in its own window.
    """
    if segment_ids is None:
        return jnp.argmax(is_question, axis=1, keepdims=True)
    same_window = segment_ids[:, :, None] == segment_ids[:, None, :]
    # The first largest number: a question token of the window, else the window's first token.
    return jnp.argmax(same_window * (1 + is_question[:, None, :].astype(jnp.int32)), axis=2)


WEIGHT_NAMES = EMBEDDING_NAMES | BLOCK_NAMES
HEAD_WEIGHT_NAMES = {
    r"(query_start|query_end|start|end)\.dense": r"splinter_qass.\1_transform.dense",
    r"(query_start|query_end|start|end)\.norm": r"splinter_qass.\1_transform.LayerNorm",
    r"outputs\.(start|end)": r"splinter_qass.\1_classifier",
}

FAMILY = Family(
    "splinter",
    SplinterConfig.from_hf,
    SplinterEncoder,
    WEIGHT_NAMES,
    prefix="splinter.",
    architecture="SplinterForQuestionAnswering",
    head=QuestionAwareHead,
    head_weight_names=HEAD_WEIGHT_NAMES,
)
