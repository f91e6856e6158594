"""Stage 4 of 7: Longformer (Beltagy et al. 2020): RoBERTa with a window around every token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qa_flax.models.attention import attention, in_blocks, with_neighbours
from qa_flax.models.blocks import BLOCK_NAMES, EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock, Stack
from qa_flax.models.configs import EncoderConfig
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.family import Family
from qa_flax.models.layers import linear


@dataclass(frozen=True)
class LongformerConfig(EncoderConfig):
    """The fields of a Longformer config.json that change the result, by Hugging Face's names."""

    pad_token_id: int
    sep_token_id: int
    attention_window: tuple[int, ...]  # one a layer

    REQUIRED: ClassVar = {
        "position_embedding_type": "absolute",
        "attention_mode": ("longformer", "sliding_chunks", "tvm"),  # three ways to the same
        "ignore_attention_mask": False,
    }

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "LongformerConfig":
        """Read config.json's values; `ValueError` for what this encoder cannot compute."""
        if values["sep_token_id"] is None:
            raise ValueError(
                "sep_token_id=None is not supported for longformer; known: a word's id"
            )
        windows = _windows(values["attention_window"], values["num_hidden_layers"])
        return super().from_hf({**values, "attention_window": windows})


def _windows(said: int | list[int], layers: int) -> tuple[int, ...]:
    """One window a layer; HF takes one for all, too."""
    windows = (said,) * layers if isinstance(said, int) else tuple(said)
    if len(windows) != layers or any(w <= 0 or w % 2 for w in windows):
        raise ValueError(
            f"attention_window={said!r} is not supported for longformer; "
            f"known: an even number above 0, or {layers} of them, one a layer"
        )
    return windows


# ---- attention -----------------------------------------------------------------------------------


def windowed_attention(
    query: Float[Array, "b l a d"],
    key: Float[Array, "b l a d"],
    value: Float[Array, "b l a d"],
    real: Bool[Array, "b l"],
    asked: Bool[Array, "b l"],
    *,
    window: int,
    first: int,
    **dropped: Any,
) -> Float[Array, "b l a d"]:
    """Every token looks at those at most `window / 2` away and at all of the question, `asked`.

    The question is within the `first` tokens. Time and memory grow with `l * (window + first)`.
    """
    b, l, a, d = query.shape
    reach = window // 2
    if l <= window:
        near = jnp.abs(jnp.arange(l)[:, None] - jnp.arange(l)[None]) <= reach
        mask = near[None] & real[:, None] | asked[:, None]
        return attention(query, key, value, mask[:, None], **dropped)

    def keys(x: Array, near: Array) -> Array:
        """The question's tokens and those near, for each block: `[b * n, first + 3 * reach]`."""
        question = jnp.broadcast_to(x[:, None, :first], (b, n, first, *x.shape[2:]))
        both = jnp.concatenate([question, near], axis=2)
        return both.reshape(b * n, *both.shape[2:])

    own = in_blocks(query, reach)
    n = own.shape[1]
    # Where keys are, counted from the block's first token; the question's stand before all others.
    place = jnp.arange(first + 3 * reach)[None] - first - reach
    near = (place < -reach) | (jnp.abs(jnp.arange(reach)[:, None] - place) <= reach)
    # A token of the question is looked at once, though it may also be near.
    seen = keys(asked, with_neighbours(real & ~asked, reach))
    mixed = attention(
        own.reshape(b * n, reach, a, d),
        keys(key, with_neighbours(key, reach)),
        keys(value, with_neighbours(value, reach)),
        seen[:, None, None, :] & near[None, None],
        **dropped,
    )
    return mixed.reshape(b, n * reach, a, d)[:, :l]


class LongformerAttention(nnx.Module):
    """Windowed attention; the question's tokens look at the whole row, by projections of their own.

    `question` is the most tokens that a question and what is before it can have.
    """

    def __init__(self, config: LongformerConfig, window: int, question: int, *, dtype: jnp.dtype):
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.window, self.question = window, question
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
        asked: Bool[Array, "b l"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b l h"]:
        """`real` tokens are looked at; those of the question are `asked`."""
        first = min(hidden.shape[1], self.question)
        dropped = {"dropout_rate": self.dropout_rate, "rngs": rngs}
        local = windowed_attention(
            self._by_head(self.query(hidden, rngs=rngs)),
            self._by_head(self.key(hidden, rngs=rngs)),
            self._by_head(self.value(hidden, rngs=rngs)),
            real,
            asked,
            window=self.window,
            first=first,
            **dropped,
        )
        local = jnp.where(real[..., None, None], local, 0)  # as in HF
        whole = attention(
            self._by_head(self.query_global(hidden[:, :first], rngs=rngs)),
            self._by_head(self.key_global(hidden, rngs=rngs)),
            self._by_head(self.value_global(hidden, rngs=rngs)),
            real[:, None, None, :],
            **dropped,
        )
        whole = jnp.where(asked[:, :first, None, None], whole, local[:, :first])
        mixed = jnp.concatenate([whole, local[:, first:]], axis=1)
        return self.out(mixed.reshape(hidden.shape), rngs=rngs)

    def _by_head(self, x: Float[Array, "b l h"]) -> Float[Array, "b l a d"]:
        return x.reshape(*x.shape[:2], self.heads, -1)


# ---- encoder -------------------------------------------------------------------------------------


class LongformerEncoder(PositionsAfterPadding):
    """RoBERTa's embeddings and post-norm blocks with windowed attention.

    The question is what is before a row's first `sep_token_id`. Unlike in HF it is cut, for
    attention only, at as many tokens as the widest window has (512 in the published checkpoints)
    where rows are longer: shapes must not depend on data.
    """

    def __init__(self, config: LongformerConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, block=None)
        self.separator = config.sep_token_id
        self.question = max(config.attention_window, default=0)
        self.layers = Stack(
            PostNormBlock(
                config, LongformerAttention(config, window, self.question, dtype=dtype), dtype=dtype
            )
            for window in config.attention_window
        )

    def positions_of(
        self,
        input_ids: Int[Array, "b l"],
        position_ids: Int[Array, "b l"] | None,
        segment_ids: Int[Array, "b l"] | None,
    ) -> Int[Array, "#b l"]:
        """As RoBERTa's; `ValueError` for `segment_ids`."""
        if segment_ids is not None:
            raise ValueError(
                "Longformer cannot have several windows in a row: each has a question that its "
                "other tokens look at; give every window a row of its own"
            )
        return super().positions_of(input_ids, position_ids, None)

    def where(
        self,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"] | None,
        positions: Int[Array, "#b l"],
    ) -> tuple[Any, ...]:
        """The real tokens, and those of them that are the question's.

        HF stops at rows without exactly three separators; here the first one counts, and a row
        without any has no question.
        """
        real, separators = attention_mask > 0, input_ids == self.separator
        before = (jnp.cumsum(separators, axis=1) == 0) & separators.any(axis=1, keepdims=True)
        return real, before & real & (jnp.arange(input_ids.shape[1])[None] < self.question)


WEIGHT_NAMES = (
    EMBEDDING_NAMES
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
    unused_weights=UNUSED_WEIGHTS,
)
