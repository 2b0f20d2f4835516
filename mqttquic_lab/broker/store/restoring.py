"""Bringing everything back when a broker starts: read in portions on the store's thread, put in place on the loop.

What expired while the broker was down is gone: sessions (their wills are published then), messages. A client that was
connected when the broker ended without notice counts as having lost its connection now: nobody knows when it was, and
MQTT 5.0 section 3.1.2.11.2 lets a session live longer where a clock did not run. Its will is due from now on as well
(section 3.1.2.5: after a failure a server may publish wills when it has restarted).

Bounds hold for what comes back as for what arrives: what is too much by the settings of today is dropped and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker.message import Message
from mqttquic_lab.broker.sessions import Outgoing
from mqttquic_lab.broker.store.file import unpack_properties
from mqttquic_lab.broker.store.kept import KeptSession
from mqttquic_lab.errors import LabError, StoreError
from mqttquic_lab.mqtt import Subscription, Will, check_topic_filter, check_topic_name
from mqttquic_lab.mqtt.deliveries import Delivery
from mqttquic_lab.mqtt.state import DeliveryState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.broker.retained import RetainedMessages
    from mqttquic_lab.broker.router import Router
    from mqttquic_lab.broker.sessions import Session, SessionStore
    from mqttquic_lab.broker.store.journal import Journal
    from mqttquic_lab.broker.wills import Wills


class _Found:
    """What belongs to one session, until all of it is there."""

    __slots__ = ("expires_at", "kept", "received", "released", "sent", "session", "waiting")

    def __init__(self, session: Session, kept: KeptSession, expires_at: float | None) -> None:
        self.session = session
        self.kept = kept
        self.expires_at = expires_at
        self.sent: list[Delivery] = []
        self.released: list[tuple[int, Delivery]] = []
        self.waiting: list[Outgoing] = []
        self.received: list[int] = []


async def restore(
    journal: Journal,
    sessions: SessionStore,
    router: Router,
    retained: RetainedMessages,
    wills: Wills,
    now: float,
) -> None:
    """Put what the file holds where it belongs.

    Parameters
    ----------
    journal : Journal
        Opened; nothing noted yet.
    sessions, router, retained, wills
        The broker's, empty.
    now : float
        On the broker's clock.

    Raises
    ------
    StoreError
        The file is damaged.
    """
    try:
        await _Restoring(journal, sessions, router, retained, wills, now).run()
    except StoreError:
        raise
    except (LabError, ValueError, TypeError, AttributeError, KeyError) as error:  # rows that SQLite could read
        raise journal.file.damaged(f"{type(error).__name__}: {error}") from error


class _Restoring:
    def __init__(
        self,
        journal: Journal,
        sessions: SessionStore,
        router: Router,
        retained: RetainedMessages,
        wills: Wills,
        now: float,
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._router = router
        self._retained = retained
        self._wills = wills
        self._now = now
        self._found: dict[int, _Found] = {}
        self._messages: dict[int, Message] = {}
        self._expired: list[tuple[int, str]] = []
        self._gone: list[int] = []

    async def _rows(self, query: str) -> AsyncIterator[list[Any]]:
        journal = self._journal
        cursor = await journal.in_thread(journal.file.begin_reading, query)
        while rows := await journal.in_thread(journal.file.read, cursor):
            yield rows

    async def run(self) -> None:
        await self._read_sessions()
        await self._read_subscriptions()
        await self._read_messages()
        await self._read_deliveries()
        async for rows in self._rows("SELECT place FROM received"):
            for (place,) in rows:
                found = self._found.get(place >> 16)
                if found is not None:
                    found.received.append(place & 0xFFFF)
        refused = await self._read_retained()
        wills = await self._read_wills()
        # From here on everything is noted again, and all of it happens in one loop tick.
        journal = self._journal
        journal.begin()
        for number in self._gone:
            journal.delta.remove_delivery(number)
            journal.note()
        for topic in refused:
            journal.delta.retained[topic] = None
            journal.note()
        for key, _ in self._expired:
            journal.delta.end_session(key)
            journal.note()
        self._retained.journal = journal
        self._settle_sessions()
        self._settle_wills(wills)
        journal.drop_unneeded()
        self._sessions.shrink()

    # --- sessions -----------------------------------------------------------------------------------------------

    async def _read_sessions(self) -> None:
        journal = self._journal
        async for rows in self._rows("SELECT key, client_id, expiry_interval, expires_at FROM session"):
            for key, client_id, interval, expires_epoch in rows:
                journal.next_session = max(journal.next_session, key + 1)
                expires_at = journal.from_epoch(expires_epoch)
                if expires_at is not None and expires_at <= self._now:
                    self._expired.append((key, client_id))
                    continue
                session = self._sessions.restored(client_id, interval)
                self._found[key] = _Found(session, KeptSession(journal, key), expires_at)

    async def _read_subscriptions(self) -> None:
        query = "SELECT session, filter, qos, no_local, retain_as_published, identifier FROM subscription"
        async for rows in self._rows(query):
            for key, topic_filter, qos, no_local, as_published, identifier in rows:
                found = self._found.get(key)
                if found is not None:
                    check_topic_filter(topic_filter)
                    subscription = Subscription(topic_filter, qos, bool(no_local), bool(as_published))
                    self._router.subscribe(found.session, subscription, identifier)

    # --- messages -----------------------------------------------------------------------------------------------

    async def _read_messages(self) -> None:
        journal = self._journal
        query = "SELECT number, topic, payload, qos, retain, properties, expires_at FROM message"
        async for rows in self._rows(query):
            for number, topic, payload, qos, retain, properties, expires_epoch in rows:
                check_topic_name(topic)
                message = Message(topic, payload, qos, bool(retain), unpack_properties(properties, "PUBLISH"))
                message.expires_at = journal.from_epoch(expires_epoch)
                self._messages[number] = message
                journal.next_message = max(journal.next_message, number + 1)
                journal.adopt(message, number)

    async def _read_deliveries(self) -> None:
        journal = self._journal
        query = (
            "SELECT number, session, message, qos, retain, identifiers, packet_id, released FROM delivery "
            "ORDER BY number"
        )
        async for rows in self._rows(query):
            for number, key, message_number, qos, retain, identifiers, packet_id, released in rows:
                journal.next_delivery = max(journal.next_delivery, number + 1)
                found = self._found.get(key)
                if found is None:  # of a session that has expired
                    self._gone.append(number)
                    continue
                message = self._messages[message_number]
                journal.take(message)
                subscriptions = tuple(map(int, identifiers.split(","))) if identifiers else ()
                outgoing = Outgoing(message, qos, bool(retain), subscriptions, number)
                if packet_id is None:
                    found.waiting.append(outgoing)
                    continue
                delivery = Delivery(message.topic, message.payload, qos, False, None, outgoing, packet_id)
                if released is None:
                    found.sent.append(delivery)
                else:
                    delivery.state = int(DeliveryState.AWAIT_PUBCOMP)
                    found.released.append((released, delivery))
                    journal.next_release = max(journal.next_release, released)

    async def _read_retained(self) -> list[str]:
        """Retain again what was; returns the topics for which there is no room any more."""
        refused: list[str] = []
        async for rows in self._rows("SELECT topic, message FROM retained"):
            for topic, number in rows:
                message = self._messages[number]
                if not message.is_expired(self._now) and self._retained.store(message, self._now):
                    self._journal.take(message)
                else:
                    refused.append(topic)
        return refused

    async def _read_wills(self) -> list[tuple[str, Will, float | None]]:
        found: list[tuple[str, Will, float | None]] = []
        async for rows in self._rows("SELECT client_id, topic, payload, qos, retain, properties, due_at FROM will"):
            for client_id, topic, payload, qos, retain, properties, due_epoch in rows:
                will = Will(topic, payload, qos, bool(retain), unpack_properties(properties, "WILL"))
                self._journal.adopt_will(client_id)
                found.append((client_id, will, self._journal.from_epoch(due_epoch)))
        return found

    # --- putting it together ------------------------------------------------------------------------------------

    def _settle_sessions(self) -> None:
        for found in self._found.values():
            session = found.session
            found.released.sort(key=lambda entry: entry[0])
            session.restore(found.sent, [delivery for _, delivery in found.released], found.received, found.waiting)
            session.kept = found.kept
            session.trim()
            self._sessions.leave(session, expires_at=found.expires_at)

    def _settle_wills(self, wills: list[tuple[str, Will, float | None]]) -> None:
        expired = {client_id for _, client_id in self._expired}
        for client_id, will, due_at in wills:
            session = self._sessions.get(client_id) if client_id not in expired else None
            self._wills.restore(client_id, session, will, due_at)
