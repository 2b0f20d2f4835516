"""Messages in DATAGRAM frames (RFC 9221, MQoQ 8.3.3): at QoS 0, each in a packet of its own fate.

Published with ``publish(..., datagram=True)``, or with ``connect(..., datagrams=True)`` wherever they fit. What gets
lost on the way is not sent again, and holds nothing up that comes after it. Whether a message arrived nobody tells; how
many packets got lost QUIC knows, and ``session.stats`` shows.

What the broker sends in datagrams flows into feeds as everything else. Such a message has no stream: its ``stream_id``
is None, -1 in columns, which over QUIC nothing else has. They belong to subscriptions of the control stream: those of a
flow are served on their flow (MQoQ 9.1.2).

The draft has datagrams in its protocol ``MQTT-next``. With the ALPN ``mqtt`` no document speaks of them: mqttv5 and our
own broker take them there as well, and the transport parameter says whether a broker takes DATAGRAM frames at all.

A datagram that was sent does not put off the next PINGREQ, for it may not have arrived. One that was received shows
that the broker lives.
"""

from __future__ import annotations

import asyncio
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import LabError, OperationTimeoutError, ProtocolError, UsageError
from mqttquic_lab.mqtt import ConnectionState, encode_publish
from mqttquic_lab.mqtt.datagram import read_datagram
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.payload import encode_payload
from mqttquic_lab.session.publishing import each, stamped
from mqttquic_lab.session.results import PublishResult, PublishSummary

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from mqttquic_lab.mqtt.profiles import BrokerProfile
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.mapping import MappedPublisher
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.publishing import Publisher
    from mqttquic_lab.session.receiving import Receiver
    from mqttquic_lab.session.results import SessionStats

MAX_RECORDED = 10
"""Datagrams that could not be read and are told of in ``session.errors``, per connection; all are counted."""

_SENT = PublishResult(0, None, None, datagram=True)


class SessionDatagrams:
    """Sends and receives the datagrams of one session. On its loop only.

    Parameters
    ----------
    options : SessionOptions
        Of the session.
    profile : BrokerProfile
        Which broker it is.
    stats : SessionStats
        Counted into.
    publisher : Publisher
        The control stream's: checks what is to be published.
    receiver : Receiver
        The control stream's: knows the feeds.
    wake : callable()
        Wakes feeds with somebody waiting.
    record : callable(str, LabError)
        Something went wrong: where, and what.

    Attributes
    ----------
    preferred : bool
        Whether messages at QoS 0 go in datagrams where they fit.
    """

    def __init__(
        self,
        options: SessionOptions,
        profile: BrokerProfile,
        stats: SessionStats,
        publisher: Publisher,
        receiver: Receiver,
        *,
        wake: Callable[[], None],
        record: Callable[[str, LabError], None],
    ) -> None:
        self._options = options
        self._profile = profile
        self._stats = stats
        self._publisher = publisher
        self._receiver = receiver
        self._wake = wake
        self._record = record
        self._channel: PacketChannel
        self._connection: Connection
        self._lost_before = self._dropped_before = self._recorded = 0
        self.preferred = False

    # The connection

    def move(self, channel: PacketChannel) -> None:
        """Go on over the connection of `channel`."""
        self.count()
        self._lost_before, self._dropped_before = self._stats.datagrams_lost, self._stats.datagrams_dropped
        self._recorded = 0
        self.preferred = False
        self._channel, self._connection = channel, channel.connection
        self._connection.on_datagram = lambda data: self._on_datagram(channel, data)

    def accepted(self) -> str | None:
        """Take that the broker has accepted; returns why there are no datagrams although they are asked for."""
        if not self._options.datagrams:
            return None
        refusal = self.refusal()
        self.preferred = refusal is None
        return refusal

    def refusal(self) -> str | None:
        """Return why no datagram can be sent to this broker, None if one can."""
        connection = self._connection
        if connection.transport != "quic":
            return f"datagrams are QUIC's (RFC 9221), and this session is over {connection.transport.upper()}"
        refusal = self._profile.refusal("datagram")
        if refusal is None and connection.max_datagram_size is None and not connection.is_closed:
            return "the broker takes no datagrams: it announced no max_datagram_frame_size (RFC 9221 section 3)"
        return refusal

    def count(self) -> None:
        """Bring the counters of what became of datagrams up to date."""
        frames = self._connection.datagram_frames if hasattr(self, "_connection") else None
        if frames is not None:
            self._stats.datagrams_lost = self._lost_before + frames.lost
            self._stats.datagrams_dropped = self._dropped_before + frames.dropped + frames.too_large

    # Sending

    def wanted(self, datagram: bool | None, qos: int) -> bool:
        """Whether a message goes in a datagram if it fits.

        Raises
        ------
        UsageError
            It is to go in one, and cannot.
        """
        if datagram is None:
            return self.preferred and qos == 0
        if not isinstance(datagram, bool):
            raise UsageError(f"datagram={datagram!r}: must be True, False, or None for what connect(datagrams=) says")
        if not datagram:
            return False
        if qos:
            raise UsageError(
                f"datagram=True is for QoS 0, not {qos}: a datagram that gets lost is not sent again (RFC 9221)"
            )
        refusal = self.refusal()
        if refusal is not None:
            raise UsageError(f"{refusal}: leave datagram=True out, and it goes on a stream")
        return True

    async def publish(
        self,
        topic: str,
        payload: Any,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        timeout: float | str | None,
        *,
        insist: bool,
    ) -> PublishResult | None:
        """Send one message, waiting while too many wait already; returns None if it does not fit.

        Parameters
        ----------
        topic, payload, retain, properties, timestamp, timeout
            As for :meth:`AsyncSession.publish`.
        insist : bool
            Raise UsageError if it does not fit.
        """
        data = payload if type(payload) is bytes else encode_payload(payload)
        publisher = self._publisher
        publisher.check_topic(topic)
        checked = publisher.check(0, retain, properties, timestamp)
        return _SENT if await self._send(topic, data, retain, checked, check_timeout(timeout), insist=insist) else None

    async def publish_many(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        timeout: float | None,
        *,
        insist: bool,
        otherwise: Publisher | MappedPublisher,
    ) -> PublishSummary:
        """Do what :meth:`AsyncSession.publish_many` does; what does not fit goes by `otherwise`."""
        publisher, summary = self._publisher, PublishSummary()
        publisher.check(0, retain, properties, timestamp)
        started = perf_counter()
        async for topic, payload in each(messages):
            data = payload if type(payload) is bytes else encode_payload(payload)
            publisher.check_topic(topic)
            block = stamped(properties) if timestamp else properties
            if await self._send(topic, data, retain, block, timeout, insist=insist):
                summary.datagrams += 1
            else:
                await otherwise.publish(topic, data, 0, retain, block, False, timeout)
            summary.count += 1
            summary.payload_bytes += len(data)
            if not summary.count % 128:
                await publisher.let_run(timeout)
        await publisher.let_run(timeout)
        summary.seconds = perf_counter() - started
        return summary

    async def _send(
        self,
        topic: str,
        data: bytes,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timeout: float | None,
        *,
        insist: bool,
    ) -> bool:
        channel, connection, publisher = self._channel, self._connection, self._publisher
        if channel.ended:
            raise channel.gone("cannot publish")
        # Without a topic alias: aliases belong to a flow, and datagrams to none (MQoQ 9.21).
        packet = encode_publish(topic, data, 0, retain, False, None, properties, self._options.level)
        if len(packet) > channel.limit:
            publisher.limits.check_size(len(packet), len(data))
        room = connection.max_datagram_size or 0
        if len(packet) > room:
            if not insist:
                return False
            raise UsageError(
                f"this PUBLISH takes {len(packet)} bytes, and {room} fit into a datagram to this broker: send less, or "
                "leave datagram=True out"
            )
        try:
            async with asyncio.timeout(timeout):
                await connection.datagram_room()
            connection.send_datagram(packet)
        except TimeoutError:
            raise OperationTimeoutError(
                f"the path takes no more datagrams: too many wait since {timeout:g} s (congestion control)"
            ) from None
        except LabError as error:
            raise channel.gone("cannot publish") from error
        stats = self._stats
        stats.datagrams_sent += 1
        stats.messages_sent += 1
        stats.packets_sent += 1
        stats.bytes_sent += len(packet)
        if connection.trace.detail:
            connection.trace.emit("mqtt", "packet_sent", type="PUBLISH", size=len(packet), datagram=True)
        return True

    # Receiving

    def _on_datagram(self, channel: PacketChannel, data: bytes) -> None:
        if channel is not self._channel or channel.ended:
            return  # another connection carries the session on
        stats = self._stats
        channel.keepalive.last_received = channel.clock()
        stats.bytes_received += len(data)
        if channel.state is not ConnectionState.CONNECTED:
            stats.datagrams_refused += 1  # it has overtaken CONNACK
            return
        try:
            publish = read_datagram(data, receiver="client", version=channel.version).publish
            if publish is None:
                return
            self._receiver.datagram(publish, time_ns())
        except ProtocolError as error:
            # Level 2 of the draft's chapter 11: it harms nothing but itself.
            stats.datagrams_refused += 1
            if self._recorded < MAX_RECORDED:
                self._recorded += 1
                self._record("datagram", error)
            return
        stats.datagrams_received += 1
        stats.packets_received += 1
        if channel.connection.trace.detail:
            channel.connection.trace.emit("mqtt", "packet_received", type="PUBLISH", size=len(data), datagram=True)
        self._wake()
