"""A new family is one new file: the table finds it, and everything works with its model type."""

import sys

import numpy as np
import pytest
from loud import batch_of, parameters
from transformers import AutoConfig, BertConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qa_flax.models import families
from qa_flax.models.families import FAMILIES, find_families
from qa_flax.models.model import AutoModelForQuestionAnswering

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
    """Write a file of a family where the table finds it."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])

    def add(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        # What is found is imported and stays so: forgotten after the test.
        module = f"{families.__name__}.{name}"
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]

    yield add
    for file in tmp_path.glob("*.py"):
        vars(families).pop(file.stem, None)


def test_a_file_in_the_folder_is_a_family(add, monkeypatch, tmp_path):
    add("toy", TOY)
    found = find_families()
    assert found.keys() == FAMILIES.keys() | {"toy"}
    monkeypatch.setitem(FAMILIES, "toy", found["toy"])
    AutoConfig.register("toy", ToyConfig)
    try:
        sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
        config = ToyConfig(**sizes, vocab_size=40, num_hidden_layers=2)
        made = AutoModelForQuestionAnswering.from_config(config, seed=1)
        made.save_pretrained(tmp_path / "saved")
        loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "saved")
    finally:
        del CONFIG_MAPPING._extra_content["toy"]
    assert loaded.config.architectures == ["ToyForQuestionAnswering"]
    before, after = parameters(made), parameters(loaded)
    assert before.keys() == after.keys()
    assert all((np.asarray(before[path]) == np.asarray(after[path])).all() for path in before)
    ours, theirs = loaded(**batch_of("bert")), made(**batch_of("bert"))
    assert ours.start.shape == (3, 12)
    assert (np.asarray(ours.start) == np.asarray(theirs.start)).all()


def test_two_files_with_one_model_type_are_refused(add):
    add("second_bert", "from qa_flax.models.families.bert import FAMILY as FAMILY\n")
    message = r"model_type='bert' is both in bert\.py and in second_bert\.py"
    with pytest.raises(ValueError, match=message):
        find_families()


def test_a_file_without_a_family_is_refused(add):
    add("empty", "")
    with pytest.raises(AttributeError, match="FAMILY"):
        find_families()
