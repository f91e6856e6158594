"""Commands leave PyTorch out, and what runs later may still import it."""

import importlib.util
import subprocess
import sys

import pytest
from processes import python_path

PROGRAM = """
import sys
from qa_flax.cli import main
sys.argv = ["qa-flax", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print("LOADED", "transformers" in sys.modules, sys.modules.get("torch") is not None)
from qa_flax.commands.hidden_torch import show_torch
show_torch()
show_torch()
from importlib.util import find_spec
print("FOUND", find_spec("torch") is not None)
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_run_imports_transformers_without_torch(tmp_path):
    """The started processes of other tests have no torch at all."""
    paths = [p for p in python_path().split(":") if "without_torch" not in p]
    arguments = ["run", "--model_name_or_path=x", f"--output_dir={tmp_path}", "--report_to=none"]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(paths), "PATH": "", "HF_HUB_OFFLINE": "1", "HOME": "/nowhere"},
    )
    assert "LOADED True False" in result.stdout
    assert "FOUND True" in result.stdout
    assert result.stderr.startswith("qa-flax: error: no data: set --train_file")
