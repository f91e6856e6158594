"""Every family: golden values from PyTorch, packing and padding, dropout, and config fields."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from cases.case import SIZES
from flax import nnx
from loud import (
    COMPILED_FAMILIES,
    TESTED,
    assert_same_gradients,
    batch_of,
    compared_lengths,
    derived_families_slow,
    golden_name,
    logits_of,
    loud_batch,
    loud_config,
    loud_model,
    parameters,
    relative_error,
    torch_gradients,
    variations,
)
from safetensors.numpy import load_file
from transformers import PreTrainedConfig

from qa_flax.models.families import FAMILIES
from qa_flax.models.layers import Fixed
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import span_losses

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
all_families = pytest.mark.parametrize("family", TESTED)
# Encoders that differ most in their code; the others are slow tests.
FAST = ("bert", "bart", "deberta-v2", "modernbert")
main_families = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in FAST)) for f in TESTED]
)


def test_every_family_is_tested():
    assert CASES.keys() == FAMILIES.keys()


# ---- golden values from PyTorch ------------------------------------------------------------------


def golden_batch(expected):
    batch = {name: expected[name] for name in INPUTS if name in expected}
    return batch, *(jnp.asarray(expected[f"{side}_positions"]) for side in ("start", "end"))


def assert_golden(logits, loss, expected):
    assert relative_error(logits.start, expected["start_logits"]) < 1e-5
    assert relative_error(logits.end, expected["end_logits"]) < 1e-5
    assert abs(float(loss) - float(expected["loss"])) < 1e-5


@partial(jax.jit, static_argnums=0)
def loss_and_gradients(graphdef, params, other_state, batch, start, end):
    def loss(params):
        logits = nnx.merge(graphdef, params, other_state).span_logits(**batch)
        return span_losses(logits, start, end).mean(), logits

    return jax.value_and_grad(loss, has_aux=True)(params)


# The gradients of the others are slow tests; their logits and losses are compared by default.
FAST_GRADIENTS = ("bert", "deberta-v2", "modernbert", "longformer", "mpnet")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in FAST_GRADIENTS)) for f in CASES]
)
def test_logits_loss_and_every_gradient_equal_pytorch_s(family):
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    expected = load_file(GOLDEN / family / "expected.safetensors")
    (loss, logits), gradients = loss_and_gradients(
        *nnx.split(model, nnx.Param, ...), *golden_batch(expected)
    )
    assert_golden(logits, loss, expected)
    expected_gradients = {
        n.removeprefix("gradient "): g for n, g in expected.items() if "gradient " in n
    }
    assert_same_gradients(torch_gradients(gradients, family), expected_gradients)


@pytest.mark.every_family
@pytest.mark.parametrize("family", [f for f in CASES if f not in FAST_GRADIENTS])
def test_logits_and_loss_equal_pytorch_s(family):
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    expected = load_file(GOLDEN / family / "expected.safetensors")
    batch, *positions = golden_batch(expected)
    logits = logits_of(model, batch)
    assert_golden(logits, span_losses(logits, *positions).mean(), expected)


# ---- packing, padding and defaults ---------------------------------------------------------------


# These tests use three rows of 12 tokens, for which other tests have compiled the models already.


@main_families
def test_packed_windows_have_the_logits_of_separate_rows(family):
    model, windows = loud_model(1, family=family), batch_of(family)
    real = np.arange(12) < [[7], [4], [2]]
    windows = {name: values * real for name, values in windows.items()}
    if not CASES[family].can_pack:
        with pytest.raises(ValueError, match="several windows in a row"):
            model(**windows, segment_ids=windows["attention_mask"])
        return
    rows = ((0, 1), (2, 0), (1, 2, 2))
    packed = {name: np.zeros((3, 12), np.int64) for name in [*windows, "segment_ids"]}
    for row, members in enumerate(rows):
        lengths = [real[n].sum() for n in members]
        packed["segment_ids"][row, : sum(lengths)] = np.repeat(np.arange(len(members)) + 1, lengths)
        for name, values in windows.items():
            packed[name][row, : sum(lengths)] = np.concatenate(
                [values[n][real[n]] for n in members]
            )
    packed_logits, separate_logits = logits_of(model, packed), logits_of(model, windows)
    for actual, separate in zip(packed_logits, separate_logits, strict=True):
        assert np.isfinite(np.asarray(actual)).all()
        for row, members in enumerate(rows):
            expected = np.concatenate([np.asarray(separate)[n][real[n]] for n in members])
            assert relative_error(actual[row, : len(expected)], expected) < 1e-5


@main_families
def test_padding_and_other_rows_do_not_change_a_row(family):
    model, short, others = loud_model(2, family=family), batch_of(family, 7), batch_of(family)
    short_logits, real = logits_of(model, short), short["attention_mask"] == 1
    for row in range(3):
        padded = {name: values.copy() for name, values in others.items()}
        for name, values in short.items():
            padded[name][row, :7] = values[row]
            padded[name][row, 7:] = CASES[family].padding_id if name == "input_ids" else 0
        for actual, expected in zip(logits_of(model, padded), short_logits, strict=True):
            expected = np.asarray(expected)[row, real[row]]
            assert relative_error(np.asarray(actual)[row, :7][real[row]], expected) < 1e-5
            assert np.isfinite(np.asarray(actual)).all()


@main_families
def test_default_masks_are_all_real_and_default_types_are_0(family):
    model = loud_model(0, family=family)
    ids = np.repeat(batch_of(family, 12, 1)["input_ids"], 3, axis=0)
    types, separator = ids * 0, CASES[family].types_change_after
    if separator is not None:
        ids[ids == separator] = 1
        for row, index in enumerate((2, 7, 4)):
            ids[row, index] = separator
            types[row, index + 1 :] = 1
    batch = {"input_ids": ids}
    defaults = {"attention_mask": ids**0}
    if CASES[family].types:
        defaults["token_type_ids"] = types
    logits = zip(logits_of(model, batch), logits_of(model, batch | defaults), strict=True)
    for actual, expected in logits:
        assert relative_error(actual, expected) < 1e-5


@main_families
def test_bfloat16_compute_is_close_and_returns_float32(family):
    exact = logits_of(loud_model(0, family=family), batch_of(family))
    rounded = logits_of(loud_model(0, dtype="bfloat16", family=family), batch_of(family))
    for actual, expected in zip(rounded, exact, strict=True):
        assert actual.dtype == jnp.float32
        assert 1e-4 < relative_error(actual, expected) < 0.1
    dtypes = {p.dtype for p in parameters(loud_model(0, dtype="bfloat16", family=family)).values()}
    assert dtypes == {jnp.dtype("float32")}


# ---- dropout -------------------------------------------------------------------------------------


# All families pass on the key in the same way, so two are tested by default;
# `test_each_dropout_rate_works_alone` shows that every family uses it.
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(n, marks=[] if n in ("bert", "deberta-v2") else [pytest.mark.slow])
        for n in TESTED
    ],
)
def test_dropout_follows_the_key_and_rngs_none_is_deterministic(family):
    model, batch = loud_model(0, family=family), batch_of(family)

    def start(seed):
        rngs = None if seed is None else nnx.Rngs(dropout=seed)
        return np.asarray(model(**batch, rngs=rngs).start)

    assert (start(None) == start(None)).all()
    assert (start(1) == start(1)).all()
    assert np.abs(start(1) - start(2)).max() > 1e-2
    assert np.abs(start(1) - start(None)).max() > 1e-2


DROPOUTS = [
    pytest.param(family, field, id=f"{family}-{field}", marks=param.marks)
    for param in derived_families_slow(TESTED)
    for family in param.values
    for field in CASES[family].changed
    if "dropout" in field
]


def dropout_logits(family, **changed):
    """Start logits of a forward pass with dropout; all rates are 0 except those in `changed`."""
    rates = {p.values[1]: 0.0 for p in DROPOUTS if p.values[0] == family}
    model = loud_model(0, family=family, **rates | changed)
    return np.asarray(model(**batch_of(family), rngs=nnx.Rngs(dropout=0)).start)


@cache
def logits_without_dropout(family):
    start = dropout_logits(family)
    assert (start == np.asarray(loud_model(0, family=family)(**batch_of(family)).start)).all()
    return start


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rate"), DROPOUTS)
def test_each_dropout_rate_works_alone(family, rate):
    changed = dropout_logits(family, **{rate: 0.5})
    assert np.abs(changed - logits_without_dropout(family)).max() > 1e-2


# ---- configs -------------------------------------------------------------------------------------


@cache
def golden_variations(family):
    return load_file(GOLDEN / family / "variations.safetensors")


def golden_logits(family, changes, length):
    logits = golden_variations(family)
    return [logits[golden_name(changes, length, side)] for side in ("start", "end")]


def is_redundant(family, changes, length):
    """Whether another variation tests the same, so that only `pytest -m slow` runs this one.

    A change of sizes compiles everything again. A single field may be part of a combination.
    Shorter rows have the logits of padded rows, as another test shows, except where attention is
    local: there the computation depends on the length. And of the families that are not `FAST`,
    only the first combination is compared by default.
    """
    case = CASES[family]
    if not changes:
        return length != max(case.lengths) and family not in COMPILED_FAMILIES
    if family not in FAST and changes != next(iter(case.variations), None):
        return True
    if length != max(case.lengths) or changes.keys() <= SIZES:
        return True
    # In ALBERT the number of layers is not only a size: it decides how often a block runs.
    combinations = [c for c in case.variations if c.keys().isdisjoint(SIZES) or family == "albert"]
    return changes not in combinations and (
        len(changes) > 1 or any(changes.items() < more.items() for more in combinations)
    )


VARIATIONS = [
    pytest.param(
        family,
        changes,
        length,
        id=f"{family}-{'-'.join(f'{k}={v}' for k, v in changes.items())}-{length}",
        marks=[pytest.mark.slow] if is_redundant(family, changes, length) else [],
    )
    for family in TESTED
    for changes in variations(family)
    for length in compared_lengths(family, changes)
]


@pytest.mark.parametrize(("family", "changes", "length"), VARIATIONS)
def test_logits_of_every_setting_equal_pytorch_s(family, changes, length):
    logits = logits_of(loud_model(4, family=family, **changes), batch_of(family, length, **changes))
    for actual, expected in zip(logits, golden_logits(family, changes, length), strict=True):
        assert relative_error(actual, expected) < 2e-5


def test_the_golden_files_contain_exactly_the_variations():
    for family in TESTED:
        assert golden_variations(family).keys() == {
            golden_name(changes, length, side)
            for changes in variations(family)
            for length in compared_lengths(family, changes)
            for side in ("start", "end")
        }


@cache
def new_weights(family, changes):
    config = loud_config(family, **json.loads(changes))
    state = nnx.state(AutoModelForQuestionAnswering.from_config(config), (nnx.Param, Fixed))
    return [np.asarray(array) for array in jax.tree.leaves(state)]


def differ(arrays, others):
    return len(arrays) != len(others) or any(
        a.shape != b.shape or np.abs(a - b).max() > 1e-6
        for a, b in zip(arrays, others, strict=True)
    )


# `test_each_dropout_rate_works_alone` tests dropout rates.
CHANGED = [
    pytest.param(family, field, id=f"{family}-{field}")
    for family, case in TESTED.items()
    for field in case.changed
    if "dropout" not in field
]


@pytest.mark.parametrize(("family", "field"), CHANGED)
def test_every_config_field_has_an_effect(family, field):
    """Each field affects PyTorch's logits, which ours equal, or the weights of a new model."""
    changes, length = {field: CASES[family].changed[field]}, max(CASES[family].lengths)
    if changes in variations(family) and differ(
        *(golden_logits(family, c, length) for c in (changes, {}))
    ):
        return
    assert differ(*(new_weights(family, json.dumps(c)) for c in (changes, {})))


@all_families
def test_the_case_covers_every_field_of_transformers_config(family):
    """Fails if a newer transformers adds a field, so that nobody ignores it by mistake."""
    case, config_class = CASES[family], type(loud_config(family))
    classes = [c for c in config_class.__mro__ if c not in PreTrainedConfig.__mro__]
    names = {name for c in classes for name in c.__annotations__ if not name.startswith("_")}
    names -= {"model_type", "attribute_map", "base_model_tp_plan", "keys_to_ignore_at_inference"}
    unsupported = {name for changes, _ in case.unsupported for name in changes}
    assert names <= case.changed.keys() | unsupported | case.without_effect
    assert not case.changed.keys() & case.without_effect


UNSUPPORTED = [
    pytest.param(family, changes, message, id=f"{family}-{'-'.join(changes)}")
    for family, case in TESTED.items()
    for changes, message in case.unsupported
]


@pytest.mark.parametrize(("family", "changes", "message"), UNSUPPORTED)
def test_an_unsupported_config_is_refused(family, changes, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForQuestionAnswering.from_config(loud_config(family, **changes))


@main_families
def test_rows_longer_than_the_position_table_are_refused(family):
    model, limit = loud_model(0, family=family), CASES[family].max_length

    def accepts(length, **inputs):
        ids = np.ones((1, length), int)
        return jax.eval_shape(lambda: model(input_ids=ids, **inputs).start).shape == (1, length)

    if limit is None:
        assert accepts(50)
        return
    message = f"rows have {limit + 1} tokens, but this checkpoint has {limit} positions"
    with pytest.raises(ValueError, match=message):
        accepts(limit + 1)
    assert accepts(limit)
    if CASES[family].can_pack:
        # A packed row may be longer than the position table; its windows may not.
        assert accepts(limit + 1, segment_ids=np.repeat([1, 2], [limit - 9, 10])[None])


@main_families
def test_models_of_equal_architecture_share_compiled_programs(family):
    """Their graphdefs, the keys of the compilation cache, are equal; config names do not matter."""
    first, second = (
        AutoModelForQuestionAnswering.from_config(loud_config(family, _name_or_path=name), seed)
        for seed, name in enumerate(("first", "second"))
    )
    graphdef = first.graphdef("float32")
    assert graphdef == second.graphdef("float32")
    assert hash(graphdef) == hash(second.graphdef("float32"))
    for different in (first.graphdef("bfloat16"), first.graphdef("float32", remat=True)):
        assert graphdef != different
    dropout = next(field for field in CASES[family].changed if "dropout" in field)
    config = loud_config(family, **{dropout: CASES[family].changed[dropout]})
    different = AutoModelForQuestionAnswering.from_config(config).graphdef("float32")
    assert graphdef != different


def test_the_model_works_under_jax_transformations():
    """jit and vmap work although the model holds an HF config, which cannot be hashed."""
    model, batch = loud_model(0), loud_batch()
    graph, state = nnx.split(model)
    assert hash(graph) == hash(nnx.split(model)[0])
    run = jax.jit(lambda s, b: nnx.merge(graph, s)(**b))
    mapped = jax.vmap(run, in_axes=(None, 0))(state, {n: v[:, None] for n, v in batch.items()})
    assert relative_error(mapped.start[:, 0], run(state, batch).start) < 1e-5
