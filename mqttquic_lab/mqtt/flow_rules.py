"""What can be held against a peer that speaks ``MQTT-next``: one entry per rule of the MQoQ draft.

Each says how far the error reaches (MQoQ 11) and what RESET_STREAM or CONNECTION_CLOSE tells the peer (MQoQ 12).
Where the draft names no level or code, a comment says what was chosen here and why.

In use: ``raise flow_rules.NO_STATE.broken("flow 6", header=header)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.mqtt.flow_codes import ConnectionCode, ErrorLevel, FlowError, StreamCode

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.flow_header import FlowHeader


@dataclass(frozen=True, slots=True)
class FlowRule:
    """One rule of the draft.

    Attributes
    ----------
    text : str
        What is wrong when it is broken.
    section : str
        Section of the draft, such as ``"9.13.1"``.
    level : ErrorLevel
        How far that reaches.
    code : StreamCode
        What RESET_STREAM and STOP_SENDING say.
    close : ConnectionCode
        What CONNECTION_CLOSE says, at level 0.
    reason_code : int
        The MQTT reason code that comes nearest, for records (0x81 malformed, 0x82 protocol error).
    """

    text: str
    section: str
    level: ErrorLevel
    code: StreamCode
    close: ConnectionCode = ConnectionCode.PROTOCOL_L0
    reason_code: int = 0x82

    def broken(
        self,
        detail: str = "",
        *,
        header: FlowHeader | None = None,
        flow_id: int | None = None,
        field: str = "",
        offset: int | None = None,
        packet: Any = None,
    ) -> FlowError:
        """Return the error to raise.

        Parameters
        ----------
        detail : str
            What was found, appended to the rule's text.
        header : FlowHeader, optional
            The header that breaks the rule; its flow id is taken over, and the offset of `field` if it was decoded.
        flow_id : int, optional
            The flow, where no header is at hand.
        field : str
            Name of the field that breaks it.
        offset : int, optional
            Its byte offset.
        packet : packet, optional
            The packet that breaks it.
        """
        if offset is None and field and header is not None:
            offset = next((span.start for span in header.fields() if span.name == field), None)
        return FlowError(
            f"{self.text}: {detail}" if detail else self.text,
            level=self.level,
            code=self.code,
            close=self.close,
            section=self.section,
            flow_id=flow_id,
            header=header,
            reason_code=self.reason_code,
            offset=offset,
            field=field,
            packet=packet,
        )


_L0, _L1, _L2 = ErrorLevel.CONNECTION, ErrorLevel.FLOW, ErrorLevel.STREAM

# Headers by themselves. The draft gives no level for an unknown type; its code keeps the state, so level 2.
TYPE_UNKNOWN: Final = FlowRule("unknown flow type", "9.20", _L2, StreamCode.STREAM_TYPE, reason_code=0x81)
HEADER_CUT: Final = FlowRule(
    "the stream ended inside its flow header", "9.13.1", _L2, StreamCode.INCOMPLETE_PACKET, reason_code=0x81
)
OPTIONAL_HEADERS: Final = FlowRule(
    "optional headers follow, but the draft does not define where they end", "9.9", _L1, StreamCode.OPTIONAL_HEADER
)
CLEAN_OR_ABORT: Final = FlowRule(
    "clean and abort_if_no_state are both set", "9.8", _L1, StreamCode.DISCARD_STATE
)  # the draft names the level only
SERVER_SUBSCRIPTIONS: Final = FlowRule(
    "persistent_subscriptions is set on a server flow", "9.8", _L1, StreamCode.PERSISTENT_SUB
)

# Headers against their streams
CONTROL_BY_SERVER: Final = FlowRule("only a client opens the control flow", "9.10", _L0, StreamCode.NOT_FLOW_OWNER)
CONTROL_ID: Final = FlowRule("the control flow's id is not 0", "9.6.1", _L0, StreamCode.BAD_FLOW_ID)
CONTROL_UNIDIRECTIONAL: Final = FlowRule(
    "the control flow is on a unidirectional stream", "9.20", _L0, StreamCode.STREAM_TYPE
)
CONTROL_TWICE: Final = FlowRule("a second control flow on one connection", "9.1.1", _L0, StreamCode.STREAM_TYPE)
INITIATOR: Final = FlowRule("the other end opens flows of this type", "9.10", _L1, StreamCode.NOT_FLOW_OWNER)
ID_ZERO: Final = FlowRule("flow id 0 is the control flow's", "9.6.1", _L1, StreamCode.BAD_FLOW_ID)
ID_OWNER: Final = FlowRule(
    "the least significant bit of the flow id is not that of its owner", "9.4", _L1, StreamCode.BAD_FLOW_ID
)
ID_TAKEN: Final = FlowRule("the flow id is another flow's", "9.4", _L1, StreamCode.BAD_FLOW_ID)

# Headers against what stands
TAKE_OVER_TYPE: Final = FlowRule("take-over by a stream of another type", "9.14", _L2, StreamCode.STREAM_TYPE)
NO_STATE: Final = FlowRule("there is no state to recover the flow from", "9.15", _L2, StreamCode.NO_FLOW_STATE)
RECOVERED_AGAIN: Final = FlowRule(
    "recovery is tried again after NO_FLOW_STATE",
    "9.15",
    _L0,
    StreamCode.NO_FLOW_STATE,
    ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS,
)
TOO_MANY: Final = FlowRule("more flows than this end keeps", "12.2", _L2, StreamCode.FLOW_REFUSED, reason_code=0x97)

# Ends
REFUSED_START: Final = FlowRule(
    "the peer answers NO_FLOW_STATE though abort_if_no_state was not set", "9.15", _L0, StreamCode.NO_FLOW_STATE
)
NOT_OWNER: Final = FlowRule("the peer ended a flow that it does not own", "9.13.1", _L0, StreamCode.NOT_FLOW_OWNER)
INCOMPLETE: Final = FlowRule("the stream ended inside a packet", "9.13.1", _L2, StreamCode.INCOMPLETE_PACKET)
CONTROL_INCOMPLETE: Final = FlowRule(
    "the control stream ended inside a packet", "9.13.1", _L0, StreamCode.INCOMPLETE_PACKET
)

# Packets. The draft has neither level nor code for one on the wrong flow. It breaks no state, so level 2, with the
# code for cancelled packets that keeps the state.
MISPLACED: Final = FlowRule("packet on the wrong kind of flow", "9.19", _L2, StreamCode.FLOW_PACKET_CANCELLED)
UNANSWERABLE: Final = FlowRule(
    "its answer cannot return on the same flow, which is unidirectional", "9.1.2", _L2, StreamCode.STREAM_TYPE
)
DATAGRAM_PACKET: Final = FlowRule(
    "this end takes PUBLISH at QoS 0 only in datagrams",
    "9.19",
    _L2,
    StreamCode.FLOW_PACKET_CANCELLED,
    reason_code=0x83,
)
DATAGRAM_ALIAS: Final = FlowRule(
    "topic alias in a datagram, which belongs to no flow",
    "9.21",
    _L2,
    StreamCode.FLOW_PACKET_CANCELLED,
    reason_code=0x94,
)
