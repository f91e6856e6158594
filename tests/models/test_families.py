"""Every family: PyTorch's golden numbers, what must not change its logits, and what must."""

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
    COMPILED_WHOLE,
    OF_OTHERS,
    TESTED,
    assert_same_gradients,
    batch_of,
    compared_lengths,
    golden_name,
    logits_of,
    loud_batch,
    loud_config,
    loud_model,
    others_slow,
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
encoders = pytest.mark.parametrize("family", TESTED)
kinds = pytest.mark.parametrize("family", others_slow(TESTED))


def test_every_family_is_tested():
    assert CASES.keys() == FAMILIES.keys()


# ---- PyTorch's numbers ---------------------------------------------------------------------------


def golden_batch(expected):
    batch = {name: expected[name] for name in INPUTS if name in expected}
    return batch, *(jnp.asarray(expected[f"{side}_positions"]) for side in ("start", "end"))


def assert_golden(logits, loss, expected):
    assert relative_error(logits.start, expected["start_logits"]) < 1e-5
    assert relative_error(logits.end, expected["end_logits"]) < 1e-5
    assert abs(float(loss) - float(expected["loss"])) < 1e-5


@partial(jax.jit, static_argnums=0)
def loss_and_gradients(graphdef, params, rest, batch, start, end):
    def loss(params):
        logits = nnx.merge(graphdef, params, rest)(**batch)
        return span_losses(logits, start, end).mean(), logits

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("family", others_slow(CASES))
def test_logits_loss_and_every_gradient_equal_pytorch_s(family):
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    expected = load_file(GOLDEN / family / "expected.safetensors")
    (loss, logits), gradients = loss_and_gradients(
        *nnx.split(model, nnx.Param, ...), *golden_batch(expected)
    )
    assert_golden(logits, loss, expected)
    theirs = {n.removeprefix("gradient "): g for n, g in expected.items() if "gradient " in n}
    assert_same_gradients(torch_gradients(gradients, family), theirs)


@pytest.mark.parametrize("family", OF_OTHERS)
def test_logits_and_loss_equal_pytorch_s(family):
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    expected = load_file(GOLDEN / family / "expected.safetensors")
    batch, *positions = golden_batch(expected)
    logits = model(**batch)
    assert_golden(logits, span_losses(logits, *positions).mean(), expected)


# ---- what must not change a row's logits ---------------------------------------------------------


# Three rows of 12 tokens: what other tests have compiled already.


@kinds
def test_packed_windows_have_the_logits_of_their_own_rows(family):
    model, windows = loud_model(1, family=family), batch_of(family)
    real = np.arange(12) < [[7], [4], [2]]
    windows = {name: values * real for name, values in windows.items()}
    if not CASES[family].packs:
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
    together, alone = logits_of(model, packed), logits_of(model, windows)
    for ours, theirs in zip(together, alone, strict=True):
        assert np.isfinite(np.asarray(ours)).all()
        for row, members in enumerate(rows):
            expected = np.concatenate([np.asarray(theirs)[n][real[n]] for n in members])
            assert relative_error(ours[row, : len(expected)], expected) < 1e-5


@kinds
def test_padding_and_other_rows_do_not_change_a_row(family):
    model, short, others = loud_model(2, family=family), batch_of(family, 7), batch_of(family)
    alone, real = logits_of(model, short), short["attention_mask"] == 1
    for row in range(3):
        padded = {name: values.copy() for name, values in others.items()}
        for name, values in short.items():
            padded[name][row, :7] = values[row]
            padded[name][row, 7:] = CASES[family].in_padding if name == "input_ids" else 0
        for ours, theirs in zip(logits_of(model, padded), alone, strict=True):
            theirs = np.asarray(theirs)[row, real[row]]
            assert relative_error(np.asarray(ours)[row, :7][real[row]], theirs) < 1e-5
            assert np.isfinite(np.asarray(ours)).all()


@kinds
def test_defaults_are_all_real_tokens_of_type_0(family):
    model = loud_model(0, family=family)
    ids = np.repeat(batch_of(family, 12, 1)["input_ids"], 3, axis=0)
    types, separator = ids * 0, CASES[family].types_change_after
    if separator is not None:
        ids[ids == separator] = 1
        for row, place in enumerate((2, 7, 4)):
            ids[row, place] = separator
            types[row, place + 1 :] = 1
    said = {"attention_mask": ids**0} | ({"token_type_ids": types} if CASES[family].types else {})
    found, wanted = (
        logits_of(model, {"input_ids": ids}),
        logits_of(model, {"input_ids": ids} | said),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < 1e-5


@kinds
def test_bfloat16_compute_is_close_and_returns_float32(family):
    exact = logits_of(loud_model(0, family=family), batch_of(family))
    rough = logits_of(loud_model(0, dtype="bfloat16", family=family), batch_of(family))
    for ours, theirs in zip(rough, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-4 < relative_error(ours, theirs) < 0.1
    dtypes = {p.dtype for p in parameters(loud_model(0, dtype="bfloat16", family=family)).values()}
    assert dtypes == {jnp.dtype("float32")}


# ---- dropout -------------------------------------------------------------------------------------


# The key's way is one for all; `test_each_dropout_rate_works_alone` shows that all families draw.
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
    for param in others_slow(TESTED)
    for family in param.values
    for field in CASES[family].changed
    if "dropout" in field
]


def with_rates(family, **changed):
    """Start logits of a training's forward pass, all dropout rates 0 but for those `changed`."""
    rates = {p.values[1]: 0.0 for p in DROPOUTS if p.values[0] == family}
    model = loud_model(0, family=family, **rates | changed)
    return np.asarray(model(**batch_of(family), rngs=nnx.Rngs(dropout=0)).start)


@cache
def still(family):
    start = with_rates(family)
    assert (start == np.asarray(loud_model(0, family=family)(**batch_of(family)).start)).all()
    return start


@pytest.mark.parametrize(("family", "rate"), DROPOUTS)
def test_each_dropout_rate_works_alone(family, rate):
    assert np.abs(with_rates(family, **{rate: 0.5}) - still(family)).max() > 1e-2


# ---- configs -------------------------------------------------------------------------------------


@cache
def golden_variations(family):
    return load_file(GOLDEN / family / "variations.safetensors")


def pytorch_s_logits(family, changes, length):
    found = golden_variations(family)
    return [found[golden_name(changes, length, side)] for side in ("start", "end")]


def repeats(family, changes, length):
    """Whether `pytest -m slow` alone compares it: what it shows, another setting shows too.

    Sizes change shapes, and everything is compiled anew for each; a single field may be part of
    several that are changed at once. Rows of another length have the logits that they have in
    longer ones, as another test shows; where attention is local each length is computed otherwise.
    """
    case = CASES[family]
    if not changes:
        return length != max(case.lengths) and family not in COMPILED_WHOLE
    if length != max(case.lengths) or changes.keys() <= SIZES:
        return True
    # In ALBERT a block is run at several places: the number of layers is how it computes.
    several = [c for c in case.variations if c.keys().isdisjoint(SIZES) or family == "albert"]
    return changes not in several and (
        len(changes) > 1 or any(changes.items() < more.items() for more in several)
    )


VARIATIONS = [
    pytest.param(
        family,
        changes,
        length,
        id=f"{family}-{'-'.join(f'{k}={v}' for k, v in changes.items())}-{length}",
        marks=[pytest.mark.slow] if repeats(family, changes, length) else [],
    )
    for family in TESTED
    for changes in variations(family)
    for length in compared_lengths(family, changes)
]


@pytest.mark.parametrize(("family", "changes", "length"), VARIATIONS)
def test_logits_of_every_setting_equal_pytorch_s(family, changes, length):
    logits = logits_of(loud_model(4, family=family, **changes), batch_of(family, length, **changes))
    for ours, theirs in zip(logits, pytorch_s_logits(family, changes, length), strict=True):
        assert relative_error(ours, theirs) < 2e-5


def test_the_golden_files_hold_all_settings_and_no_other():
    for family in TESTED:
        assert golden_variations(family).keys() == {
            golden_name(changes, length, side)
            for changes in variations(family)
            for length in compared_lengths(family, changes)
            for side in ("start", "end")
        }


@cache
def first_weights(family, changes):
    config = loud_config(family, **json.loads(changes))
    state = nnx.state(AutoModelForQuestionAnswering.from_config(config), (nnx.Param, Fixed))
    return [np.asarray(array) for array in jax.tree.leaves(state)]


def differ(some, others):
    return len(some) != len(others) or any(
        a.shape != b.shape or np.abs(a - b).max() > 1e-6 for a, b in zip(some, others, strict=True)
    )


# Of dropout rates `test_each_dropout_rate_works_alone` shows it.
CHANGED = [
    pytest.param(family, field, id=f"{family}-{field}")
    for family, case in TESTED.items()
    for field in case.changed
    if "dropout" not in field
]


@pytest.mark.parametrize(("family", "field"), CHANGED)
def test_every_config_field_changes_something(family, field):
    """PyTorch's logits, to which ours are equal, or else the weights that a model begins with."""
    changes, length = {field: CASES[family].changed[field]}, max(CASES[family].lengths)
    if changes in variations(family) and differ(
        *(pytorch_s_logits(family, c, length) for c in (changes, {}))
    ):
        return
    assert differ(*(first_weights(family, json.dumps(c)) for c in (changes, {})))


@encoders
def test_every_field_of_transformers_config_is_known_of(family):
    """So that a field that a newer transformers adds is looked at before it is ignored."""
    case, kind = CASES[family], type(loud_config(family))
    annotations = [k.__annotations__ for k in kind.__mro__ if k not in PreTrainedConfig.__mro__]
    own = {name for found in annotations for name in found if not name.startswith("_")}
    own -= {"model_type", "attribute_map", "base_model_tp_plan", "keys_to_ignore_at_inference"}
    refused = {name for changes, _ in case.refused for name in changes}
    assert own <= case.changed.keys() | refused | case.without_effect
    assert not case.changed.keys() & case.without_effect


REFUSED = [
    pytest.param(family, changes, message, id=f"{family}-{'-'.join(changes)}")
    for family, case in TESTED.items()
    for changes, message in case.refused
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_a_config_that_cannot_be_computed_is_refused(family, changes, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForQuestionAnswering.from_config(loud_config(family, **changes))


@kinds
def test_rows_longer_than_the_positions_are_refused(family):
    model, limit = loud_model(0, family=family), CASES[family].longest

    def takes(length, **inputs):
        ids = np.ones((1, length), int)
        return jax.eval_shape(lambda: model(input_ids=ids, **inputs).start).shape == (1, length)

    if limit is None:
        assert takes(50)
        return
    message = f"rows of {limit + 1} tokens, but this checkpoint has {limit} positions"
    with pytest.raises(ValueError, match=message):
        takes(limit + 1)
    assert takes(limit)
    if CASES[family].packs:
        # Packed, a row may be longer than the positions; its windows may not.
        assert takes(limit + 1, segment_ids=np.repeat([1, 2], [limit - 9, 10])[None])


@kinds
def test_what_is_compiled_for_one_model_serves_its_equals(family):
    """Their graphdefs are keys of a cache; names in their configs are no difference."""
    one, other = (
        AutoModelForQuestionAnswering.from_config(loud_config(family, _name_or_path=name), seed)
        for seed, name in enumerate(("one", "other"))
    )
    graphdef = one.graphdef("float32")
    assert graphdef == other.graphdef("float32")
    assert hash(graphdef) == hash(other.graphdef("float32"))
    for different in (one.graphdef("bfloat16"), one.graphdef("float32", remat=True)):
        assert graphdef != different
    dropout = next(field for field in CASES[family].changed if "dropout" in field)
    config = loud_config(family, **{dropout: CASES[family].changed[dropout]})
    different = AutoModelForQuestionAnswering.from_config(config).graphdef("float32")
    assert graphdef != different


def test_the_model_works_where_it_is_transformed():
    """A Hugging Face config is in it and cannot be hashed; jit, grad and vmap still work."""
    model, batch = loud_model(0), loud_batch()
    graph, state = nnx.split(model)
    assert hash(graph) == hash(nnx.split(model)[0])
    run = jax.jit(lambda s, b: nnx.merge(graph, s)(**b))
    mapped = jax.vmap(run, in_axes=(None, 0))(state, {n: v[:, None] for n, v in batch.items()})
    assert relative_error(mapped.start[:, 0], run(state, batch).start) < 1e-5
