"""What a session tells a person of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.handles.handshake import Handshake

if TYPE_CHECKING:
    import datetime as dt

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.handles.calling import Caller
    from mqttquic_lab.handles.feed import Feed
    from mqttquic_lab.quic.reasons import CloseInfo
    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.session import (
        AsyncFeed,
        AsyncSession,
        ErrorRecord,
        EventRecord,
        FlowInfo,
        SessionStats,
        StreamInfo,
    )
    from mqttquic_lab.trace import Trace


class SessionFacts:
    """The properties of a :class:`~mqttquic_lab.handles.session.Session`, and how it is shown."""

    _core: AsyncSession
    _caller: Caller

    def handle_of(self, feed: AsyncFeed) -> Feed:
        """Return the handle of a feed."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where it is connected to, without user name and password."""
        return self._core.url

    @property
    def client_id(self) -> str:
        """The client identifier: one's own, or the one that the broker assigned."""
        return self._core.client_id

    @property
    def close_info(self) -> CloseInfo | None:
        """How the QUIC connection ended: code, reason and side; None while it has not, and over TLS and TCP."""
        return self._core.close_info

    @property
    def version(self) -> str:
        """``"5.0"`` or ``"3.1.1"``."""
        return self._core.version

    @property
    def transport(self) -> str:
        """What really carries the bytes: ``"quic"``, ``"tls"`` or ``"tcp"``."""
        return self._core.transport

    @property
    def state(self) -> str:
        """``"connecting"``, ``"connected"``, ``"reconnecting"`` (lost, and about to connect anew) or ``"closed"``."""
        return self._core.state

    @property
    def handshake(self) -> Handshake:
        """How the session came about: a card in a notebook, text in a terminal; as of now."""
        core = self._core
        return Handshake(self._caller.look(lambda: core.handshake))

    @property
    def errors(self) -> list[ErrorRecord]:
        """What went wrong where nobody was waiting for it, oldest first; the newest 100."""
        return self._core.errors

    @property
    def events(self) -> list[EventRecord]:
        """Connects, losses and resumptions, oldest first; the newest 100."""
        return self._core.events

    @property
    def connected_at(self) -> dt.datetime | None:
        """When the broker accepted the present connection, or the last one (UTC)."""
        return self._core.connected_at

    @property
    def close_reason(self) -> LabError | None:
        """Why the session is closed; None while it is not, or if that was asked for."""
        return self._core.close_reason

    @property
    def unacknowledged(self) -> int:
        """Messages at QoS 1 and 2 that were sent and not acknowledged: what :meth:`reconnect` sends again."""
        return self._core.unacknowledged

    @property
    def queued(self) -> int:
        """Messages published without a connection that wait for one."""
        return self._core.queued

    @property
    def stats(self) -> SessionStats:
        """Counters, as of now."""
        core = self._core
        return self._caller.look(lambda: core.stats)

    @property
    def trace(self) -> Trace:
        """Events of the connection; ``trace.detail = True`` records every packet."""
        return self._core.trace

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """Feeds that were not unsubscribed, oldest first."""
        return tuple(self.handle_of(feed) for feed in self._core.feeds)

    @property
    def streams(self) -> tuple[StreamInfo, ...]:
        """The streams that carry the session: control stream, data streams, the newest 64 that are over; as of now."""
        return self._caller.look(lambda: self._core.streams)

    @property
    def mapping(self) -> str:
        """How streams are used: as ``streams=`` asked, unless the transport or the broker cannot do that."""
        return self._core.mapping

    @property
    def flows(self) -> tuple[FlowInfo, ...]:
        """With ``streams="flows"``: all flows that either end keeps, with a stream or waiting to be recovered."""
        return self._caller.look(lambda: self._core.flows)

    @property
    def unrouted(self) -> MessageLog:
        """The newest messages that belonged to no feed; see :attr:`AsyncSession.unrouted`."""
        return self._core.unrouted

    def __repr__(self) -> str:
        feeds = len(self._core.feeds)
        return (
            f"<Session {self.client_id[:60]!r} at {self.url}: {self.state}, MQTT {self.version} over "
            f"{self.transport.upper()}{self._instead()}, {feeds} feed{'s' * (feeds != 1)}>"
        )

    def _repr_html_(self) -> str:
        from mqttquic_lab.views.summary import session_html

        core = self._core
        return session_html(
            core.handshake,
            state=self.state,
            feeds=[(", ".join(feed.filters), feed.log.total, feed.log.dropped) for feed in core.feeds],
            counters={
                "messages received": core.stats.messages_received,
                "messages sent": core.stats.messages_sent,
                "messages queued": core.queued,
                "datagrams sent": core.stats.datagrams_sent,
                "datagrams lost": core.stats.datagrams_lost + core.stats.datagrams_dropped,
                "streams beside control": sum(info.kind != "control" and info.state == "open" for info in self.streams),
                "flows kept": sum(info.id != 0 for info in self.flows),
            },
            errors=[(error.time, error.where, error.message) for error in core.errors],
        )

    def _instead(self) -> str:
        wanted = self._core.options.streams
        missed = f", {self.mapping} instead of {wanted}" if wanted != self.mapping else ""
        return (" instead of QUIC" if self._core.connection.report.fallback_reason else "") + missed
