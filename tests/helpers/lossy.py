"""A UDP relay inside the test's own loop that mistreats datagrams: drops, duplicates, reorders, corrupts, goes silent.

What it does is drawn from a seeded generator, so a failure can be repeated. It is a test tool, not the impaired link
of the package: no rates, and no delay but a constant one.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Collection

Address = Any

MAX_LOG = 2000
"""Datagrams that a relay remembers."""


@dataclass
class Ills:
    """Probabilities per datagram, 0 to 1.

    Attributes
    ----------
    drop, duplicate, reorder, corrupt : float
        Not forwarded; forwarded twice; held back until two others have passed; one byte changed.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0


class Passage(NamedTuple):
    """One datagram as it came in, and what became of it."""

    client: Address
    to_server: bool
    data: bytes
    fate: Literal["passed", "dropped", "corrupted"]


class LossyRelay:
    """Stands between clients and one server; use as an async context manager.

    Parameters
    ----------
    server : address
        Host and port to relay to.
    ills : Ills
        What to do to datagrams, in both directions.
    seed : int
        Seed of the generator.
    delay : float
        Seconds that every datagram takes longer.
    only_first : int, optional
        The ills befall so many datagrams of each client and direction, and none later: a bad handshake.
    lost_to_server : collection of int
        Numbers of those datagrams of each client, from 1, that never reach the server.

    Attributes
    ----------
    address : tuple of str and int
        Where clients connect to.
    blackhole : bool
        While True nothing passes.
    blocked : set of str
        Clients' hosts from and to which nothing passes.
    passed, dropped, duplicated, reordered, corrupted : int
        Datagrams so treated.
    to_server, to_client : list of bytes
        The first hundred datagrams of each direction, as they came in.
    log : list of Passage
        The first two thousand of both, in the order in which they came.
    clients_as_seen : list of address
        Addresses that clients had towards the server, in the order in which they got them: their own host, another
        port.
    """

    def __init__(
        self,
        server: tuple[str, int],
        ills: Ills | None = None,
        *,
        seed: int = 1,
        delay: float = 0.0,
        only_first: int | None = None,
        lost_to_server: Collection[int] = (),
    ) -> None:
        self.ills = ills or Ills()
        self.blackhole = False
        self.blocked: set[str] = set()
        self.passed = self.dropped = self.duplicated = self.reordered = self.corrupted = 0
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        self.log: list[Passage] = []
        self.clients_as_seen: list[Address] = []
        self._only_first = only_first
        self._lost_to_server = frozenset(lost_to_server)
        self._count: Counter[tuple[bool, Address]] = Counter()
        self._server = server
        self._random = random.Random(seed)
        self._delay = delay
        self._held: list[tuple[int, socket.socket, bytes, Address]] = []
        self._upstreams: dict[Address, socket.socket] = {}
        self._timers: set[asyncio.TimerHandle] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._family = socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET
        self._front = self._socket()
        host, port = self._front.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self._loop.add_reader(self._front, self._from_client)
        return self

    async def __aexit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        for sock in (self._front, *self._upstreams.values()):
            self._loop.remove_reader(sock)
            sock.close()

    def rebind(self, host: str | None = None) -> None:
        """Give every client a new port towards the server, as a NAT does that has forgotten it; or a new `host`, too.

        What is on its way to the old addresses is lost.
        """
        for client, old in self._upstreams.items():
            self._loop.remove_reader(old)
            new = self._upstream(client, host)
            old.close()  # later than that, so that the new one has another port
            self._upstreams[client] = new

    async def go_dark(self, seconds: float) -> None:
        """Let nothing pass for a while."""
        self.blackhole = True
        await asyncio.sleep(seconds)
        self.blackhole = False

    def _upstream(self, client: Address, host: str | None = None) -> socket.socket:
        sock = self._socket(host or client[0])
        self.clients_as_seen.append(sock.getsockname()[:2])
        self._loop.add_reader(sock, self._from_server, sock, client)
        return sock

    def _socket(self, host: str | None = None) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((host or ("::1" if self._family == socket.AF_INET6 else "127.0.0.1"), 0))
        return sock

    def _from_client(self) -> None:
        for data, client in self._drain(self._front):
            upstream = self._upstreams.get(client)
            if upstream is None:
                upstream = self._upstreams[client] = self._upstream(client)
            if len(self.to_server) < 100:
                self.to_server.append(data)
            self._treat(upstream, data, self._server, client)

    def _from_server(self, upstream: socket.socket, client: Address) -> None:
        for data, _ in self._drain(upstream):
            if len(self.to_client) < 100:
                self.to_client.append(data)
            self._treat(self._front, data, client, client)

    def _drain(self, sock: socket.socket) -> list[tuple[bytes, Address]]:
        received = []
        for _ in range(64):
            try:
                received.append(sock.recvfrom(65535))
            except BlockingIOError:
                break
            except OSError:
                continue  # ICMP from a side that has gone
        return received

    def _treat(self, out: socket.socket, data: bytes, to: Address, client: Address) -> None:
        draw, ills = self._random.random, self.ills
        to_server = out is not self._front
        self._count[to_server, client] += 1
        number = self._count[to_server, client]
        if self._only_first is not None and number > self._only_first:
            ills = Ills()
        silent = self.blackhole or client[0] in self.blocked
        drop = silent or draw() < ills.drop or (to_server and number in self._lost_to_server)
        corrupt = not drop and draw() < ills.corrupt
        if len(self.log) < MAX_LOG:
            fate: Literal["passed", "dropped", "corrupted"] = (
                "dropped" if drop else "corrupted" if corrupt else "passed"
            )
            self.log.append(Passage(client, to_server, data, fate))
        if drop:
            self.dropped += 1
            return
        if corrupt:
            self.corrupted += 1
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        if draw() < ills.reorder:
            self.reordered += 1
            self._held.append((2, out, data, to))
            return
        self._send(out, data, to)
        if draw() < ills.duplicate:
            self.duplicated += 1
            self._send(out, data, to)
        held, self._held = self._held, []
        for left, late_out, late_data, late_to in held:
            if left <= 1:
                self._send(late_out, late_data, late_to)
            else:
                self._held.append((left - 1, late_out, late_data, late_to))

    def _send(self, out: socket.socket, data: bytes, to: Address) -> None:
        if self._delay:
            timer = self._loop.call_later(self._delay, self._send_now, out, data, to)
            self._timers.add(timer)
            if len(self._timers) > 1000:
                now = self._loop.time()
                self._timers = {timer for timer in self._timers if timer.when() > now}
        else:
            self._send_now(out, data, to)

    def _send_now(self, out: socket.socket, data: bytes, to: Address) -> None:
        try:
            out.sendto(data, to)
            self.passed += 1
        except OSError:
            self.dropped += 1
