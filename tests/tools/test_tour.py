"""The notebook runs from top to bottom, and is stored without outputs."""

import re
from pathlib import Path

import pytest
from commands import ROOT

nbformat = pytest.importorskip("nbformat", reason="running a notebook needs pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="running a notebook needs pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="running a notebook needs pip install nbclient ipykernel")

TOUR = ROOT / "tools" / "tour.ipynb"


def test_it_is_stored_without_outputs() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 8 <= len(cells) <= 12
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="its last part needs pip install 'bevreshape[onnx]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")

    def number(pattern: str) -> float:
        (found,) = re.findall(pattern, printed)
        return float(found)

    assert number(r"of the last ten ([\d.]+)") < number(r"first ten steps ([\d.]+)")
    assert number(r"weights of the pupil are ([\d.]+)") < 1 < number(r"weights of W are ([\d.]+)")
    assert number(r"largest difference from the prediction above: ([\d.e-]+)") < 0.05
    assert not list(tmp_path.iterdir())
