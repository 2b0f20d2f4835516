"""An application message inside the broker, and the bytes it leaves as.

A message goes out to many, in few distinct forms: per protocol version, QoS, RETAIN flag and set of subscription
identifiers. Each form is encoded once; copies of QoS 1 and 2 differ only in the packet identifier, which is put
between the two halves of the encoded packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mqttquic_lab.mqtt import encode_publish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttquic_lab.mqtt import Version

NO_PROPERTIES: Mapping[str, Any] = {}
NOT_FORWARDED = ("topic_alias", "subscription_identifier", "message_expiry_interval")
"""Properties that belong to one hop, or (message expiry) change while a message waits."""


PUBLISHER = "x-mqtt-client-id"
"""User Property in which mqttv5 names the publisher to every subscriber."""


def named(properties: Mapping[str, Any], client_id: str) -> dict[str, Any]:
    """Return the properties of a PUBLISH with its publisher's client identifier among them."""
    return {**properties, "user_property": [*properties.get("user_property", ()), (PUBLISHER, client_id)]}


class Form(NamedTuple):
    """A PUBLISH with QoS 1 or 2 in two halves: everything between the first byte and the packet id, and the rest."""

    flags: int
    head: bytes
    tail: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole packet."""
        return 3 + len(self.head) + len(self.tail)

    def encode(self, packet_id: int, dup: bool = False) -> bytes:
        """Return the packet with this packet identifier."""
        first = self.flags | 8 if dup else self.flags
        return b"".join((bytes((first,)), self.head, packet_id.to_bytes(2, "big"), self.tail))


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _weight(properties: Mapping[str, Any]) -> int:
    """Return about how many bytes properties hold; 16 MiB of user properties must not pass for nothing."""
    total = 0
    for value in properties.values():
        if isinstance(value, str):
            total += _size(value)
        elif isinstance(value, bytes):
            total += len(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                total += sum(map(_size, item)) if isinstance(item, tuple) else 4
        else:
            total += 4
    return total


class Message:
    """One application message.

    Attributes
    ----------
    topic : str
    payload : bytes
    qos : int
        As published.
    retain : bool
        As published.
    properties : mapping
        MQTT 5.0 properties that travel on to subscribers; message expiry is in :attr:`expires_at` instead.
    expires_at : float or None
        When it may no longer be sent, on the broker's clock (MQTT 5.0 section 3.3.2.3.3).
    size : int
        Bytes of topic, payload and properties: what bounds count.
    publisher : str or None
        Client identifier of a retained message's publisher, who may not want it back [MQTT-3.8.3-3].
    """

    __slots__ = ("_forms", "expires_at", "payload", "properties", "publisher", "qos", "retain", "size", "topic")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        properties: Mapping[str, Any] = NO_PROPERTIES,
        now: float = 0.0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.expires_at: float | None = None
        if properties:
            expiry = properties.get("message_expiry_interval")
            if expiry is not None:
                self.expires_at = now + expiry
            if any(name in properties for name in NOT_FORWARDED):
                properties = {name: value for name, value in properties.items() if name not in NOT_FORWARDED}
        self.properties = properties
        self.size = _size(topic) + len(payload) + (_weight(properties) if properties else 0)
        self.publisher: str | None = None
        self._forms: dict[tuple[int, int, bool, tuple[int, ...], int | None], Any] = {}

    def __repr__(self) -> str:
        return f"<Message {self.topic!r} {len(self.payload)} B qos={self.qos} retain={self.retain}>"

    def is_expired(self, now: float) -> bool:
        """Whether its message expiry interval has run out [MQTT-3.3.2-5]."""
        return self.expires_at is not None and self.expires_at <= now

    def _remaining(self, version: Version, now: float) -> int | None:
        """Message expiry interval to send: what was received minus the time it waited [MQTT-3.3.2-6]."""
        if self.expires_at is None or version != 5:
            return None
        remaining = self.expires_at - now
        # Rounded to the nearest second: a message that only passes through keeps the interval it came with. None is
        # left of an interval of 0, which is for those who are there, and of a message that is sent again too late.
        return max(int(remaining + 0.5), 1) if remaining > 0 else 0

    def _properties(self, version: Version, identifiers: tuple[int, ...], remaining: int | None) -> Mapping[str, Any]:
        if version != 5:
            return NO_PROPERTIES
        if remaining is None and not identifiers:
            return self.properties
        properties = dict(self.properties)
        if remaining is not None:
            properties["message_expiry_interval"] = remaining
        if identifiers:
            properties["subscription_identifier"] = list(identifiers)
        return properties

    def at_most_once(self, version: Version, retain: bool, identifiers: tuple[int, ...], now: float) -> bytes:
        """Return the QoS 0 PUBLISH."""
        remaining = self._remaining(version, now)
        key = (version, 0, retain, identifiers, remaining)
        packet: bytes | None = self._forms.get(key)
        if packet is None:
            packet = encode_publish(
                self.topic, self.payload, retain=retain,
                properties=self._properties(version, identifiers, remaining), version=version,
            )  # fmt: skip
            self._remember(key, packet)
        return packet

    def form(self, version: Version, qos: int, retain: bool, identifiers: tuple[int, ...], now: float) -> Form:
        """Return the PUBLISH with QoS 1 or 2 in a form that takes any packet identifier."""
        remaining = self._remaining(version, now)
        key = (version, qos, retain, identifiers, remaining)
        form: Form | None = self._forms.get(key)
        if form is None:
            packet = encode_publish(
                self.topic, self.payload, qos=qos, retain=retain, packet_id=1,
                properties=self._properties(version, identifiers, remaining), version=version,
            )  # fmt: skip
            body = 2
            while packet[body - 1] & 0x80:  # remaining length, MQTT 5.0 section 1.5.5
                body += 1
            at = body + 2 + int.from_bytes(packet[body : body + 2], "big")
            form = Form(packet[0], packet[1:at], packet[at + 2 :])
            self._remember(key, form)
        return form

    def _remember(self, key: tuple[int, int, bool, tuple[int, ...], int | None], form: Any) -> None:
        if len(self._forms) >= 8:  # a retained message is asked for over years, with ever other identifiers
            self._forms.clear()
        self._forms[key] = form
