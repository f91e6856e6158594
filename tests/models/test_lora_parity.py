"""Adapters compared with PEFT: targets, initial values, logits, gradients and files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loud import TESTED, assert_same_gradients, batch_of, loud_batch, loud_model, relative_error
from loud_adapters import adapted

from qa_flax import AutoModelForQuestionAnswering, LoraConfig, get_peft_model
from qa_flax.models.families import FAMILIES
from qa_flax.models.lora import LoraLinear, dense_layers
from qa_flax.models.qa import span_losses
from qa_flax.models.weights import torch_layout, weight_name

torch = pytest.importorskip("torch", reason="needs the parity extra")
peft = pytest.importorskip("peft", reason="needs the parity extra")
import transformers  # noqa: E402

pytestmark = [
    # PEFT uses a deprecated name of transformers.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer:UserWarning"),
]


def torch_base(directory):
    return transformers.AutoModelForQuestionAnswering.from_pretrained(directory)


def in_peft(base, adapter):
    return peft.PeftModel.from_pretrained(torch_base(base), adapter, is_trainable=True).eval()


def run(model, batch, **labels):
    """The output of a PyTorch model, with or without PEFT."""
    # PEFT 0.21's model for question answering ignores token types; the model inside does not.
    inputs = {name: torch.tensor(values) for name, values in (batch | labels).items()}
    return (model.base_model if isinstance(model, peft.PeftModel) else model)(**inputs)


def assert_same_logits(ours, output):
    for name in ("start_logits", "end_logits"):
        expected = getattr(output, name).detach().numpy()
        assert relative_error(getattr(ours, name), expected) < 1e-5


# The others are slow tests.
FAST = ("bert",)
FAMILY = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in TESTED]


@pytest.mark.parametrize("family", FAMILY)
def test_our_adapters_have_the_logits_and_gradients_of_peft(family, tmp_path):
    loud_model(3, family=family).save_pretrained(tmp_path / "base")
    base = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
    model, batch = adapted(family, base), batch_of(family)
    model.save_pretrained(tmp_path / "adapter")
    peft_model = in_peft(tmp_path / "base", tmp_path / "adapter")
    start, end = np.array([3, 0, 1]), np.array([5, 1, 1])
    output = run(peft_model, batch, start_positions=start, end_positions=end)
    output.loss.backward()
    graph, params, fixed = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss(params):
        logits = nnx.merge(graph, params, fixed).span_logits(**batch)
        return span_losses(logits, jnp.array(start), jnp.array(end)).mean(), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    assert_same_logits(logits, output)
    ours = {
        weight_name(path, FAMILIES[family], FAMILIES[family].prefix): torch_layout(path, g[...])
        for path, g in nnx.to_flat_state(gradients)
    }
    expected = {
        name.removeprefix("base_model.model.")
        .replace("modules_to_save.", "")
        .replace("default.", ""): p.grad.numpy()
        for name, p in peft_model.named_parameters()
        if p.requires_grad
    }
    assert_same_gradients(ours, expected)
    # transformers itself loads the base model that the adapters' folder names.
    auto = torch_base(tmp_path / "adapter").eval()
    assert_same_logits(logits, run(auto, batch))


# In PEFT, "all-linear" adds an adapter to the head too, unless the head is in `modules_to_save`.
ALL_LINEAR = {
    "target_modules": "all-linear",
    "modules_to_save": ["qa_outputs"],
    "lora_dropout": 0.3,
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {"target_modules": ["query", "value"]}),
        pytest.param(
            "distilbert",
            {"target_modules": ["q_lin", "v_lin"], "modules_to_save": ["qa_outputs"]},
            marks=pytest.mark.slow,
        ),
        ("roberta", {"target_modules": r".*\.1\..*(key|query)", "use_rslora": True}),
        pytest.param("electra", ALL_LINEAR, marks=pytest.mark.slow),
    ],
)
def test_adapters_from_peft_can_be_loaded_and_saved_for_peft(family, settings, tmp_path):
    loud_model(3, family=family).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="QUESTION_ANS", r=3, lora_alpha=5, **settings)
    peft_model = peft.get_peft_model(torch_base(tmp_path / "base"), config).eval()
    random = np.random.default_rng(0)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.tensor(random.normal(0, 0.3, parameter.shape)).float()
    peft_model.save_pretrained(tmp_path / "peft")
    batch = batch_of(family)
    output = run(peft_model, batch)
    ours = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "peft")
    assert_same_logits(ours(**batch), output)
    change = relative_error(ours(**batch).start, loud_model(3, family=family)(**batch).start)
    assert change > 0.1
    ours.save_pretrained(tmp_path / "ours")
    assert_same_logits(ours(**batch), run(in_peft(tmp_path / "base", tmp_path / "ours"), batch))
    before, after = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("peft", "ours")
    )
    for name in (
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "base_model_name_or_path",
        "bias",
    ):
        assert after[name] == before[name], name
    ours.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = torch_base(tmp_path / "merged").eval()
    assert_same_logits(ours.merge_and_unload()(**batch), run(merged, batch))


@pytest.mark.parametrize(
    "targets",
    [
        ["query"],
        ["dense"],
        ["attention.output.dense", "key"],
        ["self.value", "bert.encoder.layer.1.output.dense"],
        r".*layer\.1\..*dense",
    ],
    ids=str,
)
def test_target_modules_match_the_same_layers_as_in_peft(targets, tmp_path):
    base = loud_model(3)
    base.save_pretrained(tmp_path)
    config = peft.LoraConfig(task_type="QUESTION_ANS", target_modules=targets)
    peft_model = peft.get_peft_model(torch_base(tmp_path), config)
    ours = get_peft_model(base, LoraConfig(target_modules=targets))
    layers = {
        weight_name(("encoder", *path, "kernel"), FAMILIES["bert"], "bert.").removesuffix(".weight")
        for path, layer in dense_layers(ours.encoder)
        if isinstance(layer, LoraLinear)
    }
    assert layers == set(peft_model.targeted_module_names) != set()
    trainable = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert ours.num_parameters(only_trainable=True) == trainable


def test_the_initial_adapters_have_the_distribution_of_peft(tmp_path):
    base = loud_model(3)
    base.save_pretrained(tmp_path)
    targets = ["output.dense"]
    config = peft.LoraConfig(task_type="QUESTION_ANS", target_modules=targets, r=256)
    peft_model = peft.get_peft_model(torch_base(tmp_path), config)
    ours = get_peft_model(base, LoraConfig(target_modules=targets, r=256))
    state = peft.get_peft_model_state_dict(peft_model)
    for path, p in nnx.to_flat_state(nnx.state(ours.encoder, nnx.Param)):
        name = "base_model.model." + weight_name(("encoder", *path), FAMILIES["bert"], "bert.")
        actual, expected = torch_layout(path, p[...]), state[name].numpy()
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual.std(), expected.std(), rtol=0.05)
        np.testing.assert_allclose(np.abs(actual).max(), np.abs(expected).max(), rtol=0.01)
    assert_same_logits(ours(**loud_batch()), run(peft_model.eval(), loud_batch()))
