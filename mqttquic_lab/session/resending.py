"""Messages at QoS 1 and 2 from one connection to the next (MQTT 5.0 section 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError, PublishError
from mqttquic_lab.mqtt import DeliveryState, PubAck, PubComp, PubRec, PubRel, ReasonCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt import Deliveries, Delivery
    from mqttquic_lab.session.packet_stream import PacketStream
    from mqttquic_lab.session.results import SessionStats


class Forsaken:
    """Nobody: who waited for the message was told that the connection is lost; the message itself goes on."""

    __slots__ = ()
    abandoned = False  # it has been sent, and must stay until it is acknowledged

    def sent(self) -> None:
        """Nobody times it."""

    def finished(self, delivery: Delivery, code: int, packet: PubAck | PubRec | PubComp) -> None:
        """Nobody waits for it."""

    def lost(self, error: DisconnectedError) -> None:
        """Nobody waits for it."""


_FORSAKEN = Forsaken()

Unfinished = tuple[list[tuple["Delivery", int]], list["Delivery"]]
"""Messages sent, with the packet identifiers they had, and messages that waited to be sent."""


class Resender:
    """Keeps a stream's messages between connections and sends them again. On the session's loop only.

    Parameters
    ----------
    deliveries : Deliveries
        The exchanges.
    stats : SessionStats
        Counted into.
    acknowledge : callable(PubAck or PubRec)
        Takes an acknowledgement as if it had come from the broker.
    """

    def __init__(
        self, deliveries: Deliveries, stats: SessionStats, acknowledge: Callable[[PubAck | PubRec], None]
    ) -> None:
        self._deliveries = deliveries
        self._stats = stats
        self._acknowledge = acknowledge

    def suspend(self, gone: Callable[[str], DisconnectedError]) -> None:
        """Tell all who wait that the connection is lost; keep what was sent, drop what was not."""
        deliveries = self._deliveries
        deliveries.suspend()
        unsent = deliveries.drop_queued(_any)
        for delivery in [*deliveries.unfinished(), *unsent]:
            delivery.token.lost(gone(f"the message on {delivery.topic!r} was not acknowledged"))
            delivery.token = _FORSAKEN

    def resume(self, channel: PacketStream, receive_maximum: int, kept: bool) -> int:
        """Send over `channel` what is not acknowledged; returns how many packets.

        Parameters
        ----------
        channel : PacketStream
            Control stream of the new connection, accepted.
        receive_maximum : int
            The broker's.
        kept : bool
            Whether the broker still has the session. If not, messages begin anew, except those at QoS 2 that it has
            accepted: they are its own since then [MQTT-4.3.3-8].
        """
        if not kept:
            memory = self.remember()
            self._deliveries.clear()
            self.begin_anew(memory)
        return self._go_on(channel, receive_maximum)

    def remember(self) -> Unfinished:
        """Return what is not acknowledged, for :meth:`begin_anew`."""
        unsent = [d for d in self._deliveries.drop_queued(_any) if not d.token.abandoned]
        return [(d, d.packet_id or 0) for d in self._deliveries.unfinished()], unsent

    def begin_anew(self, memory: Unfinished) -> None:
        """Put messages that the broker knows nothing of any more into the queue, for :meth:`resume`.

        Those at QoS 2 that it has accepted (PUBREC) are done: they are its own since then [MQTT-4.3.3-8].
        """
        sent, unsent = memory
        self._deliveries.suspend()  # from here on messages queue up, in their old order
        for delivery, packet_id in sent:
            if delivery.state == DeliveryState.AWAIT_PUBCOMP:
                delivery.token.finished(delivery, delivery.accepted, PubComp(packet_id))
            else:
                if delivery.token.abandoned:
                    delivery.token = _FORSAKEN
                self._begin(delivery)
        for delivery in unsent:
            self._begin(delivery)

    def _go_on(self, channel: PacketStream, receive_maximum: int) -> int:
        items = self._deliveries.resume(receive_maximum)
        self._send(channel, items)
        return len(items)

    def _begin(self, d: Delivery) -> None:
        """Put a message into the queue as a new one."""
        try:
            self._deliveries.send(d.topic, d.payload, d.qos, d.retain, d.properties, d.token)
        except PublishError as error:
            failure = DisconnectedError(f"the message on {d.topic!r} was not acknowledged, and {error}")
            failure.__cause__ = error
            d.token.lost(failure)

    def _send(self, channel: PacketStream, items: list[Delivery | PubRel]) -> None:
        for item in items:
            packet = item.encode(channel.version)
            if isinstance(item, PubRel):
                channel.write(packet)
            elif len(packet) <= channel.limit:
                item.token.sent()
                channel.write(packet)
                self._stats.messages_sent += 1
            else:
                # It fitted into the connection that it was first sent on. As if the broker refused it [MQTT-3.2.2-15].
                assert item.packet_id is not None
                kind = PubAck if item.qos == 1 else PubRec
                self._acknowledge(kind(item.packet_id, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR))


def _any(_: Delivery) -> bool:
    return True
