"""Python code in a process of its own, for what changes a whole process."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def script(code: str, *, check: bool = True, timeout: float = 30) -> str:
    """Run Python code in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "never awaited" not in done.stderr, done.stderr
    return done.stdout
