"""One flow with its verbs: a data stream whose state may outlive the QUIC stream it is on (MQoQ 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, DeliveryState, FlowPhase, Role
from mqttquic_lab.session.flow_channel import FlowChannel
from mqttquic_lab.session.flow_routing import FlowRouter
from mqttquic_lab.session.flow_spec import FlowInfo, FlowSpec, stream_code
from mqttquic_lab.session.mapping import MappedPublisher
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.resending import Resender
from mqttquic_lab.session.stream import AsyncStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Deliveries, Delivery, Flow, FlowHeader, Packet
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.session.flow_streams import FlowStreams
    from mqttquic_lab.session.resending import Unfinished
    from mqttquic_lab.session.routing import Router
    from mqttquic_lab.session.streams import StreamKind

PINGRESP = 13


class FlowStream(AsyncStream):
    """A flow of a session that speaks ``MQTT-next``, on the QUIC stream that it has at present.

    It is the same object for as long as the flow lives: recovery and take-over change its :attr:`id`.
    """

    _streams: FlowStreams

    def __init__(
        self, streams: FlowStreams, stream: ByteStream, kind: StreamKind, entry: Flow, spec: FlowSpec | None = None
    ) -> None:
        self._streams = streams
        self.entry = entry
        """The flow in the session's table."""
        self.spec = spec or FlowSpec(entry.id, entry.header.flags, entry.header.expire_interval)
        """As it was asked for; flows of the broker are as their header says."""
        self.resent = 0
        """Packets that were sent again when it came to its present stream."""
        self.is_retired = False
        """Whether it was asked to end: it does when nothing is under way any more, on whatever stream."""
        self.topic = ""
        """The topic that it was opened for, if the session did that."""
        entry.owner_data = self
        one_way = bool((stream.id or 0) & 2)
        super().__init__(streams.context, stream, kind, streams.over, unidirectional=one_way)
        self.answers_elsewhere = streams.context.is_one_way
        if not self._is_shared:
            self.publisher.ready = self.subscriber.ready = streams.context.publisher.ready
        elif kind == "explicit":
            self.outlet = MappedPublisher(streams, streams.context.publisher, only=self)
        self._receiver.aliases = self._aliases
        if kind == "server":
            self._receiver.look_up_in(streams.every_router)
        self._handlers[PINGRESP] = self._on_stray
        self._stranded: list[object] = []
        self._resender = Resender(self.deliveries, streams.context.stats, self.publisher.acknowledge)

    def __repr__(self) -> str:
        return f"<AsyncStream {self.id} ({self.kind}), flow {self.entry.id}: {self.state}>"

    def _make_channel(self, stream: ByteStream) -> FlowChannel:
        context = self._context
        return FlowChannel(
            context.control,
            stream,
            context.stats,
            max_packet_size=context.options.maximum_packet_size or MAX_PACKET_SIZE,
            on_packets=self._on_packets,
            on_error=context.record,
            on_end=self._on_end,
            is_ours=self.kind != "server",
            ends=self._streams,
            flow_id=self.entry.id,
        )

    def _shares_books(self) -> bool:
        return self._context.is_one_way

    def _books(self) -> tuple[Deliveries, Router]:
        if self.kind == "server" and self._is_shared:
            return self.entry.deliveries, self._context.router
        return self.entry.deliveries, FlowRouter(self._streams.book.numbers)

    @property
    def _aliases(self) -> dict[int, str]:
        return self._context.aliases if self._is_shared else self.entry.aliases_in

    # What it is

    @property
    def flow(self) -> FlowInfo:
        """The flow: id, flags, where it stands, and whether it went on with the state of an earlier stream."""
        return self._streams.book.info(self.entry)

    @property
    def is_kept(self) -> bool:
        """Whether its state is there still: a flow that has a stream, or waits to be recovered."""
        return self._streams.book.has(self.entry)

    # Verbs

    async def take_over(self, *, timeout: float | str | None = 10.0) -> FlowStream:
        """See :meth:`AsyncStream.take_over`."""
        self._check_ours("takes it over")
        if not self.is_kept:
            raise UsageError(
                f"flow {self.entry.id} is gone: there is nothing to take over; open_stream() opens a new flow"
            )
        await self._context.session.open_stream(flow_id=self.entry.id, timeout=timeout)
        return self

    async def abort(self, code: str | int | None = None, *, timeout: float | str | None = 5.0) -> None:
        """See :meth:`AsyncStream.abort`."""
        known = stream_code("FLOW_PACKET_CANCELLED" if code is None else code)
        if self.channel.over:
            raise self.channel.gone("cannot abort")
        self._streams.abort(self, known)

    async def discard(self, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`AsyncStream.discard`."""
        self._check_ours("discards it")
        await self._streams.discard(self, check_timeout(timeout))

    def _check_ours(self, what: str) -> None:
        if self.kind == "server":
            raise UsageError(
                f"flow {self.entry.id} is the broker's, and only its owner {what} (MQoQ draft section 9.3)"
            )

    def _give_up_closing(self, what: str) -> None:
        self._streams.abort(self, stream_code("FLOW_CANCELLED"), f"it did not close in order: {what}")

    def _check_publish(self, qos: int) -> None:
        if self.unidirectional and not self.answers_elsewhere and qos:
            raise UsageError(
                f"flow {self.entry.id} is unidirectional, so no acknowledgement can come (MQoQ draft section 9.1.2): "
                "publish at QoS 0, or on a bidirectional flow"
            )

    def retire(self) -> None:
        """Take no more verbs, and end when nothing is under way any more, also after a reconnect."""
        self.is_retired = True
        super().retire()

    # From stream to stream

    def attach(self, streams: FlowStreams, stream: ByteStream, entry: Flow) -> None:
        """Put the flow on another stream; what of its state is there is sent by :meth:`go_on`."""
        self.join(streams)
        self.entry = entry
        entry.owner_data = self
        self._go_on_over(stream)
        self._receiver.restart(stream.id, aliases=self._aliases)
        if self._is_shared:
            if self.kind == "explicit":
                self.outlet = MappedPublisher(streams, streams.context.publisher, only=self)
        else:
            self.publisher.limits = self._context.limits()
            self.publisher.move(self.channel)
        self.subscriber.limits = self._context.limits()

    def go_on(self, *, kept: bool) -> None:
        """Send again what has no answer, on the present stream.

        Parameters
        ----------
        kept : bool
            Whether the broker is to have the state: else subscriptions are made anew. Messages must be in the queue
            then (:meth:`begin_anew`).
        """
        self.resent = 0
        if not self._is_shared:
            self.resent = self._resender.resume(self.channel, self._context.limits().receive_maximum, True)
        self.subscriber.resume(self.channel, kept)

    def leave(self) -> None:
        """Leave the stream for another one, with everything that is under way."""
        self._is_moving = True
        self._stranded = list(self.channel.riders)
        self.channel.riders.clear()
        self.channel.finish()

    def send_stranded(self) -> None:
        """Send again what went out on a stream that mqttv5 has refused, and is acknowledged on the control stream."""
        stranded, self._stranded = self._stranded, []
        for delivery in self.deliveries.unfinished():
            if delivery.token in stranded and delivery.packet_id and delivery.state != DeliveryState.AWAIT_PUBCOMP:
                delivery.dup = True
                self.channel.write(delivery.encode(self.channel.version))
                self.channel.riders.add(delivery.token)

    def join(self, streams: FlowStreams) -> None:
        """Belong to another connection, if still without a stream on it."""
        self._streams, self._context, self._on_over = streams, streams.context, streams.over

    def cannot_go_on(self, error: LabError, memory: Unfinished | None = None) -> None:
        """Take that there is no stream to go on with; `memory` is what was under way, if the table has forgotten it."""
        self.channel.reason = error
        self.give_up()
        if memory is not None:
            self.fail_messages((*(delivery for delivery, _ in memory[0]), *memory[1]))
        if not self.is_kept:
            self.subscriber.end_all(error)

    @property
    def restarts(self) -> bool:
        """Whether it is to begin again when the broker has no state for it."""
        return self.entry.header.flags.abort_if_no_state and not self.spec.insists

    def remember(self) -> Unfinished | None:
        """Return what :meth:`begin_anew` needs, before the table forgets it."""
        return None if self._is_shared else self._resender.remember()

    def begin_anew(self, memory: Unfinished | None) -> None:
        """Put messages that the broker has forgotten into the queue, as new ones."""
        if memory is not None:
            self._resender.begin_anew(memory)

    def lose(self, reason: LabError | None, *, moving: bool) -> None:
        """Take the end of its stream."""
        self._is_moving = moving and self.is_kept
        if self._is_moving:
            self.channel.riders.clear()  # the control stream sends them again
            self.subscriber.suspend()
        self.channel.finish(reason)
        if self._is_moving and not self.entry.header.flags.persistent_subscriptions:
            self.subscriber.end_all(reason)

    def give_up(self) -> None:
        """Take that no other connection came: who waits is told, and what was sent is kept for recovery."""
        self._is_moving = False
        if not self._is_shared:
            self._resender.suspend(self.channel.gone)
        self.subscriber.lost()

    def fail_messages(self, given_up: Iterable[Delivery]) -> None:
        """Tell who waits for messages that went with the flow's state."""
        for delivery in given_up:
            delivery.token.lost(self.channel.gone(f"the message on {delivery.topic!r} was not acknowledged"))

    def _on_end(self) -> None:
        if not self._is_moving:
            if self.is_kept:
                self.give_up()
            else:
                if not self._is_shared:
                    self.publisher.lost()
                self.subscriber.lost()
            if not (self.is_kept and self.entry.header.flags.persistent_subscriptions):
                self.subscriber.end_all(self.channel.reason)
        self._over.set()
        self._on_over(self)

    # Packets

    def _admit(self, packet: Packet) -> bool:
        return self._streams.book.table.check_packet(self.id, packet, Role.SERVER) is not None

    def _on_stray(self, _: Any) -> None:
        self._context.stats.stray += 1


def phase_text(entry: Flow, *, is_there: bool) -> str:
    """Return where a flow stands, in words (MQoQ 9.17)."""
    if not is_there:
        return "gone"
    if entry.stream_id is None or entry.phase is FlowPhase.IDLE:
        return "kept"
    return entry.phase.name.lower().replace("_", " ")


def type_text(header: FlowHeader) -> str:
    """Return a flow's type in words."""
    return header.name.removesuffix(" FLOW").lower()
