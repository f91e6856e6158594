"""Names and layouts of parameters in checkpoints; test_model.py tests that checkpoints fit."""

import jax.numpy as jnp
import numpy as np
import pytest
from loud import loud_model

from qa_flax.models.families import FAMILIES
from qa_flax.models.weights import (
    layer_name,
    named_parameters,
    parameter_arrays,
    torch_layout,
    weight_name,
    with_parameters,
)

BERT = FAMILIES["bert"]


def test_a_parameter_has_the_name_that_its_family_defines():
    path = ("encoder", "layers", 1, "attention", "query", "kernel")
    name = "encoder.layer.1.attention.self.query.weight"
    assert weight_name(path, BERT) == name
    assert weight_name(path, BERT, "bert.") == f"bert.{name}"
    assert layer_name(BERT, path[1:-1]) == "bert.encoder.layer.1.attention.self.query"
    # The prefix is for the encoder only.
    assert weight_name(("head", "outputs", "bias"), BERT, "bert.") == "qa_outputs.bias"


def test_a_parameter_that_belongs_to_no_layer_of_flax_has_a_name_of_its_own():
    """As the biases of DeBERTa's queries and values."""
    deberta, attention = FAMILIES["deberta"], ("encoder", "layers", 1, "attention")
    name = "deberta.encoder.layer.1.attention.self.q_bias"
    assert weight_name((*attention, "q_bias"), deberta, "deberta.") == name
    model = loud_model(0, family="deberta")
    assert model.get_parameter(name).path == (*attention, "q_bias")
    in_self = [n for n, _ in model.named_parameters() if ".1.attention.self." in n]
    assert [n.split("self.")[1] for n in in_self][:3] == ["q_bias", "v_bias", "in_proj.weight"]


def test_the_error_names_a_module_without_a_checkpoint_name():
    with pytest.raises(KeyError, match=r"no checkpoint name for the module layers\.0\.gate"):
        weight_name(("encoder", "layers", 0, "gate", "kernel"), BERT)


def test_only_dense_kernels_are_transposed():
    values = jnp.arange(6.0).reshape(2, 3)
    kernel = torch_layout(("encoder", "project", "kernel"), values)
    assert kernel.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert kernel.flags.c_contiguous
    assert (torch_layout(("encoder", "word", "embedding"), values) == np.asarray(values)).all()


def test_parameters_are_replaced_by_path():
    model = loud_model(0)
    arrays = parameter_arrays(model)
    assert [path for path, _ in named_parameters(model, BERT).values()] == list(arrays)
    doubled = with_parameters(model, lambda path, shape: 2 * arrays[path].reshape(shape))
    for path, array in parameter_arrays(doubled).items():
        np.testing.assert_array_equal(array, 2 * arrays[path])
    np.testing.assert_array_equal(arrays["head", "outputs", "bias"].shape, (2,))
