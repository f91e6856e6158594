"""Values of wrong types and sizes in a model's config.json are refused by name, before anything is
built or read."""

import json
import time

import numpy as np
import pytest
from cases import CASES
from tiny_families import family_model
from transformers import AutoConfig

from qa_flax.models.config_json import load_config, read_family_config
from qa_flax.models.families import FAMILIES
from qa_flax.models.model import AutoModelForQuestionAnswering

NESTED = json.loads("[" * 60 + "]" * 60)
VALUES = [
    *(None, True, 0, -1, 10**12, 10**30, 0.5, 1e300, float("nan"), float("inf")),
    *("", "evil", "\x1b[31m\n", [], [[1]], {}, {"a": {"b": 1}}, [None, "a"], NESTED),
]
NOT_SETTINGS = ["to_dict", "__class__", "attribute_map", "auto_map", "rope_parameters", "dtype"]
NOT_SETTINGS += ["torch_dtype", "quantization_config", "id2label", "num_labels", "per_layer_config"]


@pytest.mark.parametrize("family", CASES)
def test_wrong_values_of_any_name_are_refused_in_a_line(family, tmp_path):
    """A sample of all names and values; the seed of the family keeps it the same in each run."""
    random = np.random.default_rng(list(FAMILIES).index(family))
    values = AutoConfig.for_model(family, **CASES[family].sizes).to_dict()
    names = [*values, *NOT_SETTINGS]
    for _ in range(25):
        name = names[random.integers(len(names))]
        value = VALUES[random.integers(len(VALUES))]
        (tmp_path / "config.json").write_text(json.dumps(values | {name: value}))
        try:
            read_family_config(load_config(tmp_path))
        except ValueError as error:
            text = str(error)
            assert "\x1b" not in text
            assert len(text) < 1500, text


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("torch_dtype", "evil", "supported: float32"),
        ("dtype", 7, "supported: float32"),
        ("hidden_size", 10**12, "a whole number from 1 to"),
        ("num_hidden_layers", 10**9, "from 0 to 1,000"),
        ("vocab_size", -1, "a whole number from 1 to"),
        ("hidden_dropout_prob", -0.5, "at least 0 and below 1"),
        ("layer_norm_eps", float("nan"), "a number from 0"),
        ("hidden_act", ["gelu"], "hidden_act"),
        ("num_labels", 10**30, "from 0 to 10,000"),
        ("id2label", [1], "wrong type"),
        ("to_dict", 1, "is no setting"),
        ("attribute_map", {"vocab_size": "hidden_size"}, "is no setting"),
        ("pad_token_id", NESTED, "nested"),
        ("bos_token_id", [0] * 5000, "wrong type"),
    ],
)
def test_messages_name_the_setting_and_what_is_allowed(name, value, allowed, tmp_path):
    model = family_model("bert")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=allowed) as refused:
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_more_layers_than_tensors_are_refused_before_they_are_built(tmp_path):
    family_model("bert").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1000}))
    start = time.monotonic()
    with pytest.raises(ValueError, match="it has 1,000 layers, but there are only"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert time.monotonic() - start < 5
