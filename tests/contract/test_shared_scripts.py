"""The scripts of a folder run with nothing but their imports changed.

The folder is `scripts` in `QA_FLAX_SHARED`: question answering scripts as people publish them, and
`run.py`, which changes their imports and runs them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("QA_FLAX_SHARED", ROOT.parent / "shared")).absolute() / "scripts"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[0-9]*.py")) or ["none"]

# What a script asks for and is refused, each with words of the message; all else must run.
REFUSED = {
    "10-custom-loss": [["compute_loss", "compute_loss_func"]],
    "18-inference": [
        ["output_hidden_states=True", "not supported"],
        ["output_attentions=True", "not supported"],
    ],
    "24-freeze-and-model-api": [["output_attentions=True", "not supported"]],
}
RESULTS = {"06-torch-dataset": "train_loss 4.8", "19-streaming": "RESULT 3"}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_script(script):
    if not (FOLDER / "run.py").is_file():
        pytest.skip(f"{FOLDER} has no run.py; QA_FLAX_SHARED names the folder that has it")
    for package in ("torch", "peft"):
        pytest.importorskip(package, reason="pip install '.[parity]'")
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", script],
        cwd=ROOT,
        env=os.environ | {"QA_FLAX_SHARED": str(FOLDER.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert lines[0].split()[-1] == script
    refused = REFUSED.get(script, [])
    problems = [line for line in lines[1:] if not line.startswith("RESULT")]
    assert len(problems) == len(refused), "\n".join(lines)
    for line, words in zip(problems, refused, strict=True):
        assert all(word in line for word in words), line
    assert (done.returncode != 0) == bool(refused)
    if script in RESULTS:
        assert any(RESULTS[script] in line for line in lines)
