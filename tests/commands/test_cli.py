"""The command as a whole: its verbs are the folder's modules; one place shows every error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python_path

from qa_flax import commands
from qa_flax.cli import main

ROOT = Path(__file__).parents[2]

TOY = '''"""A verb that a test adds."""

import argparse
import logging

SUMMARY = "say a word"


def parser():
    parser = argparse.ArgumentParser(description="Says a word.")
    parser.add_argument("--word", default="hello", help="what to say")
    return parser


def main(parsed):
    if parsed.word == "silence":
        raise FloatingPointError("not a sound")
    if parsed.word == "wait":
        raise KeyboardInterrupt
    if parsed.word == "warn":
        logging.getLogger("qa_flax.somewhere").warning("mind the gap")
        from qa_flax.train import checkpoints

        logging.getLogger("qa_flax.somewhere").warning("and again")
    print(parsed.word)
    return 7 if parsed.word == "seven" else None
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("qa_flax.commands.toy", None)


def failed(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, capsys.readouterr().err


def test_a_file_in_the_folder_is_a_command(toy, capsys):
    main(["toy"])
    assert capsys.readouterr().out == "hello\n"
    main(["--help"])
    assert "  toy      say a word\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["toy", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: qa-flax toy [-h] [--word WORD]")
    assert "what to say" in printed


def test_every_end_of_a_command_has_its_status_and_message(toy, capsys):
    assert failed(capsys, "toy", "--word=seven") == (7, "")
    assert failed(capsys, "toy", "--word=silence") == (1, "qa-flax: not a sound\n")
    assert failed(capsys, "toy", "--word=wait") == (130, "qa-flax: interrupted\n")
    assert failed(capsys, "toy", "--wrod=x") == (
        2,
        "qa-flax: error: unrecognized arguments: --wrod=x; did you mean --word in place of "
        "--wrod? (qa-flax toy --help lists the arguments)\n",
    )


def test_help_names_each_command_once(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *("convert", "demo", "env", "run", "score")
    ]
    main(["--version"])
    assert capsys.readouterr().out.strip()
    status, printed = failed(capsys)
    assert (status, printed.splitlines()) == (2, lines)


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert failed(capsys, "rnu") == (
        2,
        "qa-flax: error: there is no command 'rnu'; did you mean 'run'? (qa-flax --help lists "
        "the commands)\n",
    )
    status, message = failed(capsys, "xyzzy")
    assert status == 2
    assert "did you mean" not in message


def in_a_fresh_process(program, *arguments):
    """Without torch, as where only what qa_flax needs is installed."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), python_path()])},
        cwd=ROOT,
    )


# Every list of arguments in one process: what it takes is the import of transformers.
WITHOUT_JAX = """
import contextlib, io, json, sys
for name in ("jax", "flax", "optax", "orbax"):
    sys.modules[name] = None
from qa_flax.cli import main
ended = []
for arguments in json.loads(sys.argv[1]):
    status, printed, said = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code or 0
    ended.append((status, printed.getvalue(), said.getvalue()))
print(json.dumps(ended))
"""
HELPS = ("--help", "--version", "score --help", "run --help")
MISTAKES = {
    "rnu": "did you mean 'run'?",
    "run --lerning_rate 1": "did you mean --learning_rate in place of --lerning_rate?",
    "run --learning_rate=fast": "invalid float value: 'fast'",
    "env --cordinator=x": "did you mean --coordinator in place of --cordinator?",
    "demo --sed=1": "did you mean --seed in place of --sed?",
    "score a": "the following arguments are required: PREDICTIONS",
    "convert --derectory": "the following arguments are required: DIRECTORY",
}


def test_help_scores_and_mistakes_need_no_jax(tmp_path):
    (tmp_path / "data.json").write_text(
        '[{"id": "1", "question": "q", "context": "x y", '
        '"answers": {"text": ["x"], "answer_start": [0]}}]'
    )
    (tmp_path / "answers.json").write_text('{"1": "x"}')
    score = ["score", str(tmp_path / "data.json"), str(tmp_path / "answers.json")]
    given = [*(text.split() for text in (*HELPS, *MISTAKES)), score]
    ended = in_a_fresh_process(WITHOUT_JAX, json.dumps(given))
    assert ended.returncode == 0, ended.stderr
    *found, scored = json.loads(ended.stdout)
    for text, (status, printed, said) in zip((*HELPS, *MISTAKES), found, strict=True):
        if text in HELPS:
            assert (status, said) == (0, ""), (text, said)
            assert printed, text
        else:
            assert (status, printed) == (2, ""), (text, said)
            assert MISTAKES[text] in said
            assert said.count("\n") == 1, said
    assert scored == [0, '{"exact_match": 100.0, "f1": 100.0}\n', ""]


def test_log_lines_have_the_commands_format_whatever_is_imported(toy):
    program = (
        "import sys\nfrom qa_flax import commands\nfrom qa_flax.cli import main\n"
        "commands.__path__.append(sys.argv.pop(1))\nmain(sys.argv[1:])\n"
    )
    ended = in_a_fresh_process(program, str(toy), "toy", "--word=warn")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines() == ["WARNING: mind the gap", "WARNING: and again"]


def test_listing_the_commands_imports_nothing_that_takes_time():
    program = (
        "import sys\nfrom qa_flax.cli import main\nmain(['--help'])\n"
        "heavy = {'jax', 'numpy', 'transformers', 'datasets', 'pyarrow', 'etils'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    ended = in_a_fresh_process(program)
    assert ended.returncode == 0, ended.stderr
