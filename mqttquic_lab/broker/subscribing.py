"""SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a new subscription brings (MQTT 5.0 section 3.8.4)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mqttquic_lab.broker.router import may_receive
from mqttquic_lab.mqtt import ReasonCode, SubAck, UnsubAck, split_shared

if TYPE_CHECKING:
    from mqttquic_lab.broker.pipeline import Pipeline
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Session
    from mqttquic_lab.mqtt import Subscribe, Unsubscribe

BATCH = 64 * 1024
"""Bytes of retained messages after which to see whether the client keeps up."""
QUICK = 1000
"""Retained messages in the store up to which looking for matches takes no time worth speaking of."""


def subscribe(
    server: BrokerServer, session: Session, packet: Subscribe, retained: RetainedDelivery
) -> tuple[SubAck, str]:
    """Enter the subscriptions of a SUBSCRIBE; return the answer, and why something in it was refused.

    Filters have been checked by the decoder: one that is not well-formed (``a#b``) makes the packet malformed and ends
    the connection (sections 4.7.1 and 4.13.1), as it does at EMQX and mosquitto. 0x8F in SUBACK is for those that are
    well-formed and not accepted (section 3.9.3): here those with too many levels.

    ``$share/`` works for 3.1.1 clients as well, as in other brokers: to take it for the name of a topic level would
    serve nobody.
    """
    identifiers = packet.properties.get("subscription_identifier")
    identifier = identifiers[0] if identifiers else None
    codes: list[ReasonCode] = []
    reason = ""
    for subscription in packet.subscriptions:
        topic_filter = subscription.filter
        is_shared = split_shared(topic_filter)[0] is not None
        known = topic_filter in session.subscriptions
        rights = session.owner.rights
        if rights is not None and not rights.may_subscribe(topic_filter):
            server.counters.subscriptions_refused += 1
            codes.append(ReasonCode.NOT_AUTHORIZED)
            reason = reason or f"subscribing to {topic_filter} is not allowed"
            continue
        if topic_filter.count("/") >= server.config.max_topic_levels:
            server.counters.subscriptions_refused += 1
            codes.append(ReasonCode.TOPIC_FILTER_INVALID)
            reason = reason or f"filters have at most {server.config.max_topic_levels} levels here"
            continue
        if not known and len(session.subscriptions) >= server.config.max_subscriptions:
            server.counters.subscriptions_refused += 1
            codes.append(ReasonCode.QUOTA_EXCEEDED)
            reason = reason or f"{server.config.max_subscriptions} subscriptions are held already"
            continue
        is_new = server.router.subscribe(session, subscription, identifier)
        codes.append(ReasonCode(subscription.qos))
        if not is_shared and (subscription.retain_handling == 0 or (subscription.retain_handling == 1 and is_new)):
            retained.add(topic_filter, subscription.qos, identifier)
    return SubAck(packet.packet_id, tuple(codes), {}), reason


def unsubscribe(server: BrokerServer, session: Session, packet: Unsubscribe) -> UnsubAck:
    """Remove the subscriptions of an UNSUBSCRIBE and return the answer."""
    codes = tuple(
        ReasonCode.SUCCESS if server.router.unsubscribe(session, f) else ReasonCode.NO_SUBSCRIPTION_EXISTED
        for f in packet.filters
    )
    return UnsubAck(packet.packet_id, codes, {})


class RetainedDelivery:
    """Brings retained messages to one client, no faster than it takes them.

    There may be many, and a SUBSCRIBE is cheap to send: so the messages are not queued but looked up when the client
    has room for them, filter by filter.
    """

    __slots__ = ("_client", "_filter", "_filters", "_identifiers", "_is_scheduled", "_qos", "_server", "_topics")

    def __init__(self, client: Pipeline, server: BrokerServer) -> None:
        self._client = client
        self._server = server
        self._filters: dict[str, tuple[int, int | None]] = {}
        self._topics: deque[str] = deque()
        self._filter = ""
        self._qos = 0
        self._identifiers: tuple[int, ...] = ()
        self._is_scheduled = False

    def add(self, topic_filter: str, qos: int, identifier: int | None) -> None:
        """Bring what matches a filter; :meth:`pump` does it. The same filter twice is brought once."""
        if len(self._server.retained_for(topic_filter)):
            self._filters[topic_filter] = (qos, identifier)

    def pump(self) -> None:
        """Send as much as the client takes now."""
        if (not self._topics and not self._filters) or self._is_scheduled:
            return
        client = self._client
        session = client.session
        if client.is_ended or session is None:
            return
        now = self._server.clock.time()
        batch = 0
        while not client.outbox.is_full and not session.queue:
            if not self._topics:
                if not self._filters:
                    return
                self._filter = next(iter(self._filters))
                self._qos, identifier = self._filters.pop(self._filter)
                self._identifiers = () if identifier is None else (identifier,)
                retained = self._server.retained_for(self._filter)
                self._topics.extend(retained.topics(self._filter))
                if len(retained) > QUICK:
                    # One search per loop tick: a burst of SUBSCRIBEs must not stop everybody else.
                    self._is_scheduled = True
                    self._server.call_soon(self._continue)
                    return
                continue
            topic = self._topics.popleft()
            message = self._server.retained_for(topic).get(topic, now)
            entry = session.subscriptions.get(self._filter)
            if message is None or entry is None or (entry.no_local and message.publisher == session.client_id):
                continue
            if not may_receive(session, topic):
                self._server.router.withheld += 1
                continue
            session.deliver(message, min(message.qos, self._qos), True, self._identifiers)
            batch += message.size
            if batch > BATCH:
                batch = 0
                client.outbox.flush()

    def _continue(self) -> None:
        self._is_scheduled = False
        self.pump()
