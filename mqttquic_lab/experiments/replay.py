"""Why early data is dangerous: what somebody on the path records can be sent again, by anybody, from anywhere.

0-RTT packets are encrypted, but with keys that depend on nothing that the server has said: it cannot tell the client
from a recording of it (RFC 8446 section 8, RFC 9001 section 9.2). The experiment plays the attacker. It stands between
a client and a broker as a UDP relay, keeps the datagrams of a first flight that carries CONNECT and a PUBLISH, and
sends them again when the client is long gone. A broker without protection publishes the message a second time; one that
uses each ticket once does not.

Only ever on this machine: an address that is not of the loopback is refused.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import LabError, OperationTimeoutError, UsageError
from mqttquic_lab.net.address import host_port, is_loopback, parse_url, resolve
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.runtime import get_runtime
from mqttquic_lab.session import AsyncSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import pandas as pd

    from mqttquic_lab.quic.admission import Policy
    from mqttquic_lab.runtime import Runtime

ATTEMPTS = 12
"""Times that the recording is sent until the broker answers: just after the end of a connection it may not."""
ATTEMPT_SECONDS = 0.25
MAX_RECORDED = 64
"""Datagrams kept of a first flight."""

SETTINGS: dict[str, Any] = {"quic_port": 0, "tls": False, "tcp": False}


PROTECTIONS: dict[str, Policy] = {"once per ticket": "protected", "none": "unprotected"}
"""What the rows of our own brokers are called -> their setting ``early_data``."""


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """What became of one recorded first flight."""

    protection: str
    """Of the broker: ``"once per ticket"``, ``"none"``, or ``"its own"`` for a broker that was given."""
    datagrams: int
    """Recorded, and sent again."""
    bytes: int
    published: int
    """Messages that the client published."""
    delivered: int
    """Messages that a subscriber received."""
    replays_refused: int | None
    """Counted by the broker; None where it does not tell."""

    @property
    def verdict(self) -> str:
        """In words."""
        return "arrived once" if self.delivered == self.published else f"arrived {self.delivered} times"


def replay(
    broker: Any = None,
    *,
    topic: str = "lab/replay",
    payload: Any = "open the door",
    qos: int = 1,
    patience: float = 1.0,
    timeout: float | str | None = 30.0,
    runtime: Literal["thread", "notebook"] | Runtime = "thread",
    **options: Any,
) -> pd.DataFrame:
    """Record a first flight with early data, send it again, and show how often its message arrived.

    Parameters
    ----------
    broker : Broker or str, optional
        A broker on this machine that takes early data (``start_broker(early_data=True)``, or any other one by its
        ``quic://`` URL). Default: two of our own, one with and one without protection.
    topic, payload, qos
        The message. It must be one that nobody minds to receive twice.
    patience : float
        Seconds to wait for a message that should not come.
    timeout : float, str or None
        Seconds for everything.
    runtime : {"thread", "notebook"} or Runtime
        As for ``connect``.
    **options
        Of ``connect``, for a broker that is given: ca_file, username, password ...

    Returns
    -------
    DataFrame
        A row per broker: protection, datagrams, bytes, published, delivered, replays_refused, verdict.

    Raises
    ------
    UsageError
        The broker is not on the loopback, or takes no early data.
    OperationTimeoutError
        It took too long.

    Examples
    --------
    >>> mq.replay()[["protection", "published", "delivered", "verdict"]]
            protection  published  delivered          verdict
    0  once per ticket          1          1     arrived once
    1             none          1          2  arrived 2 times
    """
    import pandas as pd

    from mqttquic_lab.session.options import check_timeout

    work = run_replay(broker, topic=topic, payload=payload, qos=qos, patience=patience, **options)
    outcomes = get_runtime(runtime).run(work, check_timeout(timeout))
    return pd.DataFrame([{**asdict(outcome), "verdict": outcome.verdict} for outcome in outcomes])


async def run_replay(
    broker: Any = None,
    *,
    topic: str = "lab/replay",
    payload: Any = "open the door",
    qos: int = 1,
    patience: float = 1.0,
    **options: Any,
) -> list[ReplayOutcome]:
    """Do what :func:`replay` does, on the running loop."""
    message = (topic, payload, qos)
    if broker is not None:
        return [await _attack(broker, "its own", message, patience, options)]
    if options:
        raise UsageError(f"{', '.join(options)}: options are for a broker that is given")
    outcomes = []
    for protection, early_data in PROTECTIONS.items():
        async with BrokerServer(BrokerConfig(**SETTINGS, early_data=early_data)) as own:
            outcomes.append(await _attack(own, protection, message, patience, {}))
    return outcomes


async def _attack(
    broker: Any, protection: str, message: tuple[str, Any, int], patience: float, options: dict[str, Any]
) -> ReplayOutcome:
    host, port = await _loopback_address(broker)
    refused = _counter(broker)
    if not isinstance(broker, str):
        options = {"ca_file": broker.ca_file, **options}
    before = 0 if refused is None else refused()
    async with Relay((host, port)) as relay:
        ear = await AsyncSession.open(f"quic://{host_port(host, port)}", **options)
        try:
            feed = await ear.subscribe(message[0], 2)
            url = f"quic://{host_port(*relay.address)}"
            await _publish_early(url, message, relay, options)
            await feed.wait(1, timeout=10.0)
            await relay.replay()
            with suppress(OperationTimeoutError):  # no second one: that is a result
                await feed.wait(2, timeout=patience)
            await ear.ping()  # what the broker had before its answer is here by now
            return ReplayOutcome(
                protection,
                datagrams=len(relay.recorded),
                bytes=sum(map(len, relay.recorded)),
                published=1,
                delivered=feed.total,
                replays_refused=None if refused is None else refused() - before,
            )
        finally:
            await ear.close()


def _counter(broker: Any) -> Callable[[], int] | None:
    """Return what reads how many replays a broker of ours has refused; None for one that does not count them."""
    if not hasattr(broker, "stats"):
        return None

    def refused() -> int:
        stats = broker.stats() if callable(broker.stats) else broker.stats  # a server's method, a handle's property
        return int(stats.replays_refused)

    return refused


async def _publish_early(url: str, message: tuple[str, Any, int], relay: Relay, options: dict[str, Any]) -> None:
    """Get a ticket, then publish in the first flight of a second connection, which the relay records."""
    store = TicketStore()
    client = {"client_id": "lab-replay-victim", **options}
    async with await AsyncSession.open(url, tickets=store, **client) as first:
        while not first.handshake.tickets:
            await first.ping()  # tickets follow the handshake at once; two round trips later there are none
            if first.stats.pings > 10:
                raise UsageError(f"{url}: the broker gives no session tickets, so that there is no early data")
        if not any(ticket.max_early_data for ticket in first.handshake.tickets):
            raise UsageError("the broker takes no early data: start_broker(early_data=True)")
    relay.record()
    early = {"early_data": "publish", "publish_early": [message]}
    async with await AsyncSession.open(url, tickets=store, **early, **client) as second:
        if second.handshake.early_data != "accepted":
            raise LabError(f"the broker did not take the early data ({second.handshake.early_data})")
        await second.early_published()


async def _loopback_address(broker: Any) -> tuple[str, int]:
    """Return where the broker is, or raise UsageError if that is anywhere but on this machine."""
    url = broker if isinstance(broker, str) else getattr(broker, "url", None)
    if not isinstance(url, str):
        raise UsageError(f"cannot replay to a {type(broker).__name__}: pass a broker of start_broker(), or its URL")
    address = parse_url(url)
    if address.transport != "quic":
        raise UsageError(f"{address.url} is not QUIC: only QUIC has early data here")
    found = await resolve(address.host, address.port, kind=socket.SOCK_DGRAM)
    for _, (host, *_) in found:
        if not is_loopback(str(host)):
            raise UsageError(
                f"{address.url} is not on this machine: sending recorded packets to others would be an attack, "
                "not an experiment; start a broker here"
            )
    # A name may have several addresses here; a broker of ours listens on the first that the others can be tried after.
    return str(found[0][1][0]), address.port


class Relay:
    """A UDP relay on the loopback that records what one client sends before it has heard anything.

    Attributes
    ----------
    address : tuple of str and int
        Where clients connect to.
    recorded : list of bytes
        The first flight.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self.recorded: list[bytes] = []
        self._recording = False
        self._upstreams: dict[Any, socket.socket] = {}

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._front = self._bound()
        host, port = self._front.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self._loop.add_reader(self._front, self._from_client)
        return self

    async def __aexit__(self, *_: object) -> None:
        for sock in (self._front, *self._upstreams.values()):
            self._loop.remove_reader(sock)
            sock.close()

    def record(self) -> None:
        """Record from now on, until the first answer."""
        self.recorded.clear()
        self._recording = True

    async def replay(self) -> None:
        """Send the recording from a new address until there is an answer.

        Raises
        ------
        OperationTimeoutError
            The broker says nothing at all.
        """
        with self._bound() as attacker:
            attacker.connect(self._server)
            for _ in range(ATTEMPTS):
                for datagram in self.recorded:
                    attacker.send(datagram)
                try:
                    async with asyncio.timeout(ATTEMPT_SECONDS):
                        await self._loop.sock_recv(attacker, 65_535)
                except TimeoutError:
                    continue  # it still remembers the first connection, and takes these for late packets of it
                return
        raise OperationTimeoutError(f"the broker did not answer the recording within {ATTEMPTS * ATTEMPT_SECONDS:g} s")

    def _bound(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((self._server[0], 0))
        return sock

    def _from_client(self) -> None:
        for data, client in _received(self._front):
            upstream = self._upstreams.get(client)
            if upstream is None:
                upstream = self._upstreams[client] = self._bound()
                self._loop.add_reader(upstream, self._from_server, upstream, client)
            if self._recording and len(self.recorded) < MAX_RECORDED:
                self.recorded.append(data)
            _pass_on(upstream, data, self._server)

    def _from_server(self, upstream: socket.socket, client: Any) -> None:
        for data, _ in _received(upstream):
            self._recording = False
            _pass_on(self._front, data, client)


def _received(sock: socket.socket) -> list[tuple[bytes, Any]]:
    found = []
    for _ in range(64):
        try:
            found.append(sock.recvfrom(65_535))
        except OSError:
            break
    return found


def _pass_on(sock: socket.socket, data: bytes, address: Any) -> None:
    try:
        sock.sendto(data, address)
    except OSError:
        return  # as a router that is full
