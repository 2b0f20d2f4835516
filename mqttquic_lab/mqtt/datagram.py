"""PUBLISH in DATAGRAM frames (MQoQ 8.3.3, RFC 9221).

In use::

    limit = connection.max_datagram_size or 0                           # 0: the peer takes no datagrams
    connection.send_datagram(encode_datagram("plant/1/temp", b"21.5", max_size=limit))
    ...
    datagram = read_datagram(data, receiver="client")
    if datagram.publish is not None: deliver(datagram.publish)          # else empty, or not MQTT: datagram.kind

A datagram may be lost, come late, or come twice, so only QoS 0 travels in them here, though the table of MQoQ 9.19
allows more. A datagram that cannot be read harms nothing but itself: catch ``ProtocolError``, count, go on.

The draft's overview (section 6) says that a QoS 0 PUBLISH may have a packet identifier here. It does not say how it is
told apart from the topic or properties behind it, so none is written and none understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from mqttquic_lab.errors import MalformedPacketError, PublishError, UsageError
from mqttquic_lab.mqtt import flow_rules
from mqttquic_lab.mqtt.decoder import PacketDecoder
from mqttquic_lab.mqtt.flow_packets import FlowKind, check_flow_packet
from mqttquic_lab.mqtt.publish import Publish, encode_publish

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.properties import Properties
    from mqttquic_lab.mqtt.reader import Receiver, Version

NOT_MQTT: Final = 0x00
"""First byte of a datagram that is no MQTT packet (MQoQ 8.3.3)."""

READS_DATAGRAMS: Final = ("reads_datagrams", "1")
"""User Property of CONNECT by which our client tells our broker that it reads datagrams.

The draft needs none: who speaks ``MQTT-next`` reads them. With the ALPN ``mqtt`` nothing else tells, for many QUIC
stacks announce max_datagram_frame_size whether or not anybody reads.
"""


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram payload (MQoQ 8.3.3).

    Attributes
    ----------
    kind : {"mqtt", "other", "empty"}
        Which of the draft's three kinds it is.
    publish : Publish or None
        The message of kind ``"mqtt"``.
    data : bytes
        What follows the first byte of kind ``"other"``.
    """

    kind: Literal["mqtt", "other", "empty"]
    publish: Publish | None = None
    data: bytes = b""


def encode_datagram(
    topic: str,
    payload: bytes | bytearray | memoryview,
    retain: bool = False,
    properties: Properties | None = None,
    *,
    max_size: int,
    version: Version = 5,
) -> bytes:
    """Return a QoS 0 PUBLISH as the payload of one datagram (MQoQ 8.3.3, 9.19).

    Parameters
    ----------
    topic, payload, retain, properties
        Of the PUBLISH. A topic alias cannot be used: aliases belong to flows, and datagrams come in any order.
    max_size : int
        What the transport says; 0 where it takes no datagrams.
    version : {5, 4}
        Protocol level.

    Raises
    ------
    UsageError
        When the message cannot be sent so, whatever its size.
    PublishError
        When the peer takes no datagrams, or none so large (0x95, Packet too large); the message gives both sizes.
    """
    if properties and "topic_alias" in properties:
        raise UsageError("topic_alias cannot be used in a datagram, which belongs to no flow: leave it out")
    if max_size <= 0:
        raise PublishError("the peer takes no datagrams (RFC 9221): publish on a stream", reason_code=0x83)
    data = encode_publish(topic, payload, 0, retain, False, None, properties, version)
    if len(data) > max_size:
        raise PublishError(
            f"this PUBLISH takes {len(data)} bytes, and a datagram to this peer ends at {max_size}: publish it on a "
            "stream, or send less",
            reason_code=0x95,
        )
    return data


def read_datagram(data: bytes | bytearray | memoryview, *, receiver: Receiver, version: Version = 5) -> Datagram:
    """Read the payload of a DATAGRAM frame (MQoQ 8.3.3, 9.19).

    Parameters
    ----------
    data : bytes
        The payload.
    receiver : {"client", "server"}
        Which end this is.
    version : {5, 4}
        Protocol level.

    Raises
    ------
    MalformedPacketError
        When it is not exactly one packet.
    FlowError
        When the packet is one that cannot travel in a datagram, or not here: any but PUBLISH at QoS 0 (level 2).
    """
    data = bytes(data)
    if not data:
        return Datagram("empty")
    if data[0] == NOT_MQTT:
        return Datagram("other", data=data[1:])
    decoder = PacketDecoder(version, receiver=receiver)
    try:
        packets = decoder.feed(data)
    except MalformedPacketError as error:
        if error.packets:
            raise _not_one(f"{len(error.packets)} and more", len(data)) from error
        raise
    if len(packets) != 1 or decoder.buffered:
        raise _not_one(str(len(packets)) if packets else "an incomplete packet, not", len(data))
    packet: Any = packets[0]
    check_flow_packet(packet, FlowKind.DATAGRAM)
    if not isinstance(packet, Publish) or packet.qos:
        what = f"PUBLISH at QoS {packet.qos}" if isinstance(packet, Publish) else packet.NAME
        raise flow_rules.DATAGRAM_PACKET.broken(what, packet=packet)
    if "topic_alias" in packet.properties:
        raise flow_rules.DATAGRAM_ALIAS.broken(packet=packet, field="topic_alias")
    return Datagram("mqtt", packet)


def _not_one(found: str, size: int) -> MalformedPacketError:
    return MalformedPacketError(
        f"a datagram of {size} bytes holds {found} MQTT packets instead of one", section="MQoQ draft section 8.3.3"
    )
