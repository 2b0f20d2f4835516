"""The one stream of a TCP or TLS connection: what its owner holds, and what is kept until there is an owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.net.stream import ByteStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.net.tcp import TcpConnection


class TcpStream(ByteStream):
    """The only stream of a TCP or TLS connection.

    What arrives before :attr:`on_data` is assigned is kept, and reading pauses meanwhile: nothing is lost between the
    end of the handshake and the first line of its owner.
    """

    id: None
    connection: TcpConnection

    def __init__(self, connection: TcpConnection) -> None:
        self._held: list[bytes] = []
        self._end_held = False
        self._paused = False
        super().__init__()  # assigns on_data, but that is not yet an owner
        self._owned = False
        self.id = None
        self.connection = connection

    @property
    def on_data(self) -> Callable[[bytes], None]:
        """Called with the bytes that arrived, in order."""
        return self._on_data

    @on_data.setter
    def on_data(self, callback: Callable[[bytes], None]) -> None:
        self._on_data = callback
        self._owned = True
        if self._held or self._end_held:
            self.connection.call_soon(self._release)

    def write(self, data: bytes) -> None:
        """Queue bytes; what is written in one loop tick leaves in one send (TLS: in one record of up to 16 KiB)."""
        self.connection.queue(data)

    @property
    def pending(self) -> int:
        """Bytes written but not yet taken by the kernel (TLS: including its overhead)."""
        return self.connection.pending

    async def drain(self) -> None:
        """Wait until :attr:`pending` is at most :data:`mqttquic_lab.net.tcp.HIGH_WATER`.

        Raises
        ------
        LabError
            Why the connection ended, if it did.
        """
        await self.connection.drain()

    def pause_reading(self) -> None:
        """Stop :attr:`on_data`; the TCP window then stops the peer."""
        self._paused = True
        self.connection.update_reading()

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`."""
        self._paused = False
        if self._held or self._end_held:
            self.connection.call_soon(self._release)
        else:
            self.connection.update_reading()

    def end(self) -> None:
        """Send FIN (TLS: close_notify and FIN) after what was written; the peer may go on sending."""
        self.connection.end_writing()

    def reset(self, error_code: int = 0) -> None:
        """Abort the connection with RST; TCP has no room for `error_code`."""
        self.connection.reset(f"reset by us with code {error_code}")

    @property
    def wants_data(self) -> bool:
        """Whether the connection should read from its socket now."""
        return not self._paused and not self._held

    def deliver(self, data: bytes) -> None:
        """Hand bytes to the owner, or keep them until there is one. For the connection."""
        if self._owned and not self._held and not self._paused:
            try:
                self._on_data(data)
            except Exception as error:  # noqa: BLE001 - the owner's bug ends this connection, not the loop
                self.connection.callback_failed("on_data", error)
        else:
            self._held.append(data)
            self.connection.update_reading()

    def deliver_end(self) -> None:
        """Tell the owner that the peer sends no more. For the connection."""
        if not self._owned or self._held:
            self._end_held = True
            return
        try:
            self.on_end()
        except Exception as error:  # noqa: BLE001 - the owner's bug ends this connection, not the loop
            self.connection.callback_failed("on_end", error)
        self.connection.peer_ended()

    def deliver_reset(self) -> None:
        """Tell the owner that the peer reset the connection. For the connection."""
        try:
            self.on_reset(0)
        except Exception as error:  # noqa: BLE001 - the owner's bug ends this connection, not the loop
            self.connection.callback_failed("on_reset", error)

    def discard(self) -> None:
        """Forget what is held. For the connection, when nobody wants it any more."""
        self._held.clear()
        self._end_held = False

    def _release(self) -> None:
        while self._held and not self._paused and not self.connection.is_closing:
            data = b"".join(self._held)
            self._held.clear()
            self.deliver(data)
        if self._end_held and not self._held and not self._paused:
            self._end_held = False
            self.deliver_end()
        self.connection.update_reading()
