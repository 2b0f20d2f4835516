"""Executes a notebook and finds what nbclient lets through.

nbclient passes a notebook in spite of an exception in a thread, in a task nobody awaited or in a widget callback:
they only leave text on stderr or an ``error`` output under a cell that counts as fine. Also a program of its own
(``python notebooks.py FILE``), so that it can run inside another environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HARMLESS_STDERR = ("frozen modules", "PYDEVD_DISABLE_FILE_VALIDATION")


def execute(path: Path, *, folder: Path, timeout: float = 120) -> Any:
    """Run every cell in a fresh kernel started in `folder`; returns the executed notebook."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def complaints(notebook: Any) -> list[str]:
    """Return every error output and every line on stderr, with the number of the cell that shows it."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"cell {number}: {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                found.extend(
                    f"cell {number}: stderr: {line}"
                    for line in output.text.splitlines()
                    if line.strip() and not any(harmless in line for harmless in HARMLESS_STDERR)
                )
    return found


def texts(notebook: Any) -> str:
    """Return all plain-text outputs, joined."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                parts.append(output.text)
            elif "data" in output:
                parts.append(output.data.get("text/plain", ""))
    return "\n".join(parts)


if __name__ == "__main__":
    executed = execute(Path(sys.argv[1]), folder=Path.cwd())
    problems = complaints(executed)
    print("\n".join(problems) or texts(executed))
    sys.exit(1 if problems else 0)
