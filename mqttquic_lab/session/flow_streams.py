"""The flows of a session on one connection: opened, recovered, taken over, ended (MQoQ 9).

What an event of a stream means stands in :class:`~mqttquic_lab.mqtt.flows.FlowTable`; here its changes are carried out.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mqttquic_lab.errors import LabError, OperationTimeoutError, ProtocolError, StreamLimitError, UsageError
from mqttquic_lab.mqtt import FlowFlags, FlowHeader, FlowType
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, ErrorLevel, FlowError, StreamCode, stream_code_text
from mqttquic_lab.mqtt.flow_reader import HeaderReader
from mqttquic_lab.session.flow_channel import FlowChannel
from mqttquic_lab.session.flow_routing import EveryRouter
from mqttquic_lab.session.flow_spec import FlowSpec
from mqttquic_lab.session.flow_stream import FlowStream
from mqttquic_lab.session.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mqttquic_lab.mqtt import Change, Flow
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.session.flow_book import SessionFlows
    from mqttquic_lab.session.flow_spec import FlowOptions
    from mqttquic_lab.session.resending import Unfinished
    from mqttquic_lab.session.stream import AsyncStream
    from mqttquic_lab.session.streams import StreamContext, StreamKind
    from mqttquic_lab.session.subscribing import Subscriber

RESTART_TIMEOUT = 10.0
"""Seconds for which a flow that starts again waits for the stream credit that the refused one gives back."""


class FlowStreams(Streams):
    """The flows of a session on its present connection. On its loop only.

    Parameters
    ----------
    context : StreamContext
        What the streams have in common.
    book : SessionFlows
        The session's flows.
    carried : iterable of AsyncStream
        Plain data streams of an earlier connection.
    note : callable(str)
        Takes what is worth an event.
    """

    def __init__(
        self, context: StreamContext, book: SessionFlows, carried: Iterable[AsyncStream], note: Callable[[str], None]
    ) -> None:
        super().__init__(context, carried)
        self.book = book
        self._note = note
        self._is_accepted = False
        self._early: list[ByteStream] = []
        self._unread: dict[int, ByteStream] = {}
        self._restarts: set[asyncio.Task[None]] = set()
        self.every_router = EveryRouter(lambda: [context.router, *book.routers()])
        context.control.on_server_stream = self._on_server_stream
        context.control.fault_code = ConnectionCode.PROTOCOL_L0
        if context.is_one_way:
            context.subscriber.asker = self._asker

    control_flow = 0

    def begin(self) -> None:
        """Open the control flow: its header goes before CONNECT (MQoQ 9.10), but not to mqttv5, which knows none."""
        control = self.context.control
        change = self.book.table.open(0, now=self.book.now, flow_id=0)
        assert change.flow is not None
        if not self.context.is_one_way:
            control.stream.write(change.flow.header.encode())
        self._trace("flow_opened", change.flow)

    @property
    def is_lenient(self) -> bool:
        """Whether the broker stops streams that it still sends on (mqttv5)."""
        return self.context.is_one_way

    def _asker(self, packet_id: int) -> Subscriber | None:
        return next((s.subscriber for s in self if s.subscriber.asked(packet_id)), None)

    def _trace(self, name: str, entry: Flow) -> None:
        trace = self.context.control.connection.trace
        trace.emit("mqtt", name, flow=entry.id, stream=entry.stream_id, type=entry.header.name)

    # Opening

    def open_now(self, kind: StreamKind, *, unidirectional: bool = False, spec: FlowSpec | None = None) -> FlowStream:
        """Open a flow without waiting, or put one that exists on a new stream.

        Raises
        ------
        StreamLimitError
            The broker allows no more streams.
        UsageError
            The flow cannot be opened like this.
        """
        context = self.context
        if context.control.ended:
            raise context.control.gone("cannot open a flow")
        spec = spec or FlowSpec(unidirectional=unidirectional)
        table = self.book.table
        if len(table) >= table.max_flows and self.book.entry_of(spec.flow_id) is None:
            raise StreamLimitError(
                f"this session has {len(table)} flows, those that wait to be recovered included, and keeps no more: "
                "close or discard one"
            )
        opened = self._opened(unidirectional=spec.unidirectional)
        try:
            return self._start(opened, kind, spec)
        except UsageError:
            opened.reset(StreamCode.FLOW_CANCELLED)
            self._given_back[spec.unidirectional] += 1
            raise

    async def open(self, kind: StreamKind, *, unidirectional: bool = False, spec: FlowSpec | None = None) -> FlowStream:
        """Do what :meth:`open_now` does; waits for credit if the broker owes some."""
        spec = spec or FlowSpec(unidirectional=unidirectional)
        await self.wait_for_credit(unidirectional=spec.unidirectional)
        return self.open_now(kind, spec=spec)

    async def open_explicit(self, wanted: FlowOptions) -> FlowStream:
        """Open a flow that the user asked for."""
        spec = wanted.spec(self.book.entry_of(wanted.flow_id), one_way=self.context.is_one_way)
        stream = await self.open("explicit", spec=spec)
        stream.is_retired = False
        return stream

    async def open_topic(self, topic: str, *, unidirectional: bool) -> FlowStream:
        """Return a flow for the messages of a topic: the one it had, if that waits to be recovered."""
        for stream in self.book.recoverable:
            if stream.topic == topic:
                await self.wait_for_credit(unidirectional=unidirectional)
                if stream.is_kept and stream.channel.over:
                    self._recover(stream)
                    stream.is_retired = False
                    return stream
        stream = await self.open("topic", unidirectional=unidirectional)
        stream.topic = topic
        return stream

    def _start(self, opened: ByteStream, kind: StreamKind, spec: FlowSpec) -> FlowStream:
        """Put the flow that `spec` says on a stream just opened."""
        change = self.book.table.open(
            opened.id or 0,
            now=self.book.now,
            flow_id=spec.flow_id,
            flags=spec.flags,
            expire_interval=spec.expire_interval,
        )
        entry = change.flow
        assert entry is not None
        opened.write(entry.header.encode())
        self._trace("flow_opened", entry)
        stream: FlowStream | None = entry.owner_data
        if stream is None:
            stream = FlowStream(self, opened, kind, entry, spec)
        else:
            is_clean = entry.header.flags.clean
            self._leave(change, stream)
            stream.fail_messages(change.given_up)
            if is_clean:
                stream.subscriber.end_all(None)
            stream.spec = spec
            stream.attach(self, opened, entry)
            stream.go_on(kept=True)
        self._add(stream)
        self.book.arm()
        return stream

    def _leave(self, change: Change, stream: FlowStream) -> None:
        """Reset the streams that a flow has left for another one."""
        for number, code in change.resets:
            left = self.streams.get(number)
            if left is not None:
                left.channel.stream.reset(code)
        stream.leave()

    # From connection to connection

    def admitted(self, kept: bool) -> None:
        """Recover the flows that wait for it, or start them again if the broker has no session any more."""
        super().admitted(kept)
        self._is_accepted = True
        for stream in self.book.streams:
            stream.join(self)
        for stream in self.book.recoverable:
            if stream.is_retired and stream.is_idle:  # it was about to end
                self._let_go(stream, at_broker=kept)
        waiting = self.book.recoverable
        if kept:
            for stream in waiting:
                self._try(stream, lambda stream=stream: self._recover(stream))  # type: ignore[misc]
        else:
            memories = [(stream, stream.remember()) for stream in waiting]
            for change in self.book.table.clear():
                if change.flow is not None and not change.flow.is_ours:
                    self.book.settle(change)
            for stream, memory in memories:
                self._try(stream, lambda s=stream, m=memory: self._begin_again(s, m), memory)  # type: ignore[misc]
        going_on = [str(stream.entry.id) for stream in waiting if not stream.channel.ended]
        if going_on:
            packets = sum(stream.resent for stream in waiting)
            how = "go on with what both ends have kept" if kept else "began again, clean: the broker had no session"
            self._note(f"flows {', '.join(going_on)} {how}; {packets} packets sent again")
        for stream in waiting:
            if stream.is_retired and not stream.channel.ended:
                stream.retire()
            elif stream.topic and not stream.channel.ended and self.mapped is not None:
                self.mapped.adopt(stream.topic, stream)
        early, self._early = self._early, []
        for opened in early:
            self._read(opened)
            opened.resume_reading()
        self.book.arm()

    def _let_go(self, stream: FlowStream, *, at_broker: bool) -> None:
        """End a flow that has no stream and nothing under way; the broker may not have heard of its end (MQoQ 9.16)."""
        flow_id = stream.entry.id
        if at_broker and not self.context.is_one_way and self.credit(unidirectional=stream.unidirectional) > 0:
            self._begin_to_discard(stream, stream.unidirectional)
            stream.retire()
        else:
            self.book.settle(self.book.table.drop(flow_id))

    def _try(self, stream: FlowStream, work: Callable[[], object], memory: Unfinished | None = None) -> None:
        try:
            work()
        except UsageError as error:
            self.context.record("flows", error)
            stream.cannot_go_on(error, memory)

    @property
    def subscribers(self) -> list[Subscriber]:
        """Those of all flows, of those that wait to be recovered too."""
        waiting = [stream.subscriber for stream in self.book.waiting if stream.kind != "server"]
        return [*super().subscribers, *(subscriber for subscriber in waiting)]

    def _recover(self, stream: FlowStream) -> None:
        """Go on with a flow from the state that both ends have kept (MQoQ 9.15)."""
        entry = stream.entry
        # Without abort_if_no_state, the broker would start afresh in silence, and its subscriptions would be gone.
        insists = not stream.answers_elsewhere or bool(stream.subscriber.feeds)
        flags = replace(entry.header.flags, clean=False, abort_if_no_state=insists)
        spec = replace(stream.spec, flow_id=entry.id, flags=flags, unidirectional=stream.unidirectional, insists=False)
        self.open_now(stream.kind, spec=spec)

    def _begin_again(self, stream: FlowStream, memory: Unfinished | None) -> None:
        """Start a flow again of which the broker has nothing: subscribe anew, send anew what was not acknowledged."""
        opened = self._opened(unidirectional=stream.unidirectional)
        flags = replace(stream.entry.header.flags, clean=True, abort_if_no_state=False)
        if not stream.answers_elsewhere:
            self.book.hand_over(stream.deliveries)
        try:
            change = self.book.table.open(
                opened.id or 0,
                now=self.book.now,
                flow_id=stream.entry.id,
                flags=flags,
                expire_interval=stream.entry.header.expire_interval,
            )
        finally:
            self.book.hand_over(None)
        entry = change.flow
        assert entry is not None
        opened.write(entry.header.encode())
        self._trace("flow_opened", entry)
        stream.begin_anew(memory)
        stream.attach(self, opened, entry)
        self._add(stream)
        stream.go_on(kept=False)
        stream.send_stranded()

    def lost(self, *, moving: bool = False) -> None:
        """Take the end of the connection: all flows end abortively (MQoQ 9.13.2)."""
        for task in self._restarts:
            task.cancel()
        self._early.clear()
        self._unread.clear()
        changes = self.book.table.connection_lost(now=self.book.now)
        reason = self.context.control.reason
        feeds = dict.fromkeys(feed for feed in self.feeds() if feed.is_active)
        for stream in list(self.streams.values()):
            stream.lose(reason, moving=moving)
        for change in changes:
            self.book.settle(change)
        if moving:
            for feed in feeds:
                if not feed.is_active:
                    self._note(f"the feed on {', '.join(feed.filters)} has ended: its flow was not to keep that")
        if not moving:
            for waiting in self.book.waiting:
                waiting.give_up()
            for carried in self.carried:
                carried.give_up()
        self.book.arm()

    # Streams of the broker

    def _on_server_stream(self, opened: ByteStream) -> None:
        if not self._has_place(opened, len(self._early) + len(self._unread)):
            return
        if self._is_accepted:
            self._read(opened)
        else:
            opened.pause_reading()  # CONNACK says first whether there still is a session
            self._early.append(opened)

    def _read(self, opened: ByteStream) -> None:
        number = opened.id or 0
        self._unread[number] = opened

        def gone() -> None:
            if self._unread.pop(number, None) is not None:
                opened.reset(0)

        HeaderReader(
            opened,
            required=not self.context.is_one_way,
            done=lambda header, rest: self._begin_server_flow(opened, header, rest),
            failed=lambda error: self.failed(number, "broker", error),
            gone=gone,
        )

    def _begin_server_flow(self, opened: ByteStream, header: FlowHeader | None, rest: bytes) -> None:
        number, table = opened.id or 0, self.book.table
        if number not in self._unread:
            return  # the connection was lost, and this is what was on its way
        if header is None:  # mqttv5 need not send one
            del self._unread[number]
            plain = self.add_server_stream(opened)
            plain.use_router(self.every_router)
            plain.channel.feed(rest)
            return
        try:
            change = table.accept(header, number, now=self.book.now)
        except ProtocolError as error:
            self.failed(number, "broker", error)
            return
        if header.type is FlowType.USER_DEFINED:
            self.context.record("broker", LabError("the broker opened a user-defined flow: it was refused"))
            self.apply(table.abort(number, StreamCode.FLOW_REFUSED, now=self.book.now), "it was refused")
            return
        entry = table.flow_of(number)
        if entry is None:  # an old stream of a flow that is on another one by now
            self.apply(change, "another stream carries the flow")
            return
        del self._unread[number]
        self._trace("flow_accepted", entry)
        stream: FlowStream | None = entry.owner_data
        if stream is None:
            stream = FlowStream(self, opened, "server", entry)
        else:
            self._leave(change, stream)
            stream.attach(self, opened, entry)
            stream.go_on(kept=True)
        self._add(stream)
        channel = stream.channel
        assert isinstance(channel, FlowChannel)
        if rest:
            channel.feed(rest)

    # Ends

    def fin_sent(self, stream_id: int) -> None:
        """Take that FIN was sent on a flow (MQoQ 9.13.1)."""
        if self.book.table.flow_of(stream_id) is not None:
            self.book.settle(self.book.table.finish(stream_id))

    def fin_received(self, stream_id: int, buffered: int) -> None:
        """Take FIN (MQoQ 9.13.1)."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        try:
            change = self.book.table.fin_received(stream_id, buffered=buffered)
        except ProtocolError as error:
            self.failed(stream_id, "broker", error)
            return
        if change.finish:
            stream.channel.end_sending()
        stream.channel.finish()
        self.book.settle(change)

    def reset_received(self, stream_id: int, code: int) -> None:
        """Take RESET_STREAM or STOP_SENDING (MQoQ 9.13.2)."""
        stream = self.streams.get(stream_id)
        if not isinstance(stream, FlowStream):
            return
        if code in (StreamCode.NO_FLOW_STATE, 0xC1) and stream.restarts and not self.context.control.ended:
            memory = stream.remember()
            change = self.book.table.reset_received(stream_id, code, now=self.book.now)
            self._leave(change, stream)
            self._restart(stream, memory)
            return
        try:
            change = self.book.table.reset_received(stream_id, code, now=self.book.now)
        except ProtocolError as error:
            self.failed(stream_id, "broker", error)
            return
        why = f"the broker reset it with {stream_code_text(code)} - MQoQ draft sections 9.13.2 and 12.2"
        self.context.record("broker", stream.channel.closed_by(why))
        self.apply(change, why)

    def _restart(self, stream: FlowStream, memory: Unfinished | None) -> None:
        """Start a flow again that the broker knows nothing of, as soon as there is a stream to be had."""
        self._note(f"the broker had no state of flow {stream.entry.id} (NO_FLOW_STATE): it begins again, clean")
        if self.credit(unidirectional=stream.unidirectional) > 0:
            self._try(stream, lambda: self._begin_again(stream, memory), memory)
            return

        async def later() -> None:
            try:
                async with asyncio.timeout(RESTART_TIMEOUT):
                    await self.wait_for_credit(unidirectional=stream.unidirectional)
                self._begin_again(stream, memory)
            except TimeoutError:
                error: LabError = OperationTimeoutError(f"no stream became free for flow {stream.entry.id}")
            except LabError as gone:
                error = gone
            except asyncio.CancelledError:
                stream.cannot_go_on(self.context.control.gone("the flow could not begin again"), memory)
                raise
            else:
                return
            self.context.record("flows", error)
            stream.cannot_go_on(error, memory)

        task = asyncio.get_running_loop().create_task(later(), name="mqttquic-flow-restart")
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    def failed(self, stream_id: int, where: str, error: LabError) -> None:
        """Draw the consequences of an error on a stream: the three levels of MQoQ 11."""
        table = self.book.table
        if not isinstance(error, ProtocolError):
            self.context.record(where, error)
            self.apply(table.abort(stream_id, StreamCode.FLOW_PACKET_CANCELLED, now=self.book.now), str(error))
            return
        change = table.fail(stream_id, error, now=self.book.now)
        level, code = ErrorLevel.STREAM, StreamCode.FLOW_PACKET_CANCELLED
        if isinstance(error, FlowError):
            level, code = error.level, error.code
        if change.close is not None:
            control = self.context.control
            control.fault_code = change.close
            control.fail(where, error)
            return
        self.context.record(where, error)
        self.apply(change, f"{error} (error of level {level.value}, {stream_code_text(code)} - MQoQ draft section 11)")

    def abort(self, stream: FlowStream, code: StreamCode, why: str = "") -> None:
        """End a flow abortively (MQoQ 9.13.2)."""
        change = self.book.table.abort(stream.id, code, now=self.book.now)
        self.apply(change, why or f"it was reset here with {stream_code_text(code)}")

    async def discard(self, stream: FlowStream, timeout: float | None) -> None:
        """Have the broker forget a flow: a header that says so, and FIN (MQoQ 9.16)."""
        one_way = self.context.is_one_way
        if not stream.is_kept:
            raise UsageError(f"flow {stream.entry.id} is gone: there is nothing to discard")
        try:
            async with asyncio.timeout(timeout):
                # mqttv5 takes this on a bidirectional stream only, whatever the flow was on.
                unidirectional = stream.unidirectional and not one_way
                await self.wait_for_credit(unidirectional=unidirectional)
                if one_way and not stream.channel.over:
                    self.abort(stream, StreamCode.FLOW_PACKET_CANCELLED, "it is being discarded")
                self._begin_to_discard(stream, unidirectional)
                await stream.close(timeout=None)
        except TimeoutError:
            raise OperationTimeoutError(
                f"the broker did not confirm within {timeout:g} s that flow {stream.entry.id} is discarded"
            ) from None

    def _begin_to_discard(self, stream: FlowStream, unidirectional: bool) -> None:
        """Put a flow on a new stream with a header that empties it; FIN is to follow."""
        opened = self._opened(unidirectional=unidirectional)
        flags = FlowFlags(clean=True)
        change = self.book.table.open(opened.id or 0, now=self.book.now, flow_id=stream.entry.id, flags=flags)
        assert change.flow is not None
        opened.write(FlowHeader(FlowType.CLIENT_DATA, stream.entry.id, 0, flags).encode())
        self._leave(change, stream)
        stream.fail_messages(change.given_up)
        stream.subscriber.end_all(None)
        stream.unidirectional = unidirectional
        stream.attach(self, opened, change.flow)
        self._add(stream)

    def apply(self, change: Change, why: str) -> None:
        """Carry a change out; `why` is for those who wait."""
        for number, code in change.resets:
            unread = self._unread.pop(number, None)
            if unread is not None:
                unread.on_data = unread.on_end = unread.on_reset = _ignore
                unread.reset(code)
            stream = self.streams.get(number)
            if stream is not None:
                stream.channel.stream.reset(code)
                stream.lose(stream.channel.closed_by(why), moving=False)
        self.book.settle(change)
        self.book.arm()

    def over(self, stream: AsyncStream) -> None:
        """Take that a stream is over."""
        if self.book.table.flow_of(stream.id) is not None and isinstance(stream, FlowStream):
            self.book.settle(self.book.table.abort(stream.id, StreamCode.NO_ERROR, now=self.book.now))
        self._over(stream)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""
