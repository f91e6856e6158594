"""Small BERT configs and checkpoints on which a wrong activation, epsilon or transpose is visible.

At Hugging Face's own initialisation (0.02) a swapped GELU moves the logits by 4e-7, so weights,
biases and norms are all large here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import BertConfig

from qa_flax.models.hf import AutoModelForQuestionAnswering

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "initializer_range": 0.2,
}


def loud_config(**changes) -> BertConfig:
    return BertConfig(**SIZES | changes)


@functools.cache
def loud_model(seed: int = 0, dtype="float32", **changes) -> AutoModelForQuestionAnswering:
    """Every parameter random: biases too, and norms' scales between 0.5 and 1.5."""
    model = AutoModelForQuestionAnswering.from_config(loud_config(**changes), seed, dtype)
    random = np.random.default_rng(seed)
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] == "scale":
            param[...] = jnp.asarray(random.uniform(0.5, 1.5, param.shape), jnp.float32)
        else:
            param[...] = jnp.asarray(random.normal(0, 0.2, param.shape), jnp.float32)
        nnx.update(model, nnx.from_flat_state([(path, param)]))
    return model


def loud_batch(length: int = 12, rows: int = 3, seed: int = 0, types: int = 2) -> dict:
    """Rows of different lengths, padded with id 0, with token types; int64 as tokenizers give."""
    random = np.random.default_rng(seed)
    lengths = np.linspace(length, 2, rows).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {
        "input_ids": random.integers(1, SIZES["vocab_size"], (rows, length)) * mask,
        "attention_mask": mask,
        "token_type_ids": random.integers(0, types, (rows, length)) * mask,
    }


def relative_error(ours, theirs) -> float:
    """Largest difference, relative to the largest value of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def parameters(model) -> dict[tuple, jax.Array]:
    return {path: param[...] for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))}
