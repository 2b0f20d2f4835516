"""Reason codes of MQTT 5.0 (section 2.4), and what the return codes of MQTT 3.1.1 become.

One type serves both versions: :class:`ReasonCode` holds the codes of 5.0, and the CONNACK return codes of 3.1.1 are
mapped to the 5.0 code of the same meaning. :data:`ALLOWED` says which codes a packet may carry, by packet and sender.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from mqttquic_lab.errors import UsageError


class ReasonCode(IntEnum):
    """A reason code of MQTT 5.0 section 2.4; an ``int``, so ``code == 0x87`` holds for ``NOT_AUTHORIZED``.

    The value 0x00 has three names in the standard (Success, Normal disconnection, Granted QoS 0); here
    ``NORMAL_DISCONNECTION`` and ``GRANTED_QOS_0`` are aliases of ``SUCCESS``.
    """

    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    GRANTED_QOS_0 = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL_MESSAGE = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    RE_AUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

    @property
    def is_failure(self) -> bool:
        """Whether the operation failed: 0x80 or more (MQTT 5.0 section 2.4)."""
        return self >= 0x80

    @property
    def text(self) -> str:
        """The code in the standard's words, such as ``"Not authorized"``."""
        return _TEXTS[self]

    @classmethod
    def from_v311(cls, return_code: int) -> ReasonCode:
        """Return the 5.0 code with the meaning of a 3.1.1 CONNACK return code.

        Parameters
        ----------
        return_code : int
            0 to 5 (MQTT 3.1.1 section 3.2.2.3).

        Raises
        ------
        UsageError
            When 3.1.1 reserves that value.
        """
        try:
            return _FROM_V311[return_code]
        except (KeyError, TypeError):
            raise UsageError(f"{return_code!r} is no MQTT 3.1.1 CONNACK return code: they run from 0 to 5") from None

    def to_v311(self) -> int:
        """Return the nearest 3.1.1 CONNACK return code.

        3.1.1 knows five failures only, so codes without an equal become 3 (server unavailable) or, when the client
        itself is unwelcome, 5 (not authorized).

        Raises
        ------
        UsageError
            When the code is a success other than 0x00, which a CONNACK cannot carry.
        """
        if self.is_failure:
            return _TO_V311.get(self, 3)
        if self == 0:
            return 0
        raise UsageError(f"reason code 0x{self:02x} ({self.text}) does not belong in a CONNACK")


_SPELLINGS: Final = {
    ReasonCode.GRANTED_QOS_1: "Granted QoS 1",
    ReasonCode.GRANTED_QOS_2: "Granted QoS 2",
    ReasonCode.DISCONNECT_WITH_WILL_MESSAGE: "Disconnect with Will Message",
    ReasonCode.RE_AUTHENTICATE: "Re-authenticate",
    ReasonCode.MALFORMED_PACKET: "Malformed Packet",
    ReasonCode.PROTOCOL_ERROR: "Protocol Error",
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION: "Unsupported Protocol Version",
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: "Client Identifier not valid",
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: "Bad User Name or Password",
    ReasonCode.KEEP_ALIVE_TIMEOUT: "Keep Alive timeout",
    ReasonCode.TOPIC_FILTER_INVALID: "Topic Filter invalid",
    ReasonCode.TOPIC_NAME_INVALID: "Topic Name invalid",
    ReasonCode.PACKET_IDENTIFIER_IN_USE: "Packet Identifier in use",
    ReasonCode.PACKET_IDENTIFIER_NOT_FOUND: "Packet Identifier not found",
    ReasonCode.RECEIVE_MAXIMUM_EXCEEDED: "Receive Maximum exceeded",
    ReasonCode.TOPIC_ALIAS_INVALID: "Topic Alias invalid",
    ReasonCode.QOS_NOT_SUPPORTED: "QoS not supported",
    ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: "Shared Subscriptions not supported",
    ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED: "Subscription Identifiers not supported",
    ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED: "Wildcard Subscriptions not supported",
}
"""Codes whose words in the standard are not just the member's name in lower case."""

_TEXTS: Final = {code: _SPELLINGS.get(code, code.name.replace("_", " ").capitalize()) for code in ReasonCode}

_FROM_V311: Final = {
    0: ReasonCode.SUCCESS,
    1: ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    2: ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
    3: ReasonCode.SERVER_UNAVAILABLE,
    4: ReasonCode.BAD_USER_NAME_OR_PASSWORD,
    5: ReasonCode.NOT_AUTHORIZED,
}
_TO_V311: Final = {code: value for value, code in _FROM_V311.items()} | {
    ReasonCode.BANNED: 5,
    ReasonCode.BAD_AUTHENTICATION_METHOD: 5,
    ReasonCode.TOPIC_NAME_INVALID: 5,
    ReasonCode.PROTOCOL_ERROR: 5,
}

CODES: Final[tuple[ReasonCode | None, ...]] = tuple(
    ReasonCode(value) if value in ReasonCode._value2member_map_ else None for value in range(256)
)
"""Byte -> code, or None where 5.0 defines none; indexing is what the decoder can afford per packet."""


def reason_text(code: int | None) -> str:
    """Return words for a reason code of either version; never raises.

    Examples
    --------
    >>> reason_text(0x87)
    'Not authorized'
    >>> reason_text(0xEE)
    'Unknown reason code 0xee'
    """
    if code is None:
        return "No reason code"
    try:
        return ReasonCode(code).text
    except ValueError:
        return f"Unknown reason code 0x{code:02x}" if isinstance(code, int) else f"Unknown reason code {code!r}"


def _codes(*values: int) -> frozenset[ReasonCode]:
    return frozenset(map(ReasonCode, values))


_ACK: Final = _codes(0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)
_RELEASE: Final = _codes(0x00, 0x92)
_BOTH_DISCONNECT: Final = _codes(0, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)

ALLOWED: Final[dict[str, frozenset[ReasonCode]]] = {
    "CONNACK": _codes(
        0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A,
        0x9B, 0x9C, 0x9D, 0x9F,
    ),
    "PUBACK": _ACK,
    "PUBREC": _ACK,
    "PUBREL": _RELEASE,
    "PUBCOMP": _RELEASE,
    "SUBACK": _codes(0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2),
    "UNSUBACK": _codes(0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91),
    "DISCONNECT": _BOTH_DISCONNECT | _codes(
        0x04, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2
    ),
    "AUTH": _codes(0x00, 0x18, 0x19),
}  # fmt: skip
"""Packet name -> codes it may carry (the tables in sections 3.2.2.2, 3.4.2.1, ... 3.15.2.1)."""

CLIENT_ONLY: Final = {"DISCONNECT": _codes(0x04), "AUTH": _codes(0x19)}
"""Codes that only a client sends; a client that receives one sees a protocol error."""

SERVER_ONLY: Final = {"DISCONNECT": ALLOWED["DISCONNECT"] - _BOTH_DISCONNECT - _codes(0x04), "AUTH": _codes(0x00)}
"""Codes that only a server sends."""

CLIENT_DISCONNECTS: Final = ALLOWED["DISCONNECT"] - SERVER_ONLY["DISCONNECT"]
"""Codes that a client may send in DISCONNECT [MQTT-3.14.2-1]."""
