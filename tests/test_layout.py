"""The folder is the picture: the README's file tree, headings, sizes, imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qa_flax"
STAGES = {
    1: ["examples"],
    2: ["tokens", "features"],
    3: ["batches"],
    4: sorted(f"models/{path.stem}" for path in (PACKAGE / "models").glob("*.py")),
    5: ["step", "parallel"],
    6: ["spans", "postprocess"],
    7: ["metrics"],
}
MODULES = sorted(PACKAGE.rglob("*.py"))


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


def test_the_readmes_tree_is_what_is_on_disk():
    block = re.search(r"```\n(pyproject\.toml .*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block, "README.md has no file tree"
    named, folders = set(), []
    for line in block[1].splitlines():
        match = re.match(r"^((?:[│ ]   )*(?:[├└]── )?)(.*?)(?:  .*)?$", line)
        depth = len(match[1]) // 4
        for name in match[2].split():
            del folders[depth:]
            named.add("/".join([*folders, name]))
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
    found = tracked()
    # A folder that the tree names without its files stands for all of them.
    closed = {
        n for n in named if n.endswith("/") and not any(m != n and m.startswith(n) for m in named)
    }
    files = {n for n in named if not n.endswith("/")}
    assert not {n for n in files if n not in found}, "named in README, not on disk"
    assert not {n for n in closed if not any(f.startswith(n) for f in found)}
    left = {f for f in found if f not in files and not any(f.startswith(n) for n in closed)}
    assert not left, "on disk, not named in README"


@pytest.mark.parametrize(("number", "names"), STAGES.items())
def test_each_stage_says_its_number_in_its_first_line(number, names):
    for name in names:
        first = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text()))
        assert first.startswith(f"Stage {number} of 7: "), name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small_enough_to_read(module):
    source = module.read_text()
    assert source.count("\n") <= 600
    assert module.stem != "utils"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 75, node.name


def test_nothing_imports_torch_and_the_host_stages_do_not_import_jax():
    """As installed, not as written: what the imports bring in counts, too."""
    program = (
        "import sys, importlib\n"
        "sys.modules['torch'] = None\n"
        "import qa_flax, qa_flax.commands.run_job, qa_flax.cli\n"
        "assert sys.modules['torch'] is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())


def environment() -> dict[str, str]:
    import os

    # transformers finds torch by its distribution; this switch makes it look away.
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "USE_TORCH": "0"}
