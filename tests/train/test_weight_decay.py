"""Weight decay covers the parameters that transformers' Trainer chooses, in every family."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_trainers import arguments
from transformers import AutoConfig

from qa_flax import AutoModelForQuestionAnswering, LoraConfig, get_peft_model
from qa_flax.device.step import weights_of
from qa_flax.models.families import FAMILIES
from qa_flax.models.model import family_of
from qa_flax.models.weights import named_parameters
from qa_flax.train.plan import optimizer_of
from qa_flax.train.weight_decay import decayed_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
GOLDEN = Path(__file__).parents[1] / "golden"


def decayed_names(model):
    """The checkpoint names of the parameters that decay."""
    decayed = decayed_parameters(model)
    return {name for name, (path, _) in _named(model).items() if tuple(map(str, path)) in decayed}


def torch_names(model):
    trainer = pytest.importorskip("transformers.trainer").Trainer
    return set(trainer.get_decay_parameter_names(None, model))


def test_names_with_bias_or_layernorm_anywhere_do_not_decay():
    """As in transformers, whatever the parameter is for."""
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / "mpnet")
    names = decayed_names(model)
    assert "mpnet.embeddings.word_embeddings.weight" in names
    assert "mpnet.encoder.relative_attention_bias.weight" not in names
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / "roberta-prelayernorm")
    assert decayed_names(model) == {"qa_outputs.weight"}


def test_the_optimizer_of_a_training_uses_these_parameters(tmp_path):
    model = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / "mpnet")
    ones = jnp.ones((2, 2))
    params = {
        "encoder": {
            "embeddings": {"word": {"embedding": ones}},
            "distance_bias": {"embedding": ones},
        }
    }
    settings = {"weight_decay": 0.5, "optim": "sgd", "max_grad_norm": 0}
    optimizer = optimizer_of(arguments(tmp_path, **settings), model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = optimizer.update(zeros, optimizer.init(params), params)[0]["encoder"]
    np.testing.assert_array_equal(updates["embeddings"]["word"]["embedding"], 0.5 * ones)
    np.testing.assert_array_equal(updates["distance_bias"]["embedding"], 0.0 * ones)
    same = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / "mpnet")
    assert optimizer_of(arguments(tmp_path, **settings), same) is optimizer


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_parameters_that_decay_are_those_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = AutoConfig.from_pretrained(GOLDEN / family)
    theirs = transformers.AutoModelForQuestionAnswering.from_config(config)
    ours = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    expected = torch_names(theirs) & {name for name, _ in theirs.named_parameters()}
    assert decayed_names(ours) == expected
    assert expected


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_adapters_that_decay_are_those_of_transformers(family):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = AutoConfig.from_pretrained(GOLDEN / family)
    ours = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    named = _named(ours).items()
    kernels = [n for n, (path, p) in named if path[-1] == "kernel" and isinstance(p, nnx.Param)]
    target = kernels[0].split(".")[-2]
    settings = {"r": 2, "target_modules": [target], "task_type": "QUESTION_ANS"}
    theirs = peft.get_peft_model(
        transformers.AutoModelForQuestionAnswering.from_config(config), peft.LoraConfig(**settings)
    )
    adapted = get_peft_model(ours, LoraConfig(**settings))
    expected = {
        name.removeprefix("base_model.model.")
        .replace(".default", "")
        .replace(".modules_to_save", "")
        for name in torch_names(theirs)
    }
    trainable = set(_paths(weights_of(adapted).params))
    names = {tuple(map(str, path)): name for name, (path, _) in _named(adapted).items()}
    actual = {names[path] for path in decayed_parameters(adapted) & trainable}
    assert actual == expected & {names[path] for path in trainable}
    assert any("lora_A" in name for name in names.values())


def _named(model):
    family = family_of(model.config)
    return named_parameters(model, family, family.prefix)


def _paths(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [tuple(str(part.key) for part in path if hasattr(part, "key")) for path, _ in leaves]
