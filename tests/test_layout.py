"""The layout of the package: the file tree in docs/design.md, docstrings, sizes, tests."""

import ast
import re
import subprocess
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qa_flax"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))

# What is tested under another name, and why. `__init__` files need no test of their own.
TESTED_ELSEWHERE = {
    "__main__": "a line, run by distributed/test_preemption.py",
    "answers/report/build": "by the pages it makes, commands/test_report_verb.py",
    "answers/report/charts": "by the pages it is on, test_report_verb.py, test_report_browser.py",
    "answers/report/data": "by the data that is found again, commands/test_report_verb.py",
    "answers/report/html": "by the pages it is on, commands/test_report_verb.py",
    "answers/report/page": "by its elements, commands/test_report_verb.py",
    "answers/report/reading": "by damaged and missing files, commands/test_report_verb.py",
    "answers/report/rows": "by the rows of a page, commands/test_report_verb.py",
    "answering/forward": "by a model that gets other weights, test_answerer.py",
    "answering/results": "by the answers and their confidences, test_answerer.py",
    "answering/settings": "by the calls that have them, test_answerer.py",
    "commands/answer/batch": "by the files that it writes, test_answer.py",
    "commands/answer/check": "by the arguments that it refuses, test_answer.py",
    "commands/answer/job": "test_answer.py",
    "commands/answer/prompt": "in a terminal, test_answer.py",
    "commands/answer/texts": "by the files that are asked about, test_answer.py",
    "commands/check/job": "by the files that it writes, test_check_labels.py",
    "commands/check/report": "test_check_labels.py",
    "commands/tune/job": "by its trials, test_tune.py",
    "commands/tune/report": "test_tune.py",
    "commands/tune/space": "test_tune.py",
    "commands/arguments": "by the commands that take them, test_run.py and test_environment.py",
    "commands/env/report": "test_environment.py",
    "commands/run/calibrate": "by runs that calibrate, test_run_calibrate.py",
    "commands/errors": "test_cli.py",
    "commands/export/job": "by the files that it writes, test_export.py",
    "commands/run/sharing": "by runs that push, test_push_verb.py",
    "commands/run/job": "test_run.py",
    "data/cloze_files": "by the file that the verb writes, commands/test_clozes_verb.py",
    "data/cloze_maker": "by the clozes that it makes, test_clozes.py",
    "data/spool": "with the passages that it keeps, test_passages.py",
    "data/cells": "with the rows whose cells they are, test_values.py",
    "data/columns": "with the windows it makes, test_features.py",
    "data/room": "with the windows that must have it, test_features.py",
    "data/rows": "with the loaders that collate them, test_loaders.py",
    "commands/report": "test_report_verb.py",
    "commands/run/unanswerable": "by runs on such data, commands/test_run_data.py",
    "commands/wording": "by the messages of a run, commands/test_run_data.py",
    "data/rejected": "by the rows that are left out, test_answers.py",
    "data/report": "by the messages of each kind, test_answers.py and test_examples.py",
    "data/tables": "with the rows that users give, answers/test_spans.py",
    "data/tokenizer_files": "with the checks of what they hold, test_tokenizer_checks.py",
    "data/tokens": "with the windows it makes, test_features.py",
    "data/windows": "test_features.py",
    "device/adjustable": "by the trials of a search, train/test_search.py",
    "device/counters": "by a run that asks for them, train/test_evaluation.py",
    "device/memory": "by a real run and the compiler, device/test_sharding.py",
    "distributed/exchange": "between real processes, test_processes.py",
    "distributed/failure": "between real processes, test_processes.py",
    "distributed/join": "between real processes, test_processes.py",
    "models/configs": "by every family, test_families.py",
    "models/flax_api": "with the other classes, models/test_classes.py",
    "models/read_hooks": "with the owner of the weights, train/test_live_state.py",
    "models/tensors": "with the calls that take them, models/test_call.py",
    "train/best": "by runs that look for the best model, contract/test_resume.py",
    "train/events": "beside transformers' own events, contract/test_hf_trainer.py",
    "train/loop": "by the trainer that calls it, test_trainer.py, contract/test_resume.py",
    "train/model_arguments": "by what they change, test_freezing.py, test_dropout_rates.py",
    "train/card_data": "by the cards that name them, test_model_card.py",
    "train/hub_arguments": "by the trainers that have them, test_hub_push.py",
    "train/output_files": "by what a run leaves, commands/test_run.py, train/test_trainer.py",
    "train/qa_trainer": "with the base class, test_trainer.py",
    "train/shared_attributes": "it only names what Trainer provides",
    "train/train_questions": "with the questions that it evaluates, train/test_train_sample.py",
    "train/train_data": "by trainings on every kind of data set, test_loading.py",
    "train/tokenizer_fit": "by damaged folders, models/test_damaged_files.py and test_run_model.py",
    "train/trials": "by the searches that run them, train/test_search.py",
    "train/training_set": "by trainings on more data, test_augmentation.py, test_extra_data.py",
    "train/training": "by the trainer that calls it, test_trainer.py",
}


def tracked() -> set[str]:
    """Files that git tracks or would track, where there is a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def documented_tree() -> list[str]:
    """The paths in the file tree of docs/design.md, folders with a slash at the end."""
    page = (ROOT / "docs/design.md").read_text()
    block = re.search(r"```text\n(pyproject\.toml .*?)```", page, re.S)
    assert block, "docs/design.md has no file tree"
    named, folders = [], []
    for line in block[1].splitlines():
        match = re.match(r"^((?:[│ ]   )*(?:[├└]── )?)(.*?)(?:  .*)?$", line)
        depth = len(match[1]) // 4
        for name in match[2].split():
            del folders[depth:]
            named.append("/".join([*folders, name]))
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
    return named


def test_the_documented_tree_is_what_is_on_disk():
    """The root's entries and the package's: each folder has one line, files in it need none."""
    named = documented_tree()
    assert len(named) == len(set(named)), "named twice"
    shown = {name for name in named if name.count("/") - name.endswith("/") <= 1}
    on_disk = set()
    for file in tracked():
        parts = file.split("/")
        on_disk.add(parts[0] + "/" * (len(parts) > 1))
        if parts[0] == "qa_flax":
            on_disk.add("/".join(parts[:2]) + "/" * (len(parts) > 2))
    inside = {name for name in shown if not name.startswith("qa_flax/") and "/" in name.rstrip("/")}
    assert all((ROOT / name).exists() for name in inside), "named in docs/design.md, not on disk"
    assert shown - inside == on_disk


def test_one_look_at_the_package_shows_it_whole():
    entries = {name.split("/")[1] for name in tracked() if name.startswith("qa_flax/")}
    assert len(entries) <= 15, sorted(entries)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_folder_says_its_stage(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text, "no docstring"
    if folder.name in ("data", "models", "device", "answers"):
        assert re.match(r"Stages? \d", text), text
    else:
        assert not text.startswith("Stage")


def test_every_module_has_a_test_of_its_name():
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    names = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in MODULES
        if path.stem != "__init__" and "demo" not in path.parts and "families" not in path.parts
    }
    without = {name for name in names if name.split("/")[-1] not in tests}
    assert without - TESTED_ELSEWHERE.keys() == set()
    assert not TESTED_ELSEWHERE.keys() - without, "they are gone, or have a test by now"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small_enough_to_read(module):
    source = module.read_text()
    assert source.count("\n") <= 600
    assert module.stem != "utils"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 75, node.name


def test_the_shapes_of_arrays_are_checked_while_the_tests_run():
    from qa_flax.models.local_attention import make_local_mask

    with pytest.raises(jaxtyping.TypeCheckError, match="attention_mask"):
        make_local_mask(np.ones((2, 3, 4), np.int32), None, 2)
