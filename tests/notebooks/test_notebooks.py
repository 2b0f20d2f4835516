"""Every committed notebook runs from top to bottom, and is committed clean."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.helpers import notebooks

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert next(iter(NOTEBOOKS)).name == "01_quickstart.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_without_complaint(path: Path, tmp_path: Path) -> None:
    executed = notebooks.execute(path, folder=tmp_path)
    assert notebooks.complaints(executed) == []


@pytest.mark.timeout(180)
def test_quickstart_receives_over_quic_what_others_published(tmp_path: Path) -> None:
    executed = notebooks.execute(NOTEBOOKS[0], folder=tmp_path)
    text = notebooks.texts(executed)
    for expected in ("TLS_AES_", "lab/paho", "lab/machine/cpu", "ALPN"):
        assert expected in text
