"""The parameters and modules of a model by PyTorch's paths."""

import re

import numpy as np
import pytest
import tiny
from loud import loud_config, loud_model, variations
from loud_adapters import adapted

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.models.families import FAMILIES
from qa_flax.models.parts import Part

# Each lists its parameters in another way; the other families are slow tests.
DEFAULT = ("bert", "xlm-roberta", "mbart", "modernbert")
FAMILY_PARAMS = [
    pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.slow]) for name in FAMILIES
]


# LUKE's weights for entities, which are never trained here.
OF_ENTITIES = re.compile(r"(^|\.)(entity_embeddings\.|(w2e|e2w|e2e)_query\.)")


def described(model):
    return [
        (name, tuple(p.shape), p.requires_grad and not OF_ENTITIES.search(name))
        for name, p in model.named_parameters()
    ]


@pytest.mark.parametrize("family", FAMILY_PARAMS)
def test_names_shapes_and_order_are_those_of_pytorch(family):
    pytest.importorskip("torch", reason="needs the parity extra")
    import transformers
    from torch_idle import freeze_idle

    for changes in variations(family) if family not in DEFAULT else [{}]:
        if changes.get("sinusoidal_pos_embds"):
            continue  # transformers 5 trains DistilBERT's sinusoidal table, by mistake
        config = loud_config(family, **changes)
        reference = transformers.AutoModelForQuestionAnswering.from_config(config)
        if family in ("mobilebert", "squeezebert"):
            freeze_idle(reference, family, **changes)
        model = AutoModelForQuestionAnswering.from_config(config)
        assert described(model) == described(reference)
        assert list(model.state_dict()) == list(reference.state_dict())
        with_parameters = [n for n, m in reference.named_modules() if list(m.parameters())]
        assert [name for name, _ in model.named_modules()] == with_parameters
        assert model.base_model_prefix == reference.base_model_prefix
        assert described(model.base_model) == described(reference.base_model)
        embeddings = reference.get_input_embeddings()
        assert model.get_input_embeddings().num_embeddings == embeddings.num_embeddings
        assert model.num_parameters() == reference.num_parameters()
        flags = [{"only_trainable": True}] * (family != "luke")
        for flag in (*flags, {"exclude_embeddings": True}):
            assert model.num_parameters(**flag) == reference.num_parameters(**flag)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["bert", "bart", "big_bird"])
def test_a_model_with_adapters_has_the_names_of_peft(family):
    peft = pytest.importorskip("peft", reason="needs the parity extra")
    import transformers

    targets = ["query", "value", "q_proj"]
    model = adapted(family, target_modules=targets)
    head = {"bert": "qa_outputs", "bart": "qa_outputs", "big_bird": "qa_classifier.qa_outputs"}
    reference = peft.get_peft_model(
        transformers.AutoModelForQuestionAnswering.from_config(loud_config(family)),
        peft.LoraConfig(
            r=3,
            target_modules=targets,
            modules_to_save=list(model.lora.modules_to_save),
            task_type="QUESTION_ANS",
        ),
    )
    expected = [entry for entry in described(reference) if "original_module" not in entry[0]]
    assert described(model) == expected
    paths = ("base_model.model", "base_model", f"base_model.model.{head[family]}")
    for path in paths:
        ours, theirs = model.get_submodule(path), reference.get_submodule(path)
        assert [n for n, _ in ours.named_parameters()] == [
            n for n, _ in theirs.named_parameters() if "original_module" not in n
        ]


def test_peft_forwarding_finds_the_modules_below_the_wrappers():
    model = adapted()
    layer = model.bert.encoder.layer[0]
    assert (
        layer
        == model.base_model.bert.encoder.layer[0]
        == model.base_model.model.bert.encoder.layer[0]
    )
    assert layer.attention.self.query.weight is layer.attention.self.query.base_layer.weight
    assert layer.attention.self.query.in_features == 16
    assert model.qa_outputs.weight.requires_grad
    assert not layer.attention.self.query.weight.requires_grad
    assert layer.attention.self.query.lora_A.default.weight.requires_grad
    with pytest.raises(ValueError, match=r"stays frozen.*\(base_model.model.bert.embeddings.word"):
        model.requires_grad_(True)
    model.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 0


def test_a_part_is_a_list_where_pytorchs_module_is():
    layers = tiny.model(num_hidden_layers=3).bert.encoder.layer
    assert len(layers) == 3
    assert layers[-1] == layers[2] != layers[0]
    names = [name for name, _ in layers[1:].named_parameters()]
    assert names[0] == "0.attention.self.query.weight"
    assert names[16] == "1.attention.self.query.weight"
    assert next(layers[1:].parameters()) is layers[1].attention.self.query.weight
    assert list(layers) == [layers[n] for n in range(3)]
    assert [name for name, _ in layers.named_children()] == ["0", "1", "2"]
    with pytest.raises(IndexError):
        layers[3]
    with pytest.raises(TypeError, match=r"bert.encoder.layer cannot be removed; load the model"):
        del layers[2:]
    with pytest.raises(TypeError, match=r"bert.encoder is not a list of modules; it has layer"):
        len(tiny.model().bert.encoder)


def test_paths_and_attributes():
    model = tiny.model()
    weight = model.qa_outputs.weight
    assert weight is model.get_parameter("qa_outputs.weight") is model.qa_outputs.weight
    assert model.get_submodule("bert.encoder.layer.0") == model.bert.encoder.layer[0]
    assert model.get_submodule("") is model
    assert getattr(model, model.base_model_prefix) == model.base_model == model.bert
    assert (model.qa_outputs.in_features, model.qa_outputs.out_features) == (32, 2)
    embeddings = model.get_input_embeddings()
    assert embeddings == model.bert.embeddings.word_embeddings
    assert (embeddings.num_embeddings, embeddings.embedding_dim) == (tiny.VOCABULARY, 32)
    assert [name for name, _ in model.named_parameters(recurse=False)] == []
    assert [name for name, _ in embeddings.named_parameters("x", recurse=False)] == ["x.weight"]
    assert next(model.children()) == model.bert
    assert model.bert.config is model.config
    assert model.bert.eval() == model.bert
    assert "qa_outputs.weight): [2, 32]" not in repr(model.bert)
    assert "(weight): [2, 32]" in repr(model.qa_outputs)


def test_what_is_not_there_names_what_is():
    model = tiny.model()
    for module, name, message in (
        (model, "roberta", "has no attribute 'roberta'; of .* it has bert, qa_outputs"),
        (model.bert, "pooler", "bert has no attribute 'pooler'; of .* it has embeddings, encoder"),
        (model.bert.embeddings, "dropout", "it has word_embeddings, .* is set in model.config"),
    ):
        assert not hasattr(module, name)
        with pytest.raises(AttributeError, match=message):
            getattr(module, name)
    with pytest.raises(AttributeError, match="no module 'encodr'; there are embeddings, encoder"):
        model.get_submodule("bert.encodr.layer")
    with pytest.raises(AttributeError, match="no parameter 'bias'; there are weight"):
        model.get_parameter("bert.embeddings.word_embeddings.bias")
    with pytest.raises(TypeError, match="bert cannot be called on its own; call the model"):
        model.bert(np.zeros((1, 4), int))


def test_modules_cannot_be_replaced_without_notice():
    model = tiny.model(num_hidden_layers=2)
    for replace in (
        lambda: setattr(model, "qa_outputs", Part(model, "x", {})),
        lambda: setattr(model, "bert", None),
        lambda: setattr(model.bert.encoder, "layer", model.bert.encoder.layer[:1]),
        lambda: setattr(model.bert, "pooler", None),
        lambda: setattr(model.qa_outputs, "weight", None),
        lambda: setattr(model.bert, "requires_grad", False),
        lambda: setattr(model, "requires_grad", False),
    ):
        with pytest.raises(AttributeError, match=r"cannot be|requires_grad_"):
            replace()
    model.qa_outputs.bias = np.array([3.0, 4.0])
    assert model.head.outputs.bias[...].tolist() == [3.0, 4.0]


# ---- state_dict ----------------------------------------------------------------------------------


def other_values(model, seed=1):
    random = np.random.default_rng(seed)
    return {n: random.normal(size=p.shape).astype("f4") for n, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["bert", pytest.param("mbart", marks=pytest.mark.slow)])
def test_the_state_dict_round_trips_with_pytorch(tmp_path, family):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    import transformers

    source = loud_model(2, family=family)
    reference = transformers.AutoModelForQuestionAnswering.from_config(source.config)
    torch.save(source.state_dict(), tmp_path / "ours.pt")
    loaded = torch.load(tmp_path / "ours.pt")  # weights_only=True
    assert {type(tensor) for tensor in loaded.values()} == {torch.Tensor}
    assert str(reference.load_state_dict(loaded)) == "<All keys matched successfully>"
    target = AutoModelForQuestionAnswering.from_config(source.config, seed=5)
    assert target.load_state_dict(reference.state_dict()) == ([], [])
    for name, tensor in reference.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_arrays_of_every_kind_are_loaded():
    import jax.numpy as jnp

    model = tiny.model()
    for seed, convert in enumerate((np.asarray, jnp.asarray, lambda a: a.astype(np.float64))):
        values = other_values(model, seed)
        assert model.load_state_dict({n: convert(a) for n, a in values.items()}) == ([], [])
        for name, parameter in model.named_parameters():
            np.testing.assert_array_equal(np.asarray(parameter), values[name])
    np.testing.assert_array_equal(model.head.outputs.kernel[...], values["qa_outputs.weight"].T)
    half = jnp.asarray(values["qa_outputs.bias"], jnp.bfloat16)
    model.load_state_dict({"qa_outputs.bias": half}, strict=False)
    np.testing.assert_array_equal(model.head.outputs.bias[...], half.astype(np.float32))
    assert model.qa_outputs.load_state_dict({"weight": np.ones((2, 32)), "bias": np.ones(2)})
    assert model.head.outputs.kernel[...].min() == 1
    assert set(model.qa_outputs.state_dict(prefix="p.")) == {"p.weight", "p.bias"}
    assert model.state_dict(keep_vars=True)["qa_outputs.bias"] is model.qa_outputs.bias


def test_what_does_not_fit_is_listed_and_nothing_is_written():
    model = tiny.model()
    before = {name: np.array(p) for name, p in model.named_parameters()}
    values = other_values(model)
    del values["qa_outputs.bias"]
    values |= {"pooler.bias": np.zeros(3), "qa_outputs.weight": np.zeros((32, 2))}
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(values)
    for message in (
        r"Missing key(s) in state_dict: qa_outputs.bias",
        r"Unexpected key(s) in state_dict: pooler.bias",
        r"size mismatch for qa_outputs.weight: its shape is [32, 2] in the state_dict, [2, 32] in",
    ):
        assert message in str(error.value)
    with pytest.raises(RuntimeError, match=r"size mismatch for qa_outputs.weight: [^\n]*$"):
        model.load_state_dict(values, strict=False)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(np.asarray(parameter), before[name])
    del values["qa_outputs.weight"]
    result = model.load_state_dict(values, strict=False)
    assert result.missing_keys == ["qa_outputs.weight", "qa_outputs.bias"]
    assert result.unexpected_keys == ["pooler.bias"]
    with pytest.raises(TypeError, match="needs a dict, got list"):
        model.load_state_dict([])
