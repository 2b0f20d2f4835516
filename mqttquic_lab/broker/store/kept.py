"""What a session tells the journal about itself, if it outlives its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.broker.store.delta import DeliveryRow, SubscriptionRow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.router import Entry
    from mqttquic_lab.broker.sessions import Outgoing
    from mqttquic_lab.broker.store.journal import Journal


class KeptSession:
    """The record of one session.

    Parameters
    ----------
    journal : Journal
        Where changes are noted.
    key : int
        The session's key in the file.
    """

    __slots__ = ("_journal", "key")

    def __init__(self, journal: Journal, key: int) -> None:
        self._journal = journal
        self.key = key

    def __repr__(self) -> str:
        return f"<KeptSession {self.key}>"

    # --- messages for the client --------------------------------------------------------------------------------

    def add(self, message: Message, qos: int, retain: bool, identifiers: tuple[int, ...]) -> int:
        """Note a QoS 1 or 2 message for the client; returns the delivery's number."""
        journal = self._journal
        number = journal.next_delivery
        journal.next_delivery += 1
        row = DeliveryRow(number, self.key, journal.take(message), qos, retain, identifiers, None, None)
        journal.delta.deliveries[number] = row
        journal.note()
        return number

    def _change(self, outgoing: Outgoing, packet_id: int, released: int | None) -> None:
        message, qos, retain, identifiers, number, _ = outgoing
        journal = self._journal
        journal.delta.deliveries[number] = DeliveryRow(
            number, self.key, journal.number_of(message), qos, retain, identifiers, packet_id, released
        )
        journal.note()

    def sending(self, outgoing: Outgoing, packet_id: int) -> None:
        """Note the packet identifier that a delivery is sent under for the first time."""
        self._change(outgoing, packet_id, None)

    def accepted(self, outgoing: Outgoing, packet_id: int) -> None:
        """Note the client's PUBREC."""
        journal = self._journal
        journal.next_release += 1
        self._change(outgoing, packet_id, journal.next_release)

    def remove(self, outgoing: Outgoing) -> None:
        """Note that a delivery is over."""
        self._journal.delta.remove_delivery(outgoing.number)
        self._journal.give_back(outgoing.message)
        self._journal.note()

    # --- messages from the client -------------------------------------------------------------------------------

    def received(self, packet_id: int) -> None:
        """Note a QoS 2 message received, so that it is not taken twice."""
        self._journal.delta.received[self.key, packet_id] = True
        self._journal.note()

    def completed(self, packet_id: int) -> None:
        """Note its PUBREL: the packet identifier is free for another message."""
        self._journal.delta.received[self.key, packet_id] = False
        self._journal.note()

    # --- subscriptions ------------------------------------------------------------------------------------------

    def subscribed(self, entry: Entry) -> None:
        """Note a subscription, new or replaced."""
        self._journal.delta.subscriptions[self.key, entry.filter] = SubscriptionRow(
            self.key, entry.filter, entry.qos, entry.no_local, entry.retain_as_published, entry.identifier
        )
        self._journal.note()

    def unsubscribed(self, topic_filter: str) -> None:
        """Note that a subscription ended."""
        self._journal.delta.subscriptions[self.key, topic_filter] = None
        self._journal.note()

    # --- the session itself -------------------------------------------------------------------------------------

    def changed(self, client_id: str, expiry_interval: int, expires_at: float | None) -> None:
        """Note when the session expires: on the broker's clock, or None while its client is connected."""
        self._journal.session_changed(self.key, client_id, expiry_interval, expires_at)

    def end(self, unfinished: Iterable[Outgoing]) -> None:
        """Note that the session is over, and with it these deliveries."""
        for outgoing in unfinished:
            self.remove(outgoing)
        self._journal.delta.end_session(self.key)
        self._journal.note()
