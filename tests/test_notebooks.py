"""The notebooks run from top to bottom, offline, and are stored without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["five_minutes", "train_an_attacker"]


@each_notebook
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.exhaustive  # the start of a kernel takes longer than the notebook
@each_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in (
        ("MPLBACKEND", "agg"),
        ("HF_HUB_OFFLINE", "1"),
        ("IPYTHONDIR", str(tmp_path)),
        ("JUPYTER_CONFIG_DIR", str(tmp_path)),
        ("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])),
    ):
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=1200,
        startup_timeout=1200,
        iopub_timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    shown = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    errors = [each for each in shown if each.get("name") == "stderr" and "Error" in each.text]
    assert errors == []
    assert any("text/html" in each.get("data", {}) or each.get("data") for each in shown)
