"""Which flows a session has: found by stream and by id, and let go of (MQoQ 9.4, 9.21).

:class:`FlowBook` is the part of :class:`mqttquic_lab.mqtt.flows.FlowTable` that knows no rules; :class:`Change` is what
the verbs of that table answer with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mqttquic_lab.mqtt.flow_header import CONTROL_FLOW_ID, FlowHeader, FlowType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttquic_lab.mqtt.deliveries import Deliveries, Delivery
    from mqttquic_lab.mqtt.flow_codes import ConnectionCode, StreamCode
    from mqttquic_lab.mqtt.flow_state import Flow
    from mqttquic_lab.mqtt.state import Role

FlowKey = tuple[FlowType, int]


@dataclass(frozen=True, slots=True)
class Change:
    """What a verb of :class:`FlowTable` brought about, and what its caller has to do.

    Attributes
    ----------
    flow : Flow or None
        The flow concerned; None when none was.
    recovered : bool
        The flow goes on from its preserved state: call ``flow.deliveries.resume()`` and send what it returns. For the
        control flow CONNACK's Session Present decides; wait for it.
    resets : tuple of (int, StreamCode)
        Streams to abort in both directions (RESET_STREAM, STOP_SENDING), with the code.
    finish : bool
        The peer's sending direction has ended in order: handle what has arrived, write what is left to say, send FIN
        and call :meth:`FlowTable.finish` (MQoQ 9.13.1).
    removed : bool
        The flow and its state are gone.
    close : ConnectionCode or None
        Close the connection with this code.
    given_up : tuple of Delivery
        Outgoing messages whose exchange will never end on this flow, oldest first: fail them or send them elsewhere.
    unsubscribed : tuple of str
        Topic filters of subscriptions that are gone.
    """

    flow: Flow | None = None
    recovered: bool = False
    resets: tuple[tuple[int, StreamCode], ...] = ()
    finish: bool = False
    removed: bool = False
    close: ConnectionCode | None = None
    given_up: tuple[Delivery, ...] = ()
    unsubscribed: tuple[str, ...] = ()


NO_CHANGE: Final = Change()
"""Nothing to do."""


class FlowBook:
    """The flows of one MQTT session.

    Parameters
    ----------
    role : Role
        Which end this is.
    max_flows : int
        Flows at once.
    shared : Deliveries or None
        QoS 1 and 2 books for all flows together; None where each flow has its own.

    Attributes
    ----------
    stale : int
        Events of streams that no flow uses any more.
    """

    __slots__ = ("_by_stream", "_failed", "_flows", "_shared", "max_flows", "role", "stale")

    def __init__(self, role: Role, max_flows: int, shared: Deliveries | None) -> None:
        self.role = role
        self.max_flows = max_flows
        self._shared = shared
        self._flows: dict[FlowKey, Flow] = {}
        self._by_stream: dict[int, Flow] = {}
        self._failed: dict[FlowKey, None] = {}  # recovery ended in NO_FLOW_STATE; oldest first, bounded
        self.stale = 0

    # What stands --------------------------------------------------------------------------------------------------

    def flow_of(self, stream_id: int) -> Flow | None:
        """Return the flow that uses a stream."""
        return self._by_stream.get(stream_id)

    def get(self, flow_id: int, type_: FlowType | None = None) -> Flow | None:
        """Return the flow with this id, with a stream or without.

        Parameters
        ----------
        flow_id : int
            As in its header.
        type_ : FlowType, optional
            Only needed with mqttv5, which uses an id for a client flow and for the server flow that answers it.
        """
        for known in FlowType if type_ is None else (type_,):
            flow = self._flows.get((known, flow_id))
            if flow is not None:
                return flow
        return None

    @property
    def control(self) -> Flow | None:
        """The control flow."""
        return self._flows.get((FlowType.CONTROL, CONTROL_FLOW_ID))

    @property
    def recoverable(self) -> list[Flow]:
        """Flows of ours that wait to be recovered, in the order they were first opened; never the control flow."""
        return [flow for flow in self if flow.stream_id is None and flow.is_ours and not flow.is_control]

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def __len__(self) -> int:
        return len(self._flows)

    def __repr__(self) -> str:
        return f"<FlowTable of the {self.role.name.lower()}: {len(self)} flows, {len(self._by_stream)} with a stream>"

    # Dropping state -----------------------------------------------------------------------------------------------

    def _detach(self, flow: Flow) -> tuple[tuple[Delivery, ...], tuple[str, ...]]:
        if flow.stream_id is not None:
            del self._by_stream[flow.stream_id]
        return flow.detach(own_deliveries=self._shared is None)

    def _discard(self, flow: Flow) -> Change:
        """Remove a flow with all its state."""
        given_up, unsubscribed = flow.forget(own_deliveries=self._shared is None)
        self._detach(flow)
        del self._flows[flow_key(flow.header)]
        return Change(flow, removed=True, given_up=given_up, unsubscribed=unsubscribed)

    def _remember_failure(self, key: FlowKey) -> None:
        if len(self._failed) >= self.max_flows:
            del self._failed[next(iter(self._failed))]
        self._failed[key] = None


def flow_key(header: FlowHeader) -> FlowKey:
    """Return what tells flows apart; the type only does where a peer uses an id twice (mqttv5)."""
    return header.type, header.flow_id
