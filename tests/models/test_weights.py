"""A parameter's name and layout in a checkpoint; that checkpoints fit or do not: test_model.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from loud import loud_model

from qa_flax.models.families import FAMILIES
from qa_flax.models.weights import (
    arrays_of,
    filled,
    layer_name,
    named_parameters,
    torch_layout,
    weight_name,
)

BERT = FAMILIES["bert"]


def test_a_parameter_has_the_name_of_its_row_in_the_table():
    path = ("encoder", "layers", 1, "attention", "query", "kernel")
    name = "encoder.layer.1.attention.self.query.weight"
    assert weight_name(path, BERT) == name
    assert weight_name(path, BERT, "bert.") == f"bert.{name}"
    assert layer_name(BERT, path[1:-1]) == "bert.encoder.layer.1.attention.self.query"
    # The head is beside the encoder, so never behind its prefix.
    assert weight_name(("head", "outputs", "bias"), BERT, "bert.") == "qa_outputs.bias"


def test_a_module_without_a_row_is_named():
    with pytest.raises(KeyError, match=r"no checkpoint name for the module layers\.0\.gate"):
        weight_name(("encoder", "layers", 0, "gate", "kernel"), BERT)


def test_dense_kernels_alone_are_transposed():
    values = jnp.arange(6.0).reshape(2, 3)
    kernel = torch_layout(("encoder", "project", "kernel"), values)
    assert kernel.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert kernel.flags.c_contiguous
    assert (torch_layout(("encoder", "word", "embedding"), values) == np.asarray(values)).all()


def test_a_model_is_filled_by_path():
    model = loud_model(0)
    arrays = arrays_of(model)
    assert [path for path, _ in named_parameters(model, BERT).values()] == list(arrays)
    doubled = filled(model, lambda path, shape: 2 * arrays[path].reshape(shape))
    for path, array in arrays_of(doubled).items():
        np.testing.assert_array_equal(array, 2 * arrays[path])
    np.testing.assert_array_equal(arrays_of(model)["head", "outputs", "bias"].shape, (2,))
