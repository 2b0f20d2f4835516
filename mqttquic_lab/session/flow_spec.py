"""What a flow is asked to be, and what one is: the options of ``open_stream`` with ``streams="flows"``.

*MQoQ* is the draft "MQTT-next, a mapping of MQTT to QUIC"; see :mod:`mqttquic_lab.mqtt.flow_codes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypedDict

from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt import FlowFlags
from mqttquic_lab.mqtt.flow_codes import StreamCode
from mqttquic_lab.mqtt.flow_header import MAX_VARINT
from mqttquic_lab.units import parse_seconds

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.flow_state import Flow

FLOW_ALPN: Final = "MQTT-next"
"""Application protocol in which streams begin with flow headers (RFC 7301)."""

EXPIRE_INTERVAL: Final = 300
"""Seconds for which the state of a flow is kept when nothing else is said (MQoQ 9.7)."""

TOPIC_FLAGS: Final = FlowFlags(persistent_qos=True)
"""Flags of the flows that the session opens for topics: messages under way outlive the connection."""

_YES_OR_NO = (
    "clean", "abort_if_no_state", "persistent_qos", "persistent_topic_alias", "persistent_subscriptions",
    "unidirectional",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FlowInfo:
    """One flow of a session, at one moment."""

    id: int
    """Flow id: even for those that the client opens, odd for the broker's, 0 for the control flow (MQoQ 9.4)."""
    type: str
    """``"control"``, ``"client data"`` or ``"server data"`` (MQoQ 9.20)."""
    state: str
    """As in MQoQ 9.17 (``"open"``, ``"half closed local graceful"`` ...); ``"kept"`` without a stream, waiting to be
    recovered; ``"gone"`` when nothing is left of it."""
    flags: FlowFlags
    """As its last header said (MQoQ 9.8)."""
    expire_interval: int
    """Seconds for which both ends keep the state after an abortive end (MQoQ 9.7)."""
    recovered: bool
    """Whether its last header asked to go on with the state of an earlier stream (recovery, take-over); False: it began
    fresh. Of a flow opened by its id without ``abort_if_no_state`` the broker does not say whether it had any state."""


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """How a flow is to be opened.

    Attributes
    ----------
    flow_id : int or None
        An existing flow's; None opens a new one.
    flags : FlowFlags
        For its header.
    expire_interval : int
        Seconds.
    unidirectional : bool
        Whether its stream is.
    insists : bool
        Whether the user asked for the state or nothing (``abort_if_no_state``): no fresh start instead.
    """

    flow_id: int | None = None
    flags: FlowFlags = field(default=TOPIC_FLAGS)
    expire_interval: int = EXPIRE_INTERVAL
    unidirectional: bool = False
    insists: bool = False


class FlowKeywords(TypedDict, total=False):
    """Keywords of ``open_stream`` with ``streams="flows"``; see :class:`FlowOptions`."""

    flow_id: int
    clean: bool
    abort_if_no_state: bool
    persistent_qos: bool
    persistent_topic_alias: bool
    persistent_subscriptions: bool
    expire_interval: float | str
    err_tolerance: int
    unidirectional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOptions:
    """Keywords of ``open_stream`` with ``streams="flows"``: what goes into the flow's header, as the draft names it.

    Parameters
    ----------
    flow_id : int, optional
        An existing flow to go on with. If it has a stream, the new one takes it over (MQoQ 9.14); if not, it is
        recovered (9.15). For flows that this session knows, the stream returned is the same object as before.
    clean : bool, optional
        Both ends forget what they keep of `flow_id` first (9.8). Always so for new flows.
    abort_if_no_state : bool, optional
        With `flow_id`, True wants its state or nothing: without it, the stream ends with NO_FLOW_STATE (9.15). Left
        out, a flow without state begins again, clean, and ``session.events`` says so.
    persistent_qos, persistent_subscriptions, persistent_topic_alias : bool, optional
        What outlives the end of stream or connection, for `expire_interval` (9.8). Default: the first two.
    expire_interval : float or str, optional
        Seconds, or ``"5min"``, for which both ends keep that (9.7). Default 300; 0: not at all.
    err_tolerance : {0, 1, 2, 3}, optional
        A field that the draft has but does not explain.
    unidirectional : bool, optional
        True opens a flow on which only this session sends, so QoS 0 only (9.1.2). With ``profile="mqttv5"`` all flows
        are, and their answers come on the control stream.
    """

    flow_id: int | None = None
    clean: bool | None = None
    abort_if_no_state: bool | None = None
    persistent_qos: bool | None = None
    persistent_topic_alias: bool | None = None
    persistent_subscriptions: bool | None = None
    expire_interval: float | str | None = None
    err_tolerance: int | None = None
    unidirectional: bool | None = None

    @classmethod
    def from_keywords(cls, keywords: FlowKeywords) -> FlowOptions:
        """Build from the keywords of ``open_stream``; a misspelt one is answered with the nearest name."""
        for name in keywords:
            if name not in cls.__slots__:
                raise UnknownOptionError("open_stream", name, (*cls.__slots__, "priority", "timeout"))
        return cls(**keywords)

    @property
    def named(self) -> list[str]:
        """The options that were given."""
        return [name for name in self.__slots__ if getattr(self, name) is not None]

    def check_absent(self, why: str) -> None:
        """Raise UsageError if one was given; `why` says why there are no flows."""
        if self.named:
            raise UsageError(f"{self.named[0]}= is an option of flows, and {why}")

    def spec(self, known: Flow | None, *, one_way: bool) -> FlowSpec:
        """Return what they ask for, checked.

        Parameters
        ----------
        known : Flow or None
            What this session knows of `flow_id`: its options stay where nothing else was said.
        one_way : bool
            Whether the broker takes flows on unidirectional streams only (mqttv5).

        Raises
        ------
        UsageError
            They do not fit together, or a value cannot be used.
        """
        for name in _YES_OR_NO:
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise UsageError(f"{name}={value!r}: must be True or False (MQoQ draft section 9.8)")
        self._check_id()
        if self.clean and self.abort_if_no_state:
            raise UsageError("clean and abort_if_no_state contradict each other (MQoQ draft section 9.8): give one")
        if one_way and self.unidirectional is False:
            raise UsageError("mqttv5 takes flows on unidirectional streams only: leave unidirectional out")
        unidirectional = one_way if self.unidirectional is None else self.unidirectional
        if known is not None and self.unidirectional is None:
            unidirectional = bool(known.owner_data.unidirectional)  # a take-over is by a stream of the same kind (9.14)
        if unidirectional and not one_way and self.persistent_subscriptions:
            raise UsageError(
                "no answer comes on a unidirectional flow (MQoQ draft section 9.1.2): nothing to subscribe"
            )
        given: dict[str, Any] = {n: getattr(self, n) for n in FlowFlags.__slots__ if getattr(self, n, None) is not None}
        keeps = not unidirectional or one_way
        base = FlowFlags(persistent_qos=keeps, persistent_subscriptions=keeps) if known is None else known.header.flags
        flags = replace(base, clean=False, abort_if_no_state=False)
        if known is not None and not self.clean and self.abort_if_no_state is None:
            flags = replace(flags, abort_if_no_state=True)  # what there is here is of no use without the broker's half
        try:
            flags = replace(flags, **given)
            flags.to_byte()
        except TypeError:
            raise UsageError(f"err_tolerance={self.err_tolerance!r}: must be an integer from 0 to 3") from None
        interval = EXPIRE_INTERVAL if known is None else known.header.expire_interval
        if self.expire_interval is not None:
            interval = round(parse_seconds(self.expire_interval, name="expire_interval"))
        return FlowSpec(self.flow_id, flags, interval, unidirectional, bool(self.abort_if_no_state))

    def _check_id(self) -> None:
        flow_id = self.flow_id
        if flow_id is None:
            if self.abort_if_no_state:
                raise UsageError("abort_if_no_state is for a flow that exists: give its flow_id too")
            if self.clean is False:
                raise UsageError("a new flow has nothing to go on with (MQoQ draft section 9.10): give flow_id too")
            return
        if isinstance(flow_id, bool) or not isinstance(flow_id, int) or not 0 < flow_id <= MAX_VARINT or flow_id & 1:
            raise UsageError(f"flow_id={flow_id!r}: a client's flows have even ids from 2 on (MQoQ draft section 9.4)")


def stream_code(code: Any) -> StreamCode:
    """Return the code that ``abort`` was given.

    Raises
    ------
    UsageError
        The draft has none of this name or number.
    """
    try:
        return StreamCode[code] if isinstance(code, str) else StreamCode(code)
    except (KeyError, ValueError):
        names = ", ".join(known.name for known in StreamCode)
        raise UsageError(f"code={code!r}: the draft has {names} (MQoQ draft section 12.2)") from None
