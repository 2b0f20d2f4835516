"""The flows of one MQTT session: start, recovery, take-over, end, expiry and errors (MQoQ chapters 9 to 11).

:class:`FlowTable` is used by client and broker alike, outlives connections, and knows no clock, stream or bytes: each
verb takes stream ids and `now`, and answers with a :class:`Change` that says what to do. The whole surface::

    table = FlowTable(Role.CLIENT)
    change = table.open(stream.id, now=now)                      # we start (or recover, or take over) a flow
    stream.write(change.flow.header.encode())
    change = table.accept(header, stream.id, now=now)            # the peer did
    flow = table.check_packet(stream.id, packet, sender)         # each packet, in and out
    change = table.finish(stream.id)                             # right after we sent FIN
    change = table.fin_received(stream.id, buffered=packet_decoder.buffered)
    change = table.abort(stream.id, code, now=now)               # we give it up
    change = table.drop(flow_id)                                 # and its state, which waited to be recovered
    change = table.reset_received(stream.id, code, now=now)      # RESET_STREAM or STOP_SENDING arrived
    change = table.fail(stream.id, error, now=now)               # any ProtocolError of this stream, from here or the
                                                                 # decoders: applies the error levels
    changes = table.connection_lost(now=now)
    changes = table.poll(now)                                    # at table.next_deadline(): expiry, idle flows
    changes = table.clear()                                      # the session's state is gone

and after each::

    for stream_id, code in change.resets: streams[stream_id].reset(code)
    if change.close is not None: connection.close(change.close)
    if change.finish: ...          # handle what has arrived, write acknowledgements, FIN, table.finish(stream_id)
    if change.recovered: for item in change.flow.deliveries.resume(): stream.write(item.encode())
    change.given_up, change.unsubscribed                         # messages and filters that went with the state

Events of a stream that no flow uses any more (it was taken over, or has ended) change nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.errors import ProtocolError, UsageError
from mqttquic_lab.mqtt import flow_rules
from mqttquic_lab.mqtt.deliveries import Deliveries
from mqttquic_lab.mqtt.flow_book import NO_CHANGE, Change, FlowBook, flow_key
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, ErrorLevel, FlowError, StreamCode, as_stream_code
from mqttquic_lab.mqtt.flow_header import (
    CONTROL_FLAGS,
    CONTROL_FLOW_ID,
    MAX_VARINT,
    FlowFlags,
    FlowHeader,
    FlowType,
    check_header,
)
from mqttquic_lab.mqtt.flow_packets import check_flow_packet
from mqttquic_lab.mqtt.flow_state import Flow, FlowPhase, Part
from mqttquic_lab.mqtt.state import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt.deliveries import Delivery

MAX_FLOWS: Final = 256
"""Flows of a session by default, those that wait to be recovered included."""

MAX_EXPIRE_INTERVAL: Final = 86_400
"""Seconds for which a flow's state is kept at most, whatever its header asks for, by default."""

_NEEDS_ANSWER: Final = {"SUBSCRIBE", "UNSUBSCRIBE", "PINGREQ"}


class FlowTable(FlowBook):
    """The flows of one MQTT session, at one end.

    Parameters
    ----------
    role : Role
        Which end this is.
    make_deliveries : callable(int) -> Deliveries, optional
        Makes the QoS 1 and 2 books of a flow from its id; the control flow (id 0) asks too.
    shared : Deliveries, optional
        Books for all flows together, for a peer that acknowledges on the control stream (mqttv5). They then are the
        caller's: the end of a flow does not touch them.
    max_flows : int
        Flows at once, those waiting to be recovered included. More are refused with FLOW_REFUSED and counted.
    max_expire_interval : float
        Seconds for which the state of a flow is kept at most.
    open_idle_timeout : float or None
        Seconds after which a flow that the peer opened and sent no packet on is aborted with FLOW_OPEN_IDLE (MQoQ
        9.10); None for never.
    strict : bool
        False takes what mqttv5 does against the draft: server flows with a client's flow id, and unidirectional flows
        whose acknowledgements come on the control flow.
    closing_tolerance : bool
        The draft has `err_tolerance` in the flags but not what it means. True reads it as mqttv5 does: an error whose
        level is above it closes the connection. False (default) ignores it: levels alone decide.

    Attributes
    ----------
    refused, expired, stale : int
        Flows turned away at `max_flows`, states that expired, and events of streams that no flow uses any more.

    Raises
    ------
    UsageError
        When `max_flows` is below 1.
    """

    __slots__ = (
        "_make_deliveries",
        "_next_id",
        "closing_tolerance",
        "expired",
        "max_expire_interval",
        "open_idle_timeout",
        "refused",
        "strict",
    )

    def __init__(
        self,
        role: Role,
        *,
        make_deliveries: Callable[[int], Deliveries] | None = None,
        shared: Deliveries | None = None,
        max_flows: int = MAX_FLOWS,
        max_expire_interval: float = MAX_EXPIRE_INTERVAL,
        open_idle_timeout: float | None = None,
        strict: bool = True,
        closing_tolerance: bool = False,
    ) -> None:
        if max_flows < 1:
            raise UsageError(f"max_flows is {max_flows!r}: the control flow alone needs one")
        super().__init__(role, max_flows, shared)
        self.max_expire_interval = max_expire_interval
        self.open_idle_timeout = open_idle_timeout
        self.strict = strict
        self.closing_tolerance = closing_tolerance
        self._make_deliveries = make_deliveries
        self._next_id = 2 if role is Role.CLIENT else 1
        self.refused = self.expired = 0

    # Starting -----------------------------------------------------------------------------------------------------

    def open(
        self,
        stream_id: int,
        *,
        now: float,
        flow_id: int | None = None,
        flags: FlowFlags | None = None,
        expire_interval: int = 0,
        user_defined: bool = False,
    ) -> Change:
        """Start a flow of ours on a stream just opened; its header is then to be sent as ``flow.header.encode()``.

        Without `flow_id` it is a new flow, with `clean` set (MQoQ 9.10). With the id of a flow that has no stream it
        is recovered, unless `flags` say clean (9.15). With that of a flow that has one, the new stream takes it over
        (9.14); the old one is in ``resets``.

        Parameters
        ----------
        stream_id : int
            A stream that this end opened.
        now : float
            Seconds.
        flow_id : int, optional
            0 opens the control flow.
        flags : FlowFlags, optional
            Those of an existing flow stay as they are, without `clean`, by default.
        expire_interval : int
            Seconds (9.7); of no use to control and user-defined flows. An existing flow's stays when this is 0.
        user_defined : bool
            Start a user-defined flow (9.6.4), which carries no MQTT.

        Raises
        ------
        UsageError
            When the flow is not ours to open like this, or `max_flows` are there; the message names the fix.
        """
        if Role(stream_id & 1) is not self.role:
            raise UsageError(f"stream {stream_id} was opened by the peer: only its initiator starts a flow on it")
        if stream_id in self._by_stream:
            raise UsageError(f"stream {stream_id} carries flow {self._by_stream[stream_id].id} already")
        header = self._own_header(flow_id, flags, expire_interval, user_defined)
        header.encode()  # what does not fit its field is refused before anything changes
        try:
            self._check_start(header, stream_id)
        except FlowError as error:
            hint = ": open it with FlowFlags(clean=True)" if error.code is StreamCode.NO_FLOW_STATE else ""
            raise UsageError(f"flow {header.flow_id} cannot be opened on stream {stream_id}: {error}{hint}") from error
        known = self._flows.get(flow_key(header))
        if known is not None and known.stream_id is not None and stream_id < known.stream_id:
            raise UsageError(
                f"stream {stream_id} cannot take flow {known.id} over from stream {known.stream_id}: its id must be "
                "higher (MQoQ 9.14)"
            )
        if known is None and len(self._flows) >= self.max_flows:
            raise UsageError(
                f"this session has {len(self._flows)} flows, and max_flows is {self.max_flows}: end some of them first"
            )
        if header.type is not FlowType.CONTROL:
            self._next_id = max(self._next_id, header.flow_id + 2)
        return self._start(header, stream_id, now)

    def accept(self, header: FlowHeader, stream_id: int, *, now: float) -> Change:
        """Take in the header of a stream that the peer opened (MQoQ 9.10, 9.14, 9.15).

        A header that arrives late, on a lower stream than the flow is on by now, is no error: the stream is in
        ``resets`` and the flow stays where it is.

        For a control stream without a header (mqttv5), pass ``FlowHeader.control()``.

        Parameters
        ----------
        header : FlowHeader
            As decoded.
        stream_id : int
            Its stream; bits 0 and 1 say who opened it and whether it is unidirectional.
        now : float
            Seconds.

        Raises
        ------
        FlowError
            To be given to :meth:`fail`. No flow has changed then.
        UsageError
            When the stream is ours, or carries a flow already.
        """
        if Role(stream_id & 1) is self.role or stream_id in self._by_stream:
            raise UsageError(f"stream {stream_id} is ours, or carries a flow already: open() starts our flows")
        self._check_start(header, stream_id)
        key = flow_key(header)
        known = self._flows.get(key)
        if known is None:
            if header.flags.abort_if_no_state:
                self._remember_failure(key)
                raise flow_rules.NO_STATE.broken(f"flow {header.flow_id}", header=header)
            if len(self._flows) >= self.max_flows:
                self.refused += 1
                raise flow_rules.TOO_MANY.broken(f"{len(self._flows)} are there", header=header)
        elif known.stream_id is not None and stream_id < known.stream_id:
            self.stale += 1
            return Change(known, resets=((stream_id, StreamCode.FLOW_PACKET_CANCELLED),))
        return self._start(header, stream_id, now)

    def _own_header(
        self, flow_id: int | None, flags: FlowFlags | None, expire_interval: int, user_defined: bool
    ) -> FlowHeader:
        if flow_id == CONTROL_FLOW_ID:
            return FlowHeader.control(CONTROL_FLAGS if flags is None else flags)
        data = FlowType.CLIENT_DATA if self.role is Role.CLIENT else FlowType.SERVER_DATA
        type_ = FlowType.USER_DEFINED if user_defined else data
        if flow_id is None:
            flow_id = self._next_id
            if flow_id > MAX_VARINT:
                raise UsageError("this session has used up all flow ids: begin a new one")
            flags = replace(flags or FlowFlags(), clean=True)
        if user_defined:
            return FlowHeader(type_, flow_id)
        known = self._flows.get((type_, flow_id))
        if known is not None:
            flags = replace(known.header.flags, clean=False) if flags is None else flags
            expire_interval = expire_interval or known.header.expire_interval
        return FlowHeader(type_, flow_id, expire_interval, flags or FlowFlags())

    def _check_start(self, header: FlowHeader, stream_id: int) -> None:
        """Check what holds for both ends when a flow starts."""
        check_header(header, initiator=Role(stream_id & 1), unidirectional=bool(stream_id & 2), strict=self.strict)
        key = flow_key(header)
        known = self._flows.get(key)
        namesake = self.get(header.flow_id)
        if known is None and namesake is not None and self.strict:
            raise flow_rules.ID_TAKEN.broken(f"a {namesake.header.name}'s", header=header, field="flow_id")
        if known is not None and known.stream_id is not None:
            if known.is_control:
                raise flow_rules.CONTROL_TWICE.broken(header=header)
            if stream_id & 3 != known.stream_id & 3:
                detail = f"stream {stream_id} for stream {known.stream_id}"
                raise flow_rules.TAKE_OVER_TYPE.broken(detail, header=header)
        if key in self._failed and not header.flags.clean:
            raise flow_rules.RECOVERED_AGAIN.broken(f"flow {header.flow_id}", header=header)

    def _start(self, header: FlowHeader, stream_id: int, now: float) -> Change:
        """Put a flow on a stream; all has been checked."""
        key = flow_key(header)
        flow = self._flows.get(key)
        resets: tuple[tuple[int, StreamCode], ...] = ()
        given_up: tuple[Delivery, ...] = ()
        unsubscribed: tuple[str, ...] = ()
        recovered = False
        if flow is None:
            flow = self._flows[key] = Flow(header, self.role, self._new_deliveries(header.flow_id))
        else:
            if flow.stream_id is not None:
                # Not FLOW_CANCELLED: its peer would discard the state if RESET_STREAM overtakes the new header.
                resets = ((flow.stream_id, StreamCode.FLOW_PACKET_CANCELLED),)
                given_up, unsubscribed = self._detach(flow)
            if header.flags.clean:
                messages, filters = flow.forget(own_deliveries=self._shared is None)
                given_up, unsubscribed = given_up + messages, unsubscribed + filters
            else:
                recovered = header.type is not FlowType.USER_DEFINED
        self._failed.pop(key, None)
        flow.attach(header, stream_id, now)
        self._by_stream[stream_id] = flow
        return Change(flow, recovered, resets, given_up=given_up, unsubscribed=unsubscribed)

    def _new_deliveries(self, flow_id: int) -> Deliveries:
        if self._shared is not None:
            return self._shared
        return Deliveries() if self._make_deliveries is None else self._make_deliveries(flow_id)

    # Packets ------------------------------------------------------------------------------------------------------

    def check_packet(self, stream_id: int, packet: Any, sender: Role) -> Flow | None:
        """Check that a packet may travel on the flow of this stream, and note that the flow is in use (MQoQ 9.19).

        Parameters
        ----------
        stream_id : int
            The stream.
        packet : packet
            Any control packet, in either direction.
        sender : Role
            Who sends it.

        Returns
        -------
        Flow or None
            None when no flow uses the stream any more: drop the packet (MQoQ 9.14).

        Raises
        ------
        FlowError
            When it may not: another kind of flow, or a request that cannot be answered on a unidirectional stream
            (not with ``strict=False``).
        UsageError
            When we are to send it and cannot: FIN was sent, or the stream is the peer's and unidirectional.
        """
        flow = self._by_stream.get(stream_id)
        if flow is None:
            self.stale += 1
            return None
        if not flow.carries[packet.TYPE]:
            check_flow_packet(packet, flow.kind, flow.id)
        if sender is self.role and not flow.can_send:
            raise UsageError(f"{packet.NAME} cannot be sent on stream {stream_id}: its sending direction is not open")
        back = flow.receiving if sender is self.role else flow.sending
        if back is Part.NONE and self.strict:
            name: str = packet.NAME
            if name in _NEEDS_ANSWER or (name == "PUBLISH" and packet.qos):
                what = f"{name} at QoS {packet.qos}" if name == "PUBLISH" else name
                raise flow_rules.UNANSWERABLE.broken(what, flow_id=flow.id, packet=packet)
        flow.active = True
        return flow

    # Ending -------------------------------------------------------------------------------------------------------

    def finish(self, stream_id: int) -> Change:
        """Note that we sent FIN after a whole packet (MQoQ 9.13.1).

        The flow is gone when the peer has sent FIN too; for a unidirectional stream of ours, at once. Acknowledgements
        of the peer still arrive until then. What cannot be sent any more after FIN, such as PUBREL, should come first.
        A control flow's state stays: it is the session's, and ends with it.

        Parameters
        ----------
        stream_id : int
            The stream.

        Raises
        ------
        UsageError
            When the flow is the peer's and the peer has not finished it: only its owner begins that. Call
            :meth:`abort` instead. Also when we cannot send on it at all, or not any more.
        """
        flow = self._by_stream.get(stream_id)
        if flow is None:
            self.stale += 1
            return NO_CHANGE
        if not flow.can_send:
            raise UsageError(f"stream {stream_id} of flow {flow.id} has no open sending direction")
        if not flow.is_ours and flow.can_receive:
            raise UsageError(
                f"flow {flow.id} is the {flow.owner.name.lower()}'s, and only its owner ends it (MQoQ 9.13.1): wait "
                "for its FIN, or abort the flow"
            )
        flow.sending = Part.FINISHED
        return self._ended(flow)

    def fin_received(self, stream_id: int, *, buffered: int = 0) -> Change:
        """Take in the peer's FIN (MQoQ 9.13.1).

        Parameters
        ----------
        stream_id : int
            The stream.
        buffered : int
            Bytes of an incomplete packet that the packet decoder holds.

        Raises
        ------
        FlowError
            When the peer ends a flow that is ours before we did (level 0), or inside a packet (level 0 on the control
            flow, else 2). To be given to :meth:`fail`.
        """
        flow = self._by_stream.get(stream_id)
        if flow is None:
            self.stale += 1
            return NO_CHANGE
        if not flow.can_receive:
            return NO_CHANGE
        if buffered:
            rule = flow_rules.CONTROL_INCOMPLETE if flow.is_control else flow_rules.INCOMPLETE
            raise rule.broken(f"{buffered} bytes into it", flow_id=flow.id)
        if flow.is_ours and flow.can_send:
            raise flow_rules.NOT_OWNER.broken(f"flow {flow.id}", flow_id=flow.id)
        flow.receiving = Part.FINISHED
        if flow.can_send:
            return Change(flow, finish=True)
        return self._ended(flow)

    def abort(self, stream_id: int, code: StreamCode = StreamCode.FLOW_PACKET_CANCELLED, *, now: float) -> Change:
        """Give a flow's stream up in both directions (MQoQ 9.13.2); either end may.

        Parameters
        ----------
        stream_id : int
            The stream.
        code : StreamCode
            What to tell the peer. Codes that discard the state (:attr:`StreamCode.discards_state`) do so here too;
            with others it is kept as the flags ask, and the flow's owner may recover it.
        now : float
            Seconds.
        """
        change = self._aborted(stream_id, now, discard=code.discards_state)
        return change if change.flow is None else replace(change, resets=((stream_id, code),))

    def drop(self, flow_id: int) -> Change:
        """Forget a flow of ours that has no stream; the peer's copy of its state goes when it expires.

        Parameters
        ----------
        flow_id : int
            As in its header. One that is not there changes nothing.

        Raises
        ------
        UsageError
            When the flow has a stream, which :meth:`finish` or :meth:`abort` ends, or is not ours to give up.
        """
        flow = self.get(flow_id)
        if flow is None:
            return NO_CHANGE
        if flow.stream_id is not None or not flow.is_ours or flow.is_control:
            raise UsageError(f"flow {flow_id} cannot be dropped: only flows of one's own that have no stream can")
        return self._discard(flow)

    def reset_received(self, stream_id: int, code: int, *, now: float) -> Change:
        """Take in RESET_STREAM or STOP_SENDING with its error code (MQoQ 9.13.2).

        The other direction is to be aborted too, so the stream is in ``resets``.

        Parameters
        ----------
        stream_id : int
            The stream.
        code : int
            Any number; those the draft does not know keep the state.
        now : float
            Seconds.

        Raises
        ------
        FlowError
            When the peer says NO_FLOW_STATE though the flow's header did not set abort_if_no_state (level 0, 9.15).
            To be given to :meth:`fail`.
        """
        flow = self._by_stream.get(stream_id)
        known = as_stream_code(code)
        if flow is not None and known is StreamCode.NO_FLOW_STATE and flow.is_ours:
            if not flow.header.flags.abort_if_no_state:
                raise flow_rules.REFUSED_START.broken(f"flow {flow.id}", flow_id=flow.id)
            self._remember_failure(flow_key(flow.header))
        change = self._aborted(stream_id, now, discard=known is not None and known.discards_state)
        return change if change.flow is None else replace(change, resets=((stream_id, StreamCode.NO_ERROR),))

    def fail(self, stream_id: int, error: ProtocolError, *, now: float) -> Change:
        """Draw the consequences of an error on a stream: the three levels of MQoQ 11.

        Parameters
        ----------
        stream_id : int
            The stream it came from, whether a flow uses it or not.
        error : ProtocolError
            From this table, the header decoder or the packet decoder. One that is no :class:`FlowError`, such as a
            malformed packet, is level 0 on the control flow and level 2 elsewhere: a broken packet must abort its flow
            and need not close the connection (MQoQ 5).
        now : float
            Seconds.
        """
        flow = self._by_stream.get(stream_id)
        header: FlowHeader | None = None
        level, code, close = ErrorLevel.STREAM, StreamCode.FLOW_PACKET_CANCELLED, ConnectionCode.PROTOCOL_L0
        if isinstance(error, FlowError):
            level, code, close, header = error.level, error.code, error.close, error.header
        if flow is not None:
            header = flow.header
        if header is not None and header.type is FlowType.CONTROL:
            level = ErrorLevel.CONNECTION  # a session cannot do without its control flow (MQoQ 8.3.2)
        if self.closing_tolerance and (header is None or header.flags.err_tolerance < level):
            level = ErrorLevel.CONNECTION
        if level is ErrorLevel.CONNECTION:
            return Change(flow, close=close)
        change = NO_CHANGE
        resets: tuple[tuple[int, StreamCode], ...] = ((stream_id, code),)
        if flow is not None:
            change = self._aborted(stream_id, now, discard=level is ErrorLevel.FLOW)
        elif level is ErrorLevel.FLOW and header is not None:
            # The header itself was bad, so the stream never became the flow's. Only who owns a flow may ruin it.
            victim = self._flows.get(flow_key(header))
            if victim is not None and victim.owner is Role(stream_id & 1):
                if victim.stream_id is not None:
                    resets += ((victim.stream_id, code),)
                change = self._discard(victim)
        return replace(change, resets=resets)

    # Connections and time -----------------------------------------------------------------------------------------

    def connection_lost(self, *, now: float) -> list[Change]:
        """Note that the connection is gone: all its flows end abortively (MQoQ 9.13.2); returns what went with them.

        Nothing is to be sent for these. The control flow's state stays until :meth:`clear`, since it is the session's.
        """
        return [
            replace(self._aborted(stream_id, now, discard=False), close=None) for stream_id in tuple(self._by_stream)
        ]

    def poll(self, now: float) -> list[Change]:
        """Remove states that have expired (MQoQ 9.12) and abort flows that stayed idle after opening (9.10)."""
        changes = []
        for flow in tuple(self._flows.values()):
            due = self._deadline(flow)
            if due is None or now < due:
                continue
            if flow.stream_id is None:
                self.expired += 1
                changes.append(self._discard(flow))
            else:
                changes.append(self.abort(flow.stream_id, StreamCode.FLOW_OPEN_IDLE, now=now))
        return changes

    def next_deadline(self) -> float | None:
        """Return when :meth:`poll` has something to do, None for never."""
        return min((due for flow in self if (due := self._deadline(flow)) is not None), default=None)

    def clear(self) -> list[Change]:
        """Forget all state: the session was discarded, or the peer has lost it (MQoQ 10.1).

        Flows that have a stream go on with it, empty; the others are removed.
        """
        self._failed.clear()
        changes = []
        for flow in tuple(self._flows.values()):
            if flow.stream_id is None:
                changes.append(self._discard(flow))
            else:
                given_up, unsubscribed = flow.forget(own_deliveries=self._shared is None)
                changes.append(Change(flow, given_up=given_up, unsubscribed=unsubscribed))
        return changes

    def _deadline(self, flow: Flow) -> float | None:
        if flow.stream_id is None:
            return flow.expires_at
        if self.open_idle_timeout is None or flow.active or flow.is_ours or flow.type is FlowType.USER_DEFINED:
            return None
        return flow.opened_at + self.open_idle_timeout

    # Insides ------------------------------------------------------------------------------------------------------

    def _ended(self, flow: Flow) -> Change:
        """Remove a flow whose two directions have both finished; before that, nothing happens."""
        if flow.phase is not FlowPhase.CLOSED_GRACEFUL:
            return Change(flow)
        if flow.is_control:
            # The draft removes the state of a flow that ended in order (9.13), but this one is the session's, which
            # lives on after DISCONNECT for its Session Expiry Interval (MQTT 5.0 section 3.1.2.11.2).
            given_up, unsubscribed = self._detach(flow)
            return Change(flow, given_up=given_up, unsubscribed=unsubscribed)
        return self._discard(flow)

    def _aborted(self, stream_id: int, now: float, *, discard: bool) -> Change:
        """End a flow's stream abortively; its state is kept as its header asks, or discarded."""
        flow = self._by_stream.get(stream_id)
        if flow is None:
            self.stale += 1
            return NO_CHANGE
        interval = min(flow.header.expire_interval, self.max_expire_interval)
        if not flow.is_control and (discard or interval <= 0):
            return self._discard(flow)
        given_up, unsubscribed = self._detach(flow)
        close = ConnectionCode.UNSPECIFIED if flow.is_control else None
        if not flow.is_control:
            flow.expires_at = now + interval
        return Change(flow, close=close, given_up=given_up, unsubscribed=unsubscribed)
