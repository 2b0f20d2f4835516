"""Programs that nobody here wrote: finding them, running them, waiting for what they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

PATIENCE = 15.0
"""Seconds after which a program that does not do what a test waits for fails it."""


INTEROP = Path(__file__).parents[1] / "interop"

MQTTV5_VERSION = (INTEROP / "mqttv5.version").read_text().strip()
"""Of crates.io mqttv5-cli; .ci/peers.sh builds it."""

SOURCES = {
    "mosquitto": "Debian: mosquitto",
    "mosquitto_pub": "Debian: mosquitto-clients",
    "mosquitto_sub": "Debian: mosquitto-clients",
    "mqttv5": ".ci/peers.sh builds it",
    "node": "Debian: nodejs, 20 or newer",
}
"""Where a program comes from."""


def cached(program: str) -> str | None:
    """Return the path of a program that .ci/peers.sh built, if it did."""
    cache = os.environ.get("MQTTQUIC_LAB_CACHE") or Path.home() / ".cache" / "mqttquic_lab"
    return shutil.which(program, path=str(Path(cache) / f"{program}-{MQTTV5_VERSION}" / "bin"))


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where MQTTQUIC_LAB_CI=1 forbids skips."""
    if os.environ.get("MQTTQUIC_LAB_CI") == "1":
        pytest.fail(what)
    pytest.skip(what)


def require(program: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails where MQTTQUIC_LAB_CI=1 forbids skips."""
    path = cached(program) or shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing(f"{program} is not installed ({SOURCES.get(program, 'see .ci/run')})")
    return path


def require_relay() -> str:
    """Return the path of the quiche relay (a script for node), if the packages it needs are installed."""
    folder = INTEROP / "quiche_relay"
    if not (folder / "node_modules" / "@matrixai" / "quic").is_dir():
        missing("the quiche relay's packages are not installed (.ci/peers.sh installs them)")
    return str(folder / "relay.mjs")


class Program:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name

    async def line(self) -> str:
        """Return the next line it prints."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        assert line, f"{self._name} ended with code {await self._process.wait()}: {await self._errors()}"
        return line.decode().rstrip("\n")

    async def until(self, text: str) -> str:
        """Return the next line that contains `text`, passing over others."""
        while text not in (line := await self.line()):
            pass
        return line

    async def write(self, text: str) -> None:
        """Give it a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        await self._process.stdin.drain()

    def end_input(self) -> None:
        """Let it see the end of what it reads."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        """End it without giving it a chance to say goodbye."""
        self._process.kill()

    async def end(self) -> tuple[int, str]:
        """Wait for its end; return exit code and what else it printed."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, out.decode() + (err or b"").decode()

    async def _errors(self) -> str:
        if self._process.stderr is None:
            return "see above"
        return (await self._process.stderr.read()).decode()


@contextlib.asynccontextmanager
async def running(
    program: str, *arguments: str, environment: Mapping[str, str] | None = None, merge_errors: bool = False
) -> AsyncIterator[Program]:
    """Run a program until the end of the block; it is killed there if it still runs.

    `environment` is added to ours; `merge_errors`: what it says on stderr is read as what it prints.
    """
    process = await asyncio.create_subprocess_exec(
        require(program),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if merge_errors else asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield Program(process, program)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(program: str, *arguments: str, expect: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end, which must have the expected exit code; return what it printed."""
    async with running(program, *arguments, environment=environment) as running_program:
        code, output = await running_program.end()
    assert code == expect, f"{program} {' '.join(arguments)} ended with {code}: {output}"
    return output
