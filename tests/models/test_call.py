"""Calls of a model by scripts: their arguments, the loss, and torch tensors in and out."""

import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loud import batch_of, loud_batch, loud_model

from qa_flax import (
    AutoModelForQuestionAnswering,
    BertForQuestionAnswering,
    QuestionAnsweringModelOutput,
)
from qa_flax.models.call import FIXED_KEYWORDS, span_loss
from qa_flax.models.families import FAMILIES
from qa_flax.models.qa import SpanLogits

ROWS, LENGTH = 3, 12
POSITIONS = {"start_positions": np.array([3, -2, 99]), "end_positions": np.array([5, 99, 0])}


@cache
def model():
    return loud_model(0)


@cache
def logits() -> SpanLogits:
    return model().span_logits(**loud_batch())


def torch_and_tensors(**arrays):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    return torch, {name: torch.tensor(values) for name, values in arrays.items()}


def cross_entropy_in_numpy(start: np.ndarray, end: np.ndarray) -> float:
    """Hugging Face's loss, by its definition."""
    means = []
    for values, positions in ((logits().start, start), (logits().end, end)):
        values, positions = np.asarray(values, np.float64), np.clip(positions, 0, LENGTH)
        inside = positions < LENGTH
        rows = np.arange(ROWS)[inside]
        log_sums = np.log(np.exp(values[inside]).sum(1))
        means.append(np.mean(log_sums - values[rows, positions[inside]]))
    return float(np.mean(means))


# ---- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert", [np.asarray, jnp.asarray, np.ndarray.tolist], ids=["numpy", "jax", "lists"]
)
def test_arrays_and_lists_give_jax_arrays(convert):
    inputs = {name: convert(values) for name, values in (loud_batch() | POSITIONS).items()}
    output = model()(**inputs)
    assert type(output) is QuestionAnsweringModelOutput
    assert list(output) == ["loss", "start_logits", "end_logits"]
    assert all(isinstance(entry, jax.Array) for entry in output.values())
    for actual, expected in zip(output[1:], logits(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    expected = cross_entropy_in_numpy(*POSITIONS.values())
    np.testing.assert_allclose(output.loss, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
def test_positions_of_both_shapes(shape):
    labels = {name: values.reshape(shape) for name, values in POSITIONS.items()}
    expected = cross_entropy_in_numpy(*POSITIONS.values())
    np.testing.assert_allclose(model()(**loud_batch(), **labels).loss, expected, rtol=1e-6)


def test_the_loss_is_nan_if_no_position_is_inside_its_row():
    outside = np.full(ROWS, LENGTH)
    assert np.isnan(span_loss(logits(), jnp.asarray(outside), jnp.zeros(ROWS, int)))
    labels = {"start_positions": [0, 1, 2], "end_positions": outside}
    assert np.isnan(model()(**loud_batch(), **labels).loss)


@pytest.mark.parametrize("name", POSITIONS)
def test_one_of_the_two_positions_gives_no_loss(name):
    output = model()(**loud_batch(), **{name: POSITIONS[name]})
    assert output.loss is None
    assert list(output) == ["start_logits", "end_logits"]


def test_return_dict_false_gives_a_tuple():
    without_loss = model()(**loud_batch(), return_dict=False)
    assert type(without_loss) is tuple
    assert len(without_loss) == 2
    loss, start, end = model()(**loud_batch(), **POSITIONS, return_dict=False)
    assert loss.shape == ()
    np.testing.assert_array_equal(start, logits().start)
    np.testing.assert_array_equal(end, logits().end)
    tuples = loud_model(0, return_dict=False)  # a setting of the config
    assert type(tuples(**loud_batch())) is tuple
    assert type(tuples(**loud_batch(), return_dict=True)) is QuestionAnsweringModelOutput


def test_forward_is_the_call_and_names_its_inputs():
    output = model().forward(**loud_batch())
    np.testing.assert_array_equal(output.start_logits, logits().start)
    names = inspect.signature(model().forward).parameters.keys()
    assert names >= loud_batch().keys() | POSITIONS.keys()


def test_compiled_calls_return_the_output():
    output = jax.jit(model())(**loud_batch(), **POSITIONS)
    assert type(output) is QuestionAnsweringModelOutput
    expected = cross_entropy_in_numpy(*POSITIONS.values())
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)


def test_inputs_are_broadcast_and_masks_may_be_of_other_dtypes():
    batch = loud_batch()
    batch["attention_mask"] = batch["attention_mask"].astype(bool)
    positions = np.arange(LENGTH)
    for shape in ((LENGTH,), (1, LENGTH)):
        output = model()(**batch, position_ids=positions.reshape(shape))
        np.testing.assert_array_equal(output.start_logits, logits().start)
    batch["attention_mask"] = batch["attention_mask"].astype(np.float32)
    np.testing.assert_array_equal(model()(**batch).end_logits, logits().end)


# ---- arguments -----------------------------------------------------------------------------------


def test_values_of_other_keywords_that_change_nothing_are_accepted():
    accepted = {name: values[-1] for name, (values, _) in FIXED_KEYWORDS.items()}
    assert accepted.keys() >= {"output_hidden_states", "head_mask", "use_cache", "labels"}
    output = model()(**loud_batch(), **accepted, return_dict=None)
    np.testing.assert_array_equal(output.start_logits, logits().start)


@pytest.mark.parametrize("name", FIXED_KEYWORDS)
@pytest.mark.parametrize("value", [True, np.ones((ROWS, LENGTH))], ids=["True", "array"])
def test_other_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^model\({name}=.*\) is not supported .*: \w") as caught:
        model()(**loud_batch(), **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["example_id", "offset_mapping", "overflow_to_sample_mapping", "x"]
)
def test_unknown_keywords_are_type_errors(name):
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
        model()(**loud_batch(), **{name: None})


def test_a_config_that_asks_for_hidden_states_is_refused():
    with pytest.raises(ValueError, match=r"output_attentions=True\) is not supported"):
        loud_model(0, output_attentions=True)(**loud_batch())


@pytest.mark.parametrize("name", ["forward", "__call__", "__init__"])
@pytest.mark.parametrize("base", [AutoModelForQuestionAnswering, BertForQuestionAnswering])
def test_a_subclass_with_an_own_forward_is_refused(base, name):
    with pytest.raises(TypeError, match=rf"^WithOwnLoss replaces {name}, .*compute_loss_func"):
        type(base)("WithOwnLoss", (base,), {name: lambda self, *inputs: None})


IDS = loud_batch()["input_ids"]
INVALID = {
    "one row": ({"input_ids": IDS[0]}, ValueError, r"shape \[12\]; it must be \[B, L\]"),
    "nothing": ({}, ValueError, "without input_ids"),
    "a batch": ({"input_ids": {"input_ids": IDS}}, TypeError, r"model\(\*\*inputs\)"),
    "ragged": ({"input_ids": [[1, 2], [3]]}, ValueError, "rows of different lengths; .*padding"),
    "floats": ({"input_ids": IDS * 1.0}, TypeError, "dtype float64; integers are expected"),
    "large id": (
        {"input_ids": [[1, 40]]},
        ValueError,
        r"input_ids has the id 40, .* ids 0 to 39 only",
    ),
    "huge id": ({"input_ids": IDS + (1 << 32)}, ValueError, "input_ids has the id 42949"),
    "negative id": ({"input_ids": [[-1, 3]]}, ValueError, "input_ids has the id -1"),
    "large type": (
        {"input_ids": IDS, "token_type_ids": IDS * 0 + 2},
        ValueError,
        r"token_type_ids has the id 2, .* ids 0 to 1 only",
    ),
    "mask": (
        {"input_ids": IDS, "attention_mask": np.ones((ROWS, 4))},
        ValueError,
        r"attention_mask has the shape \[3, 4\], which does not fit input_ids of \[3, 12\]",
    ),
    "positions": (
        {"input_ids": IDS, "start_positions": [1, 2], "end_positions": [1, 2, 3]},
        ValueError,
        r"start_positions has the shape \[2\]; one position for each row",
    ),
    "float positions": (
        {"input_ids": IDS, "start_positions": [1.5] * 3, "end_positions": [1, 2, 3]},
        TypeError,
        "start_positions has the dtype float64",
    ),
    "too long": ({"input_ids": np.ones((1, 999), int)}, ValueError, "position"),
}


@pytest.mark.parametrize("case", INVALID)
def test_the_error_message_for_invalid_inputs(case):
    inputs, error_type, message = INVALID[case]
    with pytest.raises(error_type, match=message) as caught:
        model()(**inputs)
    assert "\n" not in str(caught.value)


def test_inputs_without_names_are_in_the_order_of_transformers():
    inputs = tuple(loud_batch().values())
    np.testing.assert_array_equal(model()(*inputs).start_logits, logits().start)
    np.testing.assert_array_equal(model()(*inputs, None).end_logits, logits().end)
    with pytest.raises(
        TypeError, match="takes input_ids, attention_mask, token_type_ids, position"
    ):
        model()(*inputs, None, None)
    with pytest.raises(TypeError, match="got multiple values for argument 'token_type_ids'"):
        model()(*inputs, token_type_ids=inputs[2])
    with pytest.raises(TypeError, match="takes input_ids, attention_mask without names"):
        loud_model(0, family="distilbert")(*inputs)


# ---- beside transformers -------------------------------------------------------------------------


def test_every_argument_of_transformers_models_is_known():
    pytest.importorskip("torch", reason="needs the parity extra")
    import transformers
    from transformers.models.auto import modeling_auto

    ours = set(inspect.signature(model().forward).parameters) | FIXED_KEYWORDS.keys()
    names = modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
    for name in (FAMILIES[family].architecture for family in FAMILIES):
        signature = inspect.signature(getattr(transformers, name).forward)
        assert signature.parameters.keys() - {"self", "kwargs"} <= ours
    for family, declared in FAMILIES.items():
        forward = getattr(transformers, names[family]).forward
        order = [n for n in inspect.signature(forward).parameters if n != "self"]
        expected = ["input_ids", "attention_mask", *declared.positional_inputs]
        assert order[: len(expected)] == expected


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "bert")],
)
def test_outputs_equal_pytorch_s(family, tmp_path):
    torch, tensors = torch_and_tensors(**batch_of(family), **POSITIONS)
    import transformers

    ours = loud_model(4, family=family)
    ours.save_pretrained(tmp_path)
    reference = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    for options in ({}, {"return_dict": False}):
        with torch.no_grad():
            expected, actual = reference(**tensors, **options), ours(**tensors, **options)
        names = ("loss", "start_logits", "end_logits")
        for name in (0, 1, 2) if options else names:
            assert actual[name].dtype == expected[name].dtype == torch.float32
            scale = expected[name].abs()[expected[name].abs() < 1e5].max()
            assert (actual[name] - expected[name]).abs().max() < 2e-5 * scale
    alone = {n: x.reshape(-1, 1)[:1] if n in POSITIONS else x[:1] for n, x in tensors.items()}
    with torch.no_grad():
        torch.testing.assert_close(ours(**alone).loss, reference(**alone).loss, equal_nan=True)


def test_one_tensor_gives_tensors():
    torch, tensors = torch_and_tensors(**loud_batch())
    for inputs in (tensors, loud_batch() | {"attention_mask": tensors["attention_mask"]}):
        output = model()(**inputs)
        assert list(output) == ["start_logits", "end_logits"]
        assert all(type(entry) is torch.Tensor for entry in output.values())
        np.testing.assert_array_equal(output.start_logits.detach(), logits().start)
        assert output.start_logits.device == tensors["input_ids"].device
    (start, _) = model()(tensors["input_ids"], tensors["attention_mask"], return_dict=False)
    assert type(start) is torch.Tensor
    half = tensors | {"attention_mask": tensors["attention_mask"].to(torch.bfloat16)}
    np.testing.assert_array_equal(model()(**half).end_logits.detach(), logits().end)


def test_tensors_require_gradients_as_in_torch_and_backward_says_what_to_do():
    torch, tensors = torch_and_tensors(**loud_batch(), **POSITIONS)
    output = model()(**tensors)
    assert all(entry.requires_grad and not entry.is_leaf for entry in output.values())
    own = torch.nn.functional.cross_entropy(output.start_logits, torch.tensor([1, 2, 3]))
    scaled = model()(**tensors).loss / 4
    for loss in (output.loss, own, scaled, torch.nn.functional.relu(model()(**tensors)[1]).sum()):
        with pytest.raises(RuntimeError, match=r"compute_loss_func|Trainer") as caught:
            loss.backward()
        assert "\n" not in str(caught.value)
        assert "loss.backward()" in str(caught.value)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not any(entry.requires_grad for entry in model()(**tensors).values())
    frozen = loud_model(0).with_dtype("float32")
    frozen.requires_grad_(False)
    assert not any(entry.requires_grad for entry in frozen(**tensors).values())
    # Scripts mask logits in place, and the model's own arrays do not change.
    masked = model()(**tensors).start_logits
    masked[:, 0] = -10000.0
    np.testing.assert_array_equal(model().span_logits(**loud_batch()).start, logits().start)
