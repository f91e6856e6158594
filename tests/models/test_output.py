"""The output of a model behaves as transformers' `ModelOutput`, and is a JAX pytree."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_flax import QuestionAnsweringModelOutput

LOGITS = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def output(kind=QuestionAnsweringModelOutput, with_loss=True):
    """An output of 1-element entries, which can be compared by `==`."""
    loss = np.float32(0.5) if with_loss else None
    return kind(loss=loss, start_logits=np.ones((1, 1)), end_logits=np.zeros((1, 1)))


def attribute(result, name, value):
    setattr(result, name, value)
    return list(result.items()), getattr(result, name)


def entry(result, name, value):
    result[name] = value
    return list(result.items()), getattr(result, name)


def is_the_same(result, other):
    return type(other) is type(result), list(other.items()), vars(other) == vars(result)


OPERATIONS = {
    "repr": repr,
    "index": lambda x: x[0],
    "last": lambda x: x[-1],
    "slice": lambda x: x[:2],
    "index beyond": lambda x: x[7],
    "key": lambda x: x["start_logits"],
    "missing key": lambda x: x["loss"],
    "unknown key": lambda x: x["logits"],
    "keys": lambda x: list(x.keys()),
    "values": lambda x: list(x.values()),
    "items": lambda x: list(x.items()),
    "iteration": list,
    "reversed": lambda x: list(reversed(x)),
    "get": lambda x: (x.get("loss"), x.get("loss", 3), x.get("nothing", 4)),
    "contains": lambda x: ("loss" in x, "start_logits" in x, "attentions" in x, "start" in x),
    "len": len,
    "bool": bool,
    "to_tuple": lambda x: x.to_tuple(),
    "dict": dict,
    "double star": lambda x: {**x},
    "is a dict": lambda x: isinstance(x, dict),
    "fields": lambda x: [field.name for field in dataclasses.fields(x)],
    "attributes": lambda x: (x.loss, x.start_logits, x.end_logits, x.hidden_states, x.attentions),
    "unknown attribute": lambda x: x.logits,
    "set loss": lambda x: attribute(x, "loss", 7),
    "set None": lambda x: attribute(x, "loss", None),
    "set hidden states": lambda x: attribute(x, "hidden_states", (1,)),
    "set another attribute": lambda x: attribute(x, "other", 7),
    "set entry": lambda x: entry(x, "loss", 7),
    "set another entry": lambda x: entry(x, "other", 7),
    "del": lambda x: x.__delitem__("loss"),
    "pop": lambda x: x.pop("loss"),
    "update": lambda x: x.update(loss=3),
    "setdefault": lambda x: x.setdefault("loss", 3),
    "copy": lambda x: is_the_same(x, x.copy()),
    "copy.copy": lambda x: is_the_same(x, copy.copy(x)),
    "deepcopy": lambda x: is_the_same(x, copy.deepcopy(x)),
    "pickle": lambda x: is_the_same(x, pickle.loads(pickle.dumps(x))),
    "replace": lambda x: list(dataclasses.replace(x, loss=3).items()),
    "rebuilt": lambda x: list(type(x)({name: 2 * value for name, value in x.items()}).items()),
    "positional": lambda x: list(type(x)(None, 1, 2).items()),
    "empty": lambda x: list(type(x)().items()),
    "equal": lambda x: (x == x, x == copy.copy(x), x == dict(x), x != copy.copy(x)),
    "different": lambda x: x == type(x)(None, 1, 2),
    "hash": hash,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_gives_what_it_gives_in_transformers(operation):
    pytest.importorskip("torch", reason="needs the parity extra")
    from transformers.modeling_outputs import QuestionAnsweringModelOutput as Reference

    for with_loss in (True, False):
        results = []
        for kind in (Reference, QuestionAnsweringModelOutput):
            try:
                results.append(repr(OPERATIONS[operation](output(kind, with_loss))))
            except Exception as error:
                results.append(error)
        expected, actual = results
        if isinstance(expected, Exception):
            assert isinstance(actual, type(expected))
        else:
            assert actual == expected


def test_entries_have_the_names_of_span_logits_too():
    result = output()
    assert result.start is result["start_logits"]
    assert result.end is result["end_logits"]


@pytest.mark.parametrize("operation", ["del", "pop", "update", "setdefault"])
def test_entries_cannot_be_removed(operation):
    with pytest.raises(TypeError, match=f"{operation} is not supported by a QuestionAnsweringMod"):
        OPERATIONS[operation](output())


@pytest.mark.parametrize("with_loss", [True, False])
def test_compiled_functions_return_it(with_loss):
    loss = jnp.float32(2) if with_loss else None
    result = QuestionAnsweringModelOutput(loss, jnp.asarray(LOGITS), jnp.asarray(-LOGITS))
    doubled = jax.jit(lambda x: jax.tree.map(lambda leaf: 2 * leaf, x))(result)
    assert type(doubled) is QuestionAnsweringModelOutput
    assert list(doubled) == list(result)
    np.testing.assert_array_equal(doubled.end_logits, -2 * LOGITS)
    assert (doubled.loss is None) != with_loss
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(result)]
    assert paths == [f"['{name}']" for name in result]
    # Transformations put other objects into the tree, such as dicts and None.
    boxed = jax.tree.map(lambda leaf: {"box": leaf}, result)
    assert list(boxed) == list(result)
    assert list(jax.tree.map(lambda leaf: None, result)) == list(result)
