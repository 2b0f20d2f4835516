"""What Binder will do: install binder/requirements.txt into an empty environment and run the quick-start there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_runtime_is_one_that_the_package_supports() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    lowest = tuple(int(part) for part in requires.removeprefix(">=").split("."))
    chosen = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert tuple(int(part) for part in chosen.split(".")) >= lowest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart_runs_in_binders_environment(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "JUPYTER"))
    }
    install = [str(python), "-m", "pip", "install", "--quiet", "-r", "binder/requirements.txt"]
    subprocess.run(install, cwd=clone, env=clean, check=True)
    run = [str(python), str(ROOT / "tests" / "helpers" / "notebooks.py"), "notebooks/01_quickstart.ipynb"]
    done = subprocess.run(run, cwd=clone, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "lab/machine/cpu" in done.stdout
    assert sys.prefix not in done.stdout
