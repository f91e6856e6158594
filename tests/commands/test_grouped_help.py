"""The help of commands with many arguments."""

import re

import pytest

from qa_flax import commands
from qa_flax.cli import main
from qa_flax.commands import grouped_help
from qa_flax.commands.grouped_help import GROUPS, MOST_USED, WORDS
from qa_flax.commands.run import parser as run_parser
from qa_flax.device.optim import OPTIMIZERS
from qa_flax.train.old_names import OldNames
from qa_flax.train.schedules import SCHEDULES
from qa_flax.train.training_arguments import CHOICES, REFUSED, WITHOUT_EFFECT

LONG = ("run", "check", "tune")


def shown(capsys, *arguments):
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    return capsys.readouterr().out


def options_of(text):
    """The arguments at the beginning of a line, and those after their comma."""
    heads = re.findall(r"^  (--\w+(?:, --\w+)*)", text, re.MULTILINE)
    return [name for head in heads for name in head.replace("--", "").split(", ")]


def test_the_first_page_has_the_most_used_arguments_by_group(capsys):
    text = shown(capsys, "run", "--help")
    assert set(options_of(text)) == MOST_USED
    assert 30 <= len(MOST_USED) <= 40
    titles = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert titles == [title for title in GROUPS if title != "sharing"]
    assert max(map(len, text.splitlines())) <= 100
    number = re.search(r"qa-flax run --help_all shows (\d+) further arguments\.\n$", text)
    everything = set(options_of(shown(capsys, "run", "--help_all")))
    everything -= {f"no_{name}" for name in everything}
    assert int(number[1]) == len(everything - MOST_USED)


@pytest.mark.parametrize("command", LONG)
def test_the_full_help_has_each_argument_once_but_none_that_is_refused(command, capsys):
    text = shown(capsys, command, "--help_all")
    assert text == shown(capsys, command, "--help-all")
    options = options_of(text)
    assert len(options) == len(set(options))
    assert "other arguments" not in text
    parser = commands.discover()[command].parser()
    accepted = {action.dest for action in parser._actions if action.option_strings}
    accepted -= {*REFUSED, "trust_remote_code", "help"}
    together = text[text.index("Accepted for scripts") :]
    named = {*options, *re.findall(r"--(\w+)", together)}
    assert {name for name in accepted if name not in named} == set()
    assert not named & REFUSED.keys()
    assert not set(options) & WITHOUT_EFFECT.keys()
    assert "--no_pad_to_max_length" in text


@pytest.mark.parametrize("command", LONG)
def test_a_commands_own_arguments_come_first(command, capsys):
    lines = shown(capsys, command, "--help").splitlines()
    title = next(line for line in lines if re.match(r"\w[\w ]*:$", line))
    assert title == {"run": "what to do:", "check": "label check:", "tune": "search:"}[command]
    own = {"check": ("FILE", "--folds", "--show", "--output"), "tune": ("--search", "--n_trials")}
    for name in own.get(command, ()):
        assert any(line.startswith(f"  {name} ") or line == f"  {name}" for line in lines), name


def test_a_short_help_is_whole(capsys):
    text = shown(capsys, "env", "--help")
    assert "usage: qa-flax env [arguments]" in text
    assert len(options_of(text)) == 6
    assert "further arguments" not in text


def test_every_name_in_the_groups_and_words_is_an_argument():
    names = {action.dest for action in run_parser()._actions}
    assert names >= MOST_USED
    assert WORDS.keys() <= names
    grouped = [name for names in GROUPS.values() for name in names.split()]
    assert set(grouped) <= names
    assert len(grouped) == len(set(grouped))
    assert not set(grouped) & set(OldNames.__dataclass_fields__)


def test_lists_of_names_in_the_help_are_those_that_are_supported():
    def names(argument):
        return set(re.split(r", | or |\.$", WORDS[argument].split(": ")[1])) - {""}

    assert names("lr_scheduler_type") == set(SCHEDULES)
    assert names("train_sampling_strategy") == set(CHOICES["train_sampling_strategy"])
    same = {"fused", "xla", "npu", "paged", "bnb"}
    assert names("optim") == {name for name in OPTIMIZERS if not same & set(name.split("_"))}


def test_the_values_of_arguments_are_named_by_what_they_are():
    actions = {action.dest: action for action in run_parser()._actions}
    named = {
        "model_name_or_path": "DIR_OR_ID",
        "train_file": "FILE",
        "output_dir": "DIR",
        "doc_stride": "N",
        "learning_rate": "X",
        "packing": "{true,false}",
        "gather": "{topk,logits}",
        "optim": "NAME",
        "freeze_layers": "VALUE",
    }
    for name, value in named.items():
        assert grouped_help.value_of(actions[name]) == value
