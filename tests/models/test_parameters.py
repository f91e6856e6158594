"""Views of parameters: they are read and written in PyTorch's layout, and never ignore a write."""

import copy
import gc
import sys
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from qa_flax import LoraConfig, get_peft_model
from qa_flax.models.parameters import frozen_names


@pytest.fixture(params=["numpy", "torch"])
def library(request, monkeypatch):
    """Whether the script has imported torch."""
    if request.param == "torch":
        return pytest.importorskip("torch", reason="needs the parity extra")
    monkeypatch.setitem(sys.modules, "torch", None)
    return np


def kernel(model):
    return np.asarray(model.head.outputs.kernel[...]).T


def test_a_view_describes_its_parameter(library):
    model = tiny.model()
    weight = model.qa_outputs.weight
    assert tuple(weight.shape) == tuple(weight.size()) == (2, 32)
    assert (weight.size(1), weight.numel(), weight.dim(), weight.ndim, len(weight)) == (
        32,
        64,
        2,
        2,
        2,
    )
    assert str(weight.dtype).removeprefix("torch.") == "float32"
    assert (weight.device, weight.grad, weight.is_leaf, weight.requires_grad) == (
        "cpu",
        None,
        True,
        True,
    )
    assert repr(weight) == "Parameter(qa_outputs.weight, [2, 32], trained)"
    np.testing.assert_array_equal(np.asarray(weight), kernel(model))
    np.testing.assert_array_equal(weight.detach().cpu().numpy(), kernel(model))
    np.testing.assert_array_equal(weight.numpy(), kernel(model))
    np.testing.assert_array_equal(np.asarray(weight.data), kernel(model))
    assert weight.tolist() == kernel(model).tolist()
    assert weight[0][3].item() == kernel(model)[0, 3]
    np.testing.assert_allclose(float((weight * 2 - weight).sum()), kernel(model).sum(), rtol=1e-5)
    np.testing.assert_allclose(float(weight.mean()), kernel(model).mean(), rtol=1e-4)
    assert int((weight == weight.clone()).sum()) == 64
    model.head.outputs.kernel[...] = jnp.zeros((32, 2))
    assert not np.asarray(weight).any()


NUMBERS = np.arange(64).reshape(2, 32)
# Each writes into the weight [2, 32]; what it must then be, given its old values.
WRITERS = {
    "data": (lambda w: setattr(w, "data", NUMBERS + 0.0), lambda w: NUMBERS),
    "data[...]": (lambda w: w.data.__setitem__(..., 3.0), lambda w: w * 0 + 3),
    "data[i]": (lambda w: w.data.__setitem__(1, 3.0), lambda w: np.stack([w[0], w[0] * 0 + 3])),
    "[i, j]": (lambda w: w.__setitem__((0, 0), 5.0), lambda w: np.where(NUMBERS, w, 5)),
    "copy_": (lambda w: w.copy_(jnp.arange(32.0)), lambda w: w * 0 + np.arange(32)),
    "data.copy_": (lambda w: w.data.copy_(w.clone() + 1), lambda w: w + 1),
    "fill_": (lambda w: w.fill_(2), lambda w: w * 0 + 2),
    "data.zero_": (lambda w: w.data.zero_(), lambda w: w * 0),
    "+=": (lambda w: w.__iadd__(1), lambda w: w + 1),
    "data *=": (lambda w: setattr(w, "data", w.data.__imul__(2)), lambda w: w * 2),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_writing_changes_the_model(library, writer):
    write, expected = WRITERS[writer]
    model = tiny.model()
    before = kernel(model).copy()
    write(model.qa_outputs.weight)
    np.testing.assert_allclose(kernel(model), expected(before), rtol=1e-6)


def test_what_does_not_fit_is_refused(library):
    weight = tiny.model().qa_outputs.weight
    with pytest.raises(ValueError, match=r"qa_outputs.weight: an array of shape \[32, 2\] was"):
        weight.data = np.zeros((32, 2))
    with pytest.raises(ValueError, match="an array of dtype int64 was assigned"):
        weight.data = np.zeros((2, 32), np.int64)
    for array in (weight.numpy(), np.asarray(weight), weight.detach().cpu().numpy()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    for name in ("backward", "register_hook"):
        with pytest.raises(AttributeError, match=r"this model holds no gradients: qa_flax.Trainer"):
            getattr(weight, name)
    with pytest.raises(ValueError, match="this model holds no gradients"):
        weight.grad = np.zeros((2, 32))
    weight.grad = None
    with pytest.raises(AttributeError, match="a Parameter has no attribute 'wieght'"):
        _ = weight.wieght
    with pytest.raises(AttributeError):
        weight.learning_rate = 1.0
    if library is np:
        with pytest.raises(AttributeError, match="assign an array to its data, or import torch"):
            weight.data.normal_(0.0, 1.0)


def test_functions_of_torch_read_and_write_it():
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    model = tiny.model()
    weight = model.qa_outputs.weight
    assert torch.equal(weight, torch.from_numpy(kernel(model).copy()))
    assert float(torch.linalg.norm(weight)) == pytest.approx(np.linalg.norm(kernel(model)))
    torch.nn.init.constant_(weight, 0.5)
    assert (kernel(model) == 0.5).all()
    torch.nn.init.xavier_uniform_(weight)
    bound = (6 / 34) ** 0.5
    assert bound / 2 < np.abs(kernel(model)).max() <= bound
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    assert vector.numel() == model.num_parameters()
    torch.nn.utils.vector_to_parameters(vector * 0 + 2, model.parameters())
    assert (kernel(model) == 2).all()
    with torch.no_grad():
        weight[0].zero_()
        weight.data[1, :3].mul_(3)
    assert kernel(model)[:, :4].tolist() == [[0, 0, 0, 0], [6, 6, 6, 2]]
    weight.data.normal_(0, 0.02)
    assert 0 < np.abs(kernel(model)).max() < 0.2


def test_torchs_optimizers_are_refused_with_what_to_do():
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    model = tiny.model()
    for parameters in (
        model.parameters(),
        model.named_parameters(),
        [
            {"params": model.bert.parameters(), "lr": 1e-5},
            {"params": model.qa_outputs.parameters()},
        ],
    ):
        with pytest.raises(TypeError, match=r"pass optim='adamw_torch', .* to qa_flax.Trainer"):
            torch.optim.AdamW(parameters, lr=1e-3)
    # As before PyTorch's first backward: there are no gradients to clip.
    assert float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)) == 0.0


def test_a_parameter_has_one_view():
    """Scripts build groups of parameters by their ids."""
    model = tiny.model()
    ids = list(map(id, model.bert.parameters()))
    others = [p for p in model.parameters() if id(p) not in ids]
    assert list(map(id, others)) == [id(model.qa_outputs.weight), id(model.qa_outputs.bias)]
    assert len(set(model.parameters())) == len(list(model.parameters()))
    other = copy.deepcopy(model)
    other.qa_outputs.bias.fill_(1.0)
    assert not np.asarray(model.qa_outputs.bias).all()
    # A view keeps its model alive, and together they are freed.
    weight = tiny.model().qa_outputs.weight
    assert weight.shape[0] == 2
    freed = weakref.ref(weight)
    del weight
    gc.collect()
    assert freed() is None


def test_a_view_follows_the_model_when_its_variables_are_replaced():
    model = tiny.model()
    bias = model.qa_outputs.bias
    model.bfloat16()
    bias.fill_(7.0)
    assert model.head.outputs.bias[...].tolist() == [7.0, 7.0]


# ---- freezing ------------------------------------------------------------------------------------


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_is_frozen_is_a_property_of_the_model():
    model = tiny.model(num_hidden_layers=2)
    every = trained_names(model)
    graphdef = model.graphdef("float32")
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad = False
    model.bert.encoder.layer[0].requires_grad_(False)
    model.qa_outputs.bias.requires_grad_(False)
    frozen = every - trained_names(model)
    assert len(frozen) == 5 + 16 + 1
    assert frozen_names(model) == ["bert.embeddings", "bert.encoder.layer.0", "qa_outputs.bias"]
    assert "frozen" in repr(model.qa_outputs.bias)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.num_parameters(only_trainable=True) == trained < model.num_parameters()
    assert model.graphdef("float32") == graphdef
    assert hash(model.graphdef("float32")) == hash(graphdef)
    for other in (
        copy.deepcopy(model),
        model.with_dtype("bfloat16"),
        model.with_remat(),
        nnx.merge(*nnx.split(model)),
        model.bfloat16(),
    ):
        assert every - trained_names(other) == frozen
    copied = copy.deepcopy(model)
    copied.requires_grad_(True)
    assert trained_names(copied) == every
    assert every - trained_names(model) == frozen


def test_adapters_are_added_to_and_merged_into_a_model_with_frozen_parameters(tmp_path):
    model = tiny.model()
    model.bert.embeddings.requires_grad_(False)
    model.qa_outputs.requires_grad_(False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    assert adapted.qa_outputs.weight.requires_grad  # as in PEFT
    assert not adapted.bert.embeddings.LayerNorm.weight.requires_grad
    adapted.save_pretrained(tmp_path)
    assert model.with_adapter(tmp_path).qa_outputs.weight.requires_grad
    adapted.requires_grad_(False)
    assert adapted.bfloat16().num_parameters(only_trainable=True) == 0
    merged = adapted.merge_and_unload()
    assert frozen_names(merged) == ["bert.embeddings", "qa_outputs"]
    adapted = get_peft_model(merged, LoraConfig(r=2, target_modules=["query"]))
    assert adapted.num_parameters(only_trainable=True) == 2 * 2 * 32 + 66


def test_a_fixed_table_is_never_trained(caplog):
    from loud import loud_model

    model = loud_model(family="roformer")
    table = model.roformer.encoder.embed_positions.weight
    assert not table.requires_grad
    model.requires_grad_(False).requires_grad_(True)
    assert not table.requires_grad
    assert "no effect on the fixed table roformer.encoder.embed_positions.weight" in caplog.text
    assert model.frozen == frozenset()
