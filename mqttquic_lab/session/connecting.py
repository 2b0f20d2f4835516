"""The exchange of CONNECT and CONNACK (MQTT 5.0 sections 3.1 and 3.2), and the ways in which it fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqttquic_lab.errors import ConnectError, ConnectRefusedError, ProtocolError
from mqttquic_lab.mqtt import ReasonCode
from mqttquic_lab.session.limits import said
from mqttquic_lab.session.report import ReportFiller

if TYPE_CHECKING:
    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import ConnAck, Connect
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.options import SessionOptions

_HINTS: dict[int, str] = {
    0x84: 'try the other protocol version (version="3.1.1" or "5.0")',
    0x85: "try another client_id",
    0x86: "check username and password",
    0x87: "check username and password, and what this user may do",
    0x8C: "this client speaks user name and password only",
    0x95: "the CONNECT is too large: shorten will, properties or credentials",
    0x9A: "publish the will without retain",
    0x9B: "lower the will's qos",
}
"""What to try for a reason code of CONNACK."""


class Connecting:
    """One CONNECT and whoever waits for its answer. On the session's loop only."""

    def __init__(self, channel: PacketChannel, options: SessionOptions, url: str) -> None:
        self._channel = channel
        self._options = options
        self._url = url
        self._filler = ReportFiller(channel.connection, options.level)
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask(self, packet: Connect) -> None:
        """Send CONNECT and wait until the broker has accepted.

        Raises
        ------
        ConnectRefusedError
            It answered with a failure code.
        ConnectError
            The connection ended before, or what came was no CONNACK.
        """
        data = self._channel.send(packet)
        self._filler.connect_sent(data, packet.client_id)
        await self._answer

    def answered(self, packet: ConnAck, client_id: str) -> ConnectRefusedError | None:
        """Take CONNACK in; returns the refusal if it is one."""
        self._filler.connack_received(packet, client_id)
        self._channel.connection.trace.emit("mqtt", "packet_received", type="CONNACK", size=len(packet.raw))
        if packet.reason_code == 0:
            return None
        refusal = _refusal(packet, self._options)
        self._fail(refusal)
        return refusal

    def accepted(self) -> None:
        """Let go on who waits: everything that CONNACK told has been taken over."""
        if not self._answer.done():
            self._answer.set_result(None)

    def ended(self, reason: LabError | None) -> None:
        """Take the end of the connection; does nothing after CONNACK."""
        if self._answer.done():
            return
        error = ConnectError(f"{self._url} did not accept the session: {reason or 'it was closed'}")
        if isinstance(reason, ProtocolError):
            error.reason_code, error.packet = reason.reason_code, reason.packet
        error.__cause__ = reason
        self._fail(error)

    def _fail(self, error: ConnectError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # marked as seen: whoever waited may have been cancelled meanwhile


def _refusal(packet: ConnAck, options: SessionOptions) -> ConnectRefusedError:
    code = packet.reason_code
    words = packet.properties.get("reason_string")
    elsewhere = packet.properties.get("server_reference")
    hint = _HINTS.get(code)
    if code in (ReasonCode.USE_ANOTHER_SERVER, ReasonCode.SERVER_MOVED):
        hint = f"it names {elsewhere!r} instead, which this client does not follow" if elsewhere else None
    if code == ReasonCode.CLIENT_IDENTIFIER_NOT_VALID and not options.client_id:
        hint = "it wants a client_id: give one"
    return ConnectRefusedError(
        f"the broker refused the connection: {said(code, words)}{f'; {hint}' if hint else ''}",
        reason_code=code,
        reason_string=words,
        packet=packet,
    )
