"""MQTT packets over one byte stream: decoding, who may send what when, keep-alive, and how it all ends.

The session above hands packets in and gets packets out; everything that can end the connection meets in
:meth:`PacketChannel.finish`, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError, LabError, OperationTimeoutError, ProtocolError, UsageError
from mqttquic_lab.mqtt import (
    MAX_PACKET_SIZE,
    ConnectionState,
    Disconnect,
    KeepAlive,
    PingReq,
    Role,
    check_packet,
    reason_text,
)
from mqttquic_lab.mqtt.reason_codes import CLIENT_DISCONNECTS
from mqttquic_lab.session.ending import gone
from mqttquic_lab.session.packet_stream import PacketStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt import Packet, Version
    from mqttquic_lab.net.stream import ByteStream, Connection
    from mqttquic_lab.session.results import SessionStats

logger = logging.getLogger("mqttquic_lab.session")


class PacketChannel(PacketStream):
    """The client's end of an MQTT connection, and its control stream. On its connection's loop only.

    Parameters
    ----------
    connection : Connection
        Established; its control stream carries all that goes on no data stream.
    version : {5, 4}
        Protocol level.
    stats : SessionStats
        Counted into.
    max_packet_size : int
        Largest packet that the broker may send, bytes.
    on_packets : callable(list of Packet)
        Packets that arrived together, in order. A ProtocolError it raises ends the connection.
    on_error : callable(str, LabError)
        Something went wrong: where, and what.
    on_end : callable(LabError or None)
        The connection has ended, once; None if that was asked for.
    """

    def __init__(
        self,
        connection: Connection,
        version: Version,
        stats: SessionStats,
        *,
        max_packet_size: int = MAX_PACKET_SIZE,
        on_packets: Callable[[list[Packet]], None],
        on_error: Callable[[str, LabError], None],
        on_end: Callable[[LabError | None], None],
    ) -> None:
        self.on_server_stream: Callable[[ByteStream], None] | None = None
        """Takes streams that the broker opened; without it they are refused."""
        self._loop = asyncio.get_running_loop()
        super().__init__(
            connection.control,
            version,
            stats,
            max_packet_size=max_packet_size,
            on_packets=on_packets,
            clock=self._loop.time,
        )
        self.state = ConnectionState.IDLE
        self.fault_code = 0
        """QUIC application error code with which a fault of the broker's ends the connection (RFC 9000 20.2)."""
        self._close_code = 0
        self.explain: Callable[[LabError], LabError] = _as_it_is
        """Says more about why the connection has ended."""
        self._on_error = on_error
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None
        self._pings: deque[asyncio.Future[None] | None] = deque()
        self._closing: asyncio.Task[None] | None = None
        self.stream.on_data = self._on_data
        self.stream.on_end = self._on_stream_end
        self.stream.on_reset = self._on_stream_reset
        connection.on_stream = self._on_foreign_stream
        connection.closed.add_done_callback(self._on_connection_closed)

    # Sending

    def send(self, packet: Packet) -> bytes:
        """Send one packet and return its bytes.

        Raises
        ------
        ProtocolError
            The packet is not allowed now (a fault of ours).
        UsageError
            It is larger than the broker accepts.
        """
        data = packet.encode(self.version)
        self.check_size(data, packet.NAME)
        self.state = check_packet(Role.CLIENT, self.state, packet, self.version)
        trace = self.connection.trace
        if trace.detail or packet.NAME in ("CONNECT", "DISCONNECT"):
            trace.emit("mqtt", "packet_sent", type=packet.NAME, size=len(data))
        self.write(data)
        return data

    def sent_first(self, packet: Packet, data: bytes, packets: int) -> None:
        """Take note of CONNECT, and of all that follows it in `data`: the transport has written it already."""
        self.state = check_packet(Role.CLIENT, self.state, packet, self.version)
        self.connection.trace.emit("mqtt", "packet_sent", type=packet.NAME, size=len(packet.encode(self.version)))
        self._stats.packets_sent += packets
        self._stats.bytes_sent += len(data)
        self.keepalive.last_sent = self._loop.time()

    def write(self, data: bytes, packets: int = 1) -> None:
        """Write bytes that are `packets` whole packets."""
        self.stream.write(data)
        stats = self._stats
        stats.packets_sent += packets
        stats.bytes_sent += len(data)
        self.keepalive.last_sent = self._loop.time()

    # Receiving

    def check_received(self, packet: Packet) -> None:
        """Follow the state table for a packet that arrived; raises ProtocolError if it is not allowed now."""
        self.state = check_packet(Role.SERVER, self.state, packet, self.version)

    # Keep-alive

    def start_keepalive(self, interval: float) -> None:
        """Ping when it is due, and end the connection when the broker does not answer (MQTT 5.0 section 3.1.2.10)."""
        self.keepalive = KeepAlive(interval, self._loop.time())
        self._arm()

    def _arm(self) -> None:
        deadline = self.keepalive.next_deadline()
        if deadline is not None and not self.ended:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        verdict = self.keepalive.poll(self._loop.time())
        if verdict == "ping":
            self._send_ping(None)
        elif verdict == "dead":
            error = DisconnectedError(
                f"the broker answered nothing for {self.keepalive.response_timeout:g} s after a PINGREQ "
                f"(keepalive={self.keepalive.interval:g} s): the connection counts as dead",
                reason_code=0x8D,
            )
            self.fail("keep-alive", error)
        if not self.ended:
            self._arm()

    def _send_ping(self, waiter: asyncio.Future[None] | None) -> None:
        self.send(PingReq())
        self._pings.append(waiter)
        self._stats.pings += 1

    async def ping(self, timeout: float | None) -> float:
        """Send PINGREQ and return the seconds until its PINGRESP."""
        started = self._loop.time()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._send_ping(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            raise OperationTimeoutError(f"no PINGRESP within {timeout:g} s") from None
        return self._loop.time() - started

    def on_pong(self) -> None:
        """Take a PINGRESP: the broker answers PINGREQs in order."""
        waiter = self._pings.popleft() if self._pings else None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Ending

    def fail(self, where: str, error: LabError) -> None:
        """End the connection because of `error`: record it, tell the broker why if it can be told, close."""
        if self.ended:
            return
        self._on_error(where, error)
        if isinstance(error, ProtocolError):
            self._close_code = self.fault_code
        code = getattr(error, "reason_code", None) or 0x80
        # Some codes in errors are the server's to send, such as that of a keep-alive timeout [MQTT-3.14.2-1].
        self.say_goodbye(code if code in CLIENT_DISCONNECTS else 0x80)
        self.finish(error, code)

    def say_goodbye(self, reason_code: int, properties: dict[str, object] | None = None) -> None:
        """Send DISCONNECT if the state allows one; 3.1.1 knows no other reason than a normal end."""
        if reason_code not in CLIENT_DISCONNECTS:
            listed = ", ".join(f"0x{code:02x}" for code in sorted(CLIENT_DISCONNECTS))
            raise UsageError(f"{reason_code!r} is no reason code that a client sends in DISCONNECT: it takes {listed}")
        if self.ended or self.state in (ConnectionState.IDLE, ConnectionState.CLOSED):
            return
        if self.version == 5 or reason_code == 0:
            packet = Disconnect(reason_code, properties or {})
            if len(packet.encode(self.version)) <= self.limit:  # else it ends without [MQTT-3.2.2-15]
                self.send(packet)

    def finish(self, reason: LabError | None, close_code: int = 0) -> None:
        """End the connection, once; `reason` is None if that was asked for."""
        if self.ended:
            return
        self._stop(reason)
        self.release(close_code)
        self._on_end(reason)

    def retire(self) -> None:
        """Do nothing more, because another connection carries the session on; :meth:`release` closes this one."""
        if not self.ended:
            self._stop(DisconnectedError("another connection carries the session on"))

    def _stop(self, reason: LabError | None) -> None:
        self.ended = True
        self.reason = reason
        self.state = ConnectionState.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._pings:
            if waiter is not None and not waiter.done():
                waiter.set_exception(self.gone("no PINGRESP can come"))
        self._pings.clear()

    def release(self, close_code: int = 0) -> None:
        """Close the transport."""
        if self._closing is not None:
            return
        # QUIC application close codes of MQTT over QUIC brokers: 0 is a normal end, whatever DISCONNECT said.
        text = reason_text(close_code) if close_code else ""
        self._closing = self._loop.create_task(self.connection.close(self._close_code, text), name="mqttquic-close")
        self._closing.add_done_callback(_log_failure)

    def gone(self, what: str) -> DisconnectedError:
        """Return a DisconnectedError for a verb that cannot go on, chained to why the connection ended."""
        return gone(what, self.reason)

    async def wait_closed(self) -> None:
        """Wait until the transport has closed, after :meth:`finish`."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _on_stream_end(self) -> None:
        self._lost(DisconnectedError("the broker ended the connection without DISCONNECT"))

    def _on_stream_reset(self, code: int) -> None:
        self._lost(DisconnectedError(f"the broker reset the control stream (error code {code})"))

    def _on_connection_closed(self, closed: asyncio.Future[LabError | None]) -> None:
        if not closed.cancelled():
            error = closed.result() or DisconnectedError("the connection was closed underneath the session")
            self._lost(self.explain(error))

    def _lost(self, error: LabError) -> None:
        if not self.ended:
            self._on_error("transport", error)
            self.finish(error)

    def _on_foreign_stream(self, stream: ByteStream) -> None:
        if stream is self.stream:
            return
        if self.ended:
            stream.reset(0)  # what it would carry comes again over the connection that carries the session on
            return
        if self.on_server_stream is not None:
            self.on_server_stream(stream)
            return
        stream.reset(0)
        self._on_error(
            "broker",
            LabError(
                f"the broker opened stream {stream.id}, which a single-stream session does not read: "
                'connect with profile="mqttv5" if it is that broker'
            ),
        )


def _as_it_is(error: LabError) -> LabError:
    """Have nothing to add."""
    return error


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("closing the transport failed", exc_info=task.exception())
