"""Stage 4 of 7: BigBird (Zaheer et al. 2020), with block sparse attention (device, JAX).

Axis letters in addition to those of `layers.py`: `n` blocks of a row, `inner` all of these but the
first and the last, `s` tokens of a block, `r` random blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from qa_flax.models.activations import ACTIVATIONS
from qa_flax.models.attention import attention, in_blocks
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, PostNormBlock, Stack
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.dropout import dropout
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import embedding, layer_norm, linear, look_up
from qa_flax.models.qa import BANNED, SpanHead, SpanLogits


@dataclass(frozen=True)
class BigBirdConfig(EncoderConfig):
    """The fields of a BigBird config.json that affect the result, with Hugging Face's names."""

    sep_token_id: int
    attention_type: str
    use_bias: bool
    rescale_embeddings: bool
    block_size: int
    num_random_blocks: int

    REQUIRED: ClassVar = {
        **EncoderConfig.REQUIRED,
        "attention_type": ("block_sparse", "original_full"),
    }

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "BigBirdConfig":
        """Read the values of config.json.

        Raises:
            ValueError: a setting is not supported.
        """
        if values["sep_token_id"] is None:
            raise ValueError(
                "sep_token_id=None is not supported for big_bird; set it to the id of the "
                "separator token, which ends the question"
            )
        return super().from_hf(values)

    def is_sparse(self, length: int) -> bool:
        """Return whether rows of `length` tokens use block sparse attention."""
        # As in Hugging Face's model, short rows use full attention.
        longest_full = self.candidate_blocks * self.block_size
        return self.attention_type == "block_sparse" and length > longest_full

    @property
    def candidate_blocks(self) -> int:
        """Number of blocks at the start of a row from which the random blocks are drawn."""
        return 5 + 2 * self.num_random_blocks


# ---- block sparse attention ----------------------------------------------------------------------


def draw_random_blocks(config: BigBirdConfig, n: int, layer: int) -> Int[np.ndarray, "a inner r"]:
    """Draw the random blocks that blocks 1 to n - 2 attend to in training.

    They are those of transformers' PyTorch model. The seed is the index of the layer, so every
    training step uses the same blocks.

    Args:
        config: the config.
        n: number of blocks in a row.
        layer: index of the layer.

    Returns:
        The indexes of the random blocks, int32.
    """
    generator = np.random.RandomState(layer)
    heads, r, size = config.num_attention_heads, config.num_random_blocks, config.block_size
    blocks = np.zeros((heads, n - 2, r), np.int32)
    if n * size in (1024, 3072, 4096):
        # For these lengths PyTorch uses the paper's method. It draws for all blocks of the longest
        # possible row, and the random state must advance by as much even if this row is shorter.
        longest = config.max_position_embeddings // size
        for head in range(heads):
            for block in range(1, longest - 1):
                drawn = generator.permutation(_paper_candidates(block, longest, size))
                if block < n - 1:
                    blocks[head, block - 1] = drawn[:r]
        return blocks
    end = config.candidate_blocks
    for block in range(1, n - 1):
        attended = {0, block - 1, block, block + 1, end - 1}
        if block == 1:
            attended.add(end - 2)
        if block == end - 2:
            attended.add(1)
        for head in range(heads):
            drawn = generator.permutation(end)
            blocks[head, block - 1] = drawn[~np.isin(drawn, list(attended))][:r]
    return blocks


def _paper_candidates(block: int, n: int, size: int) -> Int[np.ndarray, " candidates"]:
    """Return the candidates for the random blocks of `block` in a row of `n` blocks.

    They are blocks in the first 1024 tokens, without those that `block` always attends to. For the
    last blocks of a row, PyTorch's slices also contain some of these, so the slices here do, too.
    """
    inner = np.arange(1, n - 1)
    last = 1024 // size - 1 if 2 * size < 1024 else n - 1
    if block <= 2:
        return inner[block + 1 : last]
    if block >= n - 3 or block - 2 > last:
        return inner[:last]
    if block + 1 == last:
        return inner[: block - 2]
    return np.concatenate((inner[: block - 2], inner[block + 1 : last]))


def block_sparse_attention(
    query: Float[Array, "b l a d"],
    key: Float[Array, "b l a d"],
    value: Float[Array, "b l a d"],
    real: Bool[Array, "b 1 1 l"],
    size: int,
    random_blocks: Int[np.ndarray, "a inner r"],
) -> Float[Array, "b l a d"]:
    """Attend from each block of `size` tokens to a few blocks; the output of padding is zero.

    The first and the last block of a row attend to all tokens. Every other block attends to these
    two, to itself, to its two neighbours and to its `random_blocks`. `real` is False for padding.
    """
    b, l, a, d = query.shape
    mask = jnp.broadcast_to(real.reshape(b, l, 1, 1), (b, l, a, 1))
    queries, keys, values, reals = (_by_head(x, size) for x in (query, key, value, mask))
    # The left neighbour of block 1 is the first block, and the right neighbour of block n - 2 is
    # the last one. Both are among the keys already, so the second copy is masked.
    is_first_copy = np.ones((queries.shape[2] - 2, 5 + random_blocks.shape[-1]), bool)
    is_first_copy[0, 2] = is_first_copy[-1, 4] = False
    inner = _attend_within_blocks(
        queries[:, :, 1:-1],
        _attended_tokens(keys, random_blocks),
        _attended_tokens(values, random_blocks),
        _attended_tokens(reals, random_blocks)
        & is_first_copy.repeat(size, axis=1)[None, None, :, :, None],
    )
    # The first and the last block become one block of queries, and its keys are all tokens.
    ends = queries[:, :, np.array([0, -1])].reshape(b, a, 1, 2 * size, d)
    ends = _attend_within_blocks(
        ends, *(x.reshape(b, a, 1, -1, x.shape[-1]) for x in (keys, values, reals))
    )
    ends = ends.reshape(b, a, 2, size, d)
    mixed = jnp.concatenate((ends[:, :, :1], inner, ends[:, :, 1:]), axis=2)
    mixed = mixed.transpose(0, 2, 3, 1, 4).reshape(b, -1, a, d)[:, :l]
    return jnp.where(mask, mixed, jnp.zeros((), mixed.dtype))


def _by_head(x: Shaped[Array, "b l a d"], size: int) -> Shaped[Array, "b a n {size} d"]:
    """Split rows into blocks of `size` tokens; zeros (in a mask: padding) fill the last block."""
    return in_blocks(x, size).transpose(0, 3, 1, 2, 4)


def _attended_tokens(
    blocks: Shaped[Array, "b a n s d"], random_blocks: Int[np.ndarray, "a n-2 r"]
) -> Shaped[Array, "b a n-2 (5+r)*s d"]:
    """Return the tokens that each block attends to, for all blocks but the first and the last."""
    b, a, n, s, d = blocks.shape
    first, last = (
        jnp.broadcast_to(x, (b, a, n - 2, s, d)) for x in (blocks[:, :, :1], blocks[:, :, -1:])
    )
    # A gather of whole blocks along a single axis is the fastest.
    indexes = random_blocks + n * np.arange(a)[:, None, None]
    at_random = blocks.reshape(b, a * n, s, d)[:, indexes].reshape(b, a, n - 2, -1, d)
    neighbours = (blocks[:, :, :-2], blocks[:, :, 1:-1], blocks[:, :, 2:])
    return jnp.concatenate((first, last, *neighbours, at_random), axis=3)


def _attend_within_blocks(
    query: Float[Array, "b a n q d"],
    key: Float[Array, "b a n k d"],
    value: Float[Array, "b a n k d"],
    real: Bool[Array, "b a n k 1"],
) -> Float[Array, "b a n q d"]:
    """Attend within each block and head; each of them is computed as a row with one head."""
    q, k, v = (x.reshape(-1, x.shape[3], 1, x.shape[4]) for x in (query, key, value))
    return attention(q, k, v, real.reshape(-1, 1, 1, real.shape[3])).reshape(query.shape)


# ---- the encoder ---------------------------------------------------------------------------------


class BigBirdAttention(nnx.Module):
    """Multi-head attention, block sparse in long rows: `[b, l, h] -> [b, l, h]`.

    In training (with `rngs`) each block attends to its random blocks. In evaluation each random
    block is the first block, as in PyTorch, so its tokens are among the keys several times.
    """

    def __init__(self, config: BigBirdConfig, layer: int, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.config, self.layer = config, layer
        self.query = linear(h, h, dtype, bias=config.use_bias)
        self.key = linear(h, h, dtype, bias=config.use_bias)
        self.value = linear(h, h, dtype, bias=config.use_bias)
        self.out = linear(h, h, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        real: Bool[Array, "b 1 1 l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend to `real` tokens. As in PyTorch, block sparse attention has no dropout."""
        b, l, h = hidden.shape
        heads, size = self.config.num_attention_heads, self.config.block_size
        query, key, value = (
            project(hidden, rngs=rngs).reshape(b, l, heads, h // heads)
            for project in (self.query, self.key, self.value)
        )
        if self.config.is_sparse(l):
            n = -(-l // size)
            random_blocks = np.zeros((heads, n - 2, self.config.num_random_blocks), np.int32)
            if rngs is not None:
                random_blocks = draw_random_blocks(self.config, n, self.layer)
            mixed = block_sparse_attention(query, key, value, real, size, random_blocks)
        else:
            rate = self.config.attention_probs_dropout_prob
            mixed = attention(query, key, value, real, dropout_rate=rate, rngs=rngs)
        return self.out(mixed.reshape(b, l, h), rngs=rngs)


class BigBirdEmbeddings(nnx.Module):
    """Token, token type and position embeddings, then dropout and LayerNorm.

    With `rescale_embeddings` the token embeddings are multiplied by the root of the hidden size.
    """

    def __init__(self, config: BigBirdConfig, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.dropout_rate = config.hidden_dropout_prob
        self.padding = config.pad_token_id
        self.word_scale = h**0.5 if config.rescale_embeddings else 1.0
        self.word = embedding(config.vocab_size, h)
        self.position = embedding(config.max_position_embeddings, h)
        self.token_type = embedding(config.type_vocab_size, h)
        self.norm = layer_norm(h, config.layer_norm_eps, dtype)

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"],
        position_ids: Int[Array, "#b l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Sum in the order of PyTorch, so that float32 rounding is the same."""
        summed = look_up(self.word, input_ids, self.padding) * self.word_scale
        summed = summed + self.token_type(token_type_ids) + self.position(position_ids)
        return self.norm(dropout(summed, self.dropout_rate, rngs))


class BigBirdEncoder(Encoder):
    """BERT with block sparse attention in long rows.

    The last block of a long row attends to all tokens, and all tokens attend to it. The amount of
    padding determines which block is the last one, so padding changes a long row's logits slightly.
    """

    packing_obstacle = "its blocks and its question are counted from the start of the row"

    def __init__(self, config: BigBirdConfig, *, dtype: jnp.dtype):
        embeddings = BigBirdEmbeddings(config, dtype=dtype)
        super().__init__(config, dtype=dtype, block=None, embeddings=embeddings)
        self.separator = config.sep_token_id
        self.layers = Stack(
            PostNormBlock(config, BigBirdAttention(config, layer, dtype=dtype), dtype=dtype)
            for layer in range(config.num_hidden_layers)
        )

    def types_of(
        self, input_ids: Int[Array, "b l"], token_type_ids: Int[Array, "b l"] | None
    ) -> Int[Array, "b l"]:
        """Return `token_type_ids`, by default 0 in the question and 1 after it."""
        if token_type_ids is not None:
            return token_type_ids
        return 1 - in_question(input_ids, self.separator).astype(jnp.int32)


def in_question(input_ids: Int[Array, "b l"], separator: int) -> Bool[Array, "b l"]:
    """Return which tokens belong to the question: all up to and including the first `separator`.

    Without a separator it is only the first token.
    """
    end = jnp.argmax(input_ids == separator, axis=1, keepdims=True)
    return jnp.arange(input_ids.shape[1])[None, :] <= end


# ---- the head ------------------------------------------------------------------------------------


class BigBirdHead(SpanHead):
    """An MLP, then the span head; tokens of the question cannot be part of an answer."""

    def __init__(self, config: BigBirdConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype)
        h, f = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.mlp_dropout_rate = config.hidden_dropout_prob
        self.separator = config.sep_token_id
        self.up = linear(h, f, dtype)
        self.down = linear(f, h, dtype)
        self.norm = layer_norm(h, config.layer_norm_eps, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """Return the logits of the spans, with `BANNED` subtracted for tokens of the question.

        The first token is exempt, because it stands for "no answer".
        """
        rate = self.mlp_dropout_rate
        inner = ACTIVATIONS[self.activation](self.up(dropout(hidden, rate, rngs), rngs=rngs))
        hidden = self.norm(hidden + dropout(self.down(inner, rngs=rngs), rate, rngs))
        start, end = super().__call__(hidden, input_ids, rngs=rngs)
        penalty = in_question(input_ids, self.separator).at[:, 0].set(False) * BANNED
        return SpanLogits(start - penalty, end - penalty)


WEIGHT_NAMES = EMBEDDING_NAMES | BLOCK_NAMES
HEAD_WEIGHT_NAMES = {
    r"up": r"qa_classifier.intermediate.dense",
    r"down": r"qa_classifier.output.dense",
    r"norm": r"qa_classifier.output.LayerNorm",
    r"outputs": r"qa_classifier.qa_outputs",
}

FAMILY = Family(
    "big_bird",
    BigBirdConfig.from_hf,
    BigBirdEncoder,
    WEIGHT_NAMES,
    prefix="bert.",
    architecture="BigBirdForQuestionAnswering",
    positional_inputs=(),
    dropout_remarks={
        "attention_probs_dropout_prob": "as in PyTorch, block sparse attention has no dropout: "
        "this rate applies to short rows, which have full attention, and to all rows with "
        'attention_type="original_full" in the model\'s config'
    },
    head=BigBirdHead,
    head_weight_names=HEAD_WEIGHT_NAMES,
)
