"""Adding a model family takes one new file: it is found, trained, saved and loaded."""

import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loud import batch_of, parameters
from transformers import AutoConfig, BertConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qa_flax.device.step import TrainState, make_train_step, weights_of
from qa_flax.models import families
from qa_flax.models.families import FAMILIES, find_families
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.sharding import CORES

TOY = """
from dataclasses import replace

from qa_flax.models.families import bert

FAMILY = replace(
    bert.FAMILY, model_type="toy", prefix="toy.", architecture="ToyForQuestionAnswering"
)
"""


class ToyConfig(BertConfig):
    model_type = "toy"


@pytest.fixture
def add(tmp_path, monkeypatch):
    """A function that adds a file to a package: to the families, or to their test cases."""
    written = []

    def add(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        # Importing the file adds it to sys.modules; monkeypatch removes it after the test.
        module = f"{package.__name__}.{name}"
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
        written.append((package, name))

    yield add
    for package, name in written:
        vars(package).pop(name, None)


def train(model, batch):
    """Train for two updates on one core with the step of `device.step`; returns the losses."""
    optimizer = optax.identity()
    weights = weights_of(model)
    state = TrainState(jnp.int32(0), *weights, optimizer.init(weights.params))
    rows = {name: jnp.asarray(values, jnp.int32)[None] for name, values in batch.items()}
    rows |= {"start_positions": jnp.ones((1, 3), int), "end_positions": jnp.ones((1, 3), int)}
    rows["valid"] = jnp.ones((1, 3), bool)
    step = make_train_step(nnx.graphdef(model), optimizer)
    step = jax.jit(jax.vmap(step, in_axes=(0, 0, None, None), axis_name=CORES))
    state, rows = jax.tree.map(lambda array: array[None], (state, rows))
    losses = []
    for _ in range(2):
        state, measured = step(state, rows, np.float32(0.1), jax.random.key(0))
        losses.append(float(measured.loss[0]))
    model.set_params(jax.tree.map(lambda array: array[0], state.params))
    return losses


def test_a_file_in_the_folder_is_a_family(add, monkeypatch, tmp_path):
    add(families, "toy", TOY)
    add(cases, "toy", "from cases.bert import CASE as CASE\n")
    all_families, case = find_families(), cases.find_cases()["toy"]
    assert all_families.keys() == FAMILIES.keys() | {"toy"}
    monkeypatch.setitem(FAMILIES, "toy", all_families["toy"])
    AutoConfig.register("toy", ToyConfig)
    try:
        config = ToyConfig(**case.sizes | {"num_hidden_layers": 1})
        model = AutoModelForQuestionAnswering.from_config(config, seed=1)
        losses = train(model, batch_of("bert"))
        model.save_pretrained(tmp_path / "saved")
        loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "saved")
    finally:
        del CONFIG_MAPPING._extra_content["toy"]
    assert losses[1] < losses[0]
    assert loaded.config.architectures == ["ToyForQuestionAnswering"]
    before, after = parameters(model), parameters(loaded)
    assert before.keys() == after.keys()
    assert all((np.asarray(before[path]) == np.asarray(after[path])).all() for path in before)


def test_two_files_with_one_model_type_are_refused(add):
    add(families, "second_bert", "from qa_flax.models.families.bert import FAMILY as FAMILY\n")
    message = r"model_type='bert' is defined both in bert\.py and in second_bert\.py"
    with pytest.raises(ValueError, match=message):
        find_families()


def test_a_file_without_a_family_is_refused(add):
    add(families, "empty", "")
    with pytest.raises(AttributeError, match="FAMILY"):
        find_families()
