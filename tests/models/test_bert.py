"""BERT against PyTorch's golden numbers, and what must not change its logits."""

from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import loud_batch, loud_config, loud_model, parameters, relative_error

from qa_flax.models.bert import BertConfig
from qa_flax.models.families import FAMILIES
from qa_flax.models.hf import AutoModelForQuestionAnswering, weight_name
from qa_flax.models.qa import span_losses

GOLDEN = Path(__file__).parents[1] / "golden" / "bert_tiny"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def golden_model():
    return AutoModelForQuestionAnswering.from_pretrained(GOLDEN)


def test_logits_equal_pytorch(golden, golden_model):
    ours = golden_model(**{name: golden[name] for name in INPUTS})
    assert relative_error(ours.start_logits, golden["start_logits"]) < 1e-5
    assert relative_error(ours.end_logits, golden["end_logits"]) < 1e-5


def test_loss_and_every_gradient_equal_pytorch(golden, golden_model):
    @nnx.jit
    def loss(model, batch, start, end):
        return span_losses(model(**batch), start, end).mean()

    positions = jnp.asarray(golden["start_positions"]), jnp.asarray(golden["end_positions"])
    batch = {name: golden[name] for name in INPUTS}
    value, gradients = nnx.value_and_grad(loss)(golden_model, batch, *positions)
    assert abs(float(value) - float(golden["loss"])) < 1e-5
    theirs = {
        n.removeprefix("gradient "): g for n, g in golden.items() if n.startswith("gradient ")
    }
    largest = max(np.abs(g).max() for g in theirs.values())
    for path, param in nnx.to_flat_state(gradients):
        name = weight_name(path, FAMILIES["bert"], prefix="bert.")
        ours = np.asarray(param[...]).T if path[-1] == "kernel" else np.asarray(param[...])
        expected = theirs.pop(name)
        # The key's and the head's biases have a gradient of zero but for rounding.
        allowed = 1e-4 * np.abs(expected).max() + 1e-6 * largest
        assert np.abs(ours - expected).max() < allowed, name
    assert not theirs


def test_packed_windows_have_the_logits_of_their_own_rows():
    model, batch = loud_model(1), loud_batch(12, 3)
    real = batch["attention_mask"] == 1
    gap = np.zeros(3, np.int64)  # padding at the row's end
    packed = {name: np.append(values[real], gap)[None] for name, values in batch.items()}
    segments = np.append(np.nonzero(real)[0] + 1, gap)[None]
    together, alone = model(**packed, segment_ids=segments), model(**batch)
    for ours, theirs in zip(together, alone, strict=True):
        assert relative_error(ours[0, : real.sum()], np.asarray(theirs)[real]) < 1e-5
        assert np.isfinite(np.asarray(ours)).all()


def test_padding_and_other_rows_do_not_change_a_row():
    model, batch = loud_model(2), loud_batch(12, 3)
    padded = {name: np.pad(values, ((0, 2), (0, 9))) for name, values in batch.items()}
    padded["input_ids"][:, 12:] = 7  # whatever stands in the padding
    short, long = model(**batch), model(**padded)
    real = batch["attention_mask"] == 1
    for ours, theirs in zip(long, short, strict=True):
        assert relative_error(np.asarray(ours)[:3, :12][real], np.asarray(theirs)[real]) < 1e-5
        assert np.isfinite(np.asarray(ours)).all()


def test_defaults_are_all_real_tokens_of_type_0_in_order():
    model, ids = loud_model(0), loud_batch(6, 1)["input_ids"]
    said = {"attention_mask": ids**0, "token_type_ids": ids * 0, "position_ids": np.arange(6)[None]}
    for ours, theirs in zip(model(input_ids=ids), model(input_ids=ids, **said), strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_bfloat16_compute_is_close_and_returns_float32():
    exact = loud_model(0)(**loud_batch())
    rough = loud_model(0, dtype="bfloat16")(**loud_batch())
    for ours, theirs in zip(rough, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-4 < relative_error(ours, theirs) < 5e-2
    assert {p.dtype for p in parameters(loud_model(0, dtype="bfloat16")).values()} == {
        jnp.dtype("float32")
    }


def test_dropout_follows_the_key_and_rngs_none_is_deterministic():
    model, batch = loud_model(0), loud_batch()

    def start(seed):
        rngs = None if seed is None else nnx.Rngs(dropout=seed)
        return np.asarray(model(**batch, rngs=rngs).start)

    assert (start(None) == start(None)).all()
    assert (start(1) == start(1)).all()
    assert np.abs(start(1) - start(2)).max() > 1e-2
    assert np.abs(start(1) - start(None)).max() > 1e-2


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_rate_works_alone(rate):
    rates = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    batch, rngs = loud_batch(), nnx.Rngs(dropout=0)
    still = loud_model(0, **rates)(**batch, rngs=rngs).start
    dropped = loud_model(0, **rates | {rate: 0.5})(**batch, rngs=rngs).start
    assert (np.asarray(still) == np.asarray(loud_model(0)(**batch).start)).all()
    assert np.abs(np.asarray(dropped - still)).max() > 1e-2


CHANGED = {
    "vocab_size": 41,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 33,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.4,
    "attention_probs_dropout_prob": 0.4,
    "max_position_embeddings": 41,
    "type_vocab_size": 3,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-3,
    "pad_token_id": 5,
}


def observed(**changes):
    """All a config can change: shapes, first weights, logits without and with dropout."""
    model = AutoModelForQuestionAnswering.from_config(loud_config(**changes))
    arrays = list(parameters(model).values())
    for rngs in (None, nnx.Rngs(dropout=0)):
        arrays += list(model(**loud_batch(), rngs=rngs))
    return [np.asarray(array) for array in arrays]


@pytest.fixture(scope="module")
def unchanged():
    return observed()


@pytest.mark.parametrize("field", [field.name for field in fields(BertConfig)])
def test_every_config_field_is_read(field, unchanged):
    changed = observed(**{field: CHANGED[field]})
    assert len(changed) != len(unchanged) or any(
        a.shape != b.shape or np.abs(a - b).max() > 1e-6
        for a, b in zip(changed, unchanged, strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu_fast"}, "hidden_act='gelu_fast' is not known here; known: gelu, "),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type='relative_key' is not supported for a BERT encoder; "
            "known: 'absolute'",
        ),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ({"num_attention_heads": 3}, "hidden_size=16 is not a multiple of num_attention_heads=3"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForQuestionAnswering.from_config(loud_config(**changes))


def test_rows_longer_than_the_positions_are_refused():
    ids = np.ones((1, 41), int)
    message = "rows of 41 tokens, but this checkpoint has 40 positions"
    with pytest.raises(ValueError, match=message):
        loud_model(0)(input_ids=ids)
    # Packed, a row may be longer than the positions; its windows may not.
    segments = np.repeat([1, 2], [21, 20])[None]
    assert np.isfinite(np.asarray(loud_model(0)(input_ids=ids, segment_ids=segments).start)).all()


def test_the_model_works_where_it_is_transformed():
    """A Hugging Face config is in it and cannot be hashed; jit, grad and vmap still work."""
    model, batch = loud_model(0), loud_batch()
    graph, state = nnx.split(model)
    assert hash(graph) == hash(nnx.split(model)[0])
    run = jax.jit(lambda s, b: nnx.merge(graph, s)(**b))
    mapped = jax.vmap(run, in_axes=(None, 0))(state, {n: v[:, None] for n, v in batch.items()})
    assert relative_error(mapped.start[:, 0], run(state, batch).start) < 1e-5
