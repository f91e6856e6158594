"""JSON and YAML files of arguments have the checks of the command line, and name the keys."""

import json
import re

import pytest

from qa_flax.commands.run import parse_arguments

REQUIRED = {"model_name_or_path": "m", "output_dir": "out", "train_file": "x.json"}


@pytest.fixture
def parsed(tmp_path):
    """Parse a file with these arguments, and further arguments of the command line."""

    def parse(values, *arguments, suffix="json"):
        file = tmp_path / f"arguments.{suffix}"
        text = values if isinstance(values, str) else json.dumps(REQUIRED | values)
        file.write_text(text)
        names = {}
        for each in parse_arguments([str(file), *arguments]):
            names |= vars(each)
        return names

    return parse


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"do_eval": "false", "do_train": "True", "bf16": 0}, (False, True, False)),
        ({"max_seq_length": "64", "learning_rate": "1e-1", "seed": 7}, (64, 0.1, 7)),
        ({"max_train_samples": None, "dataset_config_name": 2024}, (None, "2024")),
        ({"pad_to_max_length": False}, (False,)),
        ({"report_to": ["tensorboard", "trackio"]}, (["tensorboard", "trackio"],)),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, ({"num_cycles": 2},)),
        ({"include_for_metrics": ["inputs", "loss"]}, (["inputs", "loss"],)),
        ({"freeze_layers": [0, 1], "lora_r": 2, "lora_target_modules": ["query"]}, ("0,1", 2)),
        ({"max-seq-length": 64}, ()),
    ],
)
def test_values_are_converted_as_on_the_command_line(parsed, values, expected):
    names = parsed(values)
    for name, value in zip(values, expected, strict=False):
        assert names[name] == value
        assert type(names[name]) is type(value)


def test_aliases_negations_and_hyphens_are_keys(parsed):
    values = {"max_val_samples": 3, "no_pad_to_max_length": True, "doc-stride": 16}
    names = parsed(values)
    read = names["max_eval_samples"], names["pad_to_max_length"], names["doc_stride"]
    assert read == (3, False, 16)
    assert parsed({"no_pad_to_max_length": False})["pad_to_max_length"] is True


def test_yaml_reads_numbers_and_no_as_people_write_them(parsed):
    text = "\n".join(f"{name}: {value}" for name, value in REQUIRED.items())
    text += "\nlearning_rate: 1e-1\neval_strategy: no\ndo_eval: yes\nsave_strategy: no\n"
    names = parsed(text, suffix="yaml")
    assert names["learning_rate"] == 0.1
    assert names["eval_strategy"] == names["save_strategy"] == "no"
    assert names["do_eval"] is True


def test_arguments_after_the_file_take_precedence(parsed):
    more = ["--learning_rate", "3e-5", "--model_name_or_path", "other", "--no_pad_to_max_length"]
    names = parsed({"learning_rate": 1.0, "seed": 5}, *more)
    assert (names["learning_rate"], names["model_name_or_path"], names["seed"]) == (
        3e-5,
        "other",
        5,
    )
    assert names["pad_to_max_length"] is False
    rest = {name: value for name, value in REQUIRED.items() if name != "model_name_or_path"}
    assert parsed(json.dumps(rest), "--model_name_or_path=m")["model_name_or_path"] == "m"


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"gather": "all"}, ['gather is "all"; it must be one of topk, logits']),
        ({"do_eval": "maybe"}, ['do_eval is "maybe"; it must be true or false']),
        ({"do_eval": 2}, ["do_eval is 2; it must be true or false"]),
        ({"max_seq_length": 64.5}, ["max_seq_length is 64.5; it must be a whole number"]),
        ({"max_seq_length": True}, ["max_seq_length is true; it must be a whole number"]),
        ({"max_seq_length": [64]}, ["max_seq_length is [64]; it must be a whole number"]),
        (
            {"learning_rate": None},
            ["learning_rate is null; it must be a number; leave it out for the default, 5e-05"],
        ),
        ({"learning_rate": "fast"}, ['learning_rate is "fast"; it must be a number']),
        ({"model_name_or_path": None}, ["model_name_or_path is null; it must be text"]),
        ({"output_dir": {"a": 1}}, ['output_dir is {"a": 1}; it must be text']),
        ({"report_to": False}, ["report_to is false; it must be text, in quotes"]),
        ({"learning_rte": 1}, ["no argument 'learning_rte'; did you mean learning_rate?"]),
        ({"help": True}, ["no argument 'help'"]),
        ({"evalstrategy": "no", "optimizer": 1}, ["'evalstrategy'; did", "'optimizer'"]),
        ({"seed": 1, "lora_r": "x", "zzz": 0}, ['lora_r is "x"', "no argument 'zzz'"]),
        ({"max_eval_samples": 1, "max_val_samples": 2}, ["max_val_samples is given twice"]),
        ({"seed": -1}, ["seed=-1: it must be a whole number from 0 to"]),
        ({"num_train_epochs": float("nan")}, ["num_train_epochs=nan: it must be"]),
    ],
)
def test_keys_and_values_that_are_wrong_are_all_named(parsed, values, messages):
    with pytest.raises(ValueError, match=r"^") as error:
        parsed(values)
    for message in messages:
        assert message in str(error.value)
    is_of_file = not re.search(r"(seed|num_train_epochs)=", str(error.value))
    assert ("arguments.json: " in str(error.value)) == is_of_file


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ('{"seed": 1, "seed": 2}', "json", "arguments.json: seed is given twice"),
        ("seed: 1\nseed: 2\n", "yml", "arguments.yml: seed is given twice"),
        ("{bad", "json", "not valid JSON: Expecting property name enclosed in double quotes at l"),
        ("a: [b", "yaml", "not valid YAML: while parsing a flow sequence"),
        ("a: !!python/object:os.system x", "yaml", "not valid YAML: could not determine a constr"),
        ("[1]", "json", "it must contain an object with the arguments"),
        ("", "yaml", "it must contain an object with the arguments"),
        ("x", "yaml", "it must contain an object with the arguments"),
    ],
)
def test_files_that_contain_no_arguments_are_refused(parsed, text, suffix, message):
    with pytest.raises(ValueError, match="arguments") as error:
        parsed(text, suffix=suffix)
    assert message in str(error.value)


def test_a_missing_file_and_other_encodings_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file of arguments"):
        parse_arguments([str(tmp_path / "none.json")])
    (tmp_path / "a.json").write_text(json.dumps(REQUIRED), encoding="utf-16")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        parse_arguments([str(tmp_path / "a.json")])
    (tmp_path / "a.json").write_text(json.dumps(REQUIRED), encoding="utf-8-sig")
    assert parse_arguments([str(tmp_path / "a.json")])[1].train_file == "x.json"
