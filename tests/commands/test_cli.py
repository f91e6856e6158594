"""The command `qa-flax`: subcommands are found in a folder, and errors become one message."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python_path

from qa_flax import commands
from qa_flax.cli import main

ROOT = Path(__file__).parents[2]

TOY = '''"""A subcommand that the tests add."""

import argparse
import logging

SUMMARY = "say a word"


def parser():
    parser = argparse.ArgumentParser(description="Says a word.")
    parser.add_argument("--word", default="hello", help="what to say")
    return parser


def main(parsed):
    if parsed.word == "nan":
        raise FloatingPointError("loss is nan")
    if parsed.word == "wait":
        raise KeyboardInterrupt
    if parsed.word == "warn":
        logging.getLogger("qa_flax.somewhere").warning("first")
        from qa_flax.train import checkpoints

        logging.getLogger("qa_flax.somewhere").warning("second")
    print(parsed.word)
    return 7 if parsed.word == "seven" else None
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("qa_flax.commands.toy", None)


def status_and_stderr(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code, capsys.readouterr().err


def test_a_module_in_the_folder_is_a_subcommand(toy, capsys):
    main(["toy"])
    assert capsys.readouterr().out == "hello\n"
    main(["--help"])
    assert "  toy      say a word\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["toy", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: qa-flax toy [-h] [--word WORD]")
    assert "what to say" in out


def test_each_outcome_has_its_exit_status_and_message(toy, capsys):
    assert status_and_stderr(capsys, "toy", "--word=seven") == (7, "")
    assert status_and_stderr(capsys, "toy", "--word=nan") == (1, "qa-flax: loss is nan\n")
    assert status_and_stderr(capsys, "toy", "--word=wait") == (130, "qa-flax: interrupted\n")
    assert status_and_stderr(capsys, "toy", "--wrod=x") == (
        2,
        "qa-flax: error: unrecognized arguments: --wrod=x; did you mean --word instead of "
        "--wrod? (qa-flax toy --help lists the arguments)\n",
    )


def test_help_lists_each_command_once(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *("answer", "check", "clozes", "convert", "demo", "env", "export", "push", "report"),
        *("run", "score", "tune"),
    ]
    main(["--version"])
    assert capsys.readouterr().out.strip()
    status, err = status_and_stderr(capsys)
    assert status == 2
    assert err.splitlines()[: len(lines)] == lines
    commands_named = re.findall(r"^  qa-flax (\w+)", err, re.MULTILINE)
    assert commands_named == ["demo", "run", "answer"]  # what to do first


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert status_and_stderr(capsys, "rnu") == (
        2,
        "qa-flax: error: there is no command 'rnu'; did you mean 'run'? (qa-flax --help lists "
        "the commands)\n",
    )
    status, message = status_and_stderr(capsys, "xyzzy")
    assert status == 2
    assert "did you mean" not in message


def run_python(program, *arguments):
    """Run a program in a new process without torch, as if only qa_flax's dependencies existed."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), python_path()])},
        cwd=ROOT,
    )


# One process runs all command lines, because the import of transformers takes most of the time.
WITHOUT_JAX = """
import contextlib, io, json, sys
for name in ("jax", "flax", "optax", "orbax"):
    sys.modules[name] = None
from qa_flax.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as exit_:
            status = exit_.code or 0
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""
HELPS = ("--help", "--version", "score --help", "run --help")
MISTAKES = {
    "rnu": "did you mean 'run'?",
    "run --lerning_rate 1": "did you mean --learning_rate instead of --lerning_rate?",
    "run --learning_rate=fast": "invalid float value: 'fast'",
    "env --cordinator=x": "did you mean --coordinator instead of --cordinator?",
    "demo --sed=1": "did you mean --seed instead of --sed?",
    "score a": "the following arguments are required: PREDICTIONS",
    "convert --derectory": "the following arguments are required: DIRECTORY",
}


def test_help_scoring_and_invalid_arguments_need_no_jax(tmp_path):
    (tmp_path / "data.json").write_text(
        '[{"id": "1", "question": "q", "context": "x y", '
        '"answers": {"text": ["x"], "answer_start": [0]}}]'
    )
    (tmp_path / "answers.json").write_text('{"1": "x"}')
    score = ["score", str(tmp_path / "data.json"), str(tmp_path / "answers.json")]
    command_lines = [*(text.split() for text in (*HELPS, *MISTAKES)), score]
    process = run_python(WITHOUT_JAX, json.dumps(command_lines))
    assert process.returncode == 0, process.stderr
    *results, scores = json.loads(process.stdout)
    for text, (status, out, err) in zip((*HELPS, *MISTAKES), results, strict=True):
        if text in HELPS:
            assert (status, err) == (0, ""), (text, err)
            assert out, text
        else:
            assert (status, out) == (2, ""), (text, err)
            assert MISTAKES[text] in err
            assert err.count("\n") == 1, err
    assert scores == [0, '{"exact_match": 100.0, "f1": 100.0}\n', ""]


BARS = """
import sys
from qa_flax.cli import main
where, sys.argv[1:] = sys.argv[1], ["env", "--help"]
sys.stderr.isatty = lambda: where == "terminal"
try:
    main()
except SystemExit:
    import datasets, huggingface_hub.utils
    print(datasets.is_progress_bar_enabled(), huggingface_hub.utils.are_progress_bars_disabled())
"""


@pytest.mark.parametrize(("where", "printed"), [("log", "False True"), ("terminal", "True False")])
def test_bars_of_other_libraries_are_not_drawn_into_a_log(where, printed, monkeypatch):
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    process = run_python(BARS, where)
    assert process.stdout.splitlines()[-1] == printed, process.stderr


def test_imports_do_not_change_the_format_of_log_lines(toy):
    program = (
        "import sys\nfrom qa_flax import commands\nfrom qa_flax.cli import main\n"
        "commands.__path__.append(sys.argv.pop(1))\nmain(sys.argv[1:])\n"
    )
    process = run_python(program, str(toy), "toy", "--word=warn")
    assert process.returncode == 0, process.stderr
    assert process.stderr.splitlines() == ["WARNING: first", "WARNING: second"]


def test_listing_the_commands_imports_no_slow_library():
    program = (
        "import sys\nfrom qa_flax.cli import main\nmain(['--help'])\n"
        "slow = {'jax', 'numpy', 'transformers', 'datasets', 'pyarrow', 'etils'}\n"
        "assert not slow & sys.modules.keys(), slow & sys.modules.keys()\n"
    )
    process = run_python(program)
    assert process.returncode == 0, process.stderr
