"""Stage 4 of 7: DistilBERT (Sanh et al. 2019): BERT without token types (device, JAX)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from qa_flax.models.blocks import EMBEDDING_NAMES, OTHER_TASKS, PostNormBlock
from qa_flax.models.configs import SharedConfig
from qa_flax.models.encoder import Encoder
from qa_flax.models.family import Family
from qa_flax.models.layers import ParamPath, sinusoids
from qa_flax.models.qa import SpanHead


@dataclass(frozen=True)
class DistilBertConfig(SharedConfig):
    """The fields of a DistilBERT config.json that affect the result; `NAMES` has HF's names."""

    classifier_dropout: float
    sinusoidal_pos_embds: bool
    pad_token_id: int | None

    NAMES: ClassVar = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "qa_dropout",
    }

    @property
    def layer_norm_eps(self) -> float:
        """1e-12 in every DistilBERT; config.json has no such field."""
        return 1e-12


class DistilBertEncoder(Encoder):
    """Embeddings without token types, and post-norm blocks."""

    def __init__(self, config: DistilBertConfig, *, dtype: jnp.dtype):
        super().__init__(
            config,
            dtype=dtype,
            block=partial(PostNormBlock, drop_attended=False),
            types=0,
            train_positions=not config.sinusoidal_pos_embds,
        )


class DistilBertHead(SpanHead):
    """The span head, with dropout at the rate `qa_dropout` before it."""

    def __init__(self, config: DistilBertConfig, *, dtype: jnp.dtype):
        super().__init__(config, dtype=dtype, dropout_rate=config.classifier_dropout)


def fixed_arrays(config: DistilBertConfig) -> dict[ParamPath, np.ndarray]:
    """The sinusoidal position table, if configured: sines in even columns, cosines in odd ones."""
    if not config.sinusoidal_pos_embds:
        return {}
    table = np.stack(sinusoids(config.max_position_embeddings, config.hidden_size), axis=-1)
    table = table.reshape(config.max_position_embeddings, config.hidden_size)
    return {("encoder", "embeddings", "position", "embedding"): table.astype(np.float32)}


WEIGHT_NAMES = EMBEDDING_NAMES | {
    r"layers\.(\d+)\.attention\.query": r"transformer.layer.\1.attention.q_lin",
    r"layers\.(\d+)\.attention\.key": r"transformer.layer.\1.attention.k_lin",
    r"layers\.(\d+)\.attention\.value": r"transformer.layer.\1.attention.v_lin",
    r"layers\.(\d+)\.attention\.out": r"transformer.layer.\1.attention.out_lin",
    r"layers\.(\d+)\.attention_norm": r"transformer.layer.\1.sa_layer_norm",
    r"layers\.(\d+)\.up": r"transformer.layer.\1.ffn.lin1",
    r"layers\.(\d+)\.down": r"transformer.layer.\1.ffn.lin2",
    r"layers\.(\d+)\.mlp_norm": r"transformer.layer.\1.output_layer_norm",
}
UNUSED_WEIGHTS = (
    *OTHER_TASKS,
    r"vocab_(transform|layer_norm|projector)\..*",
    r"pre_classifier\..*",
)

FAMILY = Family(
    "distilbert",
    DistilBertConfig.from_hf,
    DistilBertEncoder,
    WEIGHT_NAMES,
    prefix="distilbert.",
    architecture="DistilBertForQuestionAnswering",
    positional_inputs=(),
    head=DistilBertHead,
    unused_weights=UNUSED_WEIGHTS,
    fixed_arrays=fixed_arrays,
)
