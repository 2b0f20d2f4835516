"""The data streams of a session: opening within the broker's limit, what each carries, and how they end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol

from mqttquic_lab.errors import DisconnectedError, StreamLimitError, UsageError
from mqttquic_lab.net.stream import DEFAULT_URGENCY
from mqttquic_lab.session.mapping import MappedPublisher
from mqttquic_lab.session.stream import AsyncStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Deliveries
    from mqttquic_lab.mqtt.profiles import Action, BrokerProfile
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.client import AsyncSession
    from mqttquic_lab.session.feed import AsyncFeed
    from mqttquic_lab.session.flow_spec import FlowOptions
    from mqttquic_lab.session.limits import ServerLimits
    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.publishing import Publisher
    from mqttquic_lab.session.results import SessionStats
    from mqttquic_lab.session.routing import Router
    from mqttquic_lab.session.subscribing import Subscriber

StreamKind = Literal["control", "explicit", "topic", "publish", "server"]
"""What a stream is for: the control stream, one that the user opened, a topic's, a message's, one the broker opened."""

StreamState = Literal["open", "closing", "closed", "failed"]

MAX_HISTORY: Final = 64
"""Streams that are over and still listed; older ones are only counted."""

MAX_SERVER_STREAMS: Final = 256
"""Streams that the broker may have open towards us; more are refused."""

MAX_CLOSING: Final = 64
"""Streams of single messages and streams we have ended that are not over, at most: bounds what a flood piles up."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One stream of a session, at one moment."""

    id: int | None
    """QUIC stream id (RFC 9000 section 2.1); None over TCP and TLS."""
    kind: StreamKind
    """``"control"``, ``"explicit"`` (by ``open_stream``), ``"topic"``, ``"publish"`` or ``"server"``."""
    state: StreamState
    """``"open"``, ``"closing"`` (ended here, not yet by the broker), ``"closed"``, or ``"failed"``."""
    topics: tuple[str, ...]
    """The newest topics published on it."""
    filters: tuple[str, ...]
    """Topic filters subscribed on it."""
    messages_in: int
    """PUBLISH packets received."""
    messages_out: int
    """PUBLISH packets sent."""
    bytes_in: int
    """MQTT bytes received."""
    bytes_out: int
    """MQTT bytes sent."""
    in_flight: int
    """Our QoS 1 and 2 messages that are not acknowledged."""
    flow_id: int | None = None
    """The flow that it carries, with ``streams="flows"``; 0 is the control flow (MQoQ draft section 9.4)."""
    priority: int = DEFAULT_URGENCY
    """Urgency of what we send on it: 0 leaves first, 7 last (RFC 9218 section 4.1)."""


class MultiStreamConnection(Protocol):
    """What a connection must offer beyond :class:`~mqttquic_lab.net.stream.Connection`; QUIC does."""

    def open_stream(self, *, unidirectional: bool = False) -> ByteStream:
        """Open a stream."""
        ...

    def stream_credit(self, *, unidirectional: bool = False) -> int:
        """How many more the peer allows now."""
        ...

    async def progress(self) -> None:
        """Wait until something has arrived."""
        ...


@dataclass(slots=True)
class StreamContext:
    """What the streams of one session have in common."""

    session: AsyncSession
    control: PacketChannel
    options: SessionOptions
    profile: BrokerProfile
    stats: SessionStats
    router: Router
    """The control stream's; messages that a stream has no subscription for are looked up there."""
    deliveries: Deliveries
    """The control stream's exchanges; those of the session where the broker numbers messages through."""
    aliases: dict[int, str]
    """The control stream's topic aliases."""
    topics: set[str]
    """Topic names known to be valid."""
    unrouted: MessageLog
    on_message: Callable[[Message], None]
    record: Callable[[str, LabError], None]
    wake: Callable[[], None]
    limits: Callable[[], ServerLimits]
    publisher: Publisher
    """The control stream's."""
    subscriber: Subscriber
    """The control stream's."""
    usable: Callable[[str, float | None], Awaitable[None]]
    """Waits while the session changes connections."""
    outlet: Callable[[], Publisher | MappedPublisher]
    """Who publishes on the present connection."""

    @property
    def is_one_way(self) -> bool:
        """Whether data streams of ours are unidirectional: acknowledgements come on the control stream then."""
        return self.profile.unidirectional and self.profile.bidirectional != "data"


class Streams:
    """Opens and keeps the data streams of one session. On its loop only.

    Attributes
    ----------
    opened : int
        Data streams that we have ever opened.
    """

    def __init__(self, context: StreamContext, carried: Iterable[AsyncStream] = ()) -> None:
        self.context = context
        self.carried = list(carried)
        """Streams of an earlier connection that are to go on on this one, or of this one if it is lost."""
        self.opened = 0
        self.streams: dict[int, AsyncStream] = {}
        """Those that are not over, by id."""
        self.spare: Callable[[], bool] | None = None
        """Ends a stream that is kept for later use only, if there is one that is idle; returns whether it did."""
        self.mapped: MappedPublisher | None = None
        """Who chooses streams by topic, if somebody does."""
        self._history: deque[StreamInfo] = deque(maxlen=MAX_HISTORY)
        self._past = [0, 0, 0, 0]  # messages in and out, bytes in and out, of streams that are over
        self._first_limit: dict[bool, int] = {}
        self._counts = {False: 0, True: 0}
        self._given_back = {False: 0, True: 0}
        # A broker that we do not know may be one that opens streams towards us, and ends the session if we refuse.
        if context.profile.name not in ("emqx", "rocketmq"):
            context.control.on_server_stream = self._on_server_stream

    # Opening

    @property
    def _connection(self) -> MultiStreamConnection:
        connection = self.context.control.connection
        if connection.transport != "quic":
            raise UsageError(
                f"{connection.transport.upper()} carries one stream only: connect with quic:// to open more"
            )
        return connection  # type: ignore[return-value]  # its transport says that it has them

    @property
    def action(self) -> Action:
        """What opening a stream is to a broker's profile."""
        return "unidirectional_stream" if self.context.is_one_way else "data_stream"

    def credit(self, *, unidirectional: bool = False) -> int:
        """How many more streams the broker lets us open now."""
        return self._connection.stream_credit(unidirectional=unidirectional)

    def limit(self, *, unidirectional: bool = False) -> int:
        """How many data streams the broker allowed at a time, as first seen."""
        if unidirectional not in self._first_limit:
            credit = self.credit(unidirectional=unidirectional)
            self._first_limit[unidirectional] = credit + self._counts[unidirectional]
        return self._first_limit[unidirectional]

    def _is_credit_due(self, unidirectional: bool) -> bool:
        """Whether the broker owes us credit: for streams that are over, or about to be."""
        granted = self.credit(unidirectional=unidirectional) + self._counts[unidirectional]
        ending = sum(_is_ending(s) and s.unidirectional == unidirectional for s in self.streams.values())
        return self._given_back[unidirectional] + ending > granted - self.limit(unidirectional=unidirectional)

    def open_now(self, kind: StreamKind, *, unidirectional: bool = False) -> AsyncStream:
        """Open a stream without waiting.

        Raises
        ------
        StreamLimitError
            The broker allows no more.
        """
        context = self.context
        if context.control.ended:
            raise context.control.gone("cannot open a stream")
        opened = self._opened(unidirectional=unidirectional)
        stream = self._add(AsyncStream(context, opened, kind, self._over, unidirectional=unidirectional))
        if unidirectional and kind == "explicit":
            stream.outlet = MappedPublisher(self, context.publisher, only=stream)
        return stream

    def _opened(self, *, unidirectional: bool) -> ByteStream:
        """Return a new stream of the connection; raises StreamLimitError if the broker allows none now."""
        self.limit(unidirectional=unidirectional)  # noted before it changes
        if self.credit(unidirectional=unidirectional) <= 0:
            raise StreamLimitError(self.limit_reached(unidirectional=unidirectional))
        opened = self._connection.open_stream(unidirectional=unidirectional)
        self._counts[unidirectional] += 1
        self.opened += 1
        return opened

    async def open(self, kind: StreamKind, *, unidirectional: bool = False) -> AsyncStream:
        """Open a stream; waits for credit only if the broker owes some for streams that have ended.

        Raises
        ------
        StreamLimitError
            It does not: nobody would ever end this wait.
        """
        await self.wait_for_credit(unidirectional=unidirectional)
        return self.open_now(kind, unidirectional=unidirectional)

    async def open_explicit(self, wanted: FlowOptions) -> AsyncStream:
        """Open a stream that the user asked for, as it was asked for; raises UsageError for what is of flows."""
        wanted.check_absent(self.context.session.without_flows)
        return await self.open("explicit", unidirectional=self.context.is_one_way)

    async def open_topic(self, topic: str, *, unidirectional: bool) -> AsyncStream:
        """Open a stream for the messages of a topic."""
        return await self.open("topic", unidirectional=unidirectional)

    async def wait_for_credit(self, *, unidirectional: bool = False) -> None:
        """Wait until a stream can be opened, or until it is clear that the broker owes no credit."""
        while True:
            self._sweep()
            if self.context.control.ended:
                raise self.context.control.gone("cannot open a stream")
            closing = sum(map(_is_ending, self.streams.values()))
            if closing < MAX_CLOSING and (
                self.credit(unidirectional=unidirectional) > 0 or not self._is_credit_due(unidirectional)
            ):
                if self.credit(unidirectional=unidirectional) > 0 or self.spare is None or not self.spare():
                    return
                continue
            await self.progress()

    def is_exhausted(self, *, unidirectional: bool = False) -> bool:
        """Whether a stream of ours has to end before another one can be opened, and none is ending."""
        return self.credit(unidirectional=unidirectional) <= 0 and not self._is_credit_due(unidirectional)

    async def progress(self) -> None:
        """Wait until something has arrived, or the connection has ended.

        Raises
        ------
        DisconnectedError
            It has ended.
        """
        await self._connection.progress()
        if self.context.control.ended:
            raise self.context.control.gone("cannot open a stream")

    def limit_reached(self, *, unidirectional: bool = False) -> str:
        """Return what to say when there is no stream to be had."""
        limit = self.limit(unidirectional=unidirectional)
        used = sum(s.unidirectional == unidirectional and s.kind != "server" for s in self.streams.values())
        kind = "unidirectional" if unidirectional else "data"
        if not limit:
            return f"the broker allows no {kind} streams beside the control stream: use streams='single'"
        return (
            f"the broker allows {limit} {kind} streams at a time and {used} are open: close one (stream.close()), "
            "publish on one that is open, or use streams='single'"
        )

    def _sweep(self) -> None:
        """Forget unidirectional streams that have left: nothing comes back on them to tell so."""
        for stream in list(self.streams.values()):
            if stream.unidirectional and stream.channel.ended and not stream.channel.stream.pending:
                stream.channel.finish()

    def _on_server_stream(self, opened: ByteStream) -> None:
        if self._has_place(opened):
            self.add_server_stream(opened)

    def add_server_stream(self, opened: ByteStream) -> AsyncStream:
        """Read a stream that the broker opened."""
        unidirectional = bool((opened.id or 0) & 2)
        return self._add(AsyncStream(self.context, opened, "server", self._over, unidirectional=unidirectional))

    def _has_place(self, opened: ByteStream, more: int = 0) -> bool:
        """Whether the broker may have another stream open; else it is refused. `more` are those not listed yet."""
        from_server = [stream for stream in self.streams.values() if stream.kind == "server"]
        for stream in from_server[:1] if len(from_server) < MAX_SERVER_STREAMS else from_server:
            if stream.channel.is_muted:
                stream.channel.finish()  # reset, or stopped and never ended
        if more + sum(stream.kind == "server" for stream in self.streams.values()) >= MAX_SERVER_STREAMS:
            opened.reset(0)
            self.context.record(
                "broker", DisconnectedError(f"the broker has {MAX_SERVER_STREAMS} streams open: one more was refused")
            )
            return False
        return True

    def _add(self, stream: AsyncStream) -> AsyncStream:
        self.streams[stream.id] = stream
        return stream

    def _over(self, stream: AsyncStream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        if stream.kind != "server":
            self._given_back[stream.unidirectional] += 1
        info = stream.info
        self._history.append(info)
        for position, count in enumerate(_traffic(info)):
            self._past[position] += count

    def begin(self) -> None:
        """Write what comes before CONNECT."""

    def admitted(self, kept: bool) -> None:
        """Take that the broker has accepted the connection: go on with the streams of the one before.

        Parameters
        ----------
        kept : bool
            Whether it still has the session.
        """
        carried, self.carried = self.carried, []
        for stream in carried:
            try:
                opened = self._opened(unidirectional=stream.unidirectional) if self._takes(stream) else None
            except StreamLimitError as error:
                self.context.record("streams", error)
                opened = None
            if opened is not None:
                stream.carry_on(self.context, opened, self._over)
                self._add(stream)
                if stream.unidirectional:
                    stream.outlet = MappedPublisher(self, self.context.publisher, only=stream)
            else:
                feeds, stream.subscriber.feeds = stream.subscriber.feeds, []
                self.context.subscriber.adopt(feeds, stream.router)

    def _takes(self, stream: AsyncStream) -> bool:
        """Whether a stream of the connection before can go on as one here; else its feeds go to the control stream."""
        is_same = stream.unidirectional == self.context.is_one_way and type(stream) is AsyncStream
        return is_same and self.context.control.connection.transport == "quic"

    async def wait_renewed(self, deadline: float | None) -> None:
        """Wait until what was subscribed anew on data streams is answered; raises OperationTimeoutError."""
        for stream in self:
            await stream.subscriber.wait_renewed(deadline)

    def lost(self, *, moving: bool = False) -> None:
        """Take the end of the connection; `moving` if another one is there already to go on with."""
        if not moving:
            for stream in self.carried:
                stream.give_up()
        reason = self.context.control.reason
        for stream in list(self.streams.values()):
            is_carried = stream.kind == "explicit" and not stream.channel.ended
            if is_carried:
                self.carried.append(stream)
            stream.lose(reason, moving=moving and is_carried)

    # Looking

    def __iter__(self) -> Iterator[AsyncStream]:
        return iter(tuple(self.streams.values()))

    @property
    def subscribers(self) -> list[Subscriber]:
        """Those of all data streams, of carried ones too."""
        return [stream.subscriber for stream in (*self.streams.values(), *self.carried)]

    def feeds(self) -> list[AsyncFeed]:
        """Return the feeds subscribed on data streams."""
        return [feed for subscriber in self.subscribers for feed in subscriber.feeds]

    control_flow: ClassVar[int | None] = None
    """Flow id of the control stream."""

    def listing(self, control_filters: tuple[str, ...], in_flight: int) -> tuple[StreamInfo, ...]:
        """Return all streams: control stream, those open, and the newest of those that are over."""
        live = [stream.info for stream in self.streams.values()]
        stats, control = self.context.stats, self.context.control
        totals = (stats.messages_received, stats.messages_sent, stats.bytes_received, stats.bytes_sent)
        elsewhere = [sum(counts) for counts in zip(self._past, *map(_traffic, live), strict=True)]
        mine = [max(0, total - other) for total, other in zip(totals, elsewhere, strict=True)]
        state: StreamState = "open" if not control.ended else "closed" if control.reason is None else "failed"
        first = StreamInfo(
            control.stream.id, "control", state, (), control_filters, mine[0], mine[1], mine[2], mine[3], in_flight,
            self.control_flow,
        )  # fmt: skip
        return (first, *live, *self._history)


def _is_ending(stream: AsyncStream) -> bool:
    """Whether a stream has ended or will by itself: one for a single message does when that is acknowledged."""
    return stream.channel.ended or stream.kind == "publish"


def _traffic(info: StreamInfo) -> tuple[int, int, int, int]:
    return info.messages_in, info.messages_out, info.bytes_in, info.bytes_out
