"""Two machines with two cables between them: network namespaces, for paths that really are different ones.

::

    client                          server
    10.213.1.2  first  ----------  first  10.213.1.1
    10.213.2.2  second ----------  second 10.213.2.1
                                          10.213.0.1 on lo: where it is reached by either

What the client sends from one of its addresses leaves by the cable of that address, or not at all. Without an address
of its own choice the first cable is preferred as long as it is plugged in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.helpers.peers import missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Machine = Literal["client", "server"]
Cable = Literal["first", "second"]

MACHINES: tuple[Machine, ...] = ("client", "server")

SERVER = "10.213.0.1"
CLIENT: dict[Cable, str] = {"first": "10.213.1.2", "second": "10.213.2.2"}

PATIENCE = 30.0
"""Seconds after which a worker that does not answer fails the test."""

ROOT = Path(__file__).parents[2]


class TwoCables:
    """Made by :func:`two_cables`."""

    def __init__(self, ip: str, name: str) -> None:
        self._ip = ip
        self._name = name

    def namespace(self, machine: Machine) -> str:
        return f"{self._name}-{machine}"

    def ip(self, *arguments: str, on: Machine | None = None) -> None:
        """Run ``ip``."""
        where = ("-n", self.namespace(on)) if on is not None else ()
        done = subprocess.run([self._ip, *where, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join((*where, *arguments))}: {done.stderr.strip()}")

    def lay(self) -> None:
        """Make the namespaces and everything in them."""
        for machine in MACHINES:
            self.ip("netns", "add", self.namespace(machine))
            self.ip("link", "set", "lo", "up", on=machine)
        self.ip("addr", "add", f"{SERVER}/32", "dev", "lo", on="server")
        for number, cable in enumerate(("first", "second"), 1):
            ends = ("link", "add", cable, "netns", self.namespace("client"), "type", "veth")
            self.ip(*ends, "peer", "name", cable, "netns", self.namespace("server"))
            for machine in MACHINES:
                host = 1 if machine == "server" else 2
                self.ip("addr", "add", f"10.213.{number}.{host}/24", "dev", cable, on=machine)
                self.ip("link", "set", cable, "up", on=machine)
            table = str(100 + number)
            self.ip("rule", "add", "from", f"10.213.{number}.2", "lookup", table, on="client")
            self.ip("route", "add", "unreachable", "default", "metric", "9999", "table", table, on="client")
            self._add_routes(cable, number)

    def _add_routes(self, cable: str, number: int) -> None:
        way = ("route", "add", SERVER, "via", f"10.213.{number}.1", "dev", cable)
        self.ip(*way, "metric", str(10 * number), on="client")
        self.ip(*way, "table", str(100 + number), on="client")

    def sweep(self) -> None:
        """Remove what was left by test runs that were killed."""
        done = subprocess.run([self._ip, "netns", "list"], capture_output=True, text=True, check=False)
        for name in done.stdout.split():
            kind, _, rest = name.partition("-")
            pid = rest.partition("-")[0]
            if kind == "mqttquic" and pid.isdecimal() and not Path("/proc", pid).exists():
                with contextlib.suppress(OSError):
                    self.ip("netns", "del", name)

    def remove(self) -> None:
        """Remove the namespaces; what still runs in them loses its cables."""
        for machine in MACHINES:
            with contextlib.suppress(OSError):
                self.ip("netns", "del", self.namespace(machine))

    def unplug(self, cable: Cable) -> None:
        """Take the client's end down; its routes go with it."""
        self.ip("link", "set", cable, "down", on="client")

    def plug(self, cable: Cable) -> None:
        """Take it up again."""
        self.ip("link", "set", cable, "up", on="client")
        self._add_routes(cable, 1 if cable == "first" else 2)

    @contextlib.asynccontextmanager
    async def worker(self, machine: Machine, *arguments: str) -> AsyncIterator[Worker]:
        """Run ``tests.helpers.netns_worker`` there."""
        process = await asyncio.create_subprocess_exec(
            self._ip, "netns", "exec", self.namespace(machine),
            sys.executable, "-m", "tests.helpers.netns_worker", machine, *arguments,
            cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )  # fmt: skip
        worker = Worker(process)
        try:
            worker.hello = await worker.answer()
            yield worker
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]


class Worker:
    """A process that answers each line of JSON with one.

    Attributes
    ----------
    hello : dict
        What it said first.
    """

    hello: dict[str, Any]

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        assert line, "the worker has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something; returns its answer, of which ``error`` is a failure."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        return await self.answer()


@contextlib.asynccontextmanager
async def two_cables() -> AsyncIterator[TwoCables]:
    """Lay two cables between two namespaces; they are gone afterwards.

    Skips without root, iproute2, or the right to make namespaces. With MQTTQUIC_LAB_CI=1 only the last, which a sandbox
    around the tests may forbid, is a reason to skip.
    """
    ip = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if ip is None:
        missing("ip is not installed (Debian: iproute2)")
    if os.geteuid() != 0:
        missing("network namespaces need root")
    cables = TwoCables(ip, f"mqttquic-{os.getpid()}-{secrets.token_hex(2)}")
    try:
        try:
            cables.sweep()
            cables.lay()
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        yield cables
    finally:
        cables.remove()
