"""One run: brokers, witnesses, cases, and what is looked at afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker.acl import AclRule
from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.gateway.config import GatewayConfig
from mqttquic_lab.gateway.server import GatewayServer
from mqttquic_lab.net.certificates import CertificateAuthority
from tests.fuzz.hostile import HostileServer, client_case
from tests.fuzz.mutate import mutate
from tests.fuzz.packets import client_plan, server_plan
from tests.fuzz.throw import Unanswered, handshake, over_quic, over_tcp
from tests.fuzz.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.packets import Plan

TIGHT: dict[str, Any] = {
    "quic_port": 0, "tls_port": 0, "tcp_port": 0, "connect_timeout": 1.0, "idle_timeout": 4.0,
    "max_connections": 200, "max_sessions": 50, "max_session_expiry": 2, "max_retained": 200,
    "max_retained_bytes": 500_000, "max_queued": 200, "max_queued_bytes": 500_000,
    "max_total_queued_bytes": 4_000_000, "max_pending_bytes": 300_000, "slow_consumer_grace": 0.1,
    "max_packet_size": 2_000_000, "max_subscriptions": 200,
}  # fmt: skip
"""Settings of the brokers: bounds that a run reaches within seconds, so that memory is flat early."""

BROKERS: dict[str, dict[str, Any]] = {
    "generic": {"deliveries": "per-topic"},
    "single": {"deliveries": "per-publish"},
    "kept": {"store": True},
    "mqttv5": {"profile": "mqttv5"},
    "emqx": {"profile": "emqx"},
    "rocketmq": {"profile": "rocketmq", "retry": False},
    "guarded": {
        "users": {"user": "secret"},
        "auth_methods": ["SCRAM-SHA-256"],
        "acl": [AclRule("subscribe", "fuzz/b/#", allow=False), AclRule("all", "fuzz/#", user="user")],
        "datagram_deliveries": True,
    },
}
"""Name of a broker -> what is particular about it."""

GUARDED = "guarded"
"""The broker that wants a user name and a password."""

WITNESSED = ("generic", "kept", "mqttv5")

KINDS = (
    *("tcp",) * 6, *("quic",) * 6, "tls", "gateway", *("handshake",) * 3, *("client tcp",) * 3, *("client quic",) * 2,
    "client tls",
)  # fmt: skip

SETTLE = 20.0
"""Seconds after which nothing of a run may be left."""


@dataclass(slots=True)
class Failure:
    """Something that should not have happened, and the cases that were on."""

    message: str
    cases: tuple[int, ...]


@dataclass(slots=True)
class Report:
    """What a run found."""

    seed: str
    cases: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    witnessed: int = 0
    refused: int = 0
    early_rss: float = 0.0
    late_rss: float = 0.0
    peak_rss: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Return the report, as text."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        yield f"seed {self.seed}: {self.cases} cases in {self.seconds:.1f} s ({kinds})"
        yield f"protocol errors, lost streams and refused connections at the brokers: {self.refused}"
        yield f"witnesses: {self.witnessed} messages"
        yield (
            f"memory: {self.early_rss:.1f} MiB after warm-up, {self.late_rss:.1f} MiB at the end, "
            f"{self.peak_rss:.1f} MiB at most"
        )
        for failure in self.failures:
            yield f"FAILED: {failure.message}"
            for case in failure.cases:
                yield f"    play it again: python -m tests.fuzz --seed {self.seed} --case {case}"


def rss() -> float:
    """Return the memory of this process now, MiB, without what is free and merely not given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class _Listening(logging.Handler):
    """Turns what the package or the loop complains about into failures."""

    def __init__(self, fuzzer: Fuzzer) -> None:
        super().__init__(logging.ERROR)
        self._fuzzer = fuzzer

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._fuzzer.fail(f"{record.name} logged: {record.getMessage()}\n{trace}")


class Fuzzer:
    """Runs cases of one seed.

    Parameters
    ----------
    seed : str
        Makes every case: the same seed and number give the same bytes.
    workers : int
        Cases at a time.
    """

    def __init__(self, seed: str, workers: int = 4) -> None:
        self.report = Report(seed)
        self._workers = workers
        self._servers: dict[str, BrokerServer] = {}
        self._gateway: GatewayServer
        self._hostile = [HostileServer() for _ in range(workers)]
        self._witnesses: list[Witness] = []
        self._active: set[int] = set()
        self._next = 0

    def fail(self, message: str, case: int | None = None) -> None:
        """Note a failure; of a case, or of all that are on."""
        if len(self.report.failures) < 20:
            self.report.failures.append(Failure(message, (case,) if case is not None else tuple(sorted(self._active))))

    # --- a case -------------------------------------------------------------------------------------------------

    def kind_of(self, number: int) -> tuple[Random, str, str]:
        """Return a case's source of chance, its kind, and the broker it is for."""
        r = Random(f"{self.report.seed}/{number}")
        return r, r.choice(KINDS), r.choice(tuple(BROKERS))

    @staticmethod
    def plan(r: Random, kind: str, name: str) -> Plan:
        """Return what a case throws."""
        if kind.startswith("client"):
            return mutate(r, server_plan(r, kind.removeprefix("client ")))
        known = name == GUARDED and kind != "gateway"
        return mutate(r, client_plan(r, "quic" if kind == "gateway" else kind, known=known))

    async def case(self, number: int, hostile: HostileServer) -> None:
        """Run one case."""
        r, kind, name = self.kind_of(number)
        server = self._servers[name]
        self._active.add(number)
        try:
            if kind.startswith("client"):
                outcome = await client_case(r, self.plan(r, kind, name), hostile, kind.removeprefix("client "))
            elif kind == "handshake":
                outcome = await handshake(r, _port(server.urls["quic"]))
            else:
                plan = self.plan(r, kind, name)
                during = Random(r.random())  # what happens meanwhile must not change what is sent
                if kind == "gateway":
                    outcome = await over_quic(
                        during, plan, self._gateway.url, self._gateway.ca_file, ends_with_control=True
                    )
                elif kind == "quic":
                    outcome = await over_quic(
                        during, plan, server.urls["quic"], server.ca_file,
                        ends_with_control=server.profile.control_end == "connection",
                    )  # fmt: skip
                else:
                    scheme = "mqtts" if kind == "tls" else "mqtt"
                    ca_file = server.ca_file if kind == "tls" else None
                    outcome = await over_tcp(during, plan, _port(server.urls[scheme]), ca_file)
            self.report.outcomes[outcome.partition(":")[0]] += 1
        except Unanswered as error:
            self.fail(f"{kind} at {name}: {error}", number)
        except Exception:
            self.fail(f"{kind} at {name}: {traceback.format_exc()}", number)
        finally:
            self._active.discard(number)
        self.report.cases += 1
        self.report.kinds[kind] += 1

    async def _worker(self, hostile: HostileServer, until: float) -> None:
        while time.monotonic() < until and len(self.report.failures) < 5:
            number = self._next
            self._next += 1
            await self.case(number, hostile)

    async def _cases(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._worker(hostile, until) for hostile in self._hostile))

    # --- a run --------------------------------------------------------------------------------------------------

    async def run(self, seconds: float, only: int | None = None) -> Report:
        """Run for a time, or one case only."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.fail(f"the loop: {_told(context)}"))
        handler = _Listening(self)
        logging.getLogger().addHandler(handler)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(logging.getLogger().removeHandler, handler)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mqttquic-lab-fuzz-"))
            await self._start(stack, Path(folder))
            tasks = len(asyncio.all_tasks())
            if only is not None:
                await self.case(only, self._hostile[0])
            else:
                for witness in self._witnesses:
                    await witness.start()
                await self._cases(min(5.0, seconds / 3))
                await asyncio.sleep(0.2)
                self.report.early_rss = rss()
                await self._cases(max(0.0, seconds - (time.monotonic() - began)))
                for witness in self._witnesses:
                    await witness.stop()
                    self.report.witnessed += witness.received
                    for complaint in witness.complaints:
                        self.fail(complaint)
            self.report.seconds = time.monotonic() - began
            await self._settle(tasks)
            self.report.late_rss = rss()
            self.report.peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            for server in self._servers.values():
                stats = server.stats()
                self.report.refused += stats.protocol_errors + stats.stream_errors + stats.connects_refused
        return self.report

    async def _start(self, stack: contextlib.AsyncExitStack, folder: Path) -> None:
        for name, options in BROKERS.items():
            settings = {**TIGHT, **options}
            if settings.pop("store", False):
                settings["store"] = str(folder / f"{name}.db")
            self._servers[name] = await stack.enter_async_context(BrokerServer(BrokerConfig(**settings)))
        behind = GatewayConfig(
            self._servers["generic"].urls["mqtt"], quic_port=0, max_streams=3, idle_timeout=4.0, connect_timeout=1.0
        )
        self._gateway = await stack.enter_async_context(GatewayServer(behind))
        authority = CertificateAuthority.create("fuzz CA")
        ca_file = folder / "ca.pem"
        authority.write_ca(ca_file)
        identity = authority.issue(["localhost", "127.0.0.1"])
        for hostile in self._hostile:
            await hostile.start(identity, ca_file)
            stack.push_async_callback(hostile.close)
        self._witnesses = [Witness(name, self._servers[name]) for name in WITNESSED]

    async def _settle(self, tasks: int) -> None:
        """Wait until nothing is left of the cases: connections, sessions, subscriptions, tasks."""
        left: dict[str, int] = {}
        until = time.monotonic() + SETTLE
        while time.monotonic() < until:
            left = self._left(tasks)
            if not any(left.values()):
                return
            await asyncio.sleep(0.1)
        found = {name: count for name, count in left.items() if count}
        names = sorted({str(task.get_coro()) for task in asyncio.all_tasks()})
        self.fail(f"left behind after {SETTLE:g} s: {found}; tasks: {names}")

    def _left(self, tasks: int) -> dict[str, int]:
        left = {"tasks": len(asyncio.all_tasks()) - tasks}
        for name, server in self._servers.items():
            stats = server.stats()
            left[f"connections of {name}"] = stats.connections
            left[f"transport connections of {name}"] = sum(len(each.connections) for each in server._listeners)
            left[f"sessions of {name}"] = stats.sessions
            left[f"subscriptions of {name}"] = stats.subscriptions
            left[f"queued messages of {name}"] = stats.queued
            left[f"queued bytes of {name}"] = stats.queued_bytes
        left["connections of the gateway"] = sum(len(each.connections) for each in self._gateway._listeners)
        left["clients of the gateway"] = len(self._gateway._clients)
        left["connections of hostile servers"] = sum(hostile.connections for hostile in self._hostile)
        return left


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _told(context: dict[str, Any]) -> str:
    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if error is not None else ""
    return f"{context.get('message')}\n{trace}"
