"""Unreliable datagrams beside the streams of a connection (RFC 9221).

A datagram travels in one packet, is under congestion control and encrypted as everything else, and is never sent again:
what gets lost is lost, and holds nothing up that comes after it. Those that cannot be sent yet wait in a bounded queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import DisconnectedError, UsageError
from mqttquic_lab.quic import private_datagrams

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import DatagramCounters
    from mqttquic_lab.quic.connection import QuicConnection

MAX_WAITING: Final = 4096
"""Datagrams that wait at a time; further ones are dropped, and counted."""

MAX_WAITING_BYTES: Final = 256 * 1024
"""The same in bytes of payload."""


class DatagramQueue:
    """The datagrams of one connection. On its loop only.

    Parameters
    ----------
    connection : QuicConnection
        Whose they are.
    """

    def __init__(self, connection: QuicConnection) -> None:
        self._connection = connection
        self._engine = connection.engine

    @property
    def counters(self) -> DatagramCounters:
        """What became of them so far."""
        return self._engine.datagram_frames

    @property
    def max_size(self) -> int | None:
        """Bytes that one may carry: what the peer takes, and what fits into one packet on this path.

        None when the peer announced no max_datagram_frame_size, before the handshake is complete, and after the end.
        """
        return None if self._connection.is_closed else private_datagrams.max_payload(self._engine)

    @property
    def is_full(self) -> bool:
        """Whether the next one would be dropped."""
        engine = self._engine
        return engine.datagrams_waiting >= MAX_WAITING or engine.datagram_bytes >= MAX_WAITING_BYTES

    def send(self, data: bytes) -> bool:
        """Queue one; it leaves with what else is written in this loop tick, if the congestion window is open.

        Parameters
        ----------
        data : bytes
            Its payload; may be empty.

        Returns
        -------
        bool
            False if it was dropped because too many wait (:data:`MAX_WAITING`, :data:`MAX_WAITING_BYTES`).

        Raises
        ------
        DisconnectedError
            The connection has ended.
        UsageError
            The peer takes no datagrams, or none so large.
        """
        connection = self._connection
        if connection.is_closed:
            raise connection.closed.result() or DisconnectedError("the connection is closed")
        room = self.max_size
        if room is None:
            if not connection.is_established:
                raise UsageError("datagrams are not sent before the handshake is complete: wait for it")
            raise UsageError("the peer takes no datagrams (RFC 9221): it announced no max_datagram_frame_size")
        if len(data) > room:
            self.counters.too_large += 1
            raise UsageError(f"{len(data)} bytes do not fit into a datagram to this peer, {room} do")
        if self.is_full:
            self.counters.dropped += 1
            return False
        self._engine.send_datagram_frame(bytes(data))
        connection.written(len(data))
        return True

    async def room(self) -> None:
        """Wait until the queue takes another one, or the connection has ended."""
        while self.is_full and not self._connection.is_closed:
            await self._connection.progress()
