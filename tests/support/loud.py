"""Small "loud" models, with weights so large that a wrong activation or epsilon is visible.

With Hugging Face's initialisation (0.02) a different GELU changes the logits by only 4e-7, so all
weights, biases and norms of these models are large.
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

# Some model types have the same encoder, which needs to be tested only once.
ENCODERS = {(f.read_config, f.encoder, f.head): name for name, f in reversed(FAMILIES.items())}
TESTED = {name: CASES[name] for name in list(ENCODERS.values())[::-1]}
# Families built from parts of BERT, RoBERTa or BART. Most tests of these parts are only slow tests
# for them; the fast tests still compare their logits with PyTorch.
DERIVED_FAMILIES = ("distilbert", "electra", "mbart", "roberta-prelayernorm", "xlm-roberta-xl")


def derived_families_slow(families: Iterable[str]) -> list:
    """The families as test parameters, marked slow for `DERIVED_FAMILIES`."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in DERIVED_FAMILIES else [])
        for name in families
    ]


def loud_config(family: str = "bert", **changes) -> PreTrainedConfig:
    """The family's small config with some changes; tuples among them become lists."""
    changes = {n: list(v) if isinstance(v, tuple) else v for n, v in changes.items()}
    return AutoConfig.for_model(family, **CASES[family].sizes | changes)


def loud_model(
    seed: int = 0, dtype="float32", family: str = "bert", **changes
) -> AutoModelForQuestionAnswering:
    """A model whose parameters are all random, including biases and norms; cached."""
    return _loud_model(seed, dtype, family, json.dumps(changes))


@functools.cache
def _loud_model(seed: int, dtype, family: str, changes: str) -> AutoModelForQuestionAnswering:
    # `changes` is JSON because lists and dicts cannot be cache keys.
    config = loud_config(family, **json.loads(changes))
    model = AutoModelForQuestionAnswering.from_config(config, seed, dtype)
    random = np.random.default_rng(seed)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    for path, param in state:
        if path[-1] in ("scale", "gain"):
            param[...] = jnp.asarray(random.uniform(0.5, 1.5, param.shape), jnp.float32)
        else:
            param[...] = jnp.asarray(random.normal(0, 0.2, param.shape), jnp.float32)
    nnx.update(model, nnx.from_flat_state(state))
    return model


def variations(family: str) -> list[dict]:
    """The changes to the family's config that are compared with PyTorch; the first is {}.

    Dropout rates and initialisation are left out, because they do not change the logits of a model
    with given weights.
    """
    case = CASES[family]
    single = [{n: v} for n, v in case.changed.items() if "dropout" not in n and "init" not in n]
    return [{}, *single, *case.variations]


def compared_lengths(family: str, changes: dict) -> tuple[int, ...]:
    """The lengths of rows to compare with PyTorch; only the longest if one field is changed."""
    case = CASES[family]
    all_lengths = not changes or changes in case.variations
    return case.lengths if all_lengths else (max(case.lengths),)


def golden_name(changes: dict, length: int, side: str) -> str:
    """The name of logits in golden/<family>/variations.safetensors."""
    return f"{json.dumps(changes)} {length} {side}"


def loud_batch(
    length: int = 12, rows: int = 3, seed: int = 0, types: int = 2, separator: int | None = None
) -> dict:
    """Rows of different lengths, padded with id 0, with token types, int64 as from a tokenizer.

    With a `separator` each row consists of one to three tokens, two separators, more tokens, and a
    separator.
    """
    random = np.random.default_rng(seed)
    lengths = np.linspace(length, 2 if separator is None else 6, rows).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = random.integers(1, 40, (rows, length)) * mask
    if separator is not None:
        ids[ids == separator] = 1
        question = 1 + np.arange(rows) % 3
        for column in (question, question + 1, lengths - 1):
            ids[np.arange(rows), column] = separator
    batch = {"input_ids": ids, "attention_mask": mask}
    if types:
        batch["token_type_ids"] = random.integers(0, types, (rows, length)) * mask
    return batch


def batch_of(family: str, length: int = 12, rows: int = 3, **changes) -> dict:
    """A `loud_batch` for a model of `family` whose config has these `changes`."""
    case = CASES[family]
    separator = loud_config(family, **changes).sep_token_id if case.needs_separators else None
    return loud_batch(length, rows, types=case.types, separator=separator)


# These have many operations, and most settings change the shapes of all of them.
COMPILED_FAMILIES = ("longformer", "big_bird", "modernbert")


def logits_of(model, batch: dict):
    """`model.span_logits(**batch)`, compiled as one program if that takes less time than op by op.

    Op by op is faster if other tests have already compiled most of the operations.
    """
    if model.config.model_type not in COMPILED_FAMILIES:
        return model.span_logits(**batch)
    return _compiled_logits(*nnx.split(model), batch)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_logits(graphdef, state, batch):
    return nnx.merge(graphdef, state).span_logits(**batch)


def relative_error(actual, expected) -> float:
    """The largest difference, relative to the largest expected value.

    Logits from which a head subtracts `qa.BANNED` are compared separately from the others.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    banned = np.abs(expected) > 1e5
    parts = [part for part in (banned, ~banned) if part.any()]
    difference = np.abs(actual - expected)
    return float(np.max([difference[p].max() / np.abs(expected[p]).max() for p in parts]))


def parameters(model) -> dict[tuple, jax.Array]:
    return {path: param[...] for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def torch_gradients(gradients, family: str) -> dict[str, np.ndarray]:
    """A gradient of our model by PyTorch's names and in PyTorch's layout."""
    arrays = {}
    for path, param in nnx.to_flat_state(gradients):
        if isinstance(param, nnx.Param):
            name = weight_name(path, FAMILIES[family], prefix=FAMILIES[family].prefix)
            arrays[name] = torch_layout(path, param[...])
    return arrays


def assert_same_gradients(actual: dict, expected: dict) -> None:
    """Check that each gradient's errors are at most 1e-4 of its largest value."""
    assert actual.keys() == expected.keys()
    largest = max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        # The second term is for gradients that are zero except for rounding: those of biases that
        # do not change the softmax, such as the keys' biases.
        allowed = 1e-4 * np.abs(gradient).max() + 1e-6 * largest
        assert np.abs(actual[name] - gradient).max() < allowed, name


def gradient_error(actual: dict, expected: dict) -> float:
    """The largest error relative to the largest value of the same gradient.

    Gradients that are zero except for rounding are left out.
    """
    largest = max(np.abs(g).max() for g in expected.values())
    return max(
        np.abs(actual[name] - gradient).max() / np.abs(gradient).max()
        for name, gradient in expected.items()
        if np.abs(gradient).max() > 1e-5 * largest
    )
