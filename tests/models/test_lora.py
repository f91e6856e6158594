"""LoRA adapters: which parameters are trained, what the model computes, the files it writes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import (
    TESTED,
    assert_same_gradients,
    batch_of,
    logits_of,
    loud_batch,
    loud_model,
    relative_error,
)
from loud_adapters import adapted
from safetensors.numpy import load_file, save_file

from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
)
from qa_flax.models.grouped import LoraConvolution
from qa_flax.models.layers import Fixed, linear
from qa_flax.models.lora import LoraLinear, dense_layers
from qa_flax.models.qa import span_losses

# One for each way that a family's file names dense layers; the tests of the others are slow.
DIFFERENT_LAYERS = {"bert", "modernbert"}
encoders = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in DIFFERENT_LAYERS else [pytest.mark.slow])
        for family in TESTED
    ],
)
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def variables(model, kind):
    return {path: v[...] for path, v in nnx.to_flat_state(nnx.state(model, kind))}


def assert_equal(actual, expected, kind=nnx.Variable):
    actual, expected = variables(actual, kind), variables(expected, kind)
    assert actual.keys() == expected.keys()
    for path, array in actual.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=str(path))


def assert_logits(model, expected, batch, tolerance):
    for actual, reference in zip(logits_of(model, batch), expected, strict=True):
        assert relative_error(actual, reference) < tolerance


# ---- the model -----------------------------------------------------------------------------------


@encoders
def test_adapters_of_a_frozen_encoder_can_be_merged_saved_and_loaded(family, tmp_path):
    base, batch = loud_model(3, family=family), batch_of(family)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    frozen = variables(base, nnx.Variable)
    trained = variables(model, nnx.Param)
    layers = {("encoder", *path) for path, _ in dense_layers(base.encoder)}
    assert {p[:-1] for p in trained if p[0] == "encoder"} == layers
    assert {p[-1] for p in trained if p[0] == "encoder"} == {"lora_a", "lora_b"}
    assert {p for p in trained if p[0] == "head"} == {p for p in frozen if p[0] == "head"}
    for path, array in variables(model, Fixed).items():
        np.testing.assert_array_equal(array, frozen.pop(path))
    assert {path[0] for path in frozen} == {"head"}
    assert_logits(model, logits_of(base, batch), batch, 1e-6)

    model = adapted(family)
    logits = logits_of(model, batch)
    assert relative_error(logits.start, logits_of(base, batch).start) > 0.1
    if family == "squeezebert":
        with pytest.raises(ValueError, match=r"adapter of .*query cannot be merged: .* in groups"):
            model.merge_and_unload()
    else:
        merged = model.merge_and_unload()
        assert_logits(merged, logits, batch, 1e-5)
        assert jax.tree.structure(nnx.state(merged)) == jax.tree.structure(nnx.state(base))
        count = merged.num_parameters(only_trainable=True)
        assert count == base.num_parameters(only_trainable=True)

    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert_equal(base.with_adapter(tmp_path), model)


def test_the_trainable_parameters_are_counted(capsys):
    base = loud_model(3)
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["query", "value"]))
    adapters, head = 2 * 2 * (16 * 3 + 3 * 16), 16 * 2 + 2
    assert model.num_parameters(only_trainable=True) == adapters + head
    assert model.num_parameters() == base.num_parameters() + adapters
    model.print_trainable_parameters()
    total = base.num_parameters() + adapters
    share = f"{100 * (adapters + head) / total:.4f}"
    line = f"trainable params: {adapters + head} || all params: {total:,} || trainable%: {share}\n"
    assert capsys.readouterr().out == line


def test_a_is_initialised_as_in_peft_and_b_is_zero():
    def initial(seed):
        config = LoraConfig(r=64, target_modules=["output.dense"])
        params = variables(get_peft_model(loud_model(3), config, seed), nnx.Param)
        return {path: np.asarray(v) for path, v in params.items() if path[0] == "encoder"}

    first, second, other = initial(0), initial(0), initial(1)
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path])
        if path[-1] == "lora_b":
            assert not array.any()
        else:
            bound = array.shape[0] ** -0.5  # uniform: the variance is a third of the bound's square
            assert 0.9 * bound < np.abs(array).max() <= bound
            assert abs(array.std() / bound * 3**0.5 - 1) < 0.05
            assert (array != other[path]).any()


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (["query", "value"], {"attention.query", "attention.value"}),
        (("attention.output.dense",), {"attention.out"}),
        (["dense"], {"attention.out", "up", "down"}),
        (["bert.encoder.layer.1.intermediate.dense"], {"up"}),
        (r".*\.1\..*(key|query)", {"attention.key", "attention.query"}),
        (
            "all-linear",
            {*(f"attention.{n}" for n in ("query", "key", "value", "out")), "up", "down"},
        ),
    ],
)
def test_target_modules_are_matched_as_in_peft(targets, layers):
    model = get_peft_model(loud_model(3), LoraConfig(target_modules=targets))
    adapted = {path for path, layer in dense_layers(model.encoder) if isinstance(layer, LoraLinear)}
    numbers = {1} if ".1." in str(targets) or r"\.1\." in targets else {0, 1}
    assert {(path[1], ".".join(path[2:])) for path in adapted} == {
        (number, name) for number in numbers for name in layers
    }


LAYERS = ", ".join(
    f"bert.encoder.layer.*.{name}"
    for name in (
        *("attention.output.dense", "attention.self.key", "attention.self.query"),
        *("attention.self.value", "intermediate.dense", "output.dense"),
    )
)


def test_the_error_for_unknown_target_modules_lists_the_dense_layers(caplog):
    for targets in (
        ["qurey"],
        ["uery"],
        r".*\.qurey",
        [],
        None,
        ["word_embeddings"],
        ["qa_outputs"],
    ):
        with pytest.raises(ValueError, match=r"matches none of this model's dense layers") as error:
            get_peft_model(loud_model(3), LoraConfig(target_modules=targets))
        assert f"which are: {LAYERS}" in str(error.value)
    assert not caplog.records
    model = get_peft_model(loud_model(3), LoraConfig(target_modules=["query", "valeu"]))
    assert f"target_modules: valeu matches none of the layers {LAYERS}" in caplog.text
    assert model.num_parameters(only_trainable=True) == 2 * 2 * 16 * 8 + 34
    model.with_dtype("bfloat16")
    assert len(caplog.records) == 1


def test_the_scale_is_alpha_by_r_or_by_the_square_root_of_r():
    for settings, scale in (({}, 5 / 4), ({"use_rslora": True}, 5 / 2)):
        assert LoraConfig(r=4, lora_alpha=5, **settings).scaling == scale
        layer = LoraLinear(
            linear(1, 1, jnp.dtype("float32")), LoraConfig(r=4, lora_alpha=5, **settings)
        )
        layer.lora_a.set_value(jnp.ones((1, 4)))
        layer.lora_b.set_value(jnp.ones((4, 1)))
        np.testing.assert_allclose(layer(jnp.ones((1, 1))), [[4 * scale]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r=0"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' is not supported"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


def test_only_the_head_is_trained_in_full():
    config = LoraConfig(target_modules=["query"], modules_to_save=["qa_outputs", "embeddings"])
    with pytest.raises(ValueError, match=r"modules_to_save='embeddings' is not .* \(qa_outputs\)"):
        get_peft_model(loud_model(3), config)
    config = LoraConfig(target_modules=["query"], modules_to_save=["qa_outputs"])
    assert get_peft_model(loud_model(3), config).lora == config
    with pytest.raises(ValueError, match="already has LoRA adapters"):
        get_peft_model(adapted(), config)
    with pytest.raises(ValueError, match="no LoRA adapters"):
        loud_model(3).merge_and_unload()


# ---- compute dtype, dropout, gradient checkpointing ----------------------------------------------


def test_bfloat16_compute_is_close_and_keeps_float32_parameters():
    model = adapted()
    rough = model.with_dtype("bfloat16")
    assert_equal(rough, model)
    assert {str(v.dtype) for v in variables(rough, nnx.Variable).values()} == {"float32"}
    error = relative_error(rough(**loud_batch()).start, model(**loud_batch()).start)
    assert 1e-4 < error < 0.1


def test_dropout_is_applied_only_to_the_input_of_the_adapter():
    layer = LoraLinear(linear(1, 1, jnp.dtype("float32")), LoraConfig(r=1, lora_dropout=0.25))
    for variable in (layer.kernel, layer.lora_a, layer.lora_b):
        variable.set_value(jnp.ones((1, 1)))
    inputs = jnp.ones((10_000, 1))
    np.testing.assert_array_equal(layer(inputs), 9.0)
    rngs = nnx.Rngs(dropout=0)
    output = np.asarray(layer(inputs, rngs=rngs))
    assert (output != np.asarray(layer(inputs, rngs=rngs))).any()  # each call draws another mask
    np.testing.assert_array_equal(layer(inputs), 9.0)
    kept = output != 1.0
    np.testing.assert_allclose(output[kept], 1 + 8 / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("family", TESTED)
def test_every_adapter_of_every_family_gets_the_rngs(family, monkeypatch):
    """Without `rngs` a dense layer has no dropout, and no error shows it."""
    has_rngs, kinds = [], (LoraLinear, LoraConvolution)

    def watched(original):
        def call(self, *inputs, rngs=None):
            has_rngs.append(rngs is not None)
            return original(self, *inputs, rngs=rngs)

        return call

    config = LoraConfig(target_modules="all-linear", lora_dropout=0.1)
    model = get_peft_model(loud_model(0, family=family), config)
    for kind in kinds:
        monkeypatch.setattr(kind, "__call__", watched(kind.__call__))
    # Layers of equal settings are traced once under `jit`, and not at all if other tests did.
    with jax.disable_jit():
        jax.eval_shape(lambda: model(**batch_of(family), rngs=nnx.Rngs(dropout=0)).start)
    assert len(has_rngs) >= sum(isinstance(layer, kinds) for _, layer in dense_layers(model)) > 0
    assert all(has_rngs)


def model_without_dropout(**changes):
    return loud_model(3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)


@pytest.mark.slow  # `test_dropout_follows_the_key ...` covers all other dropout
def test_dropout_is_a_function_of_the_key():
    run = nnx.jit(lambda model, key: model(**loud_batch(), rngs=nnx.Rngs(dropout=key)).start)
    model = adapted(base=model_without_dropout(), lora_dropout=0.3)
    plain = model(**loud_batch()).start
    keys = [jax.random.key(n, impl="rbg") for n in (0, 0, 1)]
    first, second, other = (np.asarray(run(model, key)) for key in keys)
    np.testing.assert_array_equal(first, second)
    assert relative_error(other, first) > 0.01
    assert relative_error(first, plain) > 0.01
    no_dropout = adapted(base=model_without_dropout())
    assert relative_error(run(no_dropout, keys[0]), plain) < 1e-6


@pytest.mark.slow
def test_the_backward_pass_draws_the_same_masks():
    batch, positions = loud_batch(), (jnp.array([3, 0, 1]), jnp.array([5, 1, 1]))

    def gradient(remat):
        base = loud_model(3, num_hidden_layers=1)
        model = adapted(base=base, lora_dropout=0.3).with_remat(remat)
        graph, params, fixed = nnx.split(model, nnx.Param, ...)

        def loss(params):
            logits = nnx.merge(graph, params, fixed).span_logits(**batch, rngs=nnx.Rngs(dropout=0))
            return span_losses(logits, *positions).mean()

        return jax.jit(jax.grad(loss))(params)

    stored, recomputed = (
        {path: np.asarray(param[...]) for path, param in nnx.to_flat_state(gradient(remat))}
        for remat in (False, True)
    )
    # The head's biases do not change the softmax, so their gradients are zero.
    assert all(np.abs(array).max() > 0 for path, array in stored.items() if path[-1] != "bias")
    assert_same_gradients(recomputed, stored)


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    loud_model(3).save_pretrained(folder / "base")
    base = AutoModelForQuestionAnswering.from_pretrained(folder / "base")
    model = adapted(base=base, lora_dropout=0.1)
    model.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", model


@pytest.fixture
def files(saved, tmp_path):
    """The folders of a base model and of a copy of its adapters, and the model with adapters."""
    base, adapter, model = saved
    return base, shutil.copytree(adapter, tmp_path / "adapter"), model


def change(directory, **settings):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_an_adapter_folder_is_loaded_with_its_base_model(files):
    base, adapter, model = files
    loaded = AutoModelForQuestionAnswering.from_pretrained(adapter)
    assert loaded.lora == model.lora
    assert loaded.config.name_or_path == str(base)
    assert_equal(loaded, model)
    copy = adapter.with_name("copy")
    loaded.save_pretrained(copy)
    for name in FILES:
        assert (copy / name).read_bytes() == (adapter / name).read_bytes()
    # The adapters of the folder replace other adapters.
    assert_equal(adapted(base=loud_model(3), r=7).with_adapter(adapter), model)
    # The base model's head is used if the folder contains none.
    stored = load_file(adapter / "adapter_model.safetensors")
    without_head = {n: a for n, a in stored.items() if "qa_outputs" not in n}
    save_file(without_head, adapter / "adapter_model.safetensors", {"format": "pt"})
    change(adapter, modules_to_save=None)
    loaded = AutoModelForQuestionAnswering.from_pretrained(adapter)
    expected = variables(loud_model(3), nnx.Param)
    for path, array in variables(loaded, nnx.Param).items():
        if path[0] == "head":
            np.testing.assert_array_equal(array, expected[path])


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1]},
        {"rank_pattern": {"query": 4}},
        {"alpha_pattern": {"query": 4}},
        {"exclude_modules": ["key"]},
        {"fan_in_fan_out": True},
        {"lora_bias": True},
        {"peft_type": "IA3"},
        {"task_type": "SEQ_CLS"},
        {"bias": "lora_only"},
        {"unheard_of": 3},
        {"use_dora": True, "layer_replication": [[0, 1]]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_the_error_for_unsupported_settings_has_their_names_and_values(files, settings):
    change(files[1], **settings)
    with pytest.raises(ValueError, match=r"adapter_config\.json: ") as error:
        AutoModelForQuestionAnswering.from_pretrained(files[1])
    for name, value in settings.items():
        assert f"{name}={value!r}" in str(error.value)


def test_adapters_that_do_not_fit_are_rejected_with_the_differences(files):
    _, adapter, _ = files
    change(adapter, r=2, target_modules=["query", "output.dense"])
    with pytest.raises(ValueError, match=r"its adapter_config\.json describes") as error:
        AutoModelForQuestionAnswering.from_pretrained(adapter)
    name = "base_model.model.bert.encoder.layer.0.attention.self"
    message = str(error.value)
    assert f"{name}.query.lora_A.weight is [3, 16] in the checkpoint, [2, 16] by" in message
    assert f"unexpected: {name}.key.lora_A.weight [3, 16]" in message


def test_folders_with_missing_or_conflicting_files_are_rejected(files):
    base, adapter, _ = files
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"no base_model_name_or_path; .*base_model="):
        AutoModelForQuestionAnswering.from_pretrained(adapter)
    AutoModelForQuestionAnswering.from_pretrained(base).with_adapter(adapter)
    loud_model(3).save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"contains both a full model .* and adapters"):
        AutoModelForQuestionAnswering.from_pretrained(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"has no adapter_model\.safetensors; it contains: "
    ):
        loud_model(3).with_adapter(adapter)


def test_settings_of_peft_are_accepted_or_refused_by_name():
    config = LoraConfig(
        task_type=TaskType.QUESTION_ANS,
        inference_mode=False,
        target_modules={"value", "query"},
        fan_in_fan_out=False,
        rank_pattern={},
        init_lora_weights=True,
        peft_type="LORA",
    )
    assert config == LoraConfig(target_modules=["query", "value"])
    assert hash(config) == hash(LoraConfig(target_modules=("query", "value")))
    for settings, message in (
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern=.* is not supported"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights='gaussian' is not supported"),
        ({"task_type": TaskType.CAUSAL_LM}, "task_type='CAUSAL_LM' is not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            LoraConfig(target_modules=["query"], **settings)
    with pytest.raises(TypeError, match="no setting 'rank'"):
        LoraConfig(rank=3)


def test_every_setting_of_peft_is_known():
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install '.[parity]'")
    defaults = peft.LoraConfig(target_modules=["query"]).to_dict()
    defaults |= {"runtime_config": None, "task_type": None}
    assert LoraConfig(**defaults) == LoraConfig(target_modules=["query"], task_type=None)


def test_peft_model_loads_adapters(tmp_path):
    base = loud_model(3)
    adapted().save_pretrained(tmp_path)
    for actual, expected in zip(
        PeftModel.from_pretrained(base, tmp_path, is_trainable=True)(**loud_batch())[:],
        base.with_adapter(tmp_path)(**loud_batch())[:],
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)
    with pytest.raises(ValueError, match="adapter_name='second': a model has one set"):
        PeftModel.from_pretrained(base, tmp_path, "second")
    with pytest.raises(ValueError, match="ephemeral_gpu_offload is not supported"):
        PeftModel.from_pretrained(base, tmp_path, ephemeral_gpu_offload=True)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("r", 10**12, "r=1000000000000: it must be a whole number from 1 to 1,000,000"),
        ("r", 10**400, "r=1000"),
        ("r", [8], r"r=\[8\]: it must be"),
        ("lora_alpha", float("inf"), "lora_alpha=inf: it must be a number"),
        ("use_rslora", "no", "use_rslora='no': it must be true or false"),
        ("target_modules", {"query": 1}, "target_modules={'query': 1}: it must be a list"),
        ("target_modules", [["query"]], r"target_modules=\[\['query'\]\]: it must be a list"),
        ("target_modules", "(", "target_modules='.' is not a regular expression"),
        ("target_modules", ["\x1b[31m"], r"target_modules=.*x1b.*matches none"),
        ("modules_to_save", 7, "modules_to_save=7: it must be a list"),
        ("task_type", ["x" * 1000], "task_type=.* is not supported"),
        ("\x1b[31m", [[1]], r"x1b\[31m=\[\[1\]\]"),
        ("rank_pattern", {"(.*)*!": 1}, "rank_pattern="),
        ("revision", json.loads("[" * 60 + "]" * 60), "revision is nested more than 50"),
        ("base_model_name_or_path", ".", "which has adapters itself"),
    ],
)
def test_odd_values_of_an_adapter_are_refused(name, value, problem, tmp_path, monkeypatch):
    base, folder = loud_model(0), tmp_path / "adapter"
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["query"])).save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=problem) as refused:
        AutoModelForQuestionAnswering.from_pretrained(folder)
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
