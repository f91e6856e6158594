"""Loading and saving, and the error message for each kind of invalid checkpoint."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from loud import loud_batch, loud_config, loud_model, parameters, relative_error
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, GPT2Config

from qa_flax.models.model import AutoModelForQuestionAnswering

load = AutoModelForQuestionAnswering.from_pretrained
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    loud_model(0).save_pretrained(directory)
    return directory


@pytest.fixture
def checkpoint(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


def rewrite(directory, change) -> None:
    """Replace the weights by `change(weights)`."""
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS)


def configure(directory, **changes) -> None:
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | changes))


def same_parameters(model, other, ignored=()) -> bool:
    left, right = parameters(model), parameters(other)
    return left.keys() == right.keys() and all(
        (np.asarray(left[path]) == np.asarray(right[path])).all()
        for path in left
        if path[0] not in ignored
    )


# ---- valid checkpoints ---------------------------------------------------------------------------


def test_save_load_save_is_byte_identical(saved, tmp_path):
    load(saved).save_pretrained(tmp_path)
    for name in ("config.json", WEIGHTS):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    assert same_parameters(load(tmp_path), loud_model(0))


def test_the_saved_config_can_be_read_by_transformers(saved):
    config = AutoConfig.from_pretrained(saved)
    assert config.architectures == ["BertForQuestionAnswering"]
    assert config.model_type == "bert"
    assert config.hidden_size == 16


def test_the_dtypes_and_shapes_of_a_loaded_model(saved):
    model = load(str(saved), dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert isinstance(model.config, type(loud_config()))
    batch = loud_batch()
    for arrays in (batch, {name: jnp.asarray(values) for name, values in batch.items()}):
        output = model(**arrays)
        assert output.start_logits.shape == output.end_logits.shape == (3, 12)
        assert output.start_logits.dtype == jnp.float32


def test_the_config_argument_replaces_the_checkpoint_s_config(saved):
    config = loud_config(hidden_dropout_prob=0.7)
    model = load(saved, config=config)
    assert model.config.hidden_dropout_prob == 0.7
    config.hidden_dropout_prob = 0.1  # the model has a copy of the caller's object
    assert model.config.hidden_dropout_prob == 0.7


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda n: n.removeprefix("bert."), id="no prefix"),
        pytest.param(
            lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
            id="gamma and beta",
        ),
    ],
)
def test_old_weight_names_are_read(checkpoint, rename):
    rewrite(checkpoint, lambda weights: {rename(n): w for n, w in weights.items()})
    assert same_parameters(load(checkpoint), loud_model(0))


def test_tensors_of_other_tasks_are_ignored(checkpoint):
    others = {
        "bert.embeddings.position_ids": np.arange(40)[None],
        "bert.pooler.dense.weight": np.ones((16, 16), np.float32),
        "bert.pooler.dense.bias": np.ones(16, np.float32),
        "cls.predictions.bias": np.ones(40, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 16), np.float32),
        "classifier.weight": np.ones((3, 16), np.float32),
    }
    rewrite(checkpoint, lambda weights: weights | others)
    assert same_parameters(load(checkpoint), loud_model(0))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_weights_become_float32(checkpoint, dtype):
    rewrite(checkpoint, lambda weights: {n: w.astype(dtype) for n, w in weights.items()})
    configure(checkpoint, dtype="float16")
    model, exact = load(checkpoint), loud_model(0)
    rounded = {path: np.asarray(a).astype(dtype) for path, a in parameters(exact).items()}
    for path, array in parameters(model).items():
        assert array.dtype == jnp.float32
        assert (np.asarray(array) == rounded[path].astype(np.float32)).all()
    model.save_pretrained(checkpoint)
    # With another dtype, PyTorch would round the float32 weights when it loads them.
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "float32"


def shard(directory) -> dict:
    """Split the weights over two files; returns the index's `weight_map`."""
    weights = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory, weight_map) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def test_sharded_weights_are_read(checkpoint):
    shard(checkpoint)
    assert same_parameters(load(checkpoint), loud_model(0))


def test_a_missing_head_is_initialised_from_the_seed_with_a_warning(checkpoint, caplog):
    rewrite(checkpoint, lambda ws: {n: w for n, w in ws.items() if not n.startswith("qa_")})
    model = load(checkpoint, seed=1)
    assert "qa_outputs.bias and qa_outputs.weight are newly initialised from seed 1" in caplog.text
    assert same_parameters(model, loud_model(0), ignored=("head",))
    assert same_parameters(model, load(checkpoint, seed=1))
    assert not same_parameters(model, load(checkpoint, seed=2))
    kernel = np.asarray(model.head.outputs.kernel[...])
    assert 0.1 < kernel.std() < 0.3  # the config's initializer_range is 0.2
    assert not np.asarray(model.head.outputs.bias[...]).any()


def test_a_complete_checkpoint_gives_no_warning(saved, caplog):
    load(saved)
    assert not caplog.records


def test_the_labels_of_another_task_do_not_change_the_size_of_the_head(checkpoint):
    rewrite(checkpoint, lambda ws: {n: w for n, w in ws.items() if not n.startswith("qa_")})
    configure(
        checkpoint, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2}
    )
    model = load(checkpoint)
    assert model.config.num_labels == 2


def test_random_weights_have_hugging_face_s_distribution():
    config = loud_config(hidden_size=64, vocab_size=500, pad_token_id=3, initializer_range=0.05)
    model = AutoModelForQuestionAnswering.from_config(config, seed=0)
    for path, param in parameters(model).items():
        array = np.asarray(param)
        if path[-1] == "bias":
            assert not array.any()
        elif path[-1] == "scale":
            assert (array == 1).all()
        else:
            assert abs(array.mean()) < 5 * 0.05 / np.sqrt(array.size)
            assert 0.04 < array.std() < 0.06
    word = np.asarray(model.encoder.embeddings.word.embedding[...])
    assert not word[3].any()
    assert word[4].any()
    assert same_parameters(model, AutoModelForQuestionAnswering.from_config(config, seed=0))
    assert not same_parameters(model, AutoModelForQuestionAnswering.from_config(config, seed=1))


def test_a_failed_save_leaves_no_temporary_files(checkpoint, tmp_path):
    (tmp_path / "out" / WEIGHTS).mkdir(parents=True)  # a folder with the name of the file
    with pytest.raises(OSError, match=WEIGHTS):
        load(checkpoint).save_pretrained(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]


# ---- invalid checkpoints -------------------------------------------------------------------------


def without(name):
    return lambda directory: (directory / name).unlink()


def config_text(text):
    return lambda directory: (directory / "config.json").write_text(text)


def config_value(**changes):
    return lambda directory: configure(directory, **changes)


def weights(change):
    return lambda directory: rewrite(directory, change)


def weights_bytes(change):
    def write(directory):
        file = directory / WEIGHTS
        file.write_bytes(change(file.read_bytes()))

    return write


def dropped(name):
    return weights(lambda ws: {n: w for n, w in ws.items() if n != name})


def added(name, array):
    return weights(lambda ws: ws | {name: array})


def index(change):
    return lambda directory: write_index(directory, change(shard(directory)))


def only_a_pickle(directory):
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


ONES = np.ones((3, 16), np.float32)
WORDS = "bert.embeddings.word_embeddings.weight"
INVALID = {
    "no config": (without("config.json"), OSError, r"has no config.json; it contains: model.safe"),
    "config is no JSON": (config_text("{"), ValueError, r"config.json is not JSON: "),
    "config is a list": (
        config_text("[]"),
        ValueError,
        r"contains a JSON list; an object is expected",
    ),
    "no model_type": (
        config_text("{}"),
        ValueError,
        r"model_type=None is not supported; supported: albert, bart, bert",
    ),
    "other model_type": (
        config_value(model_type="llama"),
        ValueError,
        r"model_type='llama' is not supported; supported: albert, bart, bert",
    ),
    "config of wrong type": (
        config_value(hidden_size="wide"),
        ValueError,
        r"config.json is not a valid config: .*hidden_size.*expected int, got str",
    ),
    "activation": (
        config_value(hidden_act="mish2"),
        ValueError,
        r"hidden_act='mish2' is not supported",
    ),
    "positions": (
        config_value(position_embedding_type="relative_key_query"),
        ValueError,
        r"position_embedding_type='relative_key_query' is not supported.*supported: 'absolute'",
    ),
    "no weights": (
        without(WEIGHTS),
        OSError,
        r"has no model.safetensors and no .*; it contains: config.json",
    ),
    "only a pickle": (only_a_pickle, OSError, r"pytorch_model.bin is not read.*qa-flax convert"),
    "cut short": (
        weights_bytes(lambda b: b[:-100]),
        OSError,
        r"model.safetensors \(\d+ bytes\) is not a complete safetensors file",
    ),
    "not safetensors": (
        weights_bytes(lambda b: b"\x80" * 64),
        OSError,
        r"is not a complete safetensors file",
    ),
    "empty file": (
        weights_bytes(lambda b: b""),
        OSError,
        r"\(0 bytes\) is not a complete safetensors file",
    ),
    "missing tensor": (
        dropped(WORDS),
        ValueError,
        r"1 difference\(s\):\n  missing: embeddings.word_embeddings.weight \[40, 16\]",
    ),
    "half a head": (dropped("qa_outputs.bias"), ValueError, r"missing: qa_outputs.bias \[2\]"),
    "unexpected tensor": (
        added("bert.encoder.layer.2.output.dense.weight", ONES),
        ValueError,
        r"unexpected: bert.encoder.layer.2.output.dense.weight \[3, 16\]",
    ),
    "wrong shape": (
        config_value(vocab_size=41),
        ValueError,
        r"wrong shape: bert.embeddings.word_embeddings.weight is \[40, 16\] in the checkpoint, "
        r"\[41, 16\] by config.json",
    ),
    "integers": (
        weights(lambda ws: ws | {WORDS: ws[WORDS].astype(np.int32)}),
        ValueError,
        r"wrong dtype: .*word_embeddings.weight is I32; supported: F16, BF16, F32, F64",
    ),
    "twice": (
        weights(lambda ws: ws | {WORDS.removeprefix("bert."): ws[WORDS]}),
        ValueError,
        r"contains embeddings.word_embeddings.weight twice, as ",
    ),
    "index names another folder": (
        index(lambda m: m | {WORDS: "../other.safetensors"}),
        ValueError,
        r"lists ../other.safetensors; only file names in the same folder are allowed",
    ),
    "index without shard": (
        index(lambda m: m | {WORDS: "model-9.safetensors"}),
        OSError,
        r"index.json lists model-9.safetensors, which is missing from",
    ),
    "index without map": (index(lambda m: None), ValueError, r"has no weight_map"),
}


@pytest.mark.parametrize("case", INVALID)
def test_the_error_message_for_an_invalid_checkpoint(checkpoint, case):
    damage, error_type, message = INVALID[case]
    damage(checkpoint)
    with pytest.raises(error_type, match=r"(?s)" + message) as caught:
        load(checkpoint)
    assert str(checkpoint) in str(caught.value) or case in ("activation", "positions")


def test_the_message_lists_all_differences(checkpoint):
    def change(ws):
        return {n.replace("layer.1.output", "layer.7.output"): w for n, w in ws.items()}

    rewrite(checkpoint, change)
    configure(checkpoint, type_vocab_size=5)
    with pytest.raises(ValueError, match=r"9 difference\(s\)") as caught:
        load(checkpoint)
    assert str(caught.value).count("missing: ") == 4
    assert str(caught.value).count("unexpected: ") == 4
    assert str(caught.value).count("wrong shape: ") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/at/all", "/nowhere/at/all does not exist, and it is not a valid hub id"),
        ("../nowhere", "../nowhere does not exist"),
        ("someone/nothing-of-that-name", "is not a local directory, and no model of that name"),
        ("nothing-of-that-name", "is not a local directory, and no model of that name could be do"),
    ],
)
def test_a_source_that_does_not_exist(source, message):
    with pytest.raises(OSError, match=message):
        load(source)


def test_a_file_instead_of_a_directory(saved):
    with pytest.raises(OSError, match="is a file; give the directory that contains it"):
        load(saved / WEIGHTS)


def test_unsupported_dtypes_and_families_are_rejected(saved, caplog):
    message = "dtype='float64' is not supported; supported: float32, bfloat16"
    with pytest.raises(ValueError, match=message):
        load(saved, dtype="float64")
    # Scripts for GPUs ask for float16: as with .half(), the model computes in bfloat16.
    assert load(saved, dtype="float16").dtype == jnp.bfloat16
    assert "dtype=float16: the model computes in bfloat16 instead" in caplog.text
    with pytest.raises(ValueError, match="model_type='gpt2' is not supported; supported: "):
        AutoModelForQuestionAnswering.from_config(GPT2Config())


def test_a_saved_and_loaded_model_has_the_same_logits(saved):
    for actual, expected in zip(
        load(saved)(**loud_batch())[:], loud_model(0)(**loud_batch())[:], strict=True
    ):
        assert relative_error(actual, expected) == 0
