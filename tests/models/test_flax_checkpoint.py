"""Checkpoints of transformers 4's Flax models are converted by `qa-flax convert`, without PyTorch.

transformers 5 has no Flax models. The files are made from known PyTorch weights by the names that
the Flax models of transformers 4 had.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from loud import derived_families_slow, loud_config, loud_model, parameters
from safetensors.numpy import load_file
from transformers import AutoConfig

import qa_flax
from qa_flax import AutoModelForQuestionAnswering, FlaxAutoModelForQuestionAnswering, cli
from qa_flax.commands.convert import convert
from qa_flax.models.families import FAMILIES
from qa_flax.models.model import _named_parameters
from qa_flax.models.weights import torch_layout

WEIGHTS, MSGPACK = "model.safetensors", "flax_model.msgpack"
# The families that had a Flax model for question answering.
FLAX_FAMILIES = [name for name, f in FAMILIES.items() if f"Flax{f.architecture}" in qa_flax.__all__]
EMBEDDINGS = ("_embeddings", "shared", "embed_positions")
NORMS = ("LayerNorm", "layer_norm", "layernorm_embedding")


def flax_tree(tensors: dict) -> dict:
    """The parameters of the Flax model, as a tree."""
    flat = {}
    for name, array in tensors.items():
        *modules, leaf = name.split(".")
        if leaf == "weight" and modules[-1].endswith(EMBEDDINGS):
            leaf = "embedding"
        elif leaf == "weight" and modules[-1].endswith(NORMS):
            leaf = "scale"
        elif leaf == "weight":
            leaf, array = "kernel", array.T.copy()
        flat[(*modules, leaf)] = array
    return unflatten_dict(flat)


def write(folder, tree) -> None:
    """Write a checkpoint of a Flax model, with the config that is there."""
    (folder / MSGPACK).write_bytes(msgpack_serialize(tree))
    (folder / WEIGHTS).unlink(missing_ok=True)


@pytest.fixture
def checkpoint(tmp_path):
    loud_model(0).save_pretrained(tmp_path)
    write(tmp_path, flax_tree(load_file(tmp_path / WEIGHTS)))
    return tmp_path


def is_model(folder, seed=0, family="bert", **changes) -> bool:
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    left, right = parameters(model), parameters(loud_model(seed, family=family, **changes))
    return left.keys() == right.keys() and all(
        (np.asarray(left[path]) == np.asarray(right[path])).all() for path in right
    )


def test_the_names_are_those_of_transformers_4():
    """So the tests below convert what the Flax models wrote."""
    layer = ("bert", "encoder", "layer", "1")
    names = flatten_dict(flax_tree(_bert_arrays())).keys()
    assert names >= {
        ("bert", "embeddings", "word_embeddings", "embedding"),
        ("bert", "embeddings", "LayerNorm", "scale"),
        (*layer, "attention", "self", "query", "kernel"),
        (*layer, "attention", "output", "LayerNorm", "bias"),
        (*layer, "intermediate", "dense", "kernel"),
        ("qa_outputs", "bias"),
    }


def _bert_arrays():
    named = _named_parameters(loud_model(0))
    return {name: torch_layout(path, param[...]) for name, (path, param) in named.items()}


@pytest.mark.parametrize("family", derived_families_slow(FLAX_FAMILIES))
def test_every_family_is_converted_to_the_same_weights(family, tmp_path, capsys):
    loud_model(0, family=family).save_pretrained(tmp_path)
    expected = load_file(tmp_path / WEIGHTS)
    # These Flax models compute the positions' sinusoids.
    tables = [name for name in expected if family == "roformer" and "embed_positions" in name]
    write(tmp_path, flax_tree({n: x for n, x in expected.items() if n not in tables}))
    with pytest.raises(OSError, match="Convert Flax's weights once: qa-flax convert DIRECTORY"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    cli.main(["convert", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / WEIGHTS} written\n"
    converted = load_file(tmp_path / WEIGHTS)
    assert converted.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(converted[name], array)
        assert converted[name].dtype == array.dtype
    assert is_model(tmp_path, family=family)
    assert (tmp_path / MSGPACK).exists()


def test_sinusoids_of_distilbert_are_added(tmp_path):
    loud_model(0, family="distilbert", sinusoidal_pos_embds=True).save_pretrained(tmp_path)
    expected = load_file(tmp_path / WEIGHTS)
    write(tmp_path, flax_tree({n: x for n, x in expected.items() if "position" not in n}))
    converted = load_file(convert(tmp_path))
    assert converted.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(converted[name], array)


def test_pytorch_loads_what_was_converted(checkpoint):
    pytest.importorskip("torch", reason="needs the parity extra")
    import transformers

    convert(checkpoint)
    _, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        checkpoint, output_loading_info=True
    )
    assert not any(report.values()), report


def test_other_forms_of_the_file(checkpoint):
    """Sharded, within `params`, of an encoder alone, of another task, in half precision."""
    tree = flax_tree(_bert_arrays())
    flat = flatten_dict(tree, sep="/")
    names = sorted(flat)
    (checkpoint / MSGPACK).unlink()
    weight_map = {}
    for n, part in enumerate((names[:20], names[20:]), 1):
        file = f"flax_model-0000{n}-of-00002.msgpack"
        (checkpoint / file).write_bytes(msgpack_serialize({name: flat[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (checkpoint / f"{MSGPACK}.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="qa-flax convert DIRECTORY"):
        FlaxAutoModelForQuestionAnswering.from_pretrained(checkpoint)
    convert(checkpoint)
    assert is_model(checkpoint)

    write(checkpoint, {"params": tree})
    convert(checkpoint)
    assert is_model(checkpoint)

    pooler = {"dense": {"kernel": np.ones((16, 16), np.float32), "bias": np.ones(16, np.float32)}}
    write(checkpoint, tree["bert"] | {"pooler": pooler})
    converted = load_file(convert(checkpoint))
    assert "embeddings.word_embeddings.weight" in converted
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint, seed=3)
    kernel = model.encoder.layers[1].up.kernel[...]
    np.testing.assert_array_equal(kernel, loud_model(0).encoder.layers[1].up.kernel[...])

    rounded = {name: jnp.asarray(x, jnp.bfloat16) for name, x in flat.items()}
    write(checkpoint, {name: np.asarray(x) for name, x in rounded.items()})
    converted = load_file(convert(checkpoint))
    assert {array.dtype.name for array in converted.values()} == {"float32"}
    expected = np.asarray(rounded["qa_outputs/kernel"], np.float32).T
    np.testing.assert_array_equal(converted["qa_outputs.weight"], expected)


def damaged(change):
    def damage(folder):
        (folder / MSGPACK).write_bytes(change((folder / MSGPACK).read_bytes()))

    return damage


def tree_of(tree):
    return lambda folder: write(folder, tree)


INVALID = {
    "cut": (damaged(lambda b: b[:-100]), ValueError, "is not a complete msgpack file of Flax: "),
    "empty": (damaged(lambda b: b""), ValueError, "is not a complete msgpack file of Flax: "),
    "text": (damaged(lambda b: b"version 1 of lfs"), ValueError, "is not a complete msgpack file"),
    "a number": (damaged(lambda b: b"\x07"), ValueError, "contains a int, not parameters by name"),
    "a word": (tree_of({"a": {"kernel": "x"}}), ValueError, "a/kernel is a str, not an array"),
    "old form": (
        tree_of({"a": {"kernel": np.ones((2, 3, 4), np.float32)}}),
        ValueError,
        r"a/kernel has the shape \[2, 3, 4\]; a dense kernel of two axes is expected",
    ),
    "a pickle, too": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
        ValueError,
        "has both flax_model.msgpack and pytorch_model.bin, which may differ; move the one",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), OSError, "has no config.json"),
    "another model": (
        lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'),
        ValueError,
        "model_type='gpt2' is not supported; supported: albert, ",
    ),
    "a missing shard": (
        lambda f: (
            (f / MSGPACK).rename(f / "x")
            and (f / f"{MSGPACK}.index.json").write_text('{"weight_map": {"a": "b.msgpack"}}')
        ),
        OSError,
        "index.json lists b.msgpack, which is missing",
    ),
    "converted": (lambda f: convert(f), FileExistsError, "model.safetensors already exists"),
    "sharded": (
        lambda f: loud_model(1).save_pretrained(f, max_shard_size=9000),
        FileExistsError,
        "model.safetensors.index.json already exists; nothing to convert",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_the_error_message_for_an_invalid_checkpoint(case, checkpoint):
    damage, error_type, message = INVALID[case]
    damage(checkpoint)
    before = sorted(path.name for path in checkpoint.iterdir())
    with pytest.raises(error_type, match=message) as caught:
        convert(checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert sorted(path.name for path in checkpoint.iterdir()) == before


def test_weights_of_another_model_are_refused_when_they_are_loaded(checkpoint):
    config = loud_config(num_hidden_layers=3)
    config.save_pretrained(checkpoint)
    assert AutoConfig.from_pretrained(checkpoint).num_hidden_layers == 3
    convert(checkpoint)
    with pytest.raises(ValueError, match=r"missing: encoder.layer.2.attention"):
        AutoModelForQuestionAnswering.from_pretrained(checkpoint)
