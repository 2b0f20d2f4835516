"""Which packet may travel on which kind of flow (MQoQ 9.19), as one complete table.

In use: ``check_flow_packet(packet, FlowKind.CLIENT_DATA)`` for packets in and out; it raises
:class:`~mqttquic_lab.mqtt.flow_codes.FlowError` or returns None. Who may send what when is another table,
:data:`mqttquic_lab.mqtt.state.CONNECTION_TABLE`; both apply.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.mqtt import flow_rules
from mqttquic_lab.mqtt.flow_header import FlowType
from mqttquic_lab.mqtt.packet import TYPE_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping


class FlowKind(IntEnum):
    """What carries a packet: the flow types, and datagrams."""

    CONTROL = FlowType.CONTROL
    CLIENT_DATA = FlowType.CLIENT_DATA
    SERVER_DATA = FlowType.SERVER_DATA
    USER_DEFINED = FlowType.USER_DEFINED
    """Carries no MQTT at all (MQoQ 9.20)."""
    DATAGRAM = 0
    """DATAGRAM frame (RFC 9221)."""

    @property
    def text(self) -> str:
        """Name in words."""
        return "a datagram" if self is FlowKind.DATAGRAM else f"a {self.name.lower().replace('_', ' ')} flow"


_COLUMNS: Final = (FlowKind.CONTROL, FlowKind.CLIENT_DATA, FlowKind.SERVER_DATA, FlowKind.DATAGRAM)

_ROWS: Final = {
    "CONNECT": (True, False, False, False),
    "CONNACK": (True, False, False, False),
    "PUBLISH": (True, True, True, True),
    "PUBACK": (True, True, True, True),
    "PUBREC": (True, True, True, True),
    "PUBREL": (True, True, True, True),
    "PUBCOMP": (True, True, True, True),
    "SUBSCRIBE": (True, True, False, True),
    "SUBACK": (True, True, False, True),
    "UNSUBSCRIBE": (True, True, False, True),
    "UNSUBACK": (True, True, False, True),
    "PINGREQ": (True, True, True, False),
    "PINGRESP": (True, True, True, False),
    "DISCONNECT": (True, False, False, False),
    "AUTH": (True, False, False, False),
}

FLOW_PACKET_TABLE: Final[Mapping[tuple[int, FlowKind], bool]] = {
    (TYPE_NAMES.index(name), kind): allowed
    for name, row in _ROWS.items()
    for kind, allowed in (*zip(_COLUMNS, row, strict=True), (FlowKind.USER_DEFINED, False))
}
"""(MQTT packet type, kind of flow) -> whether it may travel there."""

CARRIES: Final[Mapping[FlowKind, tuple[bool, ...]]] = {
    kind: tuple(FLOW_PACKET_TABLE.get((type_, kind), False) for type_ in range(16)) for kind in FlowKind
}
"""The same by kind and position, for a look-up per packet without hashing."""


def check_flow_packet(packet: Any, kind: FlowKind, flow_id: int | None = None) -> None:
    """Check that a packet may travel on a flow of this kind (MQoQ 9.19).

    Raises
    ------
    FlowError
        When it may not: level 2, FLOW_PACKET_CANCELLED.
    """
    if not FLOW_PACKET_TABLE[packet.TYPE, kind]:
        where = ", ".join(other.text for other in _COLUMNS if FLOW_PACKET_TABLE[packet.TYPE, other])
        detail = f"{packet.NAME} on {kind.text}, and it may travel on {where}"
        raise flow_rules.MISPLACED.broken(detail, flow_id=flow_id, packet=packet)
