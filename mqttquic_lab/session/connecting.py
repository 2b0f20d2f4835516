"""From a target to an accepting CONNACK (MQTT 5.0 sections 3.1 and 3.2), and the ways in which that fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqttquic_lab.errors import (
    AuthenticationError,
    ConnectError,
    ConnectRefusedError,
    ConnectTimeoutError,
    DisconnectedError,
    LabError,
    ProtocolError,
)
from mqttquic_lab.mqtt import ReasonCode
from mqttquic_lab.net.open import open_connection
from mqttquic_lab.session.authenticating import Authenticator
from mqttquic_lab.session.early import FirstFlight
from mqttquic_lab.session.limits import said
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.quic_options import knobs_of
from mqttquic_lab.session.report import ReportFiller
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.mqtt import ConnAck
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.quic_options import EarlyMessage
    from mqttquic_lab.session.target import Target

LONG = 86_400.0
"""Seconds that stand for "for ever" where a transport wants a number."""

MIN_IDLE_TIMEOUT = 60.0
"""QUIC idle timeout at least, seconds; otherwise three keep-alive intervals, so that MQTT notices first."""

_HINTS: dict[int, str] = {
    0x84: 'try the other protocol version (version="3.1.1" or "5.0")',
    0x85: "try another client_id",
    0x86: "check username and password",
    0x87: "check username and password, and what this user may do",
    0x8C: "use another auth=, or user name and password",
    0x95: "the CONNECT is too large: shorten will, properties or credentials",
    0x9A: "publish the will without retain",
    0x9B: "lower the will's qos",
}
"""What to try for a reason code of CONNACK."""


def checked_connect(
    options: SessionOptions, target: Target | None = None, messages: Sequence[EarlyMessage] = ()
) -> FirstFlight:
    """Return CONNECT and what goes with it; what cannot be sent is said now, before a connection is made."""
    user, password = (target.username, target.password) if target is not None else (None, None)
    packet, method = options.connect_packet(user, password), options.auth_method(user, password)
    authenticator = None
    if method is not None:
        authenticator = Authenticator(method)
        packet.properties = {**packet.properties, **authenticator.first()}
    first = FirstFlight(packet, options.level, tuple(messages), authenticator)
    first.encode()
    return first


def deadline_of(options: SessionOptions) -> float | None:
    """Return when ``timeout`` runs out, on the running loop's clock."""
    seconds = check_timeout(options.timeout)
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


async def open_transport(
    target: Target,
    options: SessionOptions,
    report: HandshakeReport,
    trace: Trace | None = None,
    *,
    first: FirstFlight | None = None,
) -> Connection:
    """Connect the transport; see :func:`mqttquic_lab.net.open.open_connection` for what it raises.

    Over QUIC and with ``early_data``, `first` is written at once; ``connection.spoke_first`` is True then.
    """
    early = first if options.early_data and target.address.transport == "quic" else None
    return await open_connection(
        target.address,
        trust=target.trust,
        alpn=options.alpn_over(target.address.transport),
        timeout=check_timeout(options.timeout) or LONG,
        trace=Trace(options.trace_capacity, detail=options.trace_detail) if trace is None else trace,
        tuning=options.tuning,
        idle_timeout=idle_timeout_of(options),
        local_address=options.local_address,
        ssl_context=target.ssl_context,
        knobs=knobs_of(options),
        keep_alive=options.quic_keepalive,
        tickets=options.tickets,
        early_data=early.encode() if early is not None else b"",
        early_content=early.content if early is not None else (),
        report=report,
    )


def idle_timeout_of(options: SessionOptions) -> float:
    """Return the QUIC idle timeout to ask for, seconds."""
    if options.idle_timeout is not None:
        return float(options.idle_timeout)
    return max(MIN_IDLE_TIMEOUT, 3.0 * options.keepalive)


class Connecting:
    """One CONNECT and whoever waits for its answer. On the session's loop only."""

    def __init__(self, channel: PacketChannel, options: SessionOptions, url: str) -> None:
        self._channel = channel
        self._options = options
        self._url = url
        self._filler = ReportFiller(channel.connection, options.level)
        self.authenticator: Authenticator | None = None
        """Goes on with the enhanced authentication that CONNECT begins."""
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, first: FirstFlight, deadline: float | None) -> None:
        """Send CONNECT and wait until the broker has accepted; a failure leaves nothing open.

        Parameters
        ----------
        first : FirstFlight
            What to send, unless the transport has sent it already.
        deadline : float or None
            Until when to wait, on the loop's clock.

        Raises
        ------
        ConnectRefusedError
            It answered with a failure code.
        AuthenticationError
            It did not show that it is the broker meant, or the method failed.
        ConnectTimeoutError
            It did not answer in time.
        ConnectError
            The connection ended before, or what came was no CONNACK.
        """
        try:
            async with asyncio.timeout_at(deadline):
                packet, self.authenticator = first.connect, first.authenticator
                if self._channel.connection.spoke_first:
                    self._channel.sent_first(packet, first.encode(), len(first.content))
                    self._filler.connect_told(packet.encode(first.version), packet.client_id)
                else:
                    data = self._channel.send(packet)
                    self._filler.connect_sent(data, packet.client_id)
                await self._answer
        except TimeoutError:
            error = ConnectTimeoutError(
                f"{self._url} completed its {self._channel.connection.transport.upper()} handshake but did not answer "
                f"CONNECT within {self._options.timeout} s: is it an MQTT broker?"
            )
            await self._give_up(error, cut=True)
            raise error from None
        except LabError as failure:
            await self._give_up(failure)
            raise
        except BaseException:
            await self._give_up(DisconnectedError("connecting was cancelled"), cut=True)
            raise

    async def _give_up(self, error: LabError, *, cut: bool = False) -> None:
        """Close; `cut` does not wait for a broker that may not answer."""
        self._channel.finish(error)
        if cut:
            self._channel.connection.abort("the attempt to connect was given up")
        await self._channel.wait_closed()
        # Last, because the transport has words of its own for its end.
        report = self._channel.connection.report
        report.state, report.error = "failed", str(error)

    def answered(self, packet: ConnAck, client_id: str) -> ConnectRefusedError | None:
        """Take CONNACK in; returns the refusal if it is one.

        Raises
        ------
        ProtocolError
            It speaks of a session that this client does not have [MQTT-3.2.2-4]. (With ``clean_start=False`` there may
            always be one: of an earlier program of the same client identifier, say, with nothing under way.)
        AuthenticationError
            It accepts, but does not show that it comes from the broker meant.
        """
        self._filler.connack_received(packet, client_id)
        trace = self._channel.connection.trace
        if not trace.detail:  # else it is there already
            trace.emit("mqtt", "packet_received", type="CONNACK", size=len(packet.raw))
        if packet.reason_code == 0:
            if packet.session_present and self._options.clean_start:
                raise ProtocolError(
                    "CONNACK says that the broker goes on with a session, though CONNECT asked for a new one",
                    reason_code=ReasonCode.PROTOCOL_ERROR,
                    rule="MQTT-3.2.2-4" if self._options.level == 5 else "MQTT-3.2.2-1",
                    section=f"MQTT {'5.0 section 3.2.2.1.1' if self._options.level == 5 else '3.1.1 section 3.2.2.2'}",
                    packet=packet,
                )
            if self.authenticator is not None:
                self.authenticator.accepted(packet.properties)
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
        if self.authenticator is not None:
            self.authenticator.ended(reason)
        if self._answer.done():
            return
        if isinstance(reason, AuthenticationError):
            self._fail(reason)
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
