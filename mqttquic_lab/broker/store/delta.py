"""What has changed since the last transaction: the last state of each thing.

Numbers of messages and deliveries only rise, and a number is never used twice while a broker runs. So whatever has a
number from this delta on was never on disk, and if it goes before the delta is written it leaves no trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.mqtt import Will


class SessionRow(NamedTuple):
    """A session as it is kept."""

    key: int
    client_id: str
    expiry_interval: int
    """Seconds."""
    expires_at: float | None
    """Seconds since the epoch; None while its client is connected."""


class SubscriptionRow(NamedTuple):
    """A subscription as it is kept."""

    session: int
    filter: str
    qos: int
    no_local: bool
    retain_as_published: bool
    identifier: int | None


class DeliveryRow(NamedTuple):
    """A QoS 1 or 2 message on its way to one session, or waiting for it."""

    number: int
    session: int
    message: int
    """Number of the message; many deliveries share one."""
    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    packet_id: int | None
    """None until it is sent for the first time."""
    released: int | None
    """Place among the PUBRECs that came in, None before (QoS 2)."""


class WillRow(NamedTuple):
    """A will that waits for its connection to end, or after that for its delay."""

    client_id: str
    will: Will
    due_at: float | None
    """Seconds since the epoch; None while the client is connected."""


class Delta:
    """Changes to write in one transaction.

    Parameters
    ----------
    first_message, first_delivery : int
        The next numbers to be given out: what has these or higher ones was never on disk.

    Attributes
    ----------
    messages : dict of int to (Message, float or None)
        New ones, with the time at which they expire, seconds since the epoch.
    gone_messages, gone_deliveries : list of int
        Numbers on disk that are needed no more.
    deliveries : dict of int to DeliveryRow
        New or changed ones.
    received : dict of (int, int) to bool
        (Session key, packet identifier) -> whether a QoS 2 message received under it waits for its PUBREL.
    sessions : dict of int to SessionRow
        New or changed ones.
    ended : list of int
        Keys of sessions that are over, with all they had.
    subscriptions : dict of (int, str) to SubscriptionRow or None
        (Session key, filter) -> the subscription, None if it ended.
    retained : dict of str to int or None
        Topic -> number of its retained message, None if it has none any more.
    wills : dict of str to WillRow or None
        Client identifier -> its will, None if it has none any more.
    count, nbytes : int
        Changes noted, and topic and payload bytes among them: how much there is to write, roughly.
    """

    __slots__ = (
        "count", "deliveries", "ended", "first_delivery", "first_message", "gone_deliveries", "gone_messages",
        "messages", "nbytes", "received", "retained", "sessions", "subscriptions", "wills",
    )  # fmt: skip

    def __init__(self, first_message: int, first_delivery: int) -> None:
        self.first_message = first_message
        self.first_delivery = first_delivery
        self.messages: dict[int, tuple[Message, float | None]] = {}
        self.gone_messages: list[int] = []
        self.deliveries: dict[int, DeliveryRow] = {}
        self.gone_deliveries: list[int] = []
        self.received: dict[tuple[int, int], bool] = {}
        self.sessions: dict[int, SessionRow] = {}
        self.ended: list[int] = []
        self.subscriptions: dict[tuple[int, str], SubscriptionRow | None] = {}
        self.retained: dict[str, int | None] = {}
        self.wills: dict[str, WillRow | None] = {}
        self.count = 0
        self.nbytes = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def __repr__(self) -> str:
        return f"<Delta: {self.count} changes, {self.nbytes} B>"

    def remove_message(self, number: int) -> None:
        """Note that nobody needs a message any more."""
        self.count += 1
        entry = self.messages.pop(number, None)
        if entry is not None:
            self.nbytes -= entry[0].size
        if number < self.first_message:
            self.gone_messages.append(number)

    def remove_delivery(self, number: int) -> None:
        """Note that a delivery is over."""
        self.count += 1
        self.deliveries.pop(number, None)
        if number < self.first_delivery:
            self.gone_deliveries.append(number)

    def end_session(self, key: int) -> None:
        """Note that a session is over. Its deliveries are removed one by one, for the sake of their messages."""
        self.count += 1
        self.sessions.pop(key, None)
        self.ended.append(key)

    def absorb(self, later: Delta) -> None:
        """Add what came after: this delta could not be written and is tried again with the next."""
        self.count += later.count
        for number, entry in later.messages.items():
            self.messages[number] = entry
            self.nbytes += entry[0].size
        self.deliveries.update(later.deliveries)
        count = self.count
        for number in later.gone_messages:
            self.remove_message(number)
        for number in later.gone_deliveries:
            self.remove_delivery(number)
        self.count = count
        self.received.update(later.received)
        for key in later.ended:
            self.sessions.pop(key, None)
        self.ended.extend(later.ended)
        self.sessions.update(later.sessions)
        self.subscriptions.update(later.subscriptions)
        self.retained.update(later.retained)
        self.wills.update(later.wills)
