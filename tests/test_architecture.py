"""The floors of the house: imports go down only, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mqttquic_lab"

FLOORS = {
    "errors": 1, "units": 1, "trace": 1, "callbacks": 1, "work": 1, "runtime": 1, "records": 1,
    "mqtt": 2,
    "quic": 3, "net": 3,
    "session": 4, "broker": 4, "gateway": 4,
    "views": 5,
    "experiments": 6, "handles": 6,
    "widgets": 7, "cli": 7,
}  # fmt: skip

ONLY_IN = {
    "IPython": {"widgets", "cli"},
    "ipywidgets": {"widgets", "cli"},
    "anywidget": {"widgets"},
    "traitlets": {"widgets"},
    "pandas": {"records", "experiments", "views"},
    "aioquic": {"quic"},
    "asyncio": {"runtime", "quic", "net", "session", "broker", "gateway", "handles", "experiments", "cli"},
    "socket": {"quic", "net", "session", "broker", "experiments", "cli"},
}

LATE_IMPORTS_UP = {("handles", "widgets")}
"""A verb that opens a view: imported inside the verb only."""


def room(path: Path) -> str:
    """Return the first path component below the package: ``mqtt``, ``session``, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool, bool]]:
    """Return (module, at module level, only for type checking) of each import in a file."""
    found: list[tuple[str, bool, bool]] = []

    def walk(node: ast.AST, top: bool, typing_only: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner_top = top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            inner_typing = typing_only or (
                isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
            )
            if isinstance(child, ast.Import):
                found.extend((alias.name, top, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                module = child.module or ""
                found.append((module, top, typing_only))
                if module == "mqttquic_lab":
                    found.extend((f"mqttquic_lab.{alias.name}", top, typing_only) for alias in child.names)
            walk(child, inner_top, inner_typing)

    walk(ast.parse(path.read_text()), True, False)
    return found


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem not in {"__init__", "__main__"})


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} stands on no floor"
    for module, top, typing_only in imports(path):
        if typing_only:
            continue
        parts = module.split(".")
        if parts[0] == "mqttquic_lab" and len(parts) > 1:
            there = parts[1]
            if there in FLOORS and there != here and not ((here, there) in LATE_IMPORTS_UP and not top):
                assert FLOORS[there] <= FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {module}"
        elif parts[0] in ONLY_IN:
            assert here in ONLY_IN[parts[0]], f"{here} imports {parts[0]}"


STRANGERS = {("quic", "mqtt"), ("quic", "session"), ("widgets", "net"), ("widgets", "quic")}
"""Rooms of which the first knows nothing of the second, though it stands higher: quic/ carries bytes, not MQTT."""


@pytest.mark.parametrize(("here", "there"), sorted(STRANGERS))
def test_rooms_that_do_not_know_one_another(here: str, there: str) -> None:
    for path in MODULES:
        if room(path) == here:
            known = [module for module, _, _ in imports(path) if f"{module}.".startswith(f"mqttquic_lab.{there}.")]
            assert not known, f"{path.name} imports {known}"


def test_private_names_of_aioquic_stand_in_one_place() -> None:
    for path in MODULES:
        if room(path) == "quic" and not path.name.startswith("private"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                    owner = node.value
                    mine = isinstance(owner, ast.Name) and owner.id in {"self", "cls", "super"}
                    assert mine, f"{path.name}:{node.lineno} reads .{node.attr}"


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, mqttquic_lab; "
        "heavy = {'pandas', 'numpy', 'ipywidgets', 'IPython', 'aioquic', 'nest_asyncio', 'anywidget', 'OpenSSL'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
