"""All control packets of MQTT 3.1.1 and 5.0, and which class stands for which packet type."""

from __future__ import annotations

from typing import Final

from mqttquic_lab.mqtt.connect import ConnAck, Connect, Will
from mqttquic_lab.mqtt.control import Auth, Disconnect, PingReq, PingResp
from mqttquic_lab.mqtt.packet import TYPE_NAMES, Packet
from mqttquic_lab.mqtt.publish import Acknowledgement, PubAck, PubComp, Publish, PubRec, PubRel, encode_publish
from mqttquic_lab.mqtt.subscribe import SubAck, Subscribe, Subscription, UnsubAck, Unsubscribe

PACKETS: Final[dict[int, type[Packet]]] = {
    cls.TYPE: cls
    for cls in (
        Connect, ConnAck, Publish, PubAck, PubRec, PubRel, PubComp, Subscribe, SubAck, Unsubscribe, UnsubAck, PingReq,
        PingResp, Disconnect, Auth,
    )
}  # fmt: skip
"""Packet type (1 to 15) -> class."""

__all__ = [
    "PACKETS",
    "TYPE_NAMES",
    "Acknowledgement",
    "Auth",
    "ConnAck",
    "Connect",
    "Disconnect",
    "Packet",
    "PingReq",
    "PingResp",
    "PubAck",
    "PubComp",
    "PubRec",
    "PubRel",
    "Publish",
    "SubAck",
    "Subscribe",
    "Subscription",
    "UnsubAck",
    "Unsubscribe",
    "Will",
    "encode_publish",
]
