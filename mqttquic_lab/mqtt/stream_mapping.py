"""Which stream carries a PUBLISH or SUBSCRIBE when a session has several (MQoQ 7.2, 7.3, 9.1.2, 9.2).

:class:`StreamMapping` only decides. It opens nothing: streams are named by :class:`StreamKey`, and session or broker
keep ``key -> stream`` (and, with flow headers, the flow). It serves both ALPNs and both ends. The whole surface::

    mapping = StreamMapping("per-topic", max_streams=64, peer_limit=9)
    choice = mapping.for_publish(topic, qos)           # or for_subscribe(filter), or open_explicit()
    if choice.evict: streams[choice.evict].end()       # FIN, then mapping.closed(choice.evict) once the peer's FIN came
    if choice.key is None: ...                         # wait until answered() or closed() was called, then ask again
    if choice.opens: streams[choice.key] = open_stream()
    write(...)
    if choice.finish == "now": streams[choice.key].end(); mapping.finishing(choice.key)

    if mapping.answered(key): streams[key].end()       # a QoS 1 or 2 exchange on it has ended: True asks for FIN
    mapping.on_streams_of(filter)                      # where UNSUBSCRIBE has to go (elsewhere it is answered 0x11)
    if mapping.unsubscribed(key, filter): streams[key].end()
    mapping.closed(key)                                # both directions have ended, or opening failed
    mapping.reset()                                    # connection lost; returns filters to subscribe again

What the choices are, per mode:

- ``"single"``: all on the control stream, except what names an explicit stream.
- ``"per-topic"``: a stream per topic name published to, kept and reused, the least recently used one ended when there
  are too many; and a stream per topic filter subscribed to, kept until it is unsubscribed.
- ``"per-publish"``: a stream per PUBLISH, ended as soon as its exchange has; subscriptions on the control stream.
- Explicit streams exist in every mode, and only their owner ends them.

At the limit the answer is to wait if a stream is about to become free, else
:class:`~mqttquic_lab.errors.StreamLimitError`: QUIC itself would wait silently for a credit that never comes (RFC 9000
section 4.6).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from mqttquic_lab.errors import StreamLimitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

StreamMode = Literal["single", "per-topic", "per-publish"]
"""How a session spreads over streams."""

MAX_STREAMS: Final = 64
"""Data streams kept open by default."""


class StreamKey(NamedTuple):
    """Name of a stream within one mapping.

    Attributes
    ----------
    kind : {"control", "topic", "filter", "publish", "explicit"}
        What it is for.
    name : str or int
        The topic name or filter, or a number.
    """

    kind: Literal["control", "topic", "filter", "publish", "explicit"]
    name: str | int


CONTROL_STREAM: Final = StreamKey("control", 0)
"""The control stream; never counted, never ended here."""


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """Where a packet goes, and what to do about streams.

    Attributes
    ----------
    key : StreamKey or None
        The stream to use; None: wait for a place and ask again.
    opens : bool
        Open it first; its place is taken from now on.
    evict : StreamKey or None
        Send FIN on this stream first, and report :meth:`StreamMapping.closed` when the peer has finished it too.
    finish : {"no", "now", "answered"}
        When to end the stream: not yet, right behind the packet, or when :meth:`StreamMapping.answered` says so.
    """

    key: StreamKey | None
    opens: bool = False
    evict: StreamKey | None = None
    finish: Literal["no", "now", "answered"] = "no"


@dataclass(slots=True)
class _Use:
    """What holds a stream open."""

    in_flight: int = 0
    filters: set[str] = field(default_factory=set)


class StreamMapping:
    """Chooses streams for one connection's packets.

    Parameters
    ----------
    mode : {"single", "per-topic", "per-publish"}
        See the module's text.
    max_streams : int
        Data streams this end keeps open; "per-topic" ends the least recently used idle one for a new one.
    peer_limit : int or None
        Data streams the peer allows at once, the control stream not counted; None when unknown. May be set at any time,
        or by :meth:`credit`.
    answers_elsewhere : bool
        Acknowledgements come on the control stream, not on the PUBLISH's own (mqttv5's unidirectional streams): a
        per-publish stream can then be ended at once at any QoS, and an exchange keeps no stream open.

    Attributes
    ----------
    opened, evictions, waits : int
        Streams asked for, ended to make room, and choices that had to wait.

    Raises
    ------
    UsageError
        For an unknown mode, or a limit that is no limit.
    """

    __slots__ = (
        "_finishing",
        "_next",
        "_streams",
        "answers_elsewhere",
        "evictions",
        "max_streams",
        "mode",
        "opened",
        "peer_limit",
        "waits",
    )

    def __init__(
        self,
        mode: StreamMode = "single",
        *,
        max_streams: int = MAX_STREAMS,
        peer_limit: int | None = None,
        answers_elsewhere: bool = False,
    ) -> None:
        if mode not in get_args(StreamMode):
            near = difflib.get_close_matches(str(mode), get_args(StreamMode), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(map(repr, get_args(StreamMode)))}"
            raise UsageError(f"{mode!r} is no stream mapping: {hint}")
        if max_streams < 1 or (peer_limit is not None and peer_limit < 0):
            raise UsageError(f"max_streams must be 1 or more and peer_limit 0 or more: {max_streams!r}, {peer_limit!r}")
        self.mode: StreamMode = mode
        self.max_streams = max_streams
        self.peer_limit = peer_limit
        self.answers_elsewhere = answers_elsewhere
        self._streams: dict[StreamKey, _Use] = {}  # least recently used first
        self._finishing: set[StreamKey] = set()
        self._next = 0
        self.opened = self.evictions = self.waits = 0

    # Choosing -----------------------------------------------------------------------------------------------------

    def for_publish(self, topic: str, qos: int = 0, *, stream: StreamKey | None = None) -> StreamChoice:
        """Choose the stream of a PUBLISH (MQoQ 9.1.2: the control flow, an existing data flow, or a new one).

        At QoS 1 and 2 the exchange holds the stream until :meth:`answered`.

        Parameters
        ----------
        topic : str
            Topic name, in full.
        qos : int
            0, 1 or 2.
        stream : StreamKey, optional
            An explicit stream, or :data:`CONTROL_STREAM`; the mode decides by default.

        Raises
        ------
        UsageError
            When `stream` is not open (any more).
        StreamLimitError
            When there is no place and none will become free.
        """
        finish: Literal["no", "now", "answered"] = "no"
        if stream is not None:
            choice = self._use(stream)
        elif self.mode == "per-topic":
            choice = self._use_or_open(StreamKey("topic", topic), f"publishing to {topic!r}")
        elif self.mode == "per-publish":
            finish = "answered" if qos and not self.answers_elsewhere else "now"
            choice = self._use_or_open(StreamKey("publish", self._next), f"publishing to {topic!r}", finish)
            if choice.key is not None:
                self._next += 1
        else:
            choice = StreamChoice(CONTROL_STREAM)
        if qos and not self.answers_elsewhere and choice.key is not None and choice.key in self._streams:
            self._streams[choice.key].in_flight += 1
        return choice

    def for_subscribe(self, topic_filter: str, *, stream: StreamKey | None = None) -> StreamChoice:
        """Choose the stream of a SUBSCRIBE with this one filter: its deliveries will come there (MQoQ 9.1.2).

        The subscription holds the stream until :meth:`unsubscribed`, which is also to be called when it is refused.
        Filters with the same choice may share a SUBSCRIBE packet.

        Parameters
        ----------
        topic_filter : str
            Topic filter.
        stream : StreamKey, optional
            An explicit stream, or :data:`CONTROL_STREAM`; the mode decides by default.

        Raises
        ------
        UsageError, StreamLimitError
            As :meth:`for_publish`.
        """
        if stream is not None:
            choice = self._use(stream)
        elif self.mode == "per-topic":
            choice = self._use_or_open(StreamKey("filter", topic_filter), f"subscribing to {topic_filter!r}")
        else:
            choice = StreamChoice(CONTROL_STREAM)
        if choice.key in self._streams:
            self._streams[choice.key].filters.add(topic_filter)
        return choice

    def open_explicit(self) -> StreamChoice:
        """Choose a new stream that the user names and ends.

        Raises
        ------
        StreamLimitError
            As :meth:`for_publish`.
        """
        choice = self._use_or_open(StreamKey("explicit", self._next), "an explicit stream")
        if choice.key is not None:
            self._next += 1
        return choice

    def on_streams_of(self, topic_filter: str) -> tuple[StreamKey, ...]:
        """Return the streams with a subscription to this filter: UNSUBSCRIBE belongs there, on each of them.

        Subscriptions are per stream (MQoQ 9.1.2; EMQX answers 0x11 elsewhere). Those on the control stream are not
        counted here, so an empty answer means the control stream.
        """
        return tuple(key for key, use in self._streams.items() if topic_filter in use.filters)

    def _use(self, key: StreamKey) -> StreamChoice:
        if key == CONTROL_STREAM:
            return StreamChoice(CONTROL_STREAM)
        if key not in self._streams:
            raise UsageError(f"stream {key.kind} {key.name!r} is not open (any more): open another one")
        self._touch(key)
        return StreamChoice(key)

    def _use_or_open(self, key: StreamKey, what: str, finish: Literal["no", "now", "answered"] = "no") -> StreamChoice:
        if key in self._streams:
            self._touch(key)
            return StreamChoice(key, finish=finish)
        evict: StreamKey | None = None
        if key in self._finishing:
            # Messages of one topic keep their order (MQTT 5.0 section 4.6), which two streams would not.
            self.waits += 1
            return StreamChoice(None)
        if len(self._streams) >= self.max_streams or (self._is_full and not self._finishing):
            evict = self._evictable()
            if evict is not None:
                del self._streams[evict]
                self._finishing.add(evict)
                self.evictions += 1
        if len(self._streams) >= self.max_streams or self._is_full:
            if not self._can_wait():
                raise self._limit_error(what)
            self.waits += 1
            return StreamChoice(None, evict=evict)
        self._streams[key] = _Use()
        self.opened += 1
        return StreamChoice(key, opens=True, evict=evict, finish=finish)

    def _touch(self, key: StreamKey) -> None:
        self._streams[key] = self._streams.pop(key)

    def _evictable(self) -> StreamKey | None:
        """Return the least recently used stream that nothing holds; only a topic's is reopened without loss."""
        return next((key for key, use in self._streams.items() if key.kind == "topic" and not use.in_flight), None)

    def _can_wait(self) -> bool:
        """Whether a place will become free without anybody's doing."""
        if self._finishing and len(self._streams) < self.max_streams:
            return True
        return any(
            key.kind == "publish" or (key.kind == "topic" and use.in_flight) for key, use in self._streams.items()
        )

    @property
    def _is_full(self) -> bool:
        return self.peer_limit is not None and len(self) >= self.peer_limit

    def _limit_error(self, what: str) -> StreamLimitError:
        by_peer = self._is_full
        limit = self.peer_limit if by_peer and self.peer_limit is not None else self.max_streams
        whose = "the peer allows" if by_peer else "max_streams allows"
        if not limit:
            message = f"no stream for {what}: the peer allows no data streams, so use streams='single'"
        else:
            held = sum(1 for key in self._streams if key.kind == "filter")
            explicit = sum(1 for key in self._streams if key.kind == "explicit")
            message = (
                f"no stream for {what}: {len(self)} data streams are open and {whose} {limit}; {held} of them are held "
                f"by subscriptions and {explicit} were opened explicitly, so unsubscribe, close one, or use the "
                "control stream"
            )
        return StreamLimitError(message)

    # Reports ------------------------------------------------------------------------------------------------------

    def answered(self, key: StreamKey) -> bool:
        """Note that a QoS 1 or 2 exchange on this stream has ended; True asks the caller to send FIN on it now."""
        use = self._streams.get(key)
        if use is None:
            return False
        use.in_flight = max(0, use.in_flight - 1)
        return key.kind == "publish" and not use.in_flight and self.finishing(key)

    def unsubscribed(self, key: StreamKey, topic_filter: str) -> bool:
        """Note that a subscription is gone or was refused; True asks the caller to send FIN on its stream now."""
        use = self._streams.get(key)
        if use is None:
            return False
        use.filters.discard(topic_filter)
        return key.kind == "filter" and not use.filters and self.finishing(key)

    def finishing(self, key: StreamKey) -> bool:
        """Note that FIN is sent on a stream, which then only counts until :meth:`closed`; False if it is unknown."""
        if self._streams.pop(key, None) is None:
            return False
        self._finishing.add(key)
        return True

    def closed(self, key: StreamKey) -> tuple[str, ...]:
        """Note that a stream has ended for whatever reason; returns the filters that were subscribed on it.

        With plain ``mqtt`` those subscriptions are gone at the broker too, with flows they may be recovered.
        """
        self._finishing.discard(key)
        use = self._streams.pop(key, None)
        return tuple(sorted(use.filters)) if use is not None else ()

    def credit(self, available: int) -> None:
        """Take over what QUIC says: so many more streams could be opened right now (RFC 9000 section 4.6)."""
        self.peer_limit = len(self) + max(0, available)

    def reset(self) -> dict[StreamKey, tuple[str, ...]]:
        """Forget all data streams, as when the connection is lost; returns the filters subscribed on each."""
        lost = {key: tuple(sorted(use.filters)) for key, use in self._streams.items() if use.filters}
        self._streams.clear()
        self._finishing.clear()
        return lost

    # What stands --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[StreamKey]:
        """Iterate over the data streams in use, least recently used first."""
        return iter(tuple(self._streams))

    def __contains__(self, key: Any) -> bool:
        return key in self._streams

    def __len__(self) -> int:
        """Return how many data streams take a place at the peer: those in use and those that are finishing."""
        return len(self._streams) + len(self._finishing)

    def __repr__(self) -> str:
        limit = "unknown" if self.peer_limit is None else self.peer_limit
        return (
            f"<StreamMapping {self.mode!r}: {len(self._streams)} of {self.max_streams} in use, "
            f"{len(self._finishing)} finishing, peer's limit {limit}>"
        )
