"""The classes for one family: their names, what they load, and that they refuse other families."""

import copy
import pickle

import numpy as np
import pytest
import tiny
from loud import loud_batch, loud_config, loud_model, parameters
from transformers import BertConfig, DistilBertConfig

import qa_flax
from qa_flax import (
    AutoModelForQuestionAnswering,
    BertForQuestionAnswering,
    DistilBertForQuestionAnswering,
    FlaxAutoModelForQuestionAnswering,
    FlaxBertForQuestionAnswering,
    LoraConfig,
    get_peft_model,
)
from qa_flax.models.families import FAMILIES


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    loud_model(0).save_pretrained(folder)
    return folder


def same(model, other) -> bool:
    left, right = parameters(model), parameters(other)
    return left.keys() == right.keys() and all(
        (np.asarray(left[path]) == np.asarray(right[path])).all() for path in left
    )


def test_every_family_has_its_class_in_the_package():
    names = {family.architecture for family in FAMILIES.values()}
    ending = "ForQuestionAnswering"
    exported = {name for name in qa_flax.__all__ if name.endswith(ending)}
    flax = {name for name in exported if name.startswith("Flax")} - {f"FlaxAutoModel{ending}"}
    assert exported - flax - {f"AutoModel{ending}", f"FlaxAutoModel{ending}"} == names
    assert {name.removeprefix("Flax") for name in flax} <= names
    for model_type, family in FAMILIES.items():
        assert model_type == getattr(qa_flax, family.architecture).MODEL_TYPE


def test_the_names_are_those_of_transformers():
    pytest.importorskip("torch", reason="needs the parity extra")
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
    assert {name: names[name] for name in FAMILIES} == {
        name: family.architecture for name, family in FAMILIES.items()
    }


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        (AutoModelForQuestionAnswering, "BertForQuestionAnswering"),
        (FlaxAutoModelForQuestionAnswering, "FlaxBertForQuestionAnswering"),
    ],
)
def test_the_class_for_all_families_gives_instances_of_the_class_for_one(auto, name, bert):
    one = getattr(qa_flax, name)
    for model in (auto.from_pretrained(bert), one.from_pretrained(bert)):
        assert type(model) is one
        assert isinstance(model, auto)
        assert isinstance(model, AutoModelForQuestionAnswering)
        assert same(model, loud_model(0))
    assert type(auto.from_config(loud_config())) is one
    # Copies, adapters and other dtypes have the same class.
    adapted = get_peft_model(one.from_pretrained(bert), LoraConfig(target_modules=["query"]))
    for model in (adapted, adapted.merge_and_unload(), adapted.with_dtype("bfloat16")):
        assert type(model) is one
    assert pickle.loads(pickle.dumps(one)) is one
    assert type(copy.deepcopy(model)) is one


def test_a_class_refuses_other_families_by_name(bert):
    message = (
        r"DistilBertForQuestionAnswering is for distilbert models, but .* is of a bert model; "
        r"use BertForQuestionAnswering, or AutoModelForQuestionAnswering, which is for all"
    )
    with pytest.raises(ValueError, match=message) as caught:
        DistilBertForQuestionAnswering.from_pretrained(bert)
    assert str(bert) in str(caught.value)
    for build in (DistilBertForQuestionAnswering, DistilBertForQuestionAnswering.from_config):
        with pytest.raises(ValueError, match="distilbert models, but the config is of a bert mod"):
            build(loud_config())
    with pytest.raises(ValueError, match="use FlaxDistilBertForQuestionAnswering, or FlaxAutoMod"):
        FlaxBertForQuestionAnswering(DistilBertConfig())
    with pytest.raises(ValueError, match=r"bert models, but .* is of a distilbert model"):
        BertForQuestionAnswering.from_pretrained(bert, config=DistilBertConfig())


def test_adapters_are_loaded_by_the_class_of_their_base_model(bert, tmp_path):
    base = AutoModelForQuestionAnswering.from_pretrained(bert)
    get_peft_model(base, LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    assert BertForQuestionAnswering.from_pretrained(tmp_path).lora.r == 8
    with pytest.raises(ValueError, match=r"distilbert models, but .* is of a bert model"):
        DistilBertForQuestionAnswering.from_pretrained(tmp_path)


def test_a_config_gives_a_model_with_random_weights(caplog):
    config = loud_config()
    model = BertForQuestionAnswering(config)
    assert same(model, AutoModelForQuestionAnswering.from_config(config, seed=0))
    assert not same(model, BertForQuestionAnswering(config, seed=1))
    assert same(BertForQuestionAnswering(config, seed=1, dtype="bfloat16"), tiny_seed_1(config))
    assert np.asarray(model.head.outputs.kernel[...]).std() > 0.1
    model.set_params({})  # its arrays can be replaced and trained: they are JAX's
    config.hidden_dropout_prob = 0.9  # the model has a copy of the caller's object
    assert model.config.hidden_dropout_prob != 0.9
    config = BertConfig(**tiny.config().to_dict())
    config.attention_dropout_prob = 0.3
    BertForQuestionAnswering(config)
    assert "attention_dropout_prob has no effect on a bert config" in caplog.text


def tiny_seed_1(config):
    return AutoModelForQuestionAnswering.from_config(config, seed=1)


def test_a_script_s_own_subclass_stays_what_it_is(bert):
    class Own(AutoModelForQuestionAnswering):
        def describe(self):
            return "own"

    for model in (Own.from_pretrained(bert), Own.from_config(loud_config()), Own(loud_config())):
        assert type(model) is Own
        assert model.with_dtype("bfloat16").describe() == "own"


def test_the_flax_api_of_transformers_4(bert):
    load = FlaxAutoModelForQuestionAnswering.from_pretrained
    for options in ({"from_pt": True}, {"from_pt": False}, {"input_shape": (1, 1)}):
        assert same(load(bert, seed=0, dtype="float32", **options), loud_model(0))
    model = load(bert, dtype="bfloat16")
    assert model.dtype == "bfloat16"
    with pytest.raises(ValueError, match="_do_init=False is not supported"):
        load(bert, _do_init=False)
    with pytest.raises(RuntimeError, match=r"model.params does not exist: .*nnx.state\(model\)"):
        _ = model.params
    for name in ("params", "dropout_rng", "train"):
        with pytest.raises(ValueError, match=rf"model\({name}=.*is not supported"):
            model(**loud_batch(), **{name: True})
    with pytest.raises(ValueError, match="save_pretrained: params="):
        model.save_pretrained(bert / "other", params={})
    assert not (bert / "other").exists()
