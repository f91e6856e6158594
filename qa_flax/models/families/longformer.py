"""Stage 4 of 7: Longformer (Beltagy et al. 2020): RoBERTa with sliding window attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.attention import attention, in_blocks, with_neighbours
from qa_flax.models.blocks import (
    BLOCK_NAMES,
    OTHER_TASKS,
    POSITION_LAST_NAMES,
    PostNormBlock,
    Stack,
)
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family
from qa_flax.models.layers import linear


@dataclass(frozen=True)
class LongformerConfig(EncoderConfig):
    """The fields of a Longformer config.json that affect the result, with HF's names."""

    pad_token_id: int
    sep_token_id: int
    attention_window: tuple[int, ...]  # one per layer

    REQUIRED: ClassVar = {
        "position_embedding_type": "absolute",
        "attention_mode": ("longformer", "sliding_chunks", "tvm"),  # all three compute the same
        "ignore_attention_mask": False,
    }

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "LongformerConfig":
        """Read config.json's values; `ValueError` for a setting that is not supported."""
        if values["sep_token_id"] is None:
            raise ValueError(
                "sep_token_id=None is not supported for longformer; set it to the id of the "
                "separator token, which ends the question"
            )
        windows = _windows(values["attention_window"], values["num_hidden_layers"])
        return super().from_hf({**values, "attention_window": windows})


def _windows(value: int | list[int], layers: int) -> tuple[int, ...]:
    """The window of each layer; an integer is the window of all layers, as in HF."""
    windows = (value,) * layers if isinstance(value, int) else tuple(value)
    if len(windows) != layers or any(w <= 0 or w % 2 for w in windows):
        raise ValueError(
            f"attention_window={value!r} is not supported for longformer; "
            f"supported: an even number above 0, or {layers} of them, one per layer"
        )
    return windows


# ---- attention -----------------------------------------------------------------------------------


def windowed_attention(
    query: Float[Array, "b l a d"],
    key: Float[Array, "b l a d"],
    value: Float[Array, "b l a d"],
    real: Bool[Array, "b l"],
    question: Bool[Array, "b l"],
    *,
    window: int,
    max_question: int,
    **dropout_args: Any,
) -> Float[Array, "b l a d"]:
    """Attention of every token to those at most `window / 2` away and to the question's tokens.

    Time and memory grow with `l * (window + max_question)`.

    Args:
        query, key, value: in the compute dtype.
        real: False for padding.
        question: True for the question's tokens, all among a row's first `max_question`.
        window: an even number of tokens.
        max_question: the limit on the length of a question, in tokens.
        dropout_args: `dropout_rate` and `rngs` of `attention`.
    """
    b, l, a, d = query.shape
    reach = window // 2
    if l <= window:
        near = jnp.abs(jnp.arange(l)[:, None] - jnp.arange(l)[None]) <= reach
        mask = near[None] & real[:, None] | question[:, None]
        return attention(query, key, value, mask[:, None], **dropout_args)

    def keys(x: Array, near: Array) -> Array:
        """Each block's keys: question, then nearby tokens, `[b * n, max_question + 3 * reach]`."""
        first = x[:, None, :max_question]
        first = jnp.broadcast_to(first, (b, n, max_question, *x.shape[2:]))
        joined = jnp.concatenate([first, near], axis=2)
        return joined.reshape(b * n, *joined.shape[2:])

    queries = in_blocks(query, reach)
    n = queries.shape[1]
    # Positions of the keys relative to the block's first token. Those below -reach stand for the
    # question, which every token of the block attends to.
    position = jnp.arange(max_question + 3 * reach)[None] - max_question - reach
    near = (position < -reach) | (jnp.abs(jnp.arange(reach)[:, None] - position) <= reach)
    # A question token that is also nearby is masked there, so that it counts once.
    visible = keys(question, with_neighbours(real & ~question, reach))
    mixed = attention(
        queries.reshape(b * n, reach, a, d),
        keys(key, with_neighbours(key, reach)),
        keys(value, with_neighbours(value, reach)),
        visible[:, None, None, :] & near[None, None],
        **dropout_args,
    )
    return mixed.reshape(b, n * reach, a, d)[:, :l]


class LongformerAttention(nnx.Module):
    """Windowed attention, and global attention with separate projections for the question's tokens.

    `max_question` is the limit on the length of a question, in tokens.
    """

    def __init__(
        self, config: LongformerConfig, window: int, max_question: int, *, dtype: jnp.dtype
    ):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.window, self.max_question = window, max_question
        self.query = linear(h, h, dtype)
        self.key = linear(h, h, dtype)
        self.value = linear(h, h, dtype)
        self.query_global = linear(h, h, dtype)
        self.key_global = linear(h, h, dtype)
        self.value_global = linear(h, h, dtype)
        self.out = linear(h, h, dtype)

    def __call__(
        self,
        hidden: Float[Array, "b l h"],
        real: Bool[Array, "b l"],
        question: Bool[Array, "b l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """Attend to `real` tokens; `question` is True for the question's tokens."""
        n = min(hidden.shape[1], self.max_question)
        dropout_args = {"dropout_rate": self.dropout_rate, "rngs": rngs}
        local = windowed_attention(
            self._by_head(self.query(hidden, rngs=rngs)),
            self._by_head(self.key(hidden, rngs=rngs)),
            self._by_head(self.value(hidden, rngs=rngs)),
            real,
            question,
            window=self.window,
            max_question=n,
            **dropout_args,
        )
        local = jnp.where(real[..., None, None], local, 0)  # as in HF
        of_question = attention(
            self._by_head(self.query_global(hidden[:, :n], rngs=rngs)),
            self._by_head(self.key_global(hidden, rngs=rngs)),
            self._by_head(self.value_global(hidden, rngs=rngs)),
            real[:, None, None, :],
            **dropout_args,
        )
        first = jnp.where(question[:, :n, None, None], of_question, local[:, :n])
        mixed = jnp.concatenate([first, local[:, n:]], axis=1)
        return self.out(mixed.reshape(hidden.shape), rngs=rngs)

    def _by_head(self, x: Float[Array, "b l h"]) -> Float[Array, "b l a d"]:
        return x.reshape(*x.shape[:2], self.heads, -1)


# ---- encoder -------------------------------------------------------------------------------------


class LongformerEncoder(PositionsAfterPadding):
    """RoBERTa's embeddings and post-norm blocks with windowed attention.

    The question consists of the tokens before a row's first `sep_token_id`. Unlike in HF, only the
    first tokens of a long question have global attention: as many as the widest window has tokens
    (512 in the published checkpoints).
    """

    packing_obstacle = "all tokens of a row attend to its question"

    def __init__(self, config: LongformerConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=None)
        self.separator = config.sep_token_id
        # A fixed limit, because shapes must not depend on data.
        self.max_question = max(config.attention_window, default=0)
        self.layers = Stack(
            PostNormBlock(
                config,
                LongformerAttention(config, window, self.max_question, dtype=dtype),
                dtype=dtype,
            )
            for window in config.attention_window
        )

    def layer_args(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The masks of real tokens and of the question's tokens.

        The question ends at the first separator; a row without any has no question. HF raises an
        error for rows without exactly three separators.
        """
        real, separators = attention_mask > 0, input_ids == self.separator
        before = (jnp.cumsum(separators, axis=1) == 0) & separators.any(axis=1, keepdims=True)
        return real, before & real & (jnp.arange(input_ids.shape[1])[None] < self.max_question)


WEIGHT_NAMES = (
    POSITION_LAST_NAMES
    | BLOCK_NAMES
    | {
        r"layers\.(\d+)\.attention\.(query|key|value)_global": (
            r"encoder.layer.\1.attention.self.\2_global"
        )
    }
)
UNUSED_WEIGHTS = (*OTHER_TASKS, r"lm_head\..*")

FAMILY = Family(
    "longformer",
    LongformerConfig.from_hf,
    LongformerEncoder,
    WEIGHT_NAMES,
    prefix="longformer.",
    architecture="LongformerForQuestionAnswering",
    positional_inputs=(),
    unused_weights=UNUSED_WEIGHTS,
)
