"""Small configs and checkpoints on which a wrong activation, epsilon or transpose is visible.

At Hugging Face's own initialisation (0.02) a swapped GELU moves the logits by 4e-7, so weights,
biases and norms are all large here.
"""

import functools
import json
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from flax import nnx
from transformers import AutoConfig, PreTrainedConfig

from qa_flax.models.families import FAMILIES
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.weights import torch_layout, weight_name

# Some are one encoder under several names, which need testing once.
ENCODERS = {(f.read_config, f.encoder, f.head): name for name, f in reversed(FAMILIES.items())}
TESTED = {name: CASES[name] for name in list(ENCODERS.values())[::-1]}
# Made of BERT's, RoBERTa's or BART's parts, which the others show most things of: their logits are
# compared with PyTorch's all the same.
OF_OTHERS = ("distilbert", "electra", "mbart", "roberta-prelayernorm", "xlm-roberta-xl")


def others_slow(families: Iterable[str]) -> list:
    """The families as parameters of a test, which is slow for those made of others' parts."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in OF_OTHERS else []) for n in families]


def loud_config(family: str = "bert", **changes) -> PreTrainedConfig:
    """Lists are given as tuples, which `loud_model` can remember."""
    listed = {n: list(v) if isinstance(v, tuple) else v for n, v in changes.items()}
    return AutoConfig.for_model(family, **CASES[family].sizes | listed)


def loud_model(
    seed: int = 0, dtype="float32", family: str = "bert", **changes
) -> AutoModelForQuestionAnswering:
    """Every parameter random: biases too, and norms' scales between 0.5 and 1.5."""
    return _loud_model(seed, dtype, family, json.dumps(changes))


@functools.cache
def _loud_model(seed: int, dtype, family: str, changes: str) -> AutoModelForQuestionAnswering:
    # Written as JSON, since lists and dicts are no key of a cache.
    config = loud_config(family, **json.loads(changes))
    model = AutoModelForQuestionAnswering.from_config(config, seed, dtype)
    random = np.random.default_rng(seed)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    for path, param in state:
        if path[-1] == "scale":
            param[...] = jnp.asarray(random.uniform(0.5, 1.5, param.shape), jnp.float32)
        else:
            param[...] = jnp.asarray(random.normal(0, 0.2, param.shape), jnp.float32)
    nnx.update(model, nnx.from_flat_state(state))
    return model


def variations(family: str) -> list[dict]:
    """Every config that is compared with PyTorch, as changes; {} first.

    Dropout is not drawn there, and the weights are made anew.
    """
    case = CASES[family]
    each = [{n: v} for n, v in case.changed.items() if "dropout" not in n and "init" not in n]
    return [{}, *each, *case.variations]


def compared_lengths(family: str, changes: dict) -> tuple[int, ...]:
    """Rows that are compared with PyTorch; a single field's in the longest only."""
    case = CASES[family]
    several = not changes or changes in case.variations
    return case.lengths if several else (max(case.lengths),)


def golden_name(changes: dict, length: int, side: str) -> str:
    """Of logits in golden/<family>/variations.safetensors."""
    return f"{json.dumps(changes)} {length} {side}"


def loud_batch(
    length: int = 12, rows: int = 3, seed: int = 0, types: int = 2, separator: int | None = None
) -> dict:
    """Rows of different lengths, padded with id 0, with token types; int64 as tokenizers give.

    With a `separator` each row is one to three words, two separators, words, and one more.
    """
    random = np.random.default_rng(seed)
    lengths = np.linspace(length, 2 if separator is None else 6, rows).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = random.integers(1, 40, (rows, length)) * mask
    if separator is not None:
        ids[ids == separator] = 1
        question = 1 + np.arange(rows) % 3
        for place in (question, question + 1, lengths - 1):
            ids[np.arange(rows), place] = separator
    batch = {"input_ids": ids, "attention_mask": mask}
    if types:
        batch["token_type_ids"] = random.integers(0, types, (rows, length)) * mask
    return batch


def batch_of(family: str, length: int = 12, rows: int = 3, **changes) -> dict:
    """A `loud_batch` that `family` takes, with a config of these `changes`."""
    case = CASES[family]
    separator = loud_config(family, **changes).sep_token_id if case.needs_separators else None
    return loud_batch(length, rows, types=case.types, separator=separator)


# Their operations are many, and most settings change the shapes of all.
COMPILED_WHOLE = ("longformer", "big_bird", "modernbert")


def logits_of(model, batch: dict):
    """`model(**batch)`, in the way that is sooner done.

    One operation after the other, where most of them are compiled for other tests already; as one
    program, which serves every model of equal graphs, where they are not.
    """
    if model.config.model_type not in COMPILED_WHOLE:
        return model(**batch)
    return _compiled_logits(*nnx.split(model), batch)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_logits(graphdef, state, batch):
    return nnx.merge(graphdef, state)(**batch)


def relative_error(ours, theirs) -> float:
    """Largest difference, relative to the largest value of `theirs`.

    Logits less a million, which some heads give to tokens outside the context, are measured apart.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    masked = np.abs(theirs) > 1e5
    parts = [part for part in (masked, ~masked) if part.any()]
    return float(np.max([np.abs(ours - theirs)[p].max() / np.abs(theirs[p]).max() for p in parts]))


def parameters(model) -> dict[tuple, jax.Array]:
    return {path: param[...] for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def torch_gradients(gradients, family: str) -> dict[str, np.ndarray]:
    """A gradient of ours by PyTorch's names, in its layouts."""
    found = {}
    for path, param in nnx.to_flat_state(gradients):
        if isinstance(param, nnx.Param):
            name = weight_name(path, FAMILIES[family], prefix=FAMILIES[family].prefix)
            found[name] = torch_layout(path, param[...])
    return found


def assert_same_gradients(ours: dict, theirs: dict) -> None:
    """Every parameter's within 1e-4 of its largest value."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(g).max() for g in theirs.values())
    for name, wanted in theirs.items():
        # Zero but for rounding: biases that the softmax ignores, as those of the keys.
        allowed = 1e-4 * np.abs(wanted).max() + 1e-6 * largest
        assert np.abs(ours[name] - wanted).max() < allowed, name


def gradient_error(ours: dict, theirs: dict) -> float:
    """The largest difference by each parameter's largest value, but for those that are rounding."""
    largest = max(np.abs(g).max() for g in theirs.values())
    return max(
        np.abs(ours[name] - wanted).max() / np.abs(wanted).max()
        for name, wanted in theirs.items()
        if np.abs(wanted).max() > 1e-5 * largest
    )
