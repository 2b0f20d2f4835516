"""A server that answers our client with mutated sessions: it must raise our errors or close, and never hang."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import LabError
from mqttquic_lab.net.listen import listen
from mqttquic_lab.session.client import AsyncSession
from tests.fuzz.mutate import pieces
from tests.fuzz.packets import text, topic, topic_filter
from tests.fuzz.throw import Answering, Unanswered

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from mqttquic_lab.net.certificates import ServerIdentity
    from mqttquic_lab.net.stream import ByteStream, Connection, Listener
    from tests.fuzz.packets import Lane, Plan

BOUND = 20.0
"""Seconds within which a client must be through with a session whose single calls take 0.3 s at most."""
CALL = 0.3


class HostileServer:
    """Listens on every transport and answers each connection by the plan that is on."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self.ca_file: Path
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._plans: dict[int, tuple[Random, Plan]] = {}
        self._next: tuple[Random, Plan] | None = None

    async def start(self, identity: ServerIdentity, ca_file: Path) -> None:
        """Listen."""
        self.ca_file = ca_file
        for transport, scheme in (("tcp", "mqtt"), ("tls", "mqtts"), ("quic", "quic")):
            listener = await listen(
                transport,  # type: ignore[arg-type]
                "127.0.0.1",
                0,
                identity=None if transport == "tcp" else identity,
                on_connection=self._accept,
                alpn=("MQTT-next", "mqtt") if transport == "quic" else ("mqtt",),
            )
            self._listeners.append(listener)
            self.urls[transport] = f"{scheme}://localhost:{listener.port}"

    async def close(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(listener.close() for listener in self._listeners))

    @property
    def connections(self) -> int:
        """Connections that are not over."""
        return sum(len(listener.connections) for listener in self._listeners)

    def arm(self, r: Random, plan: Plan) -> None:
        """Answer the next connection by this plan."""
        self._next = (r, plan)

    def _accept(self, connection: Connection) -> None:
        armed, self._next = self._next, None
        if armed is None:
            connection.abort()
            return
        r, plan = armed
        # The plan's own numbers: what the client does meanwhile must not change what is sent.
        began = asyncio.Event()
        connection.closed.add_done_callback(lambda _: began.set())

        def on_stream(stream: ByteStream) -> None:
            answering = Answering(r, plan.version, stream.write)
            is_control = not stream.id

            def on_data(data: bytes) -> None:
                if plan.answers and not is_control:
                    answering.feed(data)
                began.set()

            stream.on_data = on_data
            if is_control:
                task = asyncio.get_running_loop().create_task(self._serve(connection, stream, r, plan, began))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        connection.on_stream = on_stream

    async def _serve(
        self, connection: Connection, control: ByteStream, r: Random, plan: Plan, began: asyncio.Event
    ) -> None:
        await began.wait()  # CONNECT, or a part of it
        opened: Any = connection
        for lane in plan.lanes:
            stream = control
            if lane.kind == "datagram":
                for packet in lane.packets:
                    with contextlib.suppress(LabError):
                        opened.send_datagram(packet)
                continue
            if lane.kind != "control":
                unidirectional = lane.kind == "uni"
                if connection.is_closed or opened.stream_credit(unidirectional=unidirectional) <= 0:
                    continue
                stream = opened.open_stream(unidirectional=unidirectional)
            await self._write(stream, lane, r, plan)
        if r.random() < 0.5:
            await connection.close(r.choice((0, 0xB2, 1 << 30)), text(r)[:200])

    async def _write(self, stream: ByteStream, lane: Lane, r: Random, plan: Plan) -> None:
        for piece in pieces(r, [lane.header, *lane.packets] if lane.header else lane.packets, plan.pieces):
            stream.write(piece)
            if r.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.sleep(r.choice((0, 0, 0.02)))
        if lane.end == "fin":
            stream.end()
        elif lane.end == "reset" and r.random() < 0.3:
            stream.reset(r.choice((0, 0xB3, 0xBC, 0xC0)))


async def client_case(r: Random, plan: Plan, server: HostileServer, transport: str) -> str:
    """Let our client meet a mutated server; returns what came of it.

    Raises
    ------
    Unanswered
        A call of the client did not end.
    Exception
        One that is not a LabError came out of the client.
    """
    server.arm(r, plan)
    options: dict[str, Any] = {}
    if transport != "tcp":
        options["ca_file"] = str(server.ca_file)
    if transport == "quic":
        options["streams"] = r.choice(("single", "single", "per-topic", "per-publish", "flows"))
        if r.random() < 0.3:
            options["profile"] = "mqttv5"
    options["version"] = r.choice(("5.0", "5.0", "3.1.1"))
    try:
        async with asyncio.timeout(BOUND):
            return await _use(r, server.urls[transport], options)
    except TimeoutError:
        raise Unanswered(f"the client hung, over {transport} with {options}") from None


async def _use(r: Random, url: str, options: dict[str, Any]) -> str:
    try:
        session = await AsyncSession.open(url, timeout=CALL, reconnect=False, **options)
    except LabError as error:
        return type(error).__name__
    outcome = "used"
    try:
        for _ in range(r.choice((0, 1, 3, 6))):
            await _call(r, session)
    except LabError as error:
        outcome = type(error).__name__
    finally:
        await session.close()
    return outcome


async def _call(r: Random, session: AsyncSession) -> None:
    how = r.randrange(4)
    try:
        if how == 0:
            await session.subscribe(topic_filter(r), qos=r.randrange(3), timeout=CALL)
        elif how == 1:
            await session.publish(topic(r).replace("$SYS", "s"), r.randbytes(20), qos=r.randrange(3), timeout=CALL)
        elif how == 2:
            await session.ping(timeout=CALL)
        else:
            await asyncio.sleep(0.01)
    except LabError:
        if r.random() < 0.5:
            raise
