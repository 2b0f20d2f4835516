"""One flow: where its stream stands (MQoQ 9.17), and the state that may outlive it (MQoQ 9.21).

:data:`FLOW_PHASES` is the draft's table of composite states. :class:`Flow` is what
:class:`mqttquic_lab.mqtt.flows.FlowTable` keeps per flow, and only that calls its verbs. Session and broker read
it, and keep their books in ``deliveries``, ``aliases_in``, ``aliases_out``, ``subscriptions`` and ``owner_data``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.mqtt.flow_header import FlowHeader, FlowType, flow_owner
from mqttquic_lab.mqtt.flow_packets import CARRIES, FlowKind
from mqttquic_lab.mqtt.state import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttquic_lab.mqtt.deliveries import Deliveries, Delivery


class Part(IntEnum):
    """Where one direction of a flow's stream stands (RFC 9000 sections 3.1 and 3.2, as far as a flow has to know)."""

    NONE = 0
    """No stream, or a unidirectional one of the other direction."""
    OPEN = 1
    FINISHED = 2
    """FIN was sent, or has arrived with all bytes before it."""
    RESET = 3
    """Ended by RESET_STREAM or STOP_SENDING, whoever sent it, or by the end of the connection."""


class FlowPhase(IntEnum):
    """Composite state of a flow (MQoQ 9.17)."""

    IDLE = 0
    """No stream; the state may wait to be recovered."""
    OPEN = 1
    HALF_CLOSED_REMOTE_GRACEFUL = 2
    """The peer has sent FIN, we have not."""
    HALF_CLOSED_REMOTE = 3
    HALF_CLOSED_LOCAL_GRACEFUL = 4
    """We have sent FIN, the peer has not."""
    HALF_CLOSED_LOCAL = 5
    CLOSED_ABORTED = 6
    CLOSED_GRACEFUL = 7


_N, _O, _F, _R = Part.NONE, Part.OPEN, Part.FINISHED, Part.RESET

FLOW_PHASES: Final[Mapping[tuple[Part, Part], FlowPhase]] = {
    (_N, _N): FlowPhase.IDLE,
    (_O, _O): FlowPhase.OPEN,
    (_O, _F): FlowPhase.HALF_CLOSED_REMOTE_GRACEFUL,
    (_O, _R): FlowPhase.HALF_CLOSED_REMOTE,
    (_F, _O): FlowPhase.HALF_CLOSED_LOCAL_GRACEFUL,
    (_R, _O): FlowPhase.HALF_CLOSED_LOCAL,
    (_R, _F): FlowPhase.CLOSED_ABORTED,
    (_R, _R): FlowPhase.CLOSED_ABORTED,
    (_F, _F): FlowPhase.CLOSED_GRACEFUL,
    (_F, _R): FlowPhase.CLOSED_ABORTED,
    # Unidirectional streams, which the draft's table leaves out: the direction that exists decides.
    (_O, _N): FlowPhase.OPEN,
    (_N, _O): FlowPhase.OPEN,
    (_F, _N): FlowPhase.CLOSED_GRACEFUL,
    (_N, _F): FlowPhase.CLOSED_GRACEFUL,
    (_R, _N): FlowPhase.CLOSED_ABORTED,
    (_N, _R): FlowPhase.CLOSED_ABORTED,
}
"""(sending part, receiving part) -> composite state."""


class Flow:
    """One flow of an MQTT session.

    Attributes
    ----------
    header : FlowHeader
        As last sent or received: a take-over or recovery replaces it.
    role : Role
        Which end we are.
    stream_id : int or None
        Its QUIC stream; None while the state waits to be recovered.
    sending, receiving : Part
        Where the two directions stand, seen from here.
    deliveries : Deliveries
        QoS 1 and 2 exchanges of this flow, with packet identifiers of its own (MQoQ 9.1.2, 9.21).
    aliases_in : dict of int to str
        Topic aliases that the peer has set on this flow. Bounded by whoever fills it (Topic Alias Maximum).
    aliases_out : dict of str to int
        Topic aliases that we have set, likewise.
    carries : tuple of bool
        By packet type: whether it may travel on this flow (MQoQ 9.19).
    subscriptions : dict of str to object
        Topic filter -> whatever the owner keeps of a subscription made on this flow. Bounded by whoever fills it.
    owner_data : object
        Free for session or broker, such as the stream object. Not touched here.
    active : bool
        Whether a packet has travelled since the stream was opened.
    opened_at : float
        When its present or last stream was opened.
    expires_at : float or None
        When the kept state ends; None with a stream, and for the control flow, whose state is the session's.
    """

    __slots__ = (
        "active",
        "aliases_in",
        "aliases_out",
        "carries",
        "deliveries",
        "expires_at",
        "header",
        "opened_at",
        "owner_data",
        "receiving",
        "role",
        "sending",
        "stream_id",
        "subscriptions",
    )

    def __init__(self, header: FlowHeader, role: Role, deliveries: Deliveries) -> None:
        self.header = header
        self.role = role
        self.deliveries = deliveries
        self.carries = CARRIES[FlowKind(header.type)]
        self.aliases_in: dict[int, str] = {}
        self.aliases_out: dict[str, int] = {}
        self.subscriptions: dict[str, Any] = {}
        self.owner_data: Any = None
        self.stream_id: int | None = None
        self.sending = self.receiving = Part.NONE
        self.active = False
        self.opened_at = 0.0
        self.expires_at: float | None = None

    @property
    def id(self) -> int:
        """Flow id."""
        return self.header.flow_id

    @property
    def type(self) -> FlowType:
        """Type of flow."""
        return self.header.type

    @property
    def kind(self) -> FlowKind:
        """Its column in the table of MQoQ 9.19."""
        return FlowKind(self.header.type)

    @property
    def owner(self) -> Role:
        """Who starts and ends it (MQoQ 9.3)."""
        if self.header.type is FlowType.SERVER_DATA:
            return Role.SERVER  # even if the id is a client's, as with mqttv5
        return flow_owner(self.header.flow_id)

    @property
    def is_ours(self) -> bool:
        """Whether we own it."""
        return self.owner is self.role

    @property
    def is_control(self) -> bool:
        """Whether it is the control flow."""
        return self.header.type is FlowType.CONTROL

    @property
    def phase(self) -> FlowPhase:
        """Composite state (MQoQ 9.17)."""
        return FLOW_PHASES[self.sending, self.receiving]

    @property
    def can_send(self) -> bool:
        """Whether we may write on its stream now."""
        return self.sending is Part.OPEN

    @property
    def can_receive(self) -> bool:
        """Whether more may arrive on its stream."""
        return self.receiving is Part.OPEN

    @property
    def unidirectional(self) -> bool:
        """Whether its stream is (RFC 9000 section 2.1); False without a stream."""
        return self.stream_id is not None and bool(self.stream_id & 2)

    def attach(self, header: FlowHeader, stream_id: int, now: float) -> None:
        """Put the flow on a stream; both directions that the stream has are open then (MQoQ 9.10)."""
        ours = Role(stream_id & 1) is self.role
        unidirectional = bool(stream_id & 2)
        self.header = header
        self.stream_id = stream_id
        self.sending = Part.OPEN if ours or not unidirectional else Part.NONE
        self.receiving = Part.NONE if ours and unidirectional else Part.OPEN
        self.active = False
        self.opened_at = now
        self.expires_at = None

    def detach(self, *, own_deliveries: bool) -> tuple[tuple[Delivery, ...], tuple[str, ...]]:
        """Take the flow off its stream and drop the parts of its state that no flag keeps (MQoQ 9.8).

        Of the control flow only topic aliases are dropped: the rest is the session's, and CONNECT's Clean Start and
        Session Expiry Interval decide about that.

        Parameters
        ----------
        own_deliveries : bool
            Whether :attr:`deliveries` is this flow's alone.

        Returns
        -------
        tuple
            Messages given up and filters unsubscribed.
        """
        flags = self.header.flags
        self.stream_id = None
        self.sending = self.receiving = Part.NONE
        given_up: tuple[Delivery, ...] = ()
        unsubscribed: tuple[str, ...] = ()
        if own_deliveries:
            self.deliveries.suspend()
            if not (flags.persistent_qos or self.is_control):
                given_up = tuple(self.deliveries.clear())
        if not flags.persistent_topic_alias:
            self.aliases_in.clear()
            self.aliases_out.clear()
        if not (flags.persistent_subscriptions or self.is_control):
            unsubscribed = tuple(self.subscriptions)
            self.subscriptions.clear()
        return given_up, unsubscribed

    def forget(self, *, own_deliveries: bool) -> tuple[tuple[Delivery, ...], tuple[str, ...]]:
        """Empty the whole state (MQoQ 9.8, clean); takes and returns the same as :meth:`detach`."""
        given_up = tuple(self.deliveries.clear()) if own_deliveries else ()
        unsubscribed = tuple(self.subscriptions)
        self.subscriptions.clear()
        self.aliases_in.clear()
        self.aliases_out.clear()
        return given_up, unsubscribed

    def __repr__(self) -> str:
        where = f"stream {self.stream_id}" if self.stream_id is not None else "no stream"
        return (
            f"<Flow {self.id} {self.type.name}, {self.phase.name}, {where}, {len(self.subscriptions)} subscriptions, "
            f"{len(self.deliveries)} in flight, {self.deliveries.queued} queued>"
        )
