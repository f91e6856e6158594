"""The same numbers as PyTorch transformers: logits, loss, gradients, files."""

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


def in_torch(directory):
    """Hugging Face's own model of a directory we saved; it must find every key, and no other."""
    model, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def tensors(batch):
    return {name: torch.tensor(values) for name, values in batch.items()}


def assert_same_logits(ours, theirs, tolerance):
    for name in ("start_logits", "end_logits"):
        error = relative_error(getattr(ours, name), getattr(theirs, name).detach().numpy())
        assert error < tolerance, (name, error)


@pytest.fixture(scope="module")
def mini_lm(tmp_path_factory):
    """The real weights with one span head, here and in PyTorch."""
    directory = tmp_path_factory.mktemp("mini_lm")
    ours = AutoModelForQuestionAnswering.from_pretrained(
        shared_path("models", "all-MiniLM-L6-v2"), seed=3
    )
    ours.save_pretrained(directory)
    return nnx.jit(ours), in_torch(directory)


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
    ours, theirs = mini_lm
    assert_same_logits(ours(**batch), theirs(**tensors(batch)), 2e-5)


# Golden files (`test_families.py`) hold the same of every encoder; here PyTorch itself is asked.
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
    ours = loud_model(4, family=family, **changes)
    ours.save_pretrained(tmp_path)
    theirs = in_torch(tmp_path)
    for length in compared_lengths(family, changes):
        batch = batch_of(family, length, **changes)
        assert_same_logits(ours(**batch), theirs(**tensors(batch)), 2e-5)


# `test_families.py` has those of all encoders, as PyTorch gave them when its files were made.
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name == "bert" else [pytest.mark.slow]) for name in CASES],
)
def test_every_gradient_is_pytorch_s(family, tmp_path):
    """With positions outside the row, negative ones, and padding in the batch."""
    model, batch = loud_model(5, family=family), batch_of(family, 12, 5)
    model.save_pretrained(tmp_path)
    theirs = in_torch(tmp_path)
    # HF divides by the rows that are inside, so all or none are: row 4 is not in this batch's loss.
    start, end = np.array([3, 0, -2, 1, 99]), np.array([5, 9, 4, 0, 99])
    loss = theirs(
        **tensors(batch), start_positions=torch.tensor(start), end_positions=torch.tensor(end)
    ).loss
    loss.backward()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def ours(params):
        logits = nnx.merge(graph, params, rest)(**batch)
        return span_losses(logits, jnp.array(start), jnp.array(end)).sum() / 4

    value, gradients = jax.value_and_grad(ours)(params)
    assert abs(float(value) - loss.item()) < 1e-5 * max(1, loss.item())
    # transformers 5 loads sinusoids as parameters to be trained, which its own classes say they are
    # not (`requires_grad = False`); here they never are.
    fixed = {
        weight_name(path, FAMILIES[family], FAMILIES[family].prefix)
        for path, variable in nnx.to_flat_state(nnx.state(model, Fixed))
    }
    expected = {
        name: parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None and name not in fixed
    }
    assert_same_gradients(torch_gradients(gradients, family), expected)


@pytest.mark.parametrize("family", CASES)
def test_save_load_save_is_byte_identical(family, tmp_path):
    loud_model(6, family=family).save_pretrained(tmp_path / "one")
    found = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "one")
    found.save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_weights_saved_from_a_half_precision_checkpoint_load_as_float32(tmp_path):
    loud_model(0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"dtype": "float16"}))
    AutoModelForQuestionAnswering.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert in_torch(tmp_path).dtype == torch.float32
