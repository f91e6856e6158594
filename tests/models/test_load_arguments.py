"""Keywords of transformers' `from_pretrained`."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from transformers import AutoConfig, BertConfig, DistilBertConfig

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.models.families import FAMILIES
from qa_flax.models.load_arguments import config_with_keywords


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny.model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilbert")
    config = DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder)
    return folder


def load(folder, **keywords):
    return AutoModelForQuestionAnswering.from_pretrained(folder, **keywords)


def test_settings_of_the_config_can_be_changed(bert, distilbert):
    model = load(bert, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    assert model.config.hidden_dropout_prob == 0.3
    assert model.encoder.layers[0].mlp_dropout_rate == 0.3
    assert load(bert).config.hidden_dropout_prob == 0.0
    # By the name that most families have, or by DistilBERT's own.
    for keywords in ({"hidden_dropout_prob": 0.3}, {"dropout": 0.3}):
        model = load(distilbert, **keywords)
        assert model.config.dropout == 0.3
        assert model.encoder.layers[0].mlp_dropout_rate == 0.3


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_labels": 2},
        {"from_tf": False, "from_flax": False},
        {"trust_remote_code": False, "low_cpu_mem_usage": True, "device_map": "auto"},
        {"return_dict": True, "output_attentions": False, "use_safetensors": True},
        {"use_auth_token": None, "force_download": False, "ignore_mismatched_sizes": False},
        {"attn_implementation": "eager"},
        {"dtype": "auto"},
        {"torch_dtype": np.float32},
        {"dtype": jnp.float32},
    ],
    ids=lambda keywords: ",".join(keywords),
)
def test_keywords_that_ask_for_what_is_the_case_are_accepted(bert, keywords):
    assert load(bert, **keywords).dtype == jnp.float32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_labels": 3}, "num_labels=3 is not supported .*start and end"),
        ({"use_safetensors": False}, "use_safetensors=False is not supported.*qa-flax convert"),
        ({"output_attentions": True}, "output_attentions=True is not supported"),
        ({"attn_implementation": "flash_attention_2"}, "flash_attention_2' is not supported"),
        ({"no_such_keyword": 1}, "no_such_keyword is neither a keyword .* of a bert config$"),
        ({"dropout": 0.1}, "dropout is neither .*its dropout rates: hidden_dropout_prob"),
        ({"dtype": "float64"}, "dtype='float64' is not supported"),
    ],
)
def test_other_keywords_are_refused_by_name(bert, keywords, message):
    with pytest.raises(ValueError, match=message):
        load(bert, **keywords)


# The settings that each dropout rate stands for, written by hand from transformers' model code.
USUAL = {
    "hidden_dropout_prob": ("hidden_dropout_prob",),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob",),
    "classifier_dropout": (),
}
BART = {
    "hidden_dropout_prob": ("dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
    "classifier_dropout": (),
}
T5 = dict.fromkeys(USUAL, ()) | {"hidden_dropout_prob": ("dropout_rate",)}
RATES = dict.fromkeys(FAMILIES, USUAL) | {
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "mbart": BART,
    "distilbert": BART | {"classifier_dropout": ("qa_dropout",)},
    "modernbert": {
        "hidden_dropout_prob": ("embedding_dropout", "mlp_dropout"),
        "attention_probs_dropout_prob": ("attention_dropout",),
        "classifier_dropout": ("classifier_dropout",),
    },
}


@pytest.mark.parametrize("rate", USUAL)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dropout_rates_of_every_family(family, rate):
    """The training arguments of these names are tested to agree in train/test_dropout_rates.py."""
    config = AutoConfig.for_model(family)
    names = RATES[family][rate]
    if not names:
        with pytest.raises(ValueError, match=rf"{rate}=0.37: \w+ForQuestionAnswering has no such"):
            config_with_keywords(config, {rate: 0.37}, FAMILIES[family])
        assert config_with_keywords(config, {rate: None}, FAMILIES[family]) is not config
        return
    changed = config_with_keywords(config, {rate: 0.37}, FAMILIES[family]).to_dict()
    before = config.to_dict()
    assert {name for name in changed if changed[name] != before[name]} == set(names)
    assert {changed[name] for name in names} == {0.37}
    for value in (1.0, -0.1, "0.1", float("nan")):
        with pytest.raises(ValueError, match=f"{rate}=.*: it must be at least 0 and below 1"):
            config_with_keywords(config, {rate: value}, FAMILIES[family])


@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16"])
def test_dtypes_of_torch(bert, name):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    expected = "bfloat16" if name == "float16" else name
    assert load(bert, torch_dtype=getattr(torch, name)).dtype == jnp.dtype(expected)


def test_a_dropout_rate_that_the_family_does_not_read_is_reported(caplog):
    config = DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    config.hidden_dropout_prob = 0.3
    AutoModelForQuestionAnswering.from_config(config)
    assert "hidden_dropout_prob has no effect on a distilbert config" in caplog.text
    assert "it has: dropout." in caplog.text
    caplog.clear()
    config = BertConfig(**tiny.config().to_dict())
    config.attention_dropout_prob = 0.3
    AutoModelForQuestionAnswering.from_config(config)
    assert "attention_dropout_prob has no effect on a bert config" in caplog.text
    assert "attention_probs_dropout_prob" in caplog.text
    caplog.clear()
    tiny.model()
    assert caplog.text == ""


def test_weights_of_another_shape_are_initialised_on_request(tmp_path, caplog):
    saved = tiny.model()
    saved.save_pretrained(tmp_path)
    config = copy.deepcopy(saved.config)
    config.vocab_size += 3
    with pytest.raises(ValueError, match=r"wrong shape: .*word_embeddings"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path, config)
    load = AutoModelForQuestionAnswering.from_pretrained
    model = load(tmp_path, config, ignore_mismatched_sizes=True)
    assert "word_embeddings.weight have other shapes than the model" in caplog.text
    expected, actual = dict(saved.named_parameters()), dict(model.named_parameters())
    name = "bert.embeddings.word_embeddings.weight"
    assert actual.pop(name).shape == (saved.config.vocab_size + 3, saved.config.hidden_size)
    for name, parameter in actual.items():
        np.testing.assert_array_equal(parameter.numpy(), expected[name].numpy())
