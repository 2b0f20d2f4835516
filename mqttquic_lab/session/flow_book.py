"""The flows of one session, from connection to connection: the table of their rules, and what goes with their state."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import Deliveries, FlowTable, FlowType, Role
from mqttquic_lab.session.flow_routing import identifiers
from mqttquic_lab.session.flow_spec import FlowInfo
from mqttquic_lab.session.flow_stream import FlowStream, phase_text, type_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt import Change, Flow
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.resending import Unfinished
    from mqttquic_lab.session.routing import Router
    from mqttquic_lab.session.streams import StreamContext
    from mqttquic_lab.session.subscribing import Subscriber

MAX_FLOWS = 1024
"""Flows of a session, the broker's and those that wait to be recovered included."""


class SessionFlows:
    """The flows of one session. On its loop only.

    Parameters
    ----------
    context : StreamContext
        Of the first connection.
    receive_maximum : callable() -> int
        The broker's Receive Maximum on the present connection.

    Attributes
    ----------
    table : FlowTable
        The rules; its flows' ``owner_data`` is their :class:`FlowStream`.
    numbers : iterator of int
        Subscription Identifiers.
    """

    def __init__(self, context: StreamContext, receive_maximum: Callable[[], int]) -> None:
        self._options: SessionOptions = context.options
        self._receive_maximum = receive_maximum
        self._inherited: Deliveries | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.numbers = identifiers()
        one_way = context.is_one_way
        self.table = FlowTable(
            Role.CLIENT,
            make_deliveries=self._make_deliveries,
            shared=context.deliveries if one_way else None,
            max_flows=MAX_FLOWS,
            strict=not one_way,
        )

    @property
    def now(self) -> float:
        """Time by the loop's clock."""
        return asyncio.get_running_loop().time()

    def _make_deliveries(self, flow_id: int) -> Deliveries:
        if not flow_id:
            return Deliveries()  # the control flow's messages are in the session's own books
        inherited, self._inherited = self._inherited, None
        if inherited is not None:
            return inherited
        options = self._options
        return Deliveries(
            options.receive_maximum or 65_535,
            peer_receive_maximum=self._receive_maximum(),
            version=options.level,
        )

    def hand_over(self, deliveries: Deliveries | None) -> None:
        """Have the next new flow take over the books of the one that it stands for."""
        self._inherited = deliveries

    # Looking

    def has(self, entry: Flow) -> bool:
        """Whether a flow's state is there still."""
        return self.table.get(entry.id, entry.type) is entry

    def entry_of(self, flow_id: int | None) -> Flow | None:
        """Return the client flow with this id, if this session has it."""
        return None if flow_id is None else self.table.get(flow_id, FlowType.CLIENT_DATA)

    @property
    def streams(self) -> list[FlowStream]:
        """All flows but the control flow, with a QUIC stream or without."""
        return [entry.owner_data for entry in self.table if entry.owner_data is not None]

    @property
    def recoverable(self) -> list[FlowStream]:
        """Flows of ours that wait to be recovered: those the user opened first, then those with messages under way."""
        waiting = [entry.owner_data for entry in self.table.recoverable if entry.owner_data is not None]
        return sorted(waiting, key=lambda stream: (stream.kind != "explicit", stream.is_idle))

    @property
    def waiting(self) -> list[FlowStream]:
        """Flows without a QUIC stream, the broker's included."""
        return [stream for stream in self.streams if stream.entry.stream_id is None]

    def routers(self) -> list[Router]:
        """Return those of the client's flows."""
        return [stream.router for stream in self.streams if stream.kind != "server"]

    @property
    def in_flight(self) -> int:
        """Messages that were sent on flows with books of their own, and are not acknowledged."""
        return sum(len(stream.deliveries) for stream in self.streams if not stream.answers_elsewhere)

    def info(self, entry: Flow) -> FlowInfo:
        """Return what there is to say of a flow now."""
        header = entry.header
        return FlowInfo(
            id=entry.id,
            type=type_text(header),
            state=phase_text(entry, is_there=self.has(entry)),
            flags=header.flags,
            expire_interval=header.expire_interval,
            recovered=not header.flags.clean and not entry.is_control,
        )

    def infos(self) -> tuple[FlowInfo, ...]:
        """Return all flows."""
        return tuple(self.info(entry) for entry in self.table)

    # Changes

    def settle(self, change: Change) -> None:
        """Tell those who wait for what a change has taken from a flow's state."""
        stream: FlowStream | None = change.flow.owner_data if change.flow is not None else None
        if stream is None:
            return
        stream.fail_messages(change.given_up)
        if change.removed:
            stream.subscriber.end_all(stream.channel.reason)

    def arm(self) -> None:
        """Run the timer of the state that expires next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.table.next_deadline()
        if deadline is not None:
            # Not what keeps a session alive that nobody else keeps.
            self._timer = asyncio.get_running_loop().call_at(deadline, _expire, weakref.ref(self))

    def expire(self) -> None:
        """Let go of what has expired."""
        self._timer = None
        for change in self.table.poll(self.now):
            self.settle(change)
        self.arm()

    def surrender(self, subscriber: Subscriber, begin_anew: Callable[[Unfinished], None]) -> int:
        """Hand everything to the control stream, because the present connection carries no flows.

        Parameters
        ----------
        subscriber : Subscriber
            The control stream's.
        begin_anew : callable
            Takes messages that are to be sent there as new ones.

        Returns
        -------
        int
            How many flows had something to hand over.
        """
        count = 0
        for stream in self.streams:
            memory = stream.remember()
            if memory is not None:
                begin_anew(memory)
            feeds, stream.subscriber.feeds = stream.subscriber.feeds, []
            subscriber.adopt(feeds, stream.router)
            count += bool(feeds or (memory and any(memory)))
        self.table.clear()
        self.arm()
        return count


def _expire(book: weakref.ref[SessionFlows]) -> None:
    there = book()
    if there is not None:
        there.expire()
