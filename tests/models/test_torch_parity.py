"""Equality with PyTorch transformers: logits, loss, gradients, files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from conftest import shared_path
from flax import nnx
from loud import (
    assert_same_gradients,
    batch_of,
    compared_lengths,
    derived_families_slow,
    loud_model,
    relative_error,
    torch_gradients,
    variations,
)

from qa_flax.models.families import FAMILIES
from qa_flax.models.layers import Fixed
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import span_losses
from qa_flax.models.weights import weight_name

torch = pytest.importorskip("torch", reason="needs the parity extra")
import transformers  # noqa: E402


def load_in_torch(directory):
    """HF's PyTorch model of a directory that we saved; no key may be missing or unexpected."""
    model, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def tensors(batch):
    return {name: torch.tensor(values) for name, values in batch.items()}


def assert_same_logits(actual, expected, tolerance):
    for name in ("start_logits", "end_logits"):
        error = relative_error(getattr(actual, name), getattr(expected, name).detach().numpy())
        assert error < tolerance, (name, error)


@pytest.fixture(scope="module")
def mini_lm(tmp_path_factory):
    """Real weights with the same span head in our model and in PyTorch's."""
    directory = tmp_path_factory.mktemp("mini_lm")
    model = AutoModelForQuestionAnswering.from_pretrained(
        shared_path("models", "all-MiniLM-L6-v2"), seed=3
    )
    model.save_pretrained(directory)
    return nnx.jit(model), load_in_torch(directory)


@pytest.mark.parametrize(
    "length", [64, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 384))]
)
def test_real_weights_give_pytorch_s_logits(mini_lm, length):
    random = np.random.default_rng(length)
    mask = np.ones((2, length), np.int64)
    mask[1, length // 2 :] = 0
    batch = {
        "input_ids": random.integers(1000, 30000, (2, length)) * mask,
        "attention_mask": mask,
        "token_type_ids": (np.arange(length) >= length // 3) * mask,
    }
    model, torch_model = mini_lm
    assert_same_logits(model(**batch), torch_model(**tensors(batch)), 2e-5)


# `test_families.py` compares these variations with golden files; this test runs PyTorch itself.
VARIATIONS = [
    pytest.param(
        family,
        changes,
        id=f"{family}-{'-'.join(f'{k}={v}' for k, v in changes.items())}",
        marks=[] if family == "bert" and not changes else [pytest.mark.slow],
    )
    for family in CASES
    for changes in variations(family)
]


@pytest.mark.parametrize(("family", "changes"), VARIATIONS)
def test_loud_weights_give_pytorch_s_logits(family, changes, tmp_path):
    model = loud_model(4, family=family, **changes)
    model.save_pretrained(tmp_path)
    torch_model = load_in_torch(tmp_path)
    for length in compared_lengths(family, changes):
        batch = batch_of(family, length, **changes)
        assert_same_logits(model(**batch), torch_model(**tensors(batch)), 2e-5)


# `test_families.py` compares the gradients of all encoders with golden files.
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name == "bert" else [pytest.mark.slow]) for name in CASES],
)
def test_every_gradient_equals_pytorch(family, tmp_path):
    """The batch has padding, and answer positions that are negative or outside the row."""
    model, batch = loud_model(5, family=family), batch_of(family, 12, 5)
    model.save_pretrained(tmp_path)
    torch_model = load_in_torch(tmp_path)
    # HF divides the loss of the starts, and that of the ends, by the number of positions inside the
    # row. Both positions of row 4 are outside, so that both numbers are 4.
    start, end = np.array([3, 0, -2, 1, 99]), np.array([5, 9, 4, 0, 99])
    loss = torch_model(
        **tensors(batch), start_positions=torch.tensor(start), end_positions=torch.tensor(end)
    ).loss
    loss.backward()
    graph, params, other_state = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def mean_loss(params):
        logits = nnx.merge(graph, params, other_state).span_logits(**batch)
        return span_losses(logits, jnp.array(start), jnp.array(end)).sum() / 4

    value, gradients = jax.value_and_grad(mean_loss)(params)
    assert abs(float(value) - loss.item()) < 1e-5 * max(1, loss.item())
    # transformers 5 loads sinusoids as trainable parameters, although its classes create them with
    # `requires_grad = False`. In our models they are never trained.
    fixed = {
        weight_name(path, FAMILIES[family], FAMILIES[family].prefix)
        for path, variable in nnx.to_flat_state(nnx.state(model, Fixed))
    }
    expected = {
        name: parameter.grad.numpy()
        for name, parameter in torch_model.named_parameters()
        if parameter.grad is not None and name not in fixed
    }
    assert_same_gradients(torch_gradients(gradients, family), expected)


@pytest.mark.parametrize("family", derived_families_slow(CASES))
def test_save_load_save_is_byte_identical(family, tmp_path):
    loud_model(6, family=family).save_pretrained(tmp_path / "first")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert second.read_bytes() == first.read_bytes()


def test_weights_saved_from_a_half_precision_checkpoint_load_as_float32(tmp_path):
    loud_model(0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"dtype": "float16"}))
    AutoModelForQuestionAnswering.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert load_in_torch(tmp_path).dtype == torch.float32
