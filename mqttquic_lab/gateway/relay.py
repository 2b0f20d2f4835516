"""One stream of a client and the connection to the broker that carries it: bytes, ends and aborts, both ways.

What one side sends is read no faster than the other side takes it: above the high-water mark of the slower one the
faster one is not read any more, and its own transport's flow control stops it. FIN becomes FIN, in each direction by
itself; RESET_STREAM or STOP_SENDING becomes RST, and RST RESET_STREAM and STOP_SENDING.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import LabError
from mqttquic_lab.gateway import codes
from mqttquic_lab.gateway.status import RelayedStream
from mqttquic_lab.net.open import open_connection
from mqttquic_lab.net.tcp import HIGH_WATER as TCP_HIGH_WATER
from mqttquic_lab.net.tcp import TcpConnection
from mqttquic_lab.quic.stream import HIGH_WATER as QUIC_HIGH_WATER

if TYPE_CHECKING:
    from mqttquic_lab.gateway.client import Client
    from mqttquic_lab.net.stream import ByteStream, Connection

CONNECT: Final = 0x10
"""First byte of every MQTT connection [MQTT-3.1.0-1]."""

FAREWELL: Final = 10.0
"""Seconds that a broker has to take what a client wrote before it left, and to end the connection itself."""


class Relay:
    """Carries one stream. Made by :class:`mqttquic_lab.gateway.client.Client`.

    Parameters
    ----------
    client : Client
        Whose stream it is.
    stream : ByteStream
        The client's stream.
    """

    def __init__(self, client: Client, stream: ByteStream) -> None:
        self.client = client
        self.stream = stream
        self.gateway = client.gateway
        self.opened_at = time.time()
        self.upstream: Connection | None = None
        self.is_over = False
        self.code = codes.NORMAL
        """By which the end is told, if it is not an orderly one."""
        self.reason = ""
        self._left = False
        self._task: asyncio.Task[None] | None = None
        self._to_broker: _Direction | None = None
        self._from_broker: _Direction | None = None

    # --- beginning

    def begin(self, *, control: bool) -> None:
        """Connect to the broker: at once for the control stream, else when it turns out to begin with CONNECT."""
        self.stream.on_reset = self._client_reset
        if control:
            self._connect(b"")
        else:
            self.stream.on_end = self._empty
            self.stream.on_data = self._first_bytes

    def _empty(self) -> None:
        """End a stream on which nothing came."""
        self.stream.end()
        self._finish()

    def _first_bytes(self, data: bytes) -> None:
        """Look at how a further stream begins: a broker behind TCP would take it for a connection of its own."""
        if data[0] == CONNECT:
            self.stream.pause_reading()
            self._connect(data)
            return
        self.gateway.counters.streams_refused += 1
        self.gateway.note(
            f"client {self.client.where}",
            f"stream {self.stream.id} does not begin with CONNECT, and this broker knows no data streams: use one "
            'stream (streams="single"), or CONNECT on each',
        )
        self._abort(codes.STREAM_TYPE, "a further stream must begin with CONNECT")

    def _connect(self, data: bytes) -> None:
        # Until then the client's bytes wait in its stream, where they count against its flow control.
        self._task = self.gateway.spawn(self._carry(data))

    async def _carry(self, data: bytes) -> None:
        config = self.gateway.config
        assert isinstance(config.connect_timeout, float)
        try:
            connection = await open_connection(
                config.address, trust=config.trust, timeout=config.connect_timeout, minimum_tls=config.minimum_tls
            )
        except LabError as error:
            if not self.is_over:
                self.gateway.counters.upstream_failures += 1
                self.gateway.note("upstream", str(error))
                self._abort(codes.SERVER_UNAVAILABLE, "the broker behind this gateway cannot be reached")
            return
        if self.is_over:  # the client went meanwhile, in the very moment
            connection.abort("the client is gone")
            return
        assert isinstance(connection, TcpConnection)
        connection.half_open = True
        self.upstream = connection
        self._join(connection, data)

    def _join(self, connection: Connection, data: bytes) -> None:
        there = connection.control
        self._to_broker = _Direction(self, self.stream, there, "bytes_to_broker")
        self._from_broker = _Direction(self, there, self.stream, "bytes_from_broker")
        there.on_reset = lambda _code: self._broker_lost(None)
        connection.closed.add_done_callback(lambda closed: self._broker_lost(closed.result()))
        if data:
            self._to_broker.carry(data)
        self._from_broker.begin()
        self._to_broker.begin()
        if data:
            self.stream.resume_reading()
        if self._left:
            self.gateway.spawn(self._see_off(connection, self._to_broker))
        self.gateway.changed()

    # --- the end

    def direction_ended(self) -> None:
        """Follow an end that was passed on: when both have ended, all is over."""
        assert self._to_broker is not None
        assert self._from_broker is not None
        if self._to_broker.ended and self._from_broker.ended and not self.is_over:
            self.gateway.counters.ended += 1
            self._finish()
        self.gateway.changed()

    def client_gone(self, reason: LabError | None, *, orderly: bool) -> None:
        """Follow the end of the client's connection."""
        if self.is_over:
            return
        if orderly and self._task is not None:
            # What it wrote is its broker's to read: DISCONNECT, most of all.
            self._left = True
            if self.upstream is not None and self._to_broker is not None:
                self.gateway.spawn(self._see_off(self.upstream, self._to_broker))
            return
        if not orderly:
            self.gateway.counters.client_resets += 1
            if reason is not None:
                self.gateway.note(f"client {self.client.where}", str(reason))
            if self.upstream is not None:
                self.upstream.control.reset()
        self._finish()

    async def _see_off(self, upstream: Connection, to_broker: _Direction) -> None:
        """Carry what has arrived of a client that left in order, then let the broker end the connection."""
        try:
            async with asyncio.timeout(FAREWELL):
                while to_broker.is_behind:
                    await upstream.control.drain()
                    await asyncio.sleep(0)
                to_broker.end()
                await asyncio.wait([upstream.closed])
        except TimeoutError:
            if not self.is_over:
                self.gateway.counters.client_resets += 1
                self.gateway.note("upstream", f"the broker did not take in {FAREWELL:g} s what a client had left")
                upstream.control.reset()
                self._finish()
        except LabError:
            pass  # _broker_lost hears of it too

    def close(self) -> None:
        """End both sides, because the gateway closes."""
        if not self.is_over:
            if self.upstream is not None:
                self.gateway.spawn(self.upstream.close())
            self._finish()

    def _client_reset(self, code: int) -> None:
        if self.is_over:
            return
        self.gateway.counters.client_resets += 1
        if self.upstream is not None:
            self.upstream.control.reset()
        self.stream.reset(code)
        self._finish()

    def _broker_lost(self, reason: LabError | None) -> None:
        if self.is_over:
            return
        self.gateway.counters.upstream_resets += 1
        self.gateway.note("upstream", str(reason) if reason is not None else "the broker reset the connection")
        self._abort(codes.UNSPECIFIED, "the broker behind this gateway broke the connection off")

    def _abort(self, code: int, reason: str) -> None:
        """Tell the client that its stream is over before its time."""
        self.code, self.reason = code, reason
        if not self.client.ends_with(self):
            self.stream.reset(code)
        self._finish()

    def _finish(self) -> None:
        self.is_over = True
        if self._task is not None and self.upstream is None:
            self._task.cancel()
        self.client.relay_over(self)

    # --- facts

    @property
    def pending(self) -> int:
        """Bytes held because the side that they are for has not taken them."""
        upstream = self.upstream.control.pending if self.upstream is not None else 0
        return upstream + self.stream.pending

    def info(self) -> RelayedStream:
        """Return what a person may want to know."""
        up, down = self._to_broker, self._from_broker
        if self._left:
            state = "client left"
        elif up is None or down is None or self.upstream is None:
            state = "waiting" if self._task is None else "connecting"
        elif up.ended:
            state = "client ended"
        else:
            state = "broker ended" if down.ended else "open"
        return RelayedStream(
            stream_id=self.stream.id,
            state=state,
            local_port=self.upstream.local_address[1] if self.upstream is not None else None,
            opened_at=self.opened_at,
            bytes_to_broker=up.nbytes if up is not None else 0,
            bytes_from_broker=down.nbytes if down is not None else 0,
            pending_to_broker=self.upstream.control.pending if self.upstream is not None else 0,
            pending_from_broker=self.stream.pending,
            pauses=(up.pauses if up is not None else 0) + (down.pauses if down is not None else 0),
        )


class _Direction:
    """What arrives at `source` goes to `sink`."""

    def __init__(self, relay: Relay, source: ByteStream, sink: ByteStream, counter: str) -> None:
        self.nbytes = 0
        self.pauses = 0
        self.ended = False
        self._relay = relay
        self._source = source
        self._sink = sink
        self._counter = counter
        self._counters = relay.gateway.counters
        self._waiting = False
        self._high_water = QUIC_HIGH_WATER if sink.connection.transport == "quic" else TCP_HIGH_WATER

    def begin(self) -> None:
        """Take what has arrived, and what comes."""
        self._source.on_end = self.end
        self._source.on_data = self.carry

    def carry(self, data: bytes) -> None:
        """Pass bytes on; above the high-water mark of the sink, read no more until it has taken them."""
        self.nbytes += len(data)
        setattr(self._counters, self._counter, getattr(self._counters, self._counter) + len(data))
        sink = self._sink
        sink.write(data)
        if not self._waiting and sink.pending > self._high_water:
            self._waiting = True
            self.pauses += 1
            self._counters.pauses += 1
            self._source.pause_reading()
            self._relay.gateway.spawn(self._drained())

    async def _drained(self) -> None:
        with suppress(LabError):  # what comes then is for nobody, but how it ends has to be seen
            await self._sink.drain()
        self._waiting = False
        if not self._relay.is_over:
            self._source.resume_reading()

    @property
    def is_behind(self) -> bool:
        """Whether something that has arrived was not passed on yet."""
        return self._waiting or bool(getattr(self._source, "held", 0))

    def end(self) -> None:
        """Pass the end on."""
        if not self.ended:
            self.ended = True
            self._sink.end()
            self._relay.direction_ended()
