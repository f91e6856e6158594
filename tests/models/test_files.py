"""Files of a checkpoint that are something else, lie elsewhere, or have names of a wrapper."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from loud import loud_model
from loud_adapters import adapted
from safetensors.numpy import load_file, save_file

from qa_flax import AutoModelForQuestionAnswering

WEIGHTS = "model.safetensors"
load = AutoModelForQuestionAnswering.from_pretrained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for family in ("bert", "bart"):
        loud_model(0, family=family).save_pretrained(folder / family)
    return folder


@pytest.fixture
def bert(saved, tmp_path):
    return shutil.copytree(saved / "bert", tmp_path / "bert")


def rename(directory, change):
    tensors = load_file(directory / WEIGHTS)
    save_file({change(n): t for n, t in tensors.items()}, directory / WEIGHTS, {"format": "pt"})


def assert_same(model, other):
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, other)), strict=True):
        np.testing.assert_array_equal(a, b)


WRAPPED = {
    "module": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "lightning": lambda name: f"model.{name}",
    "lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "inside": lambda name: name.replace(".layer", "._orig_mod.layer"),
    "own class": lambda name: f"net.reader.{name}",
}


DEFAULT = {("bert", "both"), ("bart", "lightning")}
PAIRS = [
    pytest.param(*pair, marks=[] if pair in DEFAULT else [pytest.mark.slow])
    for pair in itertools.product(("bert", "bart"), WRAPPED)
]


@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_names_of_wrappers_are_ignored_with_a_warning(saved, tmp_path, case, family, caplog):
    copy = shutil.copytree(saved / family, tmp_path / "copy")
    rename(copy, WRAPPED[case])
    assert_same(load(copy), load(saved / family))
    assert "have a prefix of a wrapper, which is ignored: " in caplog.text


def test_an_encoder_in_a_wrapper_keeps_its_head(bert, saved, caplog):
    rename(bert, lambda n: n if n.startswith("qa_") else f"model.{n.removeprefix('bert.')}")
    assert_same(load(bert), load(saved / "bert"))
    assert "37 of 39" in caplog.text


def test_two_models_in_one_file_are_not_guessed(bert):
    tensors = load_file(bert / WEIGHTS)
    both = {f"{model}.{n}": t for model in ("student", "teacher") for n, t in tensors.items()}
    save_file(both, bert / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"(?s)unexpected: student\..*and \d+ more"):
        load(bert)


FOREIGN = {
    "pointer": ("version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "page": (" <!doctype html><html>", "a web page; download the file itself"),
    "empty": ("", "empty; download it"),
    "archive": ("PK\x03\x04...", "a zip archive; .*torch.save"),
}


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_took_the_place_of_a_file_is_named(bert, name, case):
    content, message = FOREIGN[case]
    (bert / name).write_text(content)
    with pytest.raises((OSError, ValueError), match=rf"{name}.* it is {message}"):
        load(bert)


def test_the_folder_inside_that_holds_a_model_is_named(bert, tmp_path):
    outer = tmp_path / "sentence-transformer"
    shutil.move(bert, outer / "0_Transformer")
    (outer / "modules.json").write_text("[]")
    with pytest.raises(OSError, match=r"a folder inside it holds a model: give .*/0_Transformer$"):
        load(outer)
    load(outer / "0_Transformer")
    shutil.copytree(outer / "0_Transformer", outer / "snapshots" / "abc")
    with pytest.raises(OSError, match=r"2 folders inside it hold a model; give one of .*abc"):
        load(outer)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(bert, value, caplog):
    tensors = {n: t.copy() for n, t in load_file(bert / WEIGHTS).items()}
    tensors["qa_outputs.weight"][1, 3] = value
    save_file(tensors, bert / WEIGHTS, {"format": "pt"})
    load(bert)
    assert "1 of the 32 values of qa_outputs.weight are NaN or infinite" in caplog.text


# ---- the base model of adapters ------------------------------------------------------------------


@pytest.fixture
def adapter(saved, tmp_path):
    adapted(base=load(saved / "bert")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(adapter, **settings):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    "name", ["/gone", None, *(pytest.param(n, marks=pytest.mark.slow) for n in ("", "no/body"))]
)
def test_a_base_model_that_moved_is_given_by_an_argument(saved, adapter, name):
    expected = load(adapter)
    change(adapter, base_model_name_or_path=name)
    with pytest.raises((OSError, ValueError), match=r"adapter.* with base_model="):
        load(adapter)
    loaded = load(adapter, base_model=saved / "bert")
    assert_same(loaded, expected)
    assert loaded.config.name_or_path == str(saved / "bert")


def test_base_models_that_cannot_be_right_are_refused(saved, adapter):
    with pytest.raises(ValueError, match=r"base_model='.*' is for adapters, but .*leave it out"):
        load(saved / "bert", base_model="anything")
    for base in (str(adapter), 3):
        change(adapter, base_model_name_or_path=base)
        with pytest.raises(ValueError, match=r"which has adapters itself|is not the name of a mod"):
            load(adapter)


def test_how_adapters_were_initialised_does_not_matter(adapter):
    expected = load(adapter)
    for init in ("gaussian", "orthogonal", "eva", "mica", False, True):
        change(adapter, init_lora_weights=init)
        assert_same(load(adapter), expected)
