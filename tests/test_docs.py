"""README.md and docs/: the code blocks run, and the paths, links, flags and outputs are right."""

import argparse
import contextlib
import doctest
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import docs_folder
import pytest
from hub_stand_in import HubStandIn
from hub_stand_in import environment as hub_environment
from processes import environment
from transformers import BertConfig

import qa_flax
from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    commands,
    get_peft_model,
    load_examples,
)
from qa_flax.device.memory import abstract_state
from qa_flax.device.optim import make_optimizer
from qa_flax.models.sharding import bytes_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Its commands need Google Cloud: test_tpu_scripts.py runs such commands against an imitation.
NAMED_PAGES = [*PAGES, ROOT / "tpu_scripts" / "README.md"]
DATA_FORMATS = ("json", "csv")

# Text blocks that are not the output of the code block before them, and what checks them instead.
CHECKED_ELSEWHERE = {
    "Scores on the held-out questions": "commands/test_demo.py compares it with a run (slow)",
    " rows / SQuAD JSON": "test_the_picture_names_modules_of_the_package",
    "pyproject.toml README.md": "the file tree: test_layout.py",
    "Calibration on": "its report: answers/test_calibration.py",
    '{"id": "q1"': "a line of qa-flax answer: commands/test_answer.py",
}


class Block(NamedTuple):
    """A fenced code block: its language, its text, and the last line before it."""

    page: str
    language: str
    text: str
    line_before: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:40]}"


def blocks_of(page: Path) -> list[Block]:
    pieces = re.split(r"^```(\w*)\n(.*?)^```\n", page.read_text(), flags=re.M | re.S)
    texts, languages, codes = pieces[::3], pieces[1::3], pieces[2::3]
    before = [text.strip().splitlines()[-1] if text.strip() else "" for text in texts]
    return [
        Block(page.name, language, code, line)
        for language, code, line in zip(languages, codes, before, strict=False)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```\n", "", page.read_text(), flags=re.M | re.S)


# ---- the folder in which the examples run ------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return docs_folder.make(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A fresh copy of it, as the current folder."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_output(actual: str, block: Block) -> None:
    """The documented output; `...` stands for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    matches = doctest.OutputChecker().check_output(block.text, actual, flags)
    assert matches, f"{block} documents\n{block.text}\nbut the output is\n{actual}"


# ---- code blocks ---------------------------------------------------------------------------------


SHARING = "sharing.md"  # its blocks need a Hub and ONNX: `test_the_page_about_sharing`
WITH_PYTHON = [
    page
    for page in PAGES
    if any(b.page == page.name for b in of("python")) and page.name != SHARING
]
SLOW_PAGES = ("small_data.md",)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[pytest.mark.slow] if p.name in SLOW_PAGES else [], id=p.name)
        for p in WITH_PYTHON
    ],
)
def test_python_blocks_run_and_print_what_the_page_shows(page, folder):
    blocks = blocks_of(page)
    names: dict = {}
    for n, block in enumerate(blocks):
        if block.language != "python":
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block.text, page.name, "exec"), names)
        if n + 1 < len(blocks) and blocks[n + 1].language == "text":
            assert_output(output.getvalue(), blocks[n + 1])


def is_installation(block: Block) -> bool:
    return "pip install" in block.text


FILES_OF = {
    "check": ("label_check.json", "label_check.txt"),
    "report": ("eval_report.html",),
    "tune": ("trials.log", "tune.json"),
}
"""What commands leave that train no model to keep."""
RUN_BY_BASH = [b for b in of("bash") if not is_installation(b) and b.page != SHARING]
TRAINS_IN_ONE_PROCESS = "README.md"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=[] if block == RUN_BY_BASH[0] else [pytest.mark.slow])
        for block in RUN_BY_BASH
    ],
    ids=str,
)
def test_shell_blocks_run(block, folder):
    """By bash, with the installed `qa-flax`. Some blocks use the output of the README's block."""
    first = next(b for b in RUN_BY_BASH if b.page == TRAINS_IN_ONE_PROCESS).text
    program = f"{first}\n{block.text}" if " out/" in block.text else block.text
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        env=environment(cores=1) | {"PATH": path},
        capture_output=True,
        text=True,
        input="Who wrote the first program?\n",  # what a user types at a prompt
        timeout=500,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    if block.text.startswith("qa-flax answer"):
        written = folder / "answers.jsonl"
        lines = written.read_text().splitlines() if written.exists() else [finished.stdout]
        assert len(lines) == (3 if "--output" in block.text else 1)
        assert all("score" in line for line in lines)
        return
    verb = block.text.split()[1]
    if verb in FILES_OF:
        assert all(list(folder.glob(f"out*/{name}")) for name in FILES_OF[verb])
        if verb == "tune":  # the command line that it ends with works as printed
            assert finished.stdout.splitlines()[-1].startswith("qa-flax run --model_name_or_path")
        return
    (output,) = [path for path in folder.iterdir() if path.name.startswith("out")]
    names = {path.name for path in output.iterdir()}
    assert {"model.safetensors", "all_results.json"} <= names
    assert ("eval_predictions.json" in names) == ("--do_eval" in program)


@pytest.mark.slow
def test_the_page_about_sharing(folder):
    """All its blocks, one after the other, with a stand-in of the Hub."""
    for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the onnx extra")
    hub = HubStandIn()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    variables = environment(cores=1) | hub_environment(hub, folder / "hub") | variables
    programs = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for block in blocks_of(ROOT / "docs" / SHARING):
        if block.language not in programs or is_installation(block):
            continue
        finished = subprocess.run(
            [*programs[block.language], block.text],
            env=variables,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() in "Ada Lovelace wrote the first program in 1843."
    assert set(hub.repos) == {"ada/bert-squad", "ada/bert-squad-copy"}
    assert [hub.repos[name].private for name in hub.repos] == [False, True]
    hub.stop()


@pytest.mark.parametrize("block", [b for b in of("bash") if is_installation(b)], ids=str)
def test_installation_commands_name_extras_that_exist(block):
    """What `.ci/run` and a fresh clone do; here only that the names are right."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name for group in re.findall(r"\.\[([\w,]+)\]", block.text) for name in group.split(",")
    }
    assert extras <= project["optional-dependencies"].keys()
    assert "qa-flax" in project["scripts"]


@pytest.mark.parametrize("block", of(*DATA_FORMATS), ids=str)
def test_data_blocks_are_read_without_a_complaint(block, tmp_path, caplog):
    name = re.fullmatch(r"`([\w.]+)`:", block.line_before)
    assert name, f"{block}: the line before it must name the file"
    (tmp_path / name[1]).write_text(block.text)
    examples = load_examples(tmp_path / name[1], misaligned="refuse", require_answers=True)
    assert examples["id"][:] == ["a", "b"]
    assert examples[0]["answers"] == {"text": ["The Elbe"], "answer_start": [0]}
    assert not caplog.records


def test_every_block_is_of_a_kind_that_is_checked():
    for page in PAGES:
        blocks = blocks_of(page)
        for block, previous in zip(blocks, [None, *blocks], strict=False):
            assert block.language in ("python", "bash", "text", *DATA_FORMATS), block
            elsewhere = any(block.text.startswith(start) for start in CHECKED_ELSEWHERE)
            if block.language == "text" and not elsewhere:
                assert previous is not None, block
                assert previous.language == "python", block
    starts = [start for start in CHECKED_ELSEWHERE if any(b.text.startswith(start) for b in BLOCKS)]
    assert starts == list(CHECKED_ELSEWHERE)


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", NAMED_PAGES, ids=label)
def test_links_lead_to_files_of_this_repository(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose_of(page)):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", NAMED_PAGES, ids=label)
def test_paths_that_the_pages_name_exist(page):
    text = page.read_text()
    names = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text)
    names += re.findall(r"(?<![\w/.])(?:python )?((?:tests|docs|tpu_scripts)/[\w/.-]+\w)", text)
    for name in names:
        is_path = "/" in name and name.endswith((".py", ".md", ".sh", "/"))
        if is_path and name != "bert-base-uncased/":
            folders = (ROOT, ROOT / "qa_flax", page.parent)
            assert any((folder / name).exists() for folder in folders), name


def test_the_picture_names_modules_of_the_package():
    (picture,) = [block.text for block in BLOCKS if block.text.startswith(" rows / SQuAD JSON")]
    names = re.findall(r"\b([a-z]+/[a-z]+)\b", picture)
    assert len(names) >= 6
    assert all((ROOT / "qa_flax" / f"{name}.py").exists() for name in names)


def known_flags() -> set[str]:
    """The flags of every command, of the benchmarks and of the scripts for TPUs."""
    flags = {"--help", "--version"}
    for module in commands.discover().values():
        parser: argparse.ArgumentParser = module.parser()
        flags |= {flag for action in parser._actions for flag in action.option_strings}
    for file in [*ROOT.glob("tests/benchmarks/*.py"), *ROOT.glob("tpu_scripts/*.sh")]:
        flags |= set(re.findall(r"--[a-z][\w-]*", file.read_text()))
    return flags


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_flags_that_the_pages_name_exist(page):
    named = set(re.findall(r"(?<![\w-])--[a-z]\w*(?:-\w+)*", page.read_text()))
    assert named <= known_flags()


def test_the_sizes_that_the_docs_give_for_lora_are_those_of_minilm(capsys):
    """Of the architecture alone: no weights are needed to count them."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    model = AutoModelForQuestionAnswering.from_config(BertConfig(**sizes))
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))
    adapted.print_trainable_parameters()
    trained, total = re.findall(r"params: ([\d,]+)", capsys.readouterr().out)
    states = [abstract_state(m, make_optimizer(), False).opt_state for m in (model, adapted)]
    before, after = (f"{bytes_of(state):,}" for state in states)
    text = (ROOT / "docs/families.md").read_text()
    text = " ".join(text.split())
    assert f"Of the {total} parameters of MiniLM-L6, {trained} are then trained" in text
    assert f"from {before} to {after} bytes per core" in text


# ---- form ----------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


@pytest.mark.parametrize("page", NAMED_PAGES, ids=label)
def test_a_paragraph_introduces_every_table(page):
    lines = prose_of(page).splitlines()
    for n, line in enumerate(lines):
        if line.startswith("|") and not lines[n - 1].startswith("|"):
            before = next(text for text in reversed(lines[:n]) if text.strip())
            assert before.rstrip(" *").endswith((".", ":")), f"{page.name}: {line}"
            assert not before.startswith(("#", "|")), f"{page.name}: {line}"


# ---- docstrings ----------------------------------------------------------------------------------

NOT_OURS = {"EarlyStoppingCallback"}


@pytest.mark.parametrize("name", sorted(set(qa_flax.__all__) - NOT_OURS))
def test_the_example_of_every_public_name_runs(name, folder):
    value = getattr(qa_flax, name)
    module = inspect.getmodule(value)
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(value, name, module, globs={}) if test.examples]
    assert tests, f"{name} has no example"
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    report = io.StringIO()
    for test in tests:
        runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()
