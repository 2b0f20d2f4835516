"""Every state and every transition of MQTT, as two tables shared by client and broker.

:data:`CONNECTION_TABLE` says who may send which packet when, and what state the connection is in afterwards;
:data:`DELIVERY_TABLE` does the same for the exchange under one packet identifier (MQTT 5.0 section 4.3). Nothing in
them depends on which end asks: a role in a key is the role of the packet's **sender**, so a client checks what it
sends with ``Role.CLIENT`` and what arrives with ``Role.SERVER``.

The tables are complete. What the standard forbids has an entry too: a :class:`Violation` that names the rule.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mqttquic_lab.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Role(IntEnum):
    """Which end sends the packet."""

    CLIENT = 0
    SERVER = 1


class ConnectionState(IntEnum):
    """Where one network connection stands.

    ``IDLE``: nothing sent yet. ``CONNECTING``: CONNECT sent, CONNACK not. ``AUTHENTICATING``: the same, and CONNECT
    named an Authentication Method. ``CONNECTED``: CONNACK accepted. ``REAUTHENTICATING``: connected, and the client
    began AUTH again. ``CLOSED``: DISCONNECT or a refusing CONNACK sent. An end that closed the connection itself drops
    what is still on its way from the peer without asking the table.
    """

    IDLE = 0
    CONNECTING = 1
    AUTHENTICATING = 2
    CONNECTED = 3
    REAUTHENTICATING = 4
    CLOSED = 5


class PacketKind(IntEnum):
    """Packets as the tables tell them apart: the 15 packet types, and those whose meaning depends on a field.

    1 to 15 are the MQTT control packet types (MQTT 5.0 table 2-1); from 16 on, the number is only ours.
    """

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15
    """AUTH with 0x18, Continue authentication."""

    CONNECT_WITH_AUTHENTICATION = 16
    """CONNECT with an Authentication Method."""
    CONNACK_REFUSED = 17
    """CONNACK with a reason code of 0x80 or more."""
    AUTH_SUCCESS = 18
    """AUTH with 0x00."""
    REAUTHENTICATE = 19
    """AUTH with 0x19."""
    PUBLISH_QOS1 = 20
    PUBLISH_QOS2 = 21
    PUBREC_REFUSED = 22
    """PUBREC with a reason code of 0x80 or more."""


class Violation(NamedTuple):
    """An entry for what must not happen.

    Attributes
    ----------
    message : str
        What is wrong, to follow the name of the packet and its sender.
    rule : str
        Conformance statement, such as ``"MQTT-3.1.0-1"``, or ``""`` where the standard gives none.
    section : str
        Section of the standard.
    reason_code : int
        Reason code for the DISCONNECT that ends the connection.
    """

    message: str
    rule: str
    section: str
    reason_code: int = 0x82


class DeliveryState(IntEnum):
    """Where the exchange under one packet identifier stands.

    A sender's exchange is ``AWAIT_PUBACK`` (QoS 1), or ``AWAIT_PUBREC`` and then ``AWAIT_PUBCOMP`` (QoS 2); a
    receiver's is ``AWAIT_PUBREL`` (QoS 2). ``NONE``: no exchange has this identifier.
    """

    NONE = 0
    AWAIT_PUBACK = 1
    AWAIT_PUBREC = 2
    AWAIT_PUBCOMP = 3
    AWAIT_PUBREL = 4


class DeliveryStep(NamedTuple):
    """What a packet does to an exchange.

    Attributes
    ----------
    next : DeliveryState
        The state afterwards; ``NONE`` ends the exchange and frees its identifier.
    reply : PacketKind or None
        The packet to answer with.
    reason_code : int
        Reason code of the reply; only MQTT 5.0 can carry it.
    """

    next: DeliveryState
    reply: PacketKind | None = None
    reason_code: int = 0


_S = ConnectionState
_K = PacketKind

_CONNECTION_KINDS: Final = tuple(PacketKind)[:19]
"""What a connection tells apart: QoS and the outcome of PUBREC are no concern of its state."""

_BOTH = {_K.PUBLISH, _K.PUBACK, _K.PUBREC, _K.PUBREL, _K.PUBCOMP}
_CLIENT_TRAFFIC = _BOTH | {_K.SUBSCRIBE, _K.UNSUBSCRIBE, _K.PINGREQ}
_SERVER_TRAFFIC = _BOTH | {_K.SUBACK, _K.UNSUBACK, _K.PINGRESP}
_CONNECTS = {_K.CONNECT, _K.CONNECT_WITH_AUTHENTICATION}
_CONNACKS = {_K.CONNACK, _K.CONNACK_REFUSED}
_AUTHS = {_K.AUTH, _K.AUTH_SUCCESS, _K.REAUTHENTICATE}

_ONLY_SERVER_SENDS = Violation("is sent by servers only", "", "MQTT 5.0 section 2.1.2")
_ONLY_CLIENT_SENDS = Violation("is sent by clients only", "", "MQTT 5.0 section 2.1.2")
_CONNECT_FIRST = Violation("before CONNECT: the first packet must be CONNECT", "MQTT-3.1.0-1", "MQTT 5.0 section 3.1")
_SECOND_CONNECT = Violation("a second time on one connection", "MQTT-3.1.0-2", "MQTT 5.0 section 3.1")
_ONLY_AUTH = Violation(
    "before CONNACK, though CONNECT named an Authentication Method: only AUTH and DISCONNECT may be sent",
    "MQTT-3.1.2-30",
    "MQTT 5.0 section 3.1.2.11.9",
)
_CLIENT_NO_METHOD = Violation("though CONNECT named no Authentication Method", "MQTT-4.12.0-7", "MQTT 5.0 section 4.12")
_SERVER_NO_METHOD = Violation("though CONNECT named no Authentication Method", "MQTT-4.12.0-6", "MQTT 5.0 section 4.12")
_NO_EXCHANGE = Violation("while no authentication is under way", "", "MQTT 5.0 section 4.12.1")
_TWO_EXCHANGES = Violation("while an authentication is under way", "", "MQTT 5.0 section 4.12.1")
_CLIENT_CODE = Violation("with Success, which only a server sends", "", "MQTT 5.0 section 3.15.2.1")
_SERVER_CODE = Violation("with Re-authenticate, which only a client sends", "", "MQTT 5.0 section 3.15.2.1")
_CONNACK_SAYS_SO = Violation("with Success before CONNACK, which is what tells success", "", "MQTT 5.0 section 4.12")
_SPOKE_FIRST = Violation("before the client's CONNECT", "MQTT-3.1.0-1", "MQTT 5.0 section 3.1")
_CONNACK_FIRST = Violation("before CONNACK", "MQTT-3.2.0-1", "MQTT 5.0 section 3.2")
_SECOND_CONNACK = Violation("a second time on one connection", "MQTT-3.2.0-2", "MQTT 5.0 section 3.2")
_NOT_YET_DISCONNECT = Violation("before CONNACK", "MQTT-3.14.0-1", "MQTT 5.0 section 3.14")
_AFTER_END = Violation("after DISCONNECT or a refusing CONNACK", "MQTT-3.14.4-1", "MQTT 5.0 section 3.14.4")

Entry = ConnectionState | Violation


def _row(default: Violation, *entries: tuple[Iterable[PacketKind], Entry]) -> dict[PacketKind, Entry]:
    """One row of the table: `entries`, and `default` for every packet that none of them names."""
    row: dict[PacketKind, Entry] = dict.fromkeys(_CONNECTION_KINDS, default)
    for kinds, entry in entries:
        row.update(dict.fromkeys(kinds, entry))
    return row


_NOT_CLIENTS = (_CONNACKS | (_SERVER_TRAFFIC - _BOTH), _ONLY_SERVER_SENDS)
_NOT_SERVERS = (_CONNECTS | (_CLIENT_TRAFFIC - _BOTH), _ONLY_CLIENT_SENDS)

_ROWS: dict[tuple[Role, ConnectionState], dict[PacketKind, Entry]] = {
    (Role.CLIENT, _S.IDLE): _row(
        _CONNECT_FIRST,
        ({_K.CONNECT}, _S.CONNECTING),
        ({_K.CONNECT_WITH_AUTHENTICATION}, _S.AUTHENTICATING),
        _NOT_CLIENTS,
    ),
    # A client may send on without waiting for CONNACK (MQTT 5.0 section 3.1.4, non-normative comment).
    (Role.CLIENT, _S.CONNECTING): _row(
        _SECOND_CONNECT,
        (_CLIENT_TRAFFIC, _S.CONNECTING),
        ({_K.DISCONNECT}, _S.CLOSED),
        (_AUTHS, _CLIENT_NO_METHOD),
        _NOT_CLIENTS,
    ),
    (Role.CLIENT, _S.AUTHENTICATING): _row(
        _ONLY_AUTH,
        (_CONNECTS, _SECOND_CONNECT),
        ({_K.AUTH}, _S.AUTHENTICATING),
        ({_K.REAUTHENTICATE}, _TWO_EXCHANGES),
        ({_K.AUTH_SUCCESS}, _CLIENT_CODE),
        ({_K.DISCONNECT}, _S.CLOSED),
        _NOT_CLIENTS,
    ),
    # Whether CONNECT named a method at all, without which there is no REAUTHENTICATE [MQTT-4.12.0-7], is no matter of
    # state any more: the connection's owner has to remember it.
    (Role.CLIENT, _S.CONNECTED): _row(
        _SECOND_CONNECT,
        (_CLIENT_TRAFFIC, _S.CONNECTED),
        ({_K.DISCONNECT}, _S.CLOSED),
        ({_K.REAUTHENTICATE}, _S.REAUTHENTICATING),
        ({_K.AUTH}, _NO_EXCHANGE),
        ({_K.AUTH_SUCCESS}, _CLIENT_CODE),
        _NOT_CLIENTS,
    ),
    # Other packets go on with the former authentication meanwhile (MQTT 5.0 section 4.12.1).
    (Role.CLIENT, _S.REAUTHENTICATING): _row(
        _SECOND_CONNECT,
        (_CLIENT_TRAFFIC, _S.REAUTHENTICATING),
        ({_K.DISCONNECT}, _S.CLOSED),
        ({_K.AUTH}, _S.REAUTHENTICATING),
        ({_K.REAUTHENTICATE}, _TWO_EXCHANGES),
        ({_K.AUTH_SUCCESS}, _CLIENT_CODE),
        _NOT_CLIENTS,
    ),
    (Role.CLIENT, _S.CLOSED): _row(_AFTER_END, _NOT_CLIENTS),
    (Role.SERVER, _S.IDLE): _row(_SPOKE_FIRST, _NOT_SERVERS),
    (Role.SERVER, _S.CONNECTING): _row(
        _CONNACK_FIRST,
        ({_K.CONNACK}, _S.CONNECTED),
        ({_K.CONNACK_REFUSED}, _S.CLOSED),
        ({_K.DISCONNECT}, _NOT_YET_DISCONNECT),
        (_AUTHS, _SERVER_NO_METHOD),
        _NOT_SERVERS,
    ),
    (Role.SERVER, _S.AUTHENTICATING): _row(
        _CONNACK_FIRST,
        ({_K.CONNACK}, _S.CONNECTED),
        ({_K.CONNACK_REFUSED}, _S.CLOSED),
        ({_K.DISCONNECT}, _NOT_YET_DISCONNECT),
        ({_K.AUTH}, _S.AUTHENTICATING),
        ({_K.AUTH_SUCCESS}, _CONNACK_SAYS_SO),
        ({_K.REAUTHENTICATE}, _SERVER_CODE),
        _NOT_SERVERS,
    ),
    (Role.SERVER, _S.CONNECTED): _row(
        _SECOND_CONNACK,
        (_SERVER_TRAFFIC, _S.CONNECTED),
        ({_K.DISCONNECT}, _S.CLOSED),
        ({_K.AUTH, _K.AUTH_SUCCESS}, _NO_EXCHANGE),
        ({_K.REAUTHENTICATE}, _SERVER_CODE),
        _NOT_SERVERS,
    ),
    (Role.SERVER, _S.REAUTHENTICATING): _row(
        _SECOND_CONNACK,
        (_SERVER_TRAFFIC, _S.REAUTHENTICATING),
        ({_K.DISCONNECT}, _S.CLOSED),
        ({_K.AUTH}, _S.REAUTHENTICATING),
        ({_K.AUTH_SUCCESS}, _S.CONNECTED),
        ({_K.REAUTHENTICATE}, _SERVER_CODE),
        _NOT_SERVERS,
    ),
    (Role.SERVER, _S.CLOSED): _row(_AFTER_END, _NOT_SERVERS),
}

CONNECTION_TABLE: Final[Mapping[tuple[Role, ConnectionState, PacketKind], Entry]] = {
    (role, state, kind): entry for (role, state), row in _ROWS.items() for kind, entry in row.items()
}
"""(role of the sender, state, packet) -> state afterwards, or the :class:`Violation`."""

_NEXT: Final = tuple(
    tuple(tuple(CONNECTION_TABLE[role, state, kind] for kind in _CONNECTION_KINDS) for state in ConnectionState)
    for role in Role
)
"""The same table by position: looked up per packet, and indexing costs a third of hashing a key of three."""


_NOT_IN_V311: Final = frozenset({(Role.SERVER, _K.DISCONNECT)} | {(role, kind) for role in Role for kind in _AUTHS})
"""How MQTT 3.1.1 differs; all that it has, it has under the same rules."""

_NO_SUCH_PACKET = Violation("does not exist in MQTT 3.1.1", "", "MQTT 3.1.1 section 2.2.1")

_REFINED = frozenset({PacketKind.CONNECT, PacketKind.CONNACK, PacketKind.AUTH})
"""Types whose meaning depends on a field."""


def packet_kind(packet: Any, version: int = 5) -> PacketKind:
    """Tell which :class:`PacketKind` a packet is for :data:`CONNECTION_TABLE`."""
    kind: int = packet.TYPE
    if kind == PacketKind.CONNECT and "authentication_method" in packet.properties:
        return PacketKind.CONNECT_WITH_AUTHENTICATION
    if kind == PacketKind.CONNACK and (packet.reason_code >= 0x80 or (version == 4 and packet.reason_code)):
        return PacketKind.CONNACK_REFUSED
    if kind == PacketKind.AUTH:
        if packet.reason_code == 0x19:
            return PacketKind.REAUTHENTICATE
        if packet.reason_code == 0x00:
            return PacketKind.AUTH_SUCCESS
    return PacketKind(kind)


def check_packet(role: Role, state: ConnectionState, packet: Any, version: int = 5) -> ConnectionState:
    """Return the connection's state after `packet`, or say which rule its sender broke.

    Parameters
    ----------
    role : Role
        Who sent it: one's own role for packets going out, the peer's for packets that arrived.
    state : ConnectionState
        The state before it.
    packet : packet
        Any control packet.
    version : {5, 4}
        Protocol level of the connection; 3.1.1 (4) has neither AUTH nor a server's DISCONNECT.

    Raises
    ------
    ProtocolError
        If the packet is not allowed now; reason code 0x82, with rule and section.
    """
    kind: int = packet.TYPE
    if kind in _REFINED:
        kind = packet_kind(packet, version)
    entry = _NEXT[role][state][kind - 1]
    if version == 4 and (role, kind) in _NOT_IN_V311:
        entry = _NO_SUCH_PACKET
    if isinstance(entry, Violation):
        raise violation_error(entry, f"{packet.NAME} from the {role.name.lower()}", packet)
    return entry


def violation_error(violation: Violation, subject: str, packet: Any = None) -> ProtocolError:
    """Make the :class:`ProtocolError` that tells of a :class:`Violation`; `subject` begins its message."""
    return ProtocolError(
        f"{subject} {violation.message}",
        reason_code=violation.reason_code,
        rule=violation.rule,
        section=violation.section,
        packet=packet,
    )


_D = DeliveryState
_QOS1 = "MQTT 5.0 section 4.3.2"
_QOS2 = "MQTT 5.0 section 4.3.3"
_TO_QOS1 = Violation("answers a QoS 1 PUBLISH, which only PUBACK does", "MQTT-4.3.2-4", _QOS1)
_TO_QOS2 = Violation("answers a QoS 2 PUBLISH, which only PUBREC does", "MQTT-4.3.3-8", _QOS2)
_TO_PUBREL = Violation("answers PUBREL, which only PUBCOMP does", "MQTT-4.3.3-11", _QOS2)
_REFUSED_LATE = Violation("refuses a PUBLISH it has accepted before", "MQTT-4.3.3-8", _QOS2)

DELIVERY_TABLE: Final[Mapping[tuple[DeliveryState, PacketKind], DeliveryStep | Violation]] = {
    # Sender. An acknowledgement for an unknown identifier is no protocol error: after a reconnect the two ends may
    # disagree on what was finished. PUBREC wants an answer so that the peer can finish as well.
    (_D.NONE, _K.PUBACK): DeliveryStep(_D.NONE),
    (_D.NONE, _K.PUBREC): DeliveryStep(_D.NONE, _K.PUBREL, 0x92),
    (_D.NONE, _K.PUBREC_REFUSED): DeliveryStep(_D.NONE),
    (_D.NONE, _K.PUBCOMP): DeliveryStep(_D.NONE),
    (_D.AWAIT_PUBACK, _K.PUBACK): DeliveryStep(_D.NONE),
    (_D.AWAIT_PUBACK, _K.PUBREC): _TO_QOS1,
    (_D.AWAIT_PUBACK, _K.PUBREC_REFUSED): _TO_QOS1,
    (_D.AWAIT_PUBACK, _K.PUBCOMP): _TO_QOS1,
    (_D.AWAIT_PUBREC, _K.PUBACK): _TO_QOS2,
    (_D.AWAIT_PUBREC, _K.PUBREC): DeliveryStep(_D.AWAIT_PUBCOMP, _K.PUBREL),
    (_D.AWAIT_PUBREC, _K.PUBREC_REFUSED): DeliveryStep(_D.NONE),
    (_D.AWAIT_PUBREC, _K.PUBCOMP): _TO_QOS2,
    (_D.AWAIT_PUBCOMP, _K.PUBACK): _TO_PUBREL,
    # Each PUBREC is answered by PUBREL [MQTT-4.3.3-4], a repeated one too.
    (_D.AWAIT_PUBCOMP, _K.PUBREC): DeliveryStep(_D.AWAIT_PUBCOMP, _K.PUBREL),
    (_D.AWAIT_PUBCOMP, _K.PUBREC_REFUSED): _REFUSED_LATE,
    (_D.AWAIT_PUBCOMP, _K.PUBCOMP): DeliveryStep(_D.NONE),
    # Receiver: the message is delivered when its PUBLISH finds no exchange.
    (_D.NONE, _K.PUBLISH_QOS1): DeliveryStep(_D.NONE, _K.PUBACK),
    (_D.NONE, _K.PUBLISH_QOS2): DeliveryStep(_D.AWAIT_PUBREL, _K.PUBREC),
    (_D.NONE, _K.PUBREL): DeliveryStep(_D.NONE, _K.PUBCOMP, 0x92),
    (_D.AWAIT_PUBREL, _K.PUBLISH_QOS1): DeliveryStep(_D.AWAIT_PUBREL, _K.PUBACK, 0x91),
    (_D.AWAIT_PUBREL, _K.PUBLISH_QOS2): DeliveryStep(_D.AWAIT_PUBREL, _K.PUBREC),
    (_D.AWAIT_PUBREL, _K.PUBREL): DeliveryStep(_D.NONE, _K.PUBCOMP),
}
"""(state of the exchange, packet that arrived) -> what it does, or the :class:`Violation`."""
