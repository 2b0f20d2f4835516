"""Three other MQTT codecs behind one face: bytes -> our packet, our packet -> bytes.

mqtt5 (Rust) and ohmqtt speak 5.0 only, zmqtt both versions. None knows which end it is. What an oracle cannot express
is left out of both sides before they are compared (:meth:`Oracle.normal`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from mqttquic_lab.mqtt import (
    PACKETS,
    PROPERTIES,
    TYPE_NAMES,
    Acknowledgement,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    Publish,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Version,
    Will,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class RefusedError(Exception):
    """The oracle does not take these bytes, or cannot express this packet."""


class Oracle:
    """Base of the adapters."""

    MODULE: ClassVar[str]
    VERSIONS: ClassVar[tuple[Version, ...]] = (5,)
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    """Properties that the oracle always reports; equal to their default they count as absent."""

    def __init__(self) -> None:
        self.lib: Any = pytest.importorskip(self.MODULE)

    def decode(self, wire: bytes, version: Version) -> Packet:
        """Return our packet with what the oracle read, or raise :class:`RefusedError`."""
        raise NotImplementedError

    def encode(self, packet: Packet, version: Version) -> bytes:
        """Return the bytes that the oracle writes for a packet."""
        raise NotImplementedError

    def block(self, properties: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Return a property block without what the oracle cannot express."""
        return {
            name: value
            for name, value in properties.items()
            if name not in self.DEFAULTS or value != self.DEFAULTS[name] or (place != "CONNECT" and "session" in name)
        }

    def normal(self, packet: Packet) -> Packet:
        """Return a copy of `packet` with normal property blocks."""
        (copy,) = [cls for cls in PACKETS.values() if cls is type(packet)]
        values = {name: getattr(packet, name) for name in packet.FIELDS}
        if "properties" in values:
            values["properties"] = self.block(values["properties"], packet.NAME)
        if isinstance(packet, Connect) and packet.will is not None:
            will = packet.will
            values["will"] = Will(will.topic, will.payload, will.qos, will.retain, self.block(will.properties, "WILL"))
        return copy(**values)


def _place_names(place: str) -> list[str]:
    return [row.name for row in PROPERTIES if place in row.places]


class Mqtt5(Oracle):
    """mqtt5: keyword arguments under slightly other names; flags and limits always have a value."""

    MODULE = "mqtt5"
    NAMES: ClassVar = {
        "session_expiry_interval": "session_expiry_interval",
        "assigned_client_identifier": "assigned_client_id",
        "response_information": "response_info",
        "reason_string": "reason_str",
        "receive_maximum": "receive_max",
        "topic_alias_maximum": "topic_alias_max",
        "maximum_qos": "max_qos",
        "maximum_packet_size": "max_packet_size",
        "subscription_identifier_available": "subscription_id_available",
        "request_problem_information": "request_problem_info",
        "request_response_information": "request_response_info",
        "subscription_identifier": "subscription_ids",
        "user_property": "user_properties",
    }
    DEFAULTS: ClassVar = {
        "session_expiry_interval": 0,  # in CONNECT
        "receive_maximum": 65_535,
        "topic_alias_maximum": 0,
        "maximum_qos": 2,
        "retain_available": 1,
        "wildcard_subscription_available": 1,
        "subscription_identifier_available": 1,
        "shared_subscription_available": 1,
        "request_problem_information": 1,
        "request_response_information": 0,
        "payload_format_indicator": 0,
        "will_delay_interval": 0,
    }
    CLASSES: ClassVar = {
        "CONNECT": "Connect", "CONNACK": "ConnAck", "PUBLISH": "Publish", "PUBACK": "PubAck", "PUBREC": "PubRec",
        "PUBREL": "PubRel", "PUBCOMP": "PubComp", "SUBSCRIBE": "Subscribe", "SUBACK": "SubAck",
        "UNSUBSCRIBE": "Unsubscribe", "UNSUBACK": "UnsubAck", "PINGREQ": "PingReq", "PINGRESP": "PingResp",
        "DISCONNECT": "Disconnect", "AUTH": "Auth",
    }  # fmt: skip

    def decode(self, wire: bytes, version: Version) -> Packet:
        try:
            packet, size = self.lib.read(memoryview(wire))
        except ValueError as error:
            raise RefusedError(repr(error)) from None
        assert size == len(wire)
        name = TYPE_NAMES[wire[0] >> 4]
        block = self._block_of(packet, name)
        if name == "CONNECT":
            will = None
            if packet.will is not None:
                w = packet.will
                will = Will(w.topic, w.payload or b"", int(w.qos), w.retain, self._block_of(w, "WILL"))
            return Connect(
                packet.client_id,
                5,
                packet.clean_start,
                packet.keep_alive,
                packet.username,
                packet.password,
                will,
                block,
            )
        if name == "CONNACK":
            return ConnAck(packet.session_present, int(packet.reason_code), block)
        if name == "PUBLISH":
            return Publish(
                packet.topic, packet.payload, int(packet.qos), packet.retain, packet.duplicate, packet.packet_id, block
            )
        if name == "SUBSCRIBE":
            subscriptions = [
                Subscription(
                    f.pattern, int(f.max_qos), f.no_local, f.retain_as_published, int(f.retain_handling)
                )
                for f in packet.topic_filters
            ]  # fmt: skip
            return Subscribe(packet.packet_id, subscriptions, block)
        if name == "UNSUBSCRIBE":
            return Unsubscribe(packet.packet_id, packet.patterns, block)
        return _generic(name, packet, block)

    def _block_of(self, holder: Any, place: str) -> dict[str, Any]:
        found = {}
        for name in _place_names(place):
            value = getattr(holder, self._attribute(name, place))
            if value is not None and value != []:
                found[name] = (value,) if name == "subscription_identifier" and place == "SUBSCRIBE" else value
        return self.block(found, place)

    def _attribute(self, name: str, place: str) -> str:
        if name == "subscription_identifier" and place == "SUBSCRIBE":
            return "subscription_id"
        return self.NAMES.get(name, name)

    def _arguments(self, properties: Mapping[str, Any], place: str) -> dict[str, Any]:
        arguments = {self._attribute(name, place): value for name, value in properties.items()}
        for name, value in properties.items():
            if name.startswith("request_") or name.endswith("_available"):
                arguments[self._attribute(name, place)] = bool(value)
        if "max_qos" in arguments:
            arguments["max_qos"] = self.lib.QoS(arguments["max_qos"])
        if place == "SUBSCRIBE" and "subscription_id" in arguments:
            (arguments["subscription_id"],) = arguments["subscription_id"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}

    def encode(self, packet: Packet, version: Version) -> bytes:
        lib, name = self.lib, packet.NAME
        cls = getattr(lib, f"{self.CLASSES[name]}Packet")
        arguments = self._arguments(getattr(packet, "properties", {}), name)
        if isinstance(packet, Connect):
            if packet.will is not None:
                will = packet.will
                arguments["will"] = lib.Will(
                    will.topic,
                    payload=will.payload,
                    qos=lib.QoS(will.qos),
                    retain=will.retain,
                    **self._arguments(will.properties, "WILL"),
                )
            arguments |= {
                "username": packet.username,
                "password": packet.password,
                "clean_start": packet.clean_start,
                "keep_alive": packet.keepalive,
            }
            return bytes(cls(packet.client_id, **arguments).write())
        if isinstance(packet, Publish):
            arguments |= {
                "qos": lib.QoS(packet.qos),
                "retain": packet.retain,
                "duplicate": packet.dup,
                "packet_id": packet.packet_id,
            }
            return bytes(cls(packet.topic, packet.payload, **arguments).write())
        positional: list[Any] = [packet.packet_id] if hasattr(packet, "packet_id") else []
        if isinstance(packet, Subscribe):
            positional.append([
                lib.TopicFilter(
                    s.filter, max_qos=lib.QoS(s.qos), no_local=s.no_local, retain_as_published=s.retain_as_published,
                    retain_handling=lib.RetainHandling(s.retain_handling),
                )
                for s in packet.subscriptions
            ])  # fmt: skip
        if isinstance(packet, Unsubscribe):
            positional.append(list(packet.filters))
        codes = getattr(lib, f"{self.CLASSES[name]}ReasonCode", None)
        if isinstance(packet, (SubAck, UnsubAck)):
            assert codes is not None
            positional.append([codes(int(code)) for code in packet.reason_codes])
        if isinstance(packet, ConnAck):
            arguments["session_present"] = packet.session_present
        if isinstance(packet, (ConnAck, Acknowledgement, Disconnect, Auth)):
            assert codes is not None
            arguments["reason_code"] = codes(int(packet.reason_code))
        return bytes(cls(*positional, **arguments).write())


class Ohmqtt(Oracle):
    """ohmqtt: property objects with the standard's names in camel case; subscription identifiers are a set."""

    MODULE = "ohmqtt.packet"

    def block(self, properties: Mapping[str, Any], place: str) -> dict[str, Any]:
        found = dict(properties)
        if "subscription_identifier" in found:
            found["subscription_identifier"] = sorted(set(found["subscription_identifier"]))
        return found

    def decode(self, wire: bytes, version: Version) -> Packet:
        try:
            packet = self.lib.decode_packet(wire)
        except Exception as error:  # it raises what its struct calls raise, besides its own
            raise RefusedError(repr(error)) from None
        name = TYPE_NAMES[wire[0] >> 4]
        block = self._block_of(packet.properties, name) if hasattr(packet, "properties") else {}
        if name == "CONNECT":
            will = None
            if packet.will_topic:
                properties = self._block_of(packet.will_props, "WILL")
                will = Will(packet.will_topic, packet.will_payload, packet.will_qos, packet.will_retain, properties)
            return Connect(
                packet.client_id,
                5,
                packet.clean_start,
                packet.keep_alive,
                packet.username,
                packet.password,
                will,
                block,
            )
        if name == "CONNACK":
            return ConnAck(packet.session_present, int(packet.reason_code), block)
        if name == "PUBLISH":
            return Publish(
                packet.topic, bytes(packet.payload), int(packet.qos), packet.retain, packet.dup,
                packet.packet_id or None, block,
            )  # fmt: skip
        if name == "SUBSCRIBE":
            subscriptions = [Subscription(topic, o & 3, bool(o & 4), bool(o & 8), o >> 4) for topic, o in packet.topics]
            return Subscribe(packet.packet_id, subscriptions, block)
        if name == "UNSUBSCRIBE":
            return Unsubscribe(packet.packet_id, packet.topics, block)
        return _generic(name, packet, block)

    def _block_of(self, properties: Any, place: str) -> dict[str, Any]:
        held = vars(properties)
        found = {name: held[self._camel(name)] for name in _place_names(place) if self._camel(name) in held}
        return self.block(found, place)

    @staticmethod
    def _camel(name: str) -> str:
        return "MaximumQoS" if name == "maximum_qos" else name.title().replace("_", "")

    def _props(self, cls: Any, properties: Mapping[str, Any]) -> Any:
        values = {self._camel(name): value for name, value in properties.items()}
        if "SubscriptionIdentifier" in values:
            values["SubscriptionIdentifier"] = set(values["SubscriptionIdentifier"])
        return cls(**values)

    def encode(self, packet: Packet, version: Version) -> bytes:
        reason = importlib.import_module("ohmqtt.mqtt_spec").MQTTReasonCode
        quality = importlib.import_module("ohmqtt.mqtt_spec").MQTTQoS
        cls = getattr(self.lib, f"MQTT{Mqtt5.CLASSES[packet.NAME]}Packet")
        values: dict[str, Any] = {}
        if hasattr(packet, "properties"):
            values["properties"] = self._props(cls.props_type, packet.properties)
        if isinstance(packet, Connect):
            values |= {
                "client_id": packet.client_id,
                "keep_alive": packet.keepalive,
                "clean_start": packet.clean_start,
                "username": packet.username,
                "password": packet.password,
            }
            if packet.will is not None:
                props = importlib.import_module("ohmqtt.property").MQTTWillProps
                values |= {
                    "will_topic": packet.will.topic,
                    "will_payload": packet.will.payload,
                    "will_qos": packet.will.qos,
                    "will_retain": packet.will.retain,
                    "will_props": self._props(props, packet.will.properties),
                }
        elif isinstance(packet, Publish):
            values |= {
                "topic": packet.topic,
                "payload": packet.payload,
                "qos": quality(packet.qos),
                "retain": packet.retain,
                "dup": packet.dup,
                "packet_id": packet.packet_id or 0,
            }
        elif isinstance(packet, Subscribe):
            values |= {
                "packet_id": packet.packet_id,
                "topics": [(s.filter, s.options(5)) for s in packet.subscriptions],
            }
        elif isinstance(packet, Unsubscribe):
            values |= {"packet_id": packet.packet_id, "topics": packet.filters}
        else:
            values |= _plain_fields(packet)
            if "reason_code" in values:
                values["reason_code"] = reason(int(values["reason_code"]))
            if "reason_codes" in values:
                values["reason_codes"] = [reason(int(code)) for code in values["reason_codes"]]
        return bytes(cls(**values).encode())


class Zmqtt(Oracle):
    """zmqtt: both versions, our property names, at most one subscription identifier."""

    MODULE = "zmqtt._internal.packets.codec"
    VERSIONS = (4, 5)

    def block(self, properties: Mapping[str, Any], place: str) -> dict[str, Any]:
        found = dict(properties)
        if "subscription_identifier" in found:
            found["subscription_identifier"] = tuple(found["subscription_identifier"])[-1:]
        return found

    def decode(self, wire: bytes, version: Version) -> Packet:
        try:
            result = self.lib.decode(wire, version=self._text(version))
        except Exception as error:  # ValueError, IndexError, struct.error ...
            raise RefusedError(repr(error)) from None
        if result is None:
            raise RefusedError("incomplete")
        packet, size = result
        assert size == len(wire)
        name = TYPE_NAMES[wire[0] >> 4]
        block = self._block_of(getattr(packet, "properties", None), name)
        if name == "CONNECT":
            will = None
            if packet.will is not None:
                w = packet.will
                will = Will(w.topic, w.payload, int(w.qos), w.retain, self._block_of(w.properties, "WILL"))
            return Connect(
                packet.client_id, wire[wire.index(b"MQTT") + 4], packet.clean_session, packet.keepalive,  # type: ignore[arg-type]
                packet.username, packet.password, will, block,
            )  # fmt: skip
        if name == "CONNACK":
            code = packet.return_code
            if version == 4:
                return (PACKETS[2])(packet.session_present, [0, 0x84, 0x85, 0x88, 0x86, 0x87][code], block)  # type: ignore[call-arg]
            return ConnAck(packet.session_present, code, block)
        if name == "PUBLISH":
            return Publish(
                packet.topic, packet.payload, int(packet.qos), packet.retain, packet.dup, packet.packet_id, block
            )
        if name == "SUBSCRIBE":
            subscriptions = [
                Subscription(s.topic_filter, int(s.qos), s.no_local, s.retain_as_published, int(s.retain_handling))
                for s in packet.subscriptions
            ]
            return Subscribe(packet.packet_id, subscriptions, block)
        if name == "UNSUBSCRIBE":
            return Unsubscribe(packet.packet_id, packet.topic_filters, block)
        if name == "SUBACK":
            return SubAck(packet.packet_id, packet.return_codes, block)
        return _generic(name, packet, block)

    @staticmethod
    def _text(version: Version) -> str:
        return "5.0" if version == 5 else "3.1.1"

    def _block_of(self, properties: Any, place: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if properties is None:
            return found
        for name in _place_names(place):
            value = getattr(properties, "user_properties" if name == "user_property" else name, None)
            if value is not None and value != ():
                found[name] = (value,) if name == "subscription_identifier" else value
        return found

    def _props(self, place: str, properties: Mapping[str, Any]) -> Any:
        if not properties:
            return None
        module = importlib.import_module("zmqtt._internal.packets.properties")
        name = {"WILL": "Will", "PUBREC": "PubAck", "PUBREL": "PubAck", "PUBCOMP": "PubAck"}.get(place)
        values = dict(properties)
        if "user_property" in values:
            values["user_properties"] = tuple(values.pop("user_property"))
        if "subscription_identifier" in values:
            (values["subscription_identifier"],) = values["subscription_identifier"]
        return getattr(module, f"{name or Mqtt5.CLASSES[place]}Properties")(**values)

    def encode(self, packet: Packet, version: Version) -> bytes:
        package = importlib.import_module("zmqtt._internal.packets")
        quality = importlib.import_module("zmqtt._internal.types.qos").QoS
        handling = importlib.import_module("zmqtt._internal.types.retain_handling").RetainHandling
        modules = {"connect": "CONNECT CONNACK", "publish": "PUBLISH PUBACK PUBREC PUBREL PUBCOMP",
                   "subscribe": "SUBSCRIBE SUBACK UNSUBSCRIBE UNSUBACK", "ping": "PINGREQ PINGRESP",
                   "disconnect": "DISCONNECT", "auth": "AUTH"}  # fmt: skip
        (where,) = [module for module, names in modules.items() if packet.NAME in names.split()]
        module = importlib.import_module(f"{package.__name__}.{where}")
        values: dict[str, Any] = {}
        if hasattr(packet, "properties"):
            values["properties"] = self._props(packet.NAME, packet.properties)
        if isinstance(packet, Connect):
            values |= {
                "client_id": packet.client_id,
                "clean_session": packet.clean_start,
                "keepalive": packet.keepalive,
                "username": packet.username,
                "password": packet.password,
            }
            if packet.will is not None:
                will = packet.will
                values["will"] = module.Will(
                    topic=will.topic,
                    payload=will.payload,
                    qos=quality(will.qos),
                    retain=will.retain,
                    properties=self._props("WILL", will.properties),
                )
        elif isinstance(packet, ConnAck):
            code = packet.reason_code.to_v311() if version == 4 else int(packet.reason_code)
            values |= {"session_present": packet.session_present, "return_code": code}
        elif isinstance(packet, Publish):
            values |= {
                "topic": packet.topic,
                "payload": packet.payload,
                "qos": quality(packet.qos),
                "retain": packet.retain,
                "dup": packet.dup,
                "packet_id": packet.packet_id,
            }
        elif isinstance(packet, Subscribe):
            values |= {
                "packet_id": packet.packet_id,
                "subscriptions": tuple(
                    module.SubscriptionRequest(
                        topic_filter=s.filter,
                        qos=quality(s.qos),
                        no_local=s.no_local,
                        retain_as_published=s.retain_as_published,
                        retain_handling=handling(s.retain_handling),
                    )
                    for s in packet.subscriptions
                ),
            }
        elif isinstance(packet, Unsubscribe):
            values |= {"packet_id": packet.packet_id, "topic_filters": packet.filters}
        elif isinstance(packet, SubAck):
            values |= {"packet_id": packet.packet_id, "return_codes": tuple(map(int, packet.reason_codes))}
        else:
            values |= _plain_fields(packet)
        cls = getattr(module, Mqtt5.CLASSES[packet.NAME])
        return bytes(self.lib.encode(cls(**values), version=self._text(version)))


def _plain_fields(packet: Packet) -> dict[str, Any]:
    """Return the fields that all libraries name alike."""
    return {name: getattr(packet, name) for name in packet.FIELDS if name != "properties"}


def _connect(packet: Any, will: Will | None, block: dict[str, Any]) -> Connect:
    """Return our packet for a CONNECT whose fields mqtt5 and ohmqtt name alike."""
    return Connect(
        packet.client_id, 5, packet.clean_start, packet.keep_alive, packet.username, packet.password, will, block
    )


def _generic(name: str, packet: Any, block: dict[str, Any]) -> Packet:
    """Return our packet for one whose fields all libraries name alike."""
    (cls,) = [cls for cls in PACKETS.values() if name == cls.NAME]
    values: dict[str, Any] = {field: getattr(packet, field) for field in cls.FIELDS if field != "properties"}
    if "reason_code" in values:
        values["reason_code"] = int(values["reason_code"])
    if "reason_codes" in values:
        values["reason_codes"] = [int(code) for code in values["reason_codes"]]
    if "properties" in cls.FIELDS:
        values["properties"] = block
    return cls(**values)


ORACLES: dict[str, type[Oracle]] = {"mqtt5": Mqtt5, "ohmqtt": Ohmqtt, "zmqtt": Zmqtt}
"""Name -> adapter."""
