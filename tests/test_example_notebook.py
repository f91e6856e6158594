"""The notebook in examples/: small, without stored outputs, and run in a real kernel."""

import re
from pathlib import Path

import kernel
import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebook`")
NOTEBOOK = Path(__file__).parents[1] / "examples/small_data.ipynb"


def code_cells() -> list:
    """The cells of code, without the one that installs."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return [
        c for c in cells if c.cell_type == "code" and "install" not in c.metadata.get("tags", [])
    ]


def test_the_notebook_is_valid_and_small_and_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(
        not cell.outputs and cell.execution_count is None
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
    assert NOTEBOOK.stat().st_size < 20_000
    lines = [line for cell in notebook.cells for line in cell.source.splitlines()]
    assert max(map(len, lines)) <= 140
    assert len([line for line in lines if "<-" in line and line[0].isupper() and "=" in line]) == 3


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_notebook_runs_cell_by_cell(tmp_path):
    pytest.importorskip("ipykernel", reason="needs the extra `notebook`")
    with kernel.kernel(tmp_path, 1200.0, JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1") as shell:
        cells = [shell.run(cell.source) for cell in code_cells()]
        _, data, training, curves, answers, loaded = cells
        assert "'context'" in data.result
        assert re.search(
            r"^3\d\d questions to train on, 1\d\d to validate on$", data.stream("stdout"), re.M
        )
        (table,) = training.displays()
        for heading in (
            "Training Loss",
            "Validation Loss",
            "F1",
            "Train F1",
            "Train Accuracy Start",
        ):
            assert f"<th>{heading}</th>" in table[-1], heading
        assert "<svg" in curves.of("execute_result")[0]["data"]["image/svg+xml"]
        assert answers.stream("stdout").count(" | ") >= 8
        assert "the loaded model has the same F1: True" in loaded.stream("stdout")
        assert loaded.result.startswith("BertForQuestionAnswering(")
        for cell in cells:
            assert "Traceback" not in cell.stream("stderr"), cell.stream("stderr")
        best = shell.value("max(e['eval_f1'] for e in trainer.state.log_history if 'eval_f1' in e)")
        trained = shell.value(
            "[e['train_f1'] for e in trainer.state.log_history if 'train_f1' in e]"
        )
        print(f"validation F1 {best}, training F1 {trained}")
        assert best > 60
