"""Codes that end connections and flows in ``MQTT-next``, the three error levels, and the error that carries them.

*MQoQ* is the draft "MQTT-next, a mapping of MQTT to QUIC" (EMQ, 2024-03-05); its chapters 11 and 12 are this module.

In use:

- :class:`ConnectionCode` goes into CONNECTION_CLOSE, :class:`StreamCode` into RESET_STREAM and STOP_SENDING. The same
  number means one thing on a connection and another on a stream (0xB3, 0xB4), so the two are never mixed.
- :class:`FlowError` is raised wherever a peer breaks a rule of the draft. It knows its :class:`ErrorLevel`;
  :meth:`mqttquic_lab.mqtt.flows.FlowTable.fail` says what follows from that.
- :func:`connection_code_text` and :func:`stream_code_text` put any number into words and never raise.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttquic_lab.mqtt.flow_header import FlowHeader

DRAFT: Final = "MQoQ draft"
"""How sections of the draft are cited: ``f"{DRAFT} section 9.13.1"``."""


class ErrorLevel(IntEnum):
    """How far an error reaches (MQoQ 11)."""

    CONNECTION = 0
    """The connection must be closed."""
    FLOW = 1
    """The flow is aborted and its state discarded: it may be inconsistent."""
    STREAM = 2
    """The stream is aborted; the state is kept and the flow may be recovered."""


class ConnectionCode(IntEnum):
    """Application error codes of CONNECTION_CLOSE (MQoQ 12.1).

    Section 8.3.1 also speaks of ERROR_DISCONNECT_TIMEOUT, but the draft gives it no number.
    """

    NO_ERROR = 0x00
    TLS_ERROR = 0xB1
    UNSPECIFIED = 0xB2
    TOO_MANY_RECOVER_ATTEMPTS = 0xB3
    PROTOCOL_L0 = 0xB4

    @property
    def text(self) -> str:
        """What the code means, in words."""
        return _CONNECTION_TEXTS[self]


class StreamCode(IntEnum):
    """Application error codes of RESET_STREAM and STOP_SENDING (MQoQ 12.2).

    The draft lists NO_FLOW_STATE twice. ``StreamCode(0xC1)`` is ``StreamCode.NO_FLOW_STATE`` too; what we send is the
    first number, 0xB3.
    """

    NO_ERROR = 0x00
    NO_FLOW_STATE = 0xB3
    NOT_FLOW_OWNER = 0xB4
    STREAM_TYPE = 0xB5
    BAD_FLOW_ID = 0xB6
    PERSISTENT_TOPIC = 0xB7
    PERSISTENT_SUB = 0xB8
    OPTIONAL_HEADER = 0xB9
    INCOMPLETE_PACKET = 0xBA
    FLOW_OPEN_IDLE = 0xBB
    FLOW_CANCELLED = 0xBC
    FLOW_PACKET_CANCELLED = 0xBD
    FLOW_REFUSED = 0xBE
    DISCARD_STATE = 0xBF
    SERVER_PUSH_NOT_WELCOME = 0xC0

    @classmethod
    def _missing_(cls, value: object) -> StreamCode | None:
        return cls.NO_FLOW_STATE if value == SECOND_NO_FLOW_STATE else None

    @property
    def text(self) -> str:
        """What the code means, in words."""
        return _STREAM_TEXTS[self]

    @property
    def discards_state(self) -> bool:
        """Whether the flow's state goes with the stream (column "Discard State" of MQoQ 12.2).

        The table says N/A for 0xB3 and Y for 0xC1, both NO_FLOW_STATE: there is no state at the peer, so keeping ours
        would be of no use.
        """
        return self in _DISCARDING


SECOND_NO_FLOW_STATE: Final = 0xC1
"""The other number of NO_FLOW_STATE (MQoQ 12.2); mqttv5 calls it ERROR_RECOVERY_FAILED."""

_CONNECTION_TEXTS: Final[Mapping[ConnectionCode, str]] = {
    ConnectionCode.NO_ERROR: "no error",
    ConnectionCode.TLS_ERROR: "the TLS handshake succeeded but further checks failed",
    ConnectionCode.UNSPECIFIED: "unspecified error",
    ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS: "too many attempts to recover a flow that does not exist",
    ConnectionCode.PROTOCOL_L0: "protocol error of level 0",
}

_STREAM_TEXTS: Final[Mapping[StreamCode, str]] = {
    StreamCode.NO_ERROR: "no error",
    StreamCode.NO_FLOW_STATE: "the flow's state does not exist (any more)",
    StreamCode.NOT_FLOW_OWNER: "only the flow's owner may do this",
    StreamCode.STREAM_TYPE: "unsupported type of stream",
    StreamCode.BAD_FLOW_ID: "flow id and flow type do not match",
    StreamCode.PERSISTENT_TOPIC: "persistent topic aliases are not supported",
    StreamCode.PERSISTENT_SUB: "persistent subscriptions are not supported",
    StreamCode.OPTIONAL_HEADER: "optional headers are not supported",
    StreamCode.INCOMPLETE_PACKET: "the stream ended inside a packet",
    StreamCode.FLOW_OPEN_IDLE: "nothing came on the flow after it was opened",
    StreamCode.FLOW_CANCELLED: "the flow was cancelled and its state discarded",
    StreamCode.FLOW_PACKET_CANCELLED: "a packet was cancelled; the flow's state is kept",
    StreamCode.FLOW_REFUSED: "the flow was refused",
    StreamCode.DISCARD_STATE: "the flow's whole state is discarded",
    StreamCode.SERVER_PUSH_NOT_WELCOME: "the client wants no flows opened by the server",
}

_DISCARDING: Final = frozenset(
    {
        StreamCode.NO_FLOW_STATE,
        StreamCode.BAD_FLOW_ID,
        StreamCode.PERSISTENT_SUB,
        StreamCode.OPTIONAL_HEADER,
        StreamCode.FLOW_CANCELLED,
        StreamCode.DISCARD_STATE,
        StreamCode.SERVER_PUSH_NOT_WELCOME,
    }
)


def as_stream_code(code: int) -> StreamCode | None:
    """Return the code of a RESET_STREAM or STOP_SENDING, None when the draft has none with this number (MQoQ 12.2)."""
    try:
        return StreamCode(code)
    except ValueError:
        return None


def connection_code_text(code: int) -> str:
    """Return name, number and meaning of a CONNECTION_CLOSE code (MQoQ 12.1); never raises."""
    try:
        known = ConnectionCode(code)
    except ValueError:
        return f"unknown connection code {_hex(code)}"
    return f"{known.name} ({_hex(code)}): {known.text}"


def stream_code_text(code: int) -> str:
    """Return name, number and meaning of a RESET_STREAM or STOP_SENDING code (MQoQ 12.2); never raises."""
    known = as_stream_code(code)
    if known is None:
        return f"unknown stream code {_hex(code)}"
    return f"{known.name} ({_hex(code)}): {known.text}"


def _hex(code: int) -> str:
    return f"0x{code:02X}" if code >= 0 else str(code)


class FlowError(ProtocolError):
    """A rule of the draft was broken on a flow (MQoQ 11).

    Attributes
    ----------
    level : ErrorLevel
        How far it reaches.
    code : StreamCode
        What RESET_STREAM and STOP_SENDING say; of use at levels 1 and 2.
    close : ConnectionCode
        What CONNECTION_CLOSE says, if the connection is to be closed for it.
    flow_id : int or None
        The flow, where it is known.
    header : FlowHeader or None
        The header that broke the rule.
    """

    def __init__(
        self,
        message: str,
        *,
        level: ErrorLevel,
        code: StreamCode,
        section: str,
        close: ConnectionCode = ConnectionCode.PROTOCOL_L0,
        flow_id: int | None = None,
        header: FlowHeader | None = None,
        reason_code: int = 0x82,
        offset: int | None = None,
        field: str = "",
        packet: Any = None,
    ) -> None:
        super().__init__(
            message,
            reason_code=reason_code,
            section=f"{DRAFT} section {section}",
            offset=offset,
            field=field,
            packet=packet,
        )
        self.level = level
        self.code = code
        self.close = close
        self.flow_id = flow_id if flow_id is not None or header is None else header.flow_id
        self.header = header
