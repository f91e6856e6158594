"""The message about an unsupported model type names the nearest supported one."""

import json

import pytest

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.models.families import FAMILIES
from qa_flax.models.relatives import RELATIVES, near_relative


def test_relatives_are_supported_and_their_types_are_known_to_transformers():
    known = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    older = {"bert-generation", "ernie_m", "layoutxlm", "nezha", "nomic_bert", "qdqbert"}
    older |= {"eurobert", "realm", "ultrabert", "t5gemma", "modernbert-decoder"}  # and newer
    assert RELATIVES.keys() - known.keys() <= older
    assert set(RELATIVES.values()) <= FAMILIES.keys()
    assert not RELATIVES.keys() & FAMILIES.keys()


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("led", "longformer"),
        ("xlnet", "deberta-v2"),
        ("Deberta_V2", "deberta-v2"),
        ("deberta-v3", "deberta-v2"),
        ("big-bird", "big_bird"),
        ("xlm_roberta", "xlm-roberta"),
        ("modern-bert", "modernbert"),
        ("gpt2", None),
        ("llama", None),
        ("", None),
        (None, None),
        (["bert"], None),
    ],
)
def test_the_nearest(model_type, expected):
    assert near_relative(model_type, FAMILIES) == expected
    assert near_relative(model_type, []) is None


def test_loading_says_what_to_choose(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "flaubert"}))
    message = r"model_type='flaubert' is not supported; .*; the nearest of them is camembert"
    with pytest.raises(ValueError, match=message):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"supported: albert, .*xlm-roberta-xl$"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
