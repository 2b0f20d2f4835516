"""MQTT 3.1.1 and 5.0 without input and output: packets, codec, topics, session state.

Knows no clock, socket, event loop or pandas: bytes and times go in, packets and decisions come out.
"""

from __future__ import annotations

from mqttquic_lab.mqtt.datagram import Datagram, encode_datagram, read_datagram
from mqttquic_lab.mqtt.decoder import MAX_PACKET_SIZE, PacketDecoder
from mqttquic_lab.mqtt.deliveries import Deliveries, Delivery, Outcome, Received
from mqttquic_lab.mqtt.flow_book import Change
from mqttquic_lab.mqtt.flow_codes import (
    ConnectionCode,
    ErrorLevel,
    FlowError,
    StreamCode,
    connection_code_text,
    stream_code_text,
)
from mqttquic_lab.mqtt.flow_header import CONTROL_FLAGS, FlowFlags, FlowHeader, FlowHeaderDecoder, FlowType
from mqttquic_lab.mqtt.flow_packets import FLOW_PACKET_TABLE, FlowKind, check_flow_packet
from mqttquic_lab.mqtt.flow_state import FLOW_PHASES, Flow, FlowPhase
from mqttquic_lab.mqtt.flows import FlowTable
from mqttquic_lab.mqtt.keepalive import KeepAlive, ServerKeepAlive
from mqttquic_lab.mqtt.packet_ids import MAX_PACKET_ID, PacketIds
from mqttquic_lab.mqtt.packets import (
    PACKETS,
    TYPE_NAMES,
    Acknowledgement,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Will,
    encode_publish,
)
from mqttquic_lab.mqtt.properties import EMPTY, PROPERTIES, Properties, Property
from mqttquic_lab.mqtt.reader import SECRET, V5, V311, Bits, Field, Receiver, Version
from mqttquic_lab.mqtt.reason_codes import ReasonCode, reason_text
from mqttquic_lab.mqtt.state import (
    CONNECTION_TABLE,
    DELIVERY_TABLE,
    ConnectionState,
    DeliveryState,
    PacketKind,
    Role,
    check_packet,
    packet_kind,
)
from mqttquic_lab.mqtt.topics import (
    MAX_TOPIC_BYTES,
    SHARE_PREFIX,
    check_topic_filter,
    check_topic_name,
    matches,
    split_shared,
)
from mqttquic_lab.mqtt.trie import TopicMap, TopicTrie

__all__ = [
    "CONNECTION_TABLE",
    "CONTROL_FLAGS",
    "DELIVERY_TABLE",
    "EMPTY",
    "FLOW_PACKET_TABLE",
    "FLOW_PHASES",
    "MAX_PACKET_ID",
    "MAX_PACKET_SIZE",
    "MAX_TOPIC_BYTES",
    "PACKETS",
    "PROPERTIES",
    "SECRET",
    "SHARE_PREFIX",
    "TYPE_NAMES",
    "V5",
    "V311",
    "Acknowledgement",
    "Auth",
    "Bits",
    "Change",
    "ConnAck",
    "Connect",
    "ConnectionCode",
    "ConnectionState",
    "Datagram",
    "Deliveries",
    "Delivery",
    "DeliveryState",
    "Disconnect",
    "ErrorLevel",
    "Field",
    "Flow",
    "FlowError",
    "FlowFlags",
    "FlowHeader",
    "FlowHeaderDecoder",
    "FlowKind",
    "FlowPhase",
    "FlowTable",
    "FlowType",
    "KeepAlive",
    "Outcome",
    "Packet",
    "PacketDecoder",
    "PacketIds",
    "PacketKind",
    "PingReq",
    "PingResp",
    "Properties",
    "Property",
    "PubAck",
    "PubComp",
    "PubRec",
    "PubRel",
    "Publish",
    "ReasonCode",
    "Received",
    "Receiver",
    "Role",
    "ServerKeepAlive",
    "StreamCode",
    "SubAck",
    "Subscribe",
    "Subscription",
    "TopicMap",
    "TopicTrie",
    "UnsubAck",
    "Unsubscribe",
    "Version",
    "Will",
    "check_flow_packet",
    "check_packet",
    "check_topic_filter",
    "check_topic_name",
    "connection_code_text",
    "encode_datagram",
    "encode_publish",
    "matches",
    "packet_kind",
    "read_datagram",
    "reason_text",
    "split_shared",
    "stream_code_text",
]
