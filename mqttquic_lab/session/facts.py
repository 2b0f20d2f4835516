"""What a session tells of itself, at any moment of its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mqttquic_lab.errors import UsageError
from mqttquic_lab.session.close_codes import with_name

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Deliveries
    from mqttquic_lab.mqtt.profiles import BrokerProfile
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.quic.reasons import CloseInfo
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.datagrams import SessionDatagrams
    from mqttquic_lab.session.feed import AsyncFeed
    from mqttquic_lab.session.flow_book import SessionFlows
    from mqttquic_lab.session.flow_spec import FlowInfo
    from mqttquic_lab.session.happenings import Happenings
    from mqttquic_lab.session.offline import OfflineQueue
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.receiving import Receiver
    from mqttquic_lab.session.reconnecting import Reconnector
    from mqttquic_lab.session.results import ErrorRecord, EventRecord, SessionStats
    from mqttquic_lab.session.streams import StreamInfo, Streams
    from mqttquic_lab.session.subscribing import Subscriber


SessionState = Literal["connecting", "connected", "reconnecting", "closed"]


class SessionFacts:
    """The properties of an :class:`AsyncSession`: looks at its parts, which its lifecycle makes and exchanges."""

    url: str
    client_id: str
    options: SessionOptions
    profile: BrokerProfile
    has_been_connected: bool
    _connection: Connection
    _channel: PacketChannel
    _streams: Streams
    _flows: SessionFlows | None
    _mapping: str
    _deliveries: Deliveries
    _receiver: Receiver
    _subscriber: Subscriber
    _stats: SessionStats
    _datagrams: SessionDatagrams
    _happenings: Happenings
    _reconnector: Reconnector
    _offline: OfflineQueue
    _state: SessionState
    _close_reason: LabError | None
    _connected_at: dt.datetime | None
    _on_message: Callable[[Message], None] | None

    def __repr__(self) -> str:
        instead = " instead of QUIC" if self._connection.report.fallback_reason else ""
        wanted = self.options.streams
        mapping = "" if self.mapping == "single" else f", {self.mapping}"
        if self.mapping != wanted:
            mapping = f", {self.mapping} instead of {wanted}"
        return (
            f"<AsyncSession {self.client_id!r} at {self.url}: {self._state}, over {self.transport.upper()}{instead}"
            f"{mapping}>"
        )

    @property
    def state(self) -> SessionState:
        """``"connecting"``, ``"connected"``, ``"reconnecting"`` (lost, and about to connect anew) or ``"closed"``."""
        return self._state

    @property
    def handshake(self) -> HandshakeReport:
        """Everything known about how the session came about; its RTT is that of the moment."""
        if not self._channel.ended:
            return self._connection.refresh_report()
        report = self._connection.report
        if self.has_been_connected:
            # The transport has its own words for the end; what ended the session says more.
            report.state = "closed"
            report.error = str(self._channel.reason) if self._channel.reason is not None else None
        return report

    @property
    def transport(self) -> str:
        """What really carries the bytes: ``"quic"``, ``"tls"`` or ``"tcp"``."""
        return self._connection.transport

    @property
    def connection(self) -> Connection:
        """The transport connection underneath."""
        return self._connection

    @property
    def close_info(self) -> CloseInfo | None:
        """How the QUIC connection ended: code, reason and side; None while it has not, and over TLS and TCP."""
        info = getattr(self._connection, "close_info", None)
        return with_name(info, self._connection.report.alpn, self.profile.close_codes)

    @property
    def version(self) -> str:
        """``"5.0"`` or ``"3.1.1"``."""
        return "5.0" if self.options.level == 5 else "3.1.1"

    @property
    def feeds(self) -> tuple[AsyncFeed, ...]:
        """Feeds that were not unsubscribed, oldest first."""
        others = self._streams.feeds()
        if not others:
            return tuple(self._subscriber.feeds)
        return tuple(sorted((*self._subscriber.feeds, *others), key=lambda feed: feed.number))

    @property
    def streams(self) -> tuple[StreamInfo, ...]:
        """The streams that carry the session: the control stream, data streams, the newest 64 that are over."""
        filters = tuple(f for feed in self._subscriber.feeds for f in feed.filters)
        return self._streams.listing(filters, len(self._deliveries))

    @property
    def mapping(self) -> str:
        """How streams are used on the present connection, one of the values of the option ``streams``.

        Another one than was asked for where the transport or the broker cannot do that.
        """
        return self._mapping

    @property
    def flows(self) -> tuple[FlowInfo, ...]:
        """With ``streams="flows"``: all flows that either end keeps, with a stream or waiting to be recovered."""
        return () if self._flows is None else self._flows.infos()

    @property
    def without_flows(self) -> str:
        """Why there are no flows, in words."""
        if self.options.streams != "flows":
            return 'connect with streams="flows"'
        return f"this connection has none, it is used {self.mapping} (session.mapping)"

    @property
    def errors(self) -> list[ErrorRecord]:
        """What went wrong, oldest first; the newest 100."""
        return list(self._happenings.errors)

    @property
    def events(self) -> list[EventRecord]:
        """Connects, losses and resumptions, oldest first; the newest 100."""
        return list(self._happenings.events)

    @property
    def connected_at(self) -> dt.datetime | None:
        """When the broker accepted the present connection, or the last one (UTC); None before the first."""
        return self._connected_at

    @property
    def unacknowledged(self) -> int:
        """Messages at QoS 1 and 2 that were sent and not acknowledged: what :meth:`reconnect` sends again."""
        return len(self._deliveries) + (0 if self._flows is None else self._flows.in_flight)

    @property
    def queued(self) -> int:
        """Messages published without a connection that wait for one."""
        return len(self._offline)

    @property
    def stats(self) -> SessionStats:
        """Counters; they go on counting."""
        self._datagrams.count()
        return self._stats

    @property
    def unrouted(self) -> MessageLog:
        """The newest messages that belonged to no feed (1000 messages or 1 MiB); ``stats.unrouted`` counts all.

        A broker that resumes a session sends what it kept before anybody can subscribe anew: it lands here.
        """
        return self._receiver.unrouted

    @property
    def on_message(self) -> Callable[[Message], None] | None:
        """Called on the loop for every message received, whatever feed it belongs to; its ``value`` is None.

        It must not block. An exception lands in :attr:`errors`.
        """
        return self._on_message

    @on_message.setter
    def on_message(self, callback: Callable[[Message], None] | None) -> None:
        if callback is not None and not callable(callback):
            raise UsageError(f"on_message takes a function of one message, or None; not {callback!r}")
        self._on_message = callback
        self._receiver.watched = callback is not None

    @property
    def close_reason(self) -> LabError | None:
        """Why the session is closed; None while it is not, or if that was asked for."""
        return self._close_reason
