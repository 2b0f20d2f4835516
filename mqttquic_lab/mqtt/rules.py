"""What the decoder holds against a packet: one entry per rule, with its reason code and where the standard says so.

The conformance statements of MQTT 5.0 and 3.1.1 are numbered alike but not equally (packet identifier 0 breaks
MQTT-2.2.1-3 in one and MQTT-2.3.1-1 in the other), so each rule cites both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mqttquic_lab.errors import MalformedPacketError

MALFORMED: Final = 0x81
PROTOCOL_ERROR: Final = 0x82


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the standard.

    Attributes
    ----------
    text : str
        What is wrong when it is broken.
    v5, v311 : tuple of str
        Conformance statement (or ``""``) and section number in either version. A rule that 3.1.1 does not have cites
        what comes nearest.
    reason_code : int
        What the other end is told (MQTT 5.0 section 4.13).
    """

    text: str
    v5: tuple[str, str]
    v311: tuple[str, str]
    reason_code: int = MALFORMED

    def broken(self, version: int | None, *, field: str, offset: int | None, detail: str = "") -> MalformedPacketError:
        """Return the error to raise.

        Parameters
        ----------
        version : int or None
            4 cites MQTT 3.1.1, all else MQTT 5.0.
        field : str
            Name of the field that breaks the rule.
        offset : int or None
            Its byte offset in the packet, where that is known.
        detail : str
            What was found, appended to the rule's text.
        """
        statement, section = self.v311 if version == 4 else self.v5
        return MalformedPacketError(
            f"{self.text}: {detail}" if detail else self.text,
            reason_code=self.reason_code,
            rule=statement,
            section=f"MQTT {'3.1.1' if version == 4 else '5.0'} section {section}",
            offset=offset,
            field=field,
        )


# Fixed header and data representation
TYPE_RESERVED = Rule("reserved packet type", ("", "2.1.2"), ("", "2.2.1"))
AUTH_IN_V311 = Rule("AUTH does not exist in MQTT 3.1.1", ("", "3.15"), ("", "2.2.1"))
DIRECTION = Rule("packet type that this end never receives", ("", "2.1.2"), ("", "2.2.1"), PROTOCOL_ERROR)
FIRST_PACKET = Rule("the first packet is not CONNECT", ("MQTT-3.1.0-1", "3.1"), ("MQTT-3.1.0-1", "3.1"), PROTOCOL_ERROR)
TOO_LARGE = Rule("packet larger than this end accepts", ("MQTT-3.1.2-24", "3.1.2.11.4"), ("", "2.2.3"), 0x95)
TOO_LARGE_FOR_SERVER = Rule("packet larger than this end accepts", ("MQTT-3.2.2-15", "3.2.2.3.6"), ("", "2.2.3"), 0x95)
VARINT_LONG = Rule("variable byte integer longer than four bytes", ("", "1.5.5"), ("", "2.2.3"))
VARINT_OVERLONG = Rule("variable byte integer not in its shortest form", ("MQTT-1.5.5-1", "1.5.5"), ("", "2.2.3"))
TRUNCATED = Rule("the packet ends inside a field", ("", "2.1.4"), ("", "2.2.3"))
TRAILING = Rule("bytes after the last field", ("", "2.1.4"), ("", "2.2.3"))
UTF8 = Rule("ill-formed UTF-8", ("MQTT-1.5.4-1", "1.5.4"), ("MQTT-1.5.3-1", "1.5.3"))
UTF8_NULL = Rule("U+0000 in a string", ("MQTT-1.5.4-2", "1.5.4"), ("MQTT-1.5.3-2", "1.5.3"))
PACKET_ID = Rule("packet identifier 0", ("MQTT-2.2.1-3", "2.2.1"), ("MQTT-2.3.1-1", "2.3.1"), PROTOCOL_ERROR)

# Properties (5.0 only)
PROPERTY_UNKNOWN = Rule("unknown property identifier", ("", "2.2.2.2"), ("", "2.3"))
PROPERTY_MISPLACED = Rule("property not allowed here", ("", "2.2.2.2"), ("", "2.3"))
PROPERTY_TWICE = Rule("property given twice", ("", "2.2.2.2"), ("", "2.3"), PROTOCOL_ERROR)
AUTH_DATA_ALONE = Rule(
    "authentication_data without authentication_method", ("", "3.1.2.11.10"), ("", "2.3"), PROTOCOL_ERROR
)

# CONNECT
PROTOCOL_NAME = Rule("protocol name is not 'MQTT'", ("MQTT-3.1.2-1", "3.1.2.1"), ("MQTT-3.1.2-1", "3.1.2.1"), 0x84)
PROTOCOL_LEVEL = Rule("unsupported protocol version", ("MQTT-3.1.2-2", "3.1.2.2"), ("MQTT-3.1.2-2", "3.1.2.2"), 0x84)
CONNECT_RESERVED = Rule("reserved connect flag set", ("MQTT-3.1.2-3", "3.1.2.3"), ("MQTT-3.1.2-3", "3.1.2.3"))
WILL_QOS_3 = Rule("will QoS 3", ("MQTT-3.1.2-12", "3.1.2.6"), ("MQTT-3.1.2-14", "3.1.2.6"))
WILL_QOS_ALONE = Rule("will QoS without will flag", ("MQTT-3.1.2-11", "3.1.2.6"), ("MQTT-3.1.2-13", "3.1.2.6"))
WILL_RETAIN_ALONE = Rule("will retain without will flag", ("MQTT-3.1.2-13", "3.1.2.7"), ("MQTT-3.1.2-15", "3.1.2.7"))
PASSWORD_ALONE = Rule("password without user name", ("", "3.1.2.9"), ("MQTT-3.1.2-22", "3.1.2.9"))
CLIENT_ID_EMPTY = Rule(
    "empty client identifier with clean session 0", ("", "3.1.3.1"), ("MQTT-3.1.3-8", "3.1.3.1"), 0x85
)

# CONNACK
CONNACK_RESERVED = Rule("reserved acknowledge flags set", ("MQTT-3.2.2-1", "3.2.2.1"), ("", "3.2.2.1"))
SESSION_PRESENT = Rule(
    "session present together with a failure", ("MQTT-3.2.2-6", "3.2.2.1.1"), ("MQTT-3.2.2-4", "3.2.2.2"),
    PROTOCOL_ERROR,
)  # fmt: skip

# PUBLISH and topics
QOS_3 = Rule("QoS 3", ("MQTT-3.3.1-4", "3.3.1.2"), ("MQTT-3.3.1-4", "3.3.1.2"))
DUP_QOS_0 = Rule("DUP set with QoS 0", ("MQTT-3.3.1-2", "3.3.1.1"), ("MQTT-3.3.1-2", "3.3.1.1"))
TOPIC_WILDCARD = Rule("wildcard in a topic name", ("MQTT-3.3.2-2", "3.3.2.1"), ("MQTT-3.3.2-2", "3.3.2.1"), 0x90)
TOPIC_EMPTY = Rule("empty topic name", ("MQTT-4.7.3-1", "4.7.3"), ("MQTT-4.7.3-1", "4.7.3"), PROTOCOL_ERROR)
TOPIC_MISSING = Rule("empty topic name without topic alias", ("", "3.3.2.1"), ("MQTT-4.7.3-1", "4.7.3"), PROTOCOL_ERROR)
SUBSCRIPTION_ID_FROM_CLIENT = Rule(
    "a client sent a subscription identifier in PUBLISH", ("MQTT-3.3.4-6", "3.3.4"), ("", "3.3"), PROTOCOL_ERROR
)
PAYLOAD_FORMAT = Rule("payload is not the UTF-8 it claims to be", ("", "3.3.2.3.2"), ("", "3.3"), 0x99)
WILL_TOPIC_WILDCARD = Rule("wildcard in the will topic", ("MQTT-4.7.0-1", "4.7"), ("MQTT-4.7.1-1", "4.7.1"), 0x90)
RESPONSE_TOPIC_WILDCARD = Rule(
    "wildcard in the response topic", ("MQTT-3.3.2-14", "3.3.2.3.5"), ("", "3.3"), PROTOCOL_ERROR
)

TOPIC_LONG = Rule("longer than 65535 bytes", ("MQTT-4.7.3-3", "4.7.3"), ("MQTT-4.7.3-3", "4.7.3"))
TOPIC_LEVELS = Rule("more levels than this end takes", ("", "4.7.1.1"), ("", "4.7.1.1"), 0x8F)

# Topic filters
FILTER_EMPTY = Rule("empty topic filter", ("MQTT-4.7.3-1", "4.7.3"), ("MQTT-4.7.3-1", "4.7.3"), PROTOCOL_ERROR)
FILTER_HASH = Rule("'#' is not the whole last level", ("MQTT-4.7.1-1", "4.7.1.2"), ("MQTT-4.7.1-2", "4.7.1.2"), 0x8F)
FILTER_PLUS = Rule("'+' is not a whole level", ("MQTT-4.7.1-2", "4.7.1.3"), ("MQTT-4.7.1-3", "4.7.1.3"), 0x8F)
SHARE_NAME = Rule("bad share name", ("MQTT-4.8.2-1", "4.8.2"), ("", "4.7"), 0x8F)
SHARE_FILTER = Rule("share name without a filter", ("MQTT-4.8.2-2", "4.8.2"), ("", "4.7"), 0x8F)

# SUBSCRIBE, UNSUBSCRIBE and their acknowledgements
SUBSCRIBE_EMPTY = Rule(
    "SUBSCRIBE without a subscription", ("MQTT-3.8.3-2", "3.8.3"), ("MQTT-3.8.3-3", "3.8.3"), PROTOCOL_ERROR
)
SUBSCRIPTION_OPTIONS = Rule(
    "reserved bits of the subscription options", ("MQTT-3.8.3-5", "3.8.3.1"), ("MQTT-3.8.3-4", "3.8.3")
)
SUBSCRIPTION_QOS_3 = Rule("subscription QoS 3", ("", "3.8.3.1"), ("MQTT-3.8.3-4", "3.8.3"), PROTOCOL_ERROR)
RETAIN_HANDLING_3 = Rule("retain handling 3", ("", "3.8.3.1"), ("MQTT-3.8.3-4", "3.8.3"), PROTOCOL_ERROR)
NO_LOCAL_SHARED = Rule("no local on a shared subscription", ("MQTT-3.8.3-4", "3.8.3.1"), ("", "3.8.3"), PROTOCOL_ERROR)
UNSUBSCRIBE_EMPTY = Rule(
    "UNSUBSCRIBE without a filter", ("MQTT-3.10.3-2", "3.10.3"), ("MQTT-3.10.3-2", "3.10.3"), PROTOCOL_ERROR
)
SUBACK_EMPTY = Rule("SUBACK without a reason code", ("", "3.9.3"), ("MQTT-3.8.4-5", "3.9.3"), PROTOCOL_ERROR)
UNSUBACK_EMPTY = Rule("UNSUBACK without a reason code", ("", "3.11.3"), ("", "3.11"), PROTOCOL_ERROR)

# DISCONNECT and AUTH
DISCONNECT_FROM_SERVER = Rule("a server sent DISCONNECT", ("", "3.14"), ("", "3.14"), PROTOCOL_ERROR)
SESSION_EXPIRY_FROM_SERVER = Rule(
    "a server sent session_expiry_interval in DISCONNECT", ("MQTT-3.14.2-2", "3.14.2.2.2"), ("", "3.14"), PROTOCOL_ERROR
)
AUTH_METHOD_MISSING = Rule("AUTH without authentication_method", ("", "3.15.2.2.2"), ("", "2.2.1"), PROTOCOL_ERROR)

FLAGS: Final = {
    name: Rule(f"reserved flags of {name}", v5, v311)
    for name, v5, v311 in (
        ("PUBREL", ("MQTT-3.6.1-1", "3.6.1"), ("MQTT-3.6.1-1", "3.6.1")),
        ("SUBSCRIBE", ("MQTT-3.8.1-1", "3.8.1"), ("MQTT-3.8.1-1", "3.8.1")),
        ("UNSUBSCRIBE", ("MQTT-3.10.1-1", "3.10.1"), ("MQTT-3.10.1-1", "3.10.1")),
        ("DISCONNECT", ("MQTT-3.14.1-1", "3.14.1"), ("MQTT-3.14.1-1", "3.14.1")),
        ("AUTH", ("MQTT-3.15.1-1", "3.15.1"), ("", "2.2.1")),
    )
} | {
    name: Rule(f"reserved flags of {name}", ("MQTT-2.1.3-1", "2.1.3"), ("MQTT-2.2.2-1", "2.2.2"))
    for name in ("CONNECT", "CONNACK", "PUBACK", "PUBREC", "PUBCOMP", "SUBACK", "UNSUBACK", "PINGREQ", "PINGRESP")
}
"""Packet name -> the rule that other flags in the fixed header than those of table 2-2 break."""

REASON_CODES: Final = {
    "CONNACK": Rule("reason code not of CONNACK", ("MQTT-3.2.2-8", "3.2.2.2"), ("", "3.2.2.3"), PROTOCOL_ERROR),
    "PUBACK": Rule("reason code not of PUBACK", ("MQTT-3.4.2-1", "3.4.2.1"), ("", "3.4"), PROTOCOL_ERROR),
    "PUBREC": Rule("reason code not of PUBREC", ("MQTT-3.5.2-1", "3.5.2.1"), ("", "3.5"), PROTOCOL_ERROR),
    "PUBREL": Rule("reason code not of PUBREL", ("MQTT-3.6.2-1", "3.6.2.1"), ("", "3.6"), PROTOCOL_ERROR),
    "PUBCOMP": Rule("reason code not of PUBCOMP", ("MQTT-3.7.2-1", "3.7.2.1"), ("", "3.7"), PROTOCOL_ERROR),
    "SUBACK": Rule("reason code not of SUBACK", ("MQTT-3.9.3-2", "3.9.3"), ("MQTT-3.9.3-2", "3.9.3"), PROTOCOL_ERROR),
    "UNSUBACK": Rule("reason code not of UNSUBACK", ("MQTT-3.11.3-2", "3.11.3"), ("", "3.11"), PROTOCOL_ERROR),
    "DISCONNECT": Rule("reason code not of DISCONNECT", ("MQTT-3.14.2-1", "3.14.2.1"), ("", "3.14"), PROTOCOL_ERROR),
    "AUTH": Rule("reason code not of AUTH", ("MQTT-3.15.2-1", "3.15.2.1"), ("", "2.2.1"), PROTOCOL_ERROR),
}
"""Packet name -> the rule that a reason code outside of :data:`mqttquic_lab.mqtt.reason_codes.ALLOWED` breaks."""
