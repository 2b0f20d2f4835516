"""``$SYS/broker/...``: the broker's figures as retained messages, by the names that mosquitto gave them.

Every ``sys_interval`` seconds the topics whose value changed are published anew. They are kept apart from the retained
messages of clients, so that they take no room from those, are in no store, and are in no figure about them. Clients
cannot publish there; wildcards at the first level do not match them [MQTT-4.7.2-1].

``load/...`` are moving averages per minute over 1, 5 and 15 minutes. What mosquitto does not have stands under
``$SYS/broker/transports/`` (clients connected over each) and ``$SYS/broker/quic/``. Mosquitto's ``heap/...`` has no
counterpart: Python does not know.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mqttquic_lab.broker.message import Message
from mqttquic_lab.broker.retained import RetainedMessages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttquic_lab.broker.clock import TimerHandle
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.status import BrokerStats

ROOT = "$SYS/broker/"
MAX_TOPICS = 200
"""More than there are."""
AVERAGES = {"1min": 1, "5min": 5, "15min": 15}
"""Last level of a ``load`` topic -> minutes."""

COUNTS = {
    "bytes/received": "bytes_in",
    "bytes/sent": "bytes_out",
    "clients/active": "clients",
    "clients/connected": "clients",
    "clients/expired": "sessions_expired",
    "clients/maximum": "clients_maximum",
    "clients/total": "sessions",
    "messages/received": "packets_in",
    "messages/sent": "packets_out",
    "publish/bytes/received": "payload_bytes_in",
    "publish/bytes/sent": "payload_bytes_out",
    "publish/messages/received": "messages_in",
    "publish/messages/sent": "messages_out",
    "retained messages/count": "retained",
    "subscriptions/count": "subscriptions",
    "quic/streams/total": "streams_total",
    "quic/datagrams/received": "datagrams_in",
    "quic/datagrams/sent": "datagrams_out",
    "quic/datagrams/lost": "datagrams_lost",
    "quic/migrations": "migrations",
    "quic/resumptions": "resumptions",
    "quic/early_data/accepted": "early_data_accepted",
    "quic/early_data/rejected": "early_data_rejected",
    "quic/early_data/messages": "early_messages",
    "quic/retries": "retries",
}
"""Topic -> counter of :class:`BrokerStats`."""

LOADS = {
    "load/bytes/received": "bytes_in",
    "load/bytes/sent": "bytes_out",
    "load/connections": "connects_total",
    "load/messages/received": "packets_in",
    "load/messages/sent": "packets_out",
    "load/publish/received": "messages_in",
    "load/publish/sent": "messages_out",
    "load/sockets": "connections_total",
}
"""Topic without its last level -> counter that it averages."""


class SysTopics:
    """Publishes the figures. On the broker's loop only.

    Parameters
    ----------
    server : BrokerServer
        Whose figures they are; started.
    interval : float
        Seconds between two accounts; 0 for none.

    Attributes
    ----------
    retained : RetainedMessages
        The newest of each, for subscribers to come.
    """

    def __init__(self, server: BrokerServer, interval: float) -> None:
        self.retained = RetainedMessages(MAX_TOPICS, 1024 * 1024)
        self._server = server
        self._interval = interval
        self._timer: TimerHandle | None = None
        self._values: dict[str, str] = {}
        self._before: dict[str, int] = {}
        self._averages: dict[tuple[str, str], float] = {}
        self._told_at = 0.0

    def start(self) -> None:
        """Give the first account; further ones follow."""
        if self._interval:
            self._told_at = self._server.clock.time()
            self._tell()

    def close(self) -> None:
        """Give no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        server = self._server
        now = server.clock.time()
        self._timer = server.clock.call_later(self._interval, self._tell)
        stats = server.stats()
        values = {**dict(self._figures(stats)), **dict(self._loads(stats, now - self._told_at))}
        self._told_at = now
        for topic, value in values.items():
            if self._values.get(topic) != value:
                message = Message(ROOT + topic, value.encode(), 0, True, now=now)
                self.retained.store(message, now)
                server.router.publish(message, None)
        self._values = values

    def _figures(self, stats: BrokerStats) -> Iterator[tuple[str, str]]:
        """Return topics and what they say."""
        from mqttquic_lab import __version__

        server = self._server
        yield "version", f"mqttquic-lab version {__version__}"
        yield "uptime", f"{int(stats.uptime)} seconds"
        for topic, name in COUNTS.items():
            yield topic, str(getattr(stats, name))
        away = str(stats.sessions - stats.clients)
        yield "clients/disconnected", away
        yield "clients/inactive", away
        yield "publish/messages/dropped", str(stats.dropped)
        yield "shared_subscriptions/count", str(server.router.shared_count)
        held = stats.retained + stats.queued
        yield "messages/stored", str(held)
        yield "store/messages/count", str(held)
        yield "store/messages/bytes", str(stats.retained_bytes + stats.queued_bytes)
        for transport, count in server.transports().items():
            yield f"transports/{transport}", str(count)

    def _loads(self, stats: BrokerStats, seconds: float) -> Iterator[tuple[str, str]]:
        """Return the moving averages per minute."""
        for topic, name in (*LOADS.items(), ("load/publish/dropped", "dropped")):
            count: int = getattr(stats, name)
            rate = (count - self._before.get(topic, 0)) * 60 / seconds if seconds else 0.0
            self._before[topic] = count
            for level, minutes in AVERAGES.items():
                fading = math.exp(-seconds / (60 * minutes))
                average = rate + fading * (self._averages.get((topic, level), 0.0) - rate)
                self._averages[topic, level] = average
                yield f"{topic}/{level}", f"{average:.2f}"
