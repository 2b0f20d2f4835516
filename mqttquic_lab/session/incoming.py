"""What arrives on the control stream: each packet goes to its part of the session, and feeds that wait are woken."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import ConnectionState, Publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt import Auth, ConnAck, Deliveries, Disconnect, Packet, Version
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.feed import AsyncFeed
    from mqttquic_lab.session.publishing import Publisher
    from mqttquic_lab.session.receiving import Receiver
    from mqttquic_lab.session.subscribing import Subscriber


class Incoming:
    """Hands out the packets of a session's control stream. On its loop only.

    Attributes
    ----------
    channel : PacketChannel
        The control stream of the present connection.
    feeds : set of AsyncFeed
        Feeds with somebody waiting, to be woken after packets have arrived.
    """

    def __init__(
        self,
        channel: PacketChannel,
        receiver: Receiver,
        deliveries: Deliveries,
        publisher: Publisher,
        subscriber: Subscriber,
        level: Version,
        *,
        on_connack: Callable[[ConnAck], None],
        on_disconnect: Callable[[Disconnect], None],
        on_auth: Callable[[Auth], None],
    ) -> None:
        self.channel = channel
        self.feeds: set[AsyncFeed] = set()
        self._receiver = receiver
        self._deliveries = deliveries
        self._level = level
        self._replies: list[bytes] = []
        self._handlers: dict[int, Callable[[Any], object]] = {
            2: on_connack,
            4: publisher.acknowledge,
            5: publisher.acknowledge,
            6: self._on_pubrel,
            7: publisher.acknowledge,
            9: subscriber.answered,
            11: subscriber.answered,
            13: lambda _: self.channel.on_pong(),
            14: on_disconnect,
            15: on_auth,
        }

    def on_packets(self, packets: list[Packet]) -> None:
        """Take packets in, in the order of their arrival; what they ask for is answered in one go."""
        now = time_ns()
        channel, receiver, replies = self.channel, self._receiver, self._replies
        try:
            for packet in packets:
                if type(packet) is Publish and channel.state == ConnectionState.CONNECTED:
                    receiver.publish(packet, now, replies)
                elif channel.ended:
                    break  # what follows DISCONNECT or a refusal
                else:
                    channel.check_received(packet)
                    if type(packet) is Publish:
                        receiver.publish(packet, now, replies)
                    else:
                        self._handlers[packet.TYPE](packet)
        finally:
            if replies:
                if not channel.ended:
                    channel.write(b"".join(replies), len(replies))
                replies.clear()
            self.wake_feeds()

    def wake_feeds(self) -> None:
        """Wake the feeds that have somebody waiting."""
        if self.feeds:
            self.feeds = {feed for feed in self.feeds if feed.wake()}

    def _on_pubrel(self, packet: Any) -> None:
        self._replies.append(self._deliveries.release(packet).encode(self._level))
