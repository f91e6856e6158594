"""A tokenizer is complete, and belongs to the model."""

import copy
import json
import logging

import pytest
import tiny
import trained
from test_features import windows
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    ConvBertConfig,
    LongformerConfig,
    RobertaConfig,
)

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.data.tokenizer_checks import ModelNumbers, check_fit, compare
from qa_flax.data.tokenizer_files import check_vocabulary_file, load_tokenizer
from qa_flax.train.tokenizer_fit import model_numbers


def numbers(config, roles=(), **rows):
    rows = {"input_ids": config.vocab_size, "token_type_ids": config.type_vocab_size} | rows
    return ModelNumbers(config, rows, roles)


def warnings_of(tokenizer, model, argument="tokenizer"):
    lines = []
    check_fit(tokenizer, model, argument, lambda message, *values: lines.append(message % values))
    return lines


ROBERTA = {"type_vocab_size": 1, "vocab_size": 330}


def test_a_tokenizer_that_belongs_to_its_model_is_accepted():
    assert warnings_of(tiny.tokenizer(), numbers(tiny.config())) == []
    assert warnings_of(trained.byte_level(), numbers(RobertaConfig(**ROBERTA), ["pad"])) == []
    # transformers adds a mask token to a vocabulary without one; nothing reads it.
    masked = trained.byte_level(mask_token="<mask>")
    assert len(masked) == 331
    assert warnings_of(masked, numbers(RobertaConfig(**ROBERTA), ["pad"])) == []


def added():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"new {n}" for n in range(110)])
    return tokenizer


REFUSED = {
    "more tokens": (tiny.tokenizer, numbers(tiny.config(vocab_size=120)), "140 tokens, but .*120"),
    "added tokens": (added, numbers(tiny.config()), r"250 tokens, but .* 240 \('new"),
    "token types": (tiny.tokenizer, numbers(tiny.config(type_vocab_size=1)), "token types 0 to 1"),
    "BERT's in RoBERTa": (
        tiny.tokenizer,
        numbers(RobertaConfig(vocab_size=200), ["pad"]),
        "pad_token_id is 0, in the model's config 1, bos_token_id is 2, in the model's config 0",
    ),
    "padding that gives positions": (
        trained.byte_level,
        numbers(RobertaConfig(**ROBERTA, pad_token_id=3), ["pad"]),
        "pad_token_id is 1, in the model's config 3; .*correct the ids",
    ),
    "separator that is read": (
        trained.byte_level,
        numbers(LongformerConfig(**ROBERTA, sep_token_id=9), ["pad", "sep"]),
        "sep_token_id is 2, in the model's config 9",
    ),
}


@pytest.mark.parametrize("argument", ["--tokenizer_name", "processing_class"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_of_another_model_is_refused(case, argument):
    make, model, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        warnings_of(make(), model, argument)
    assert argument in str(caught.value)
    assert ("resize_token_embeddings" in str(caught.value)) == (
        case in ("more tokens", "added tokens") and argument == "processing_class"
    )


def test_what_may_be_meant_is_a_warning():
    (line,) = warnings_of(tiny.tokenizer(), numbers(tiny.config(vocab_size=3000)), "--tokenizer")
    assert "has 140 tokens, but this bert model has embeddings for 3,000" in line
    (line,) = warnings_of(trained.byte_level(), numbers(BertConfig(vocab_size=400)))
    assert "pad_token_id is 1, in the model's config 0, and it gives no token types" in line


def test_ids_that_a_family_s_config_has_from_another_family_are_not_compared():
    """transformers' ConvBertConfig has RoBERTa's by default; ConvBERT's tokenizers are BERT's."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 240}
    model = AutoModelForQuestionAnswering.from_config(
        ConvBertConfig(**small, embedding_size=32, intermediate_size=64)
    )
    assert model.config.pad_token_id == 1
    assert warnings_of(tiny.tokenizer(), model_numbers(model)) == []


def test_token_types_that_a_tokenizer_leaves_out_are_a_warning():
    """As transformers 5 has it for ALBERT and RemBERT, which were trained with types."""
    tokenizer, model = copy.deepcopy(tiny.tokenizer()), numbers(tiny.config())
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    (line,) = warnings_of(tokenizer, model)
    assert "(types 0 and 1) and this bert model has 2 types: all tokens get type 0" in line
    advice = "tokenizer.model_input_names = ['input_ids', 'attention_mask', 'token_type_ids']"
    assert line.endswith(f"add them: {advice}.")
    (line,) = warnings_of(tokenizer, model, "--tokenizer_name")
    advice = '"model_input_names": ["input_ids", "attention_mask", "token_type_ids"]'
    assert f"{advice} in its tokenizer_config.json" in line
    tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"]
    assert warnings_of(tokenizer, model) == []
    # A model that finds the separator makes the types itself, and a model may have one type only.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert warnings_of(tokenizer, numbers(tiny.config(), ["sep"])) == []
    assert warnings_of(tokenizer, numbers(tiny.config(type_vocab_size=1))) == []


def folder(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_text(content)
    return tmp_path


def legacy(tmp_path, merges=1.0):
    parts = json.loads(trained.byte_level().backend_tokenizer.to_str())["model"]
    lines = [" ".join(pair) for pair in parts["merges"]]
    text = "\n".join(["#version: 0.2", *lines[: round(merges * len(lines))], ""])
    tiny.config(model_type="bert").save_pretrained(tmp_path)
    RobertaConfig(**ROBERTA).save_pretrained(tmp_path)
    return folder(tmp_path, vocab__json=json.dumps(parts["vocab"]), merges__txt=text)


def test_a_folder_of_old_files_is_loaded(tmp_path):
    assert len(load_tokenizer(str(legacy(tmp_path)), argument="--x")) == 331


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGED = {
    "nothing": ({}, OSError, "has no tokenizer .*contains: config.json. Add these files, or give"),
    "only a config": ({"tokenizer_config__json": "{}"}, OSError, "has no tokenizer"),
    "empty": ({"vocab__txt": ""}, ValueError, "vocab.txt .* it is empty"),
    "pointer": ({"tokenizer__json": LFS}, ValueError, "a pointer of Git LFS; run `git lfs pull`"),
    "page": ({"tokenizer__json": "\n<!DOCTYPE html>"}, ValueError, "it is a web page"),
    "cut": ({"tokenizer__json": '{"version": "1'}, ValueError, "tokenizer.json is not JSON"),
    "list": ({"tokenizer__json": "[1]"}, ValueError, "contains a JSON list"),
    "no parts": ({"tokenizer__json": "{}"}, ValueError, "cannot be loaded: .*--tokenizer_name"),
    "special tokens": ({"vocab__txt": "[PAD]\n[UNK]\n"}, ValueError, "has 5 tokens, which are"),
    "no merges": ({"vocab__json": "{}"}, OSError, "has vocab.json, but no merges.txt"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_without_a_whole_tokenizer_is_refused(case, tmp_path):
    files, kind, message = DAMAGED[case]
    tiny.config().save_pretrained(tmp_path)
    with pytest.raises(kind, match=message):
        load_tokenizer(str(folder(tmp_path, **files)), argument="--tokenizer_name")


def test_cut_merges_and_vocabularies_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"merges.txt makes only \d+ of the \d+ tokens"):
        load_tokenizer(str(legacy(tmp_path, merges=0.5)), argument="--x")
    for text, tokens, message in (
        ("a\nb\nc", 3, "vocab.txt has 3 tokens, .* 5, so the file is cut"),
        ("a\nb\n", 2, "If all tokens are there, name the folder: --x"),
    ):
        with pytest.raises(ValueError, match=message):
            check_vocabulary_file(folder(tmp_path, vocab__txt=text), tokens, 5, "--x")
    check_vocabulary_file(folder(tmp_path, vocab__txt="a\nb\nc\n"), 3, 5, "--x")


def test_a_source_that_is_no_folder_is_named(tmp_path):
    file = folder(tmp_path, vocab__txt="a") / "vocab.txt"
    with pytest.raises(OSError, match="is a file; give the directory"):
        load_tokenizer(str(file), argument="--x")
    with pytest.raises(OSError, match="/nowhere does not exist"):
        load_tokenizer("/nowhere", argument="--x")
    with pytest.raises(OSError, match="is not a local directory, and no tokenizer of that name"):
        load_tokenizer("nobody/nothing", argument="--x")


def test_windows_are_not_made_with_a_half_made_tokenizer(tmp_path):
    tiny.config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass the model's own tokenizer as tokenizer"):
        windows(tiny.rows(), AutoTokenizer.from_pretrained(tmp_path), 64, 16)
    without = trained.word_piece()
    without.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    with pytest.raises(ValueError, match="no special tokens around question and context"):
        windows(tiny.rows(), without, 64, 16)


def test_text_that_the_tokenizer_does_not_know_is_reported(caplog):
    row = {"id": "a", "question": "哪里?", "context": "上海的天气很好但是北京的天气不太好。" * 2}
    row["answers"] = {"text": ["上海"], "answer_start": [0]}
    with caplog.at_level(logging.WARNING):
        windows([row], trained.word_piece(texts=["a b c ? d e f g"]), 64, 16)
    assert "100% of the tokens of the contexts stand for text that the" in caplog.text
    assert 'in example "a"' in caplog.text


def test_two_tokenizers_are_compared():
    lines = []
    own = trained.word_piece(vocab_size=130)
    compare(own, copy.deepcopy(own), "--x", lambda *line: lines.append(line))
    assert not lines
    with pytest.raises(ValueError, match=r"--x gives the tokenizer of another model: .*ids stand"):
        compare(trained.byte_level(), own, "--x")
    grown = copy.deepcopy(own)
    grown.add_tokens(["new"])
    compare(grown, own, "--x", lambda message, *values: lines.append(message % values))
    assert lines == [f"--x: the tokenizer has {len(own) + 1} tokens, the model's own {len(own)}."]


def test_code_that_comes_with_a_tokenizer_is_never_run(tmp_path, monkeypatch):
    """Not even if somebody answers yes to the question that transformers asks on a terminal."""
    tiny.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast): pass\n"
    )
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(ValueError, match="code that comes with it, and such code is never run"):
        load_tokenizer(str(tmp_path), argument="--tokenizer_name")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", '{"unk_token": ""}'),
        ("tokenizer_config.json", '{"model_max_length": "evil"}'),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer.json", '{"version": "' + "x" * 10_000 + '\\u001b[31m"}'),
        ("tokenizer.json", "[]"),
        ("special_tokens_map.json", "\ufffe"),
        ("added_tokens.json", '{"x": {"y": []}}'),
    ],
)
def test_odd_files_of_a_tokenizer_are_refused_in_a_short_line(file, content, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    values = (tmp_path / file).read_text() if (tmp_path / file).exists() else "{}"
    if file == "tokenizer_config.json" and content.startswith("{"):
        content = json.dumps(json.loads(values) | json.loads(content))
    (tmp_path / file).write_text(content)
    try:
        load_tokenizer(str(tmp_path), argument="--tokenizer_name")
    except ValueError as error:
        text = str(error)
        assert len(text) < 1000
        assert "\x1b" not in text
    else:
        assert file in ("special_tokens_map.json", "added_tokens.json")  # transformers ignores them
