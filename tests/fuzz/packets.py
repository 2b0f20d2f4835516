"""Valid sessions, as bytes: every packet type, both versions, every property, wills, all QoS, all kinds of streams."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import (
    PROPERTIES,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
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
)
from mqttquic_lab.mqtt.flow_header import FlowFlags, FlowHeader, FlowType
from mqttquic_lab.mqtt.reason_codes import ALLOWED

if TYPE_CHECKING:
    from random import Random

    from mqttquic_lab.mqtt import Packet, Version

LEVELS = ("a", "b", "c", "", "ü", "$x", "$SYS", "long" * 20)
CLIENT_IDS = ("fuzz-1", "fuzz-2", "fuzz-3", "", "fuzz-ü")
"""Few, so that cases take over each other's sessions and find what earlier ones left behind."""


def topic(r: Random) -> str:
    return "fuzz/" + "/".join(r.choice(LEVELS) for _ in range(r.choice((1, 1, 2, 3, 20))))


def topic_filter(r: Random) -> str:
    levels = [r.choice((*LEVELS, "+", "+")) for _ in range(r.choice((1, 1, 2, 3, 200)))]
    if r.random() < 0.3:
        levels.append("#")
    text = "fuzz/" + "/".join(levels)
    chance = r.random()
    if chance < 0.15:
        return f"$share/group{r.randrange(2)}/{text}"
    return r.choice(("#", "+/+", "fuzz/#", "$SYS/#")) if chance < 0.3 else text


def text(r: Random) -> str:
    return r.choice(("", "x", "key", "ü" * r.randrange(20), "t" * r.choice((10, 200, 5000))))


def value(r: Random, row: Any) -> Any:
    """Return a value for a property."""
    if row.kind == "pair":
        return [(text(r), text(r)) for _ in range(r.choice((1, 2, 30)))]
    if row.name == "subscription_identifier":
        return [r.choice((1, 127, 128, 268_435_455))]
    if row.name == "response_topic":
        return topic(r)
    if row.name == "session_expiry_interval":
        return r.choice((0, 1, 2, 0xFFFFFFFF))
    if row.name == "maximum_packet_size":
        return r.choice((20, 60, 1000, 0xFFFFFFFF))
    if row.kind == "utf8":
        return text(r)
    if row.kind == "binary":
        return r.randbytes(r.choice((0, 1, 300)))
    return r.choice((row.least, row.most, r.randint(row.least, row.most)))


def properties(r: Random, place: str, version: Version, share: float = 0.15, without: tuple[str, ...] = ()) -> Any:
    if version == 4 or r.random() < 0.5:
        return {}
    rows = [row for row in PROPERTIES if place in row.places and row.name not in without]
    r.shuffle(rows)
    block = {row.name: value(r, row) for row in rows if r.random() < share}
    if "authentication_data" in block:
        block.setdefault("authentication_method", "fuzz")
    return block


def payload(r: Random) -> bytes:
    return r.randbytes(r.choice((0, 1, 10, 100, 1000, 20_000)))


def packet_id(r: Random) -> int:
    return r.choice((1, 1, 2, 3, 65535, r.randint(1, 65535)))


SCRAM = {"authentication_method": "SCRAM-SHA-256", "authentication_data": b"n,,n=user,r=abcdefgh"}


def connect(r: Random, version: Version, *, known: bool = False) -> Connect:
    """Return a CONNECT; `known` is what a broker with passwords wants."""
    will = None
    if r.random() < 0.3:
        will = Will(topic(r), payload(r), r.randrange(3), r.random() < 0.5, properties(r, "WILL", version))
    username = r.choice((None, "", "user"))
    has_password = username is not None and r.random() < 0.5
    clean = r.random() < 0.6
    client_id = r.choice(CLIENT_IDS)
    if version == 4 and not clean:
        client_id = client_id or "fuzz-1"
    without = () if r.random() < 0.1 else ("authentication_method", "authentication_data")
    block = properties(r, "CONNECT", version, without=without)
    if known:
        if version == 5 and r.random() < 0.4:
            block = {**block, **SCRAM}
        elif r.random() < 0.9:
            username, has_password = "user", True
    if r.random() < 0.4 and version == 5:
        block = {**block, "session_expiry_interval": 2}
    password = b"secret" if has_password else None
    return Connect(client_id, version, clean, r.choice((0, 1, 60)), username, password, will, block)


def publish(r: Random, version: Version) -> Publish:
    qos = r.randrange(3)
    block = properties(r, "PUBLISH", version, without=("subscription_identifier",))
    return Publish(
        "" if "topic_alias" in block and r.random() < 0.5 else topic(r),
        payload(r),
        qos,
        r.random() < 0.2,
        bool(qos) and r.random() < 0.2,
        packet_id(r) if qos else None,
        block,
    )


def acknowledgement(r: Random, version: Version) -> Packet:
    kind = r.choice((PubAck, PubRec, PubRel, PubComp))
    code = r.choice(sorted(ALLOWED[kind.NAME])) if version == 5 and r.random() < 0.3 else 0
    return kind(packet_id(r), code, properties(r, kind.NAME, version))


def subscribe(r: Random, version: Version) -> Subscribe:
    subscriptions = []
    for _ in range(r.choice((1, 1, 2, 40))):
        wanted = topic_filter(r)
        options: tuple[bool, bool, int] = (False, False, 0)
        if version == 5:
            options = (not wanted.startswith("$share") and r.random() < 0.3, r.random() < 0.5, r.randrange(3))
        subscriptions.append(Subscription(wanted, r.randrange(3), *options))
    return Subscribe(packet_id(r), tuple(subscriptions), properties(r, "SUBSCRIBE", version))


def unsubscribe(r: Random, version: Version) -> Unsubscribe:
    filters = tuple(topic_filter(r) for _ in range(r.choice((1, 3))))
    return Unsubscribe(packet_id(r), filters, properties(r, "UNSUBSCRIBE", version))


def from_client(r: Random, version: Version) -> list[Packet]:
    """Return a packet that a client may send, or a few that belong together."""
    kind = r.choice(("publish", "publish", "publish", "subscribe", "subscribe", "unsubscribe", "acknowledge", "ping",
                     "exchange", "auth", "disconnect", "burst"))  # fmt: skip
    if kind == "publish":
        return [publish(r, version)]
    if kind == "subscribe":
        return [subscribe(r, version)]
    if kind == "unsubscribe":
        return [unsubscribe(r, version)]
    if kind == "acknowledge":
        return [acknowledgement(r, version)]
    if kind == "exchange":
        number = packet_id(r)
        message = Publish(topic(r), payload(r), 2, False, False, number, {})
        return [message, *([message] if r.random() < 0.3 else []), PubRel(number)]
    if kind == "burst":
        return [Publish(topic(r), b"burst") for _ in range(r.randrange(50))]
    if kind == "auth" and version == 5:
        return [Auth(r.choice((0x18, 0x19)), {"authentication_method": "fuzz", "authentication_data": b"x"})]
    if kind == "disconnect" and r.random() < 0.3:
        return [Disconnect(r.choice((0, 4)) if version == 5 else 0, properties(r, "DISCONNECT", version))]
    return [PingReq()]


def from_server(r: Random, version: Version) -> list[Packet]:
    """Return what a server may send."""
    kind = r.randrange(9)
    if kind < 3:
        block = properties(r, "PUBLISH", version)
        if "subscription_identifier" in block and version == 5:
            block["subscription_identifier"] = [1, 2]
        message = publish(r, version)
        message.properties = block
        if not message.topic and "topic_alias" not in block:
            message.topic = "fuzz/a"
        return [message]
    if kind == 3:
        return [acknowledgement(r, version)]
    if kind == 4:
        codes = [r.choice((0, 1, 2, 0x80)) for _ in range(r.choice((1, 1, 3)))]
        return [SubAck(r.choice((1, 2, 3)), tuple(codes), properties(r, "SUBACK", version))]
    if kind == 5:
        codes = [0] * (1 if version == 5 else 0)
        return [UnsubAck(r.choice((1, 2, 3)), tuple(codes), properties(r, "UNSUBACK", version))]
    if kind == 6:
        return [PingResp()]
    if kind == 7 and version == 5:
        return [Disconnect(r.choice((0, 0x8B, 0x8E, 0x9C)), {"reason_string": "fuzz"})] if r.random() < 0.3 else []
    if kind == 8 and version == 5 and r.random() < 0.2:
        return [Auth(0x18, {"authentication_method": "fuzz"})]
    number = r.choice((1, 2, 3))
    return [Publish("fuzz/a", b"x", 2, False, False, number, {}), PubRel(number)]


def connack(r: Random, version: Version) -> ConnAck:
    code = 0
    if r.random() < 0.15:
        code = r.choice(sorted(ALLOWED["CONNACK"])) if version == 5 else 0x87
    return ConnAck(not code and r.random() < 0.3, code, properties(r, "CONNACK", version, 0.3))


def encoded(packet: Packet, version: Version) -> bytes:
    return packet.encode(version)


@dataclass(slots=True)
class Lane:
    """What goes out on one stream."""

    kind: str = "control"
    """``"control"``, ``"bidi"``, ``"uni"`` or ``"datagram"``."""
    header: bytes = b""
    packets: list[bytes] = field(default_factory=list)
    end: str = "fin"
    """``"fin"``, ``"reset"``, ``"stop"`` (STOP_SENDING and RESET_STREAM) or ``"open"``."""


@dataclass(slots=True)
class Plan:
    """One session to throw at somebody."""

    version: Version
    lanes: list[Lane]
    alpn: tuple[str, ...] = ("mqtt",)
    answers: bool = False
    """Whether deliveries are acknowledged."""
    pieces: str = "packets"
    """``"packets"``, ``"bytes"``, ``"random"`` or ``"all"``: how the bytes are cut."""
    reads: bool = True
    """Whether what comes back is read."""


def flow_header(r: Random, number: int) -> bytes:
    """Return the header of a client data flow, mostly."""
    flags = FlowFlags.from_byte(r.choice((1, 0x51, 0x50, 0, 2, r.randrange(256))))
    kind = r.choice((*(FlowType.CLIENT_DATA,) * 8, FlowType.SERVER_DATA, FlowType.USER_DEFINED, FlowType.CONTROL))
    if kind is FlowType.CONTROL:
        return FlowHeader(kind, 0, 0, flags).encode()
    if kind is FlowType.USER_DEFINED:
        return FlowHeader(kind, number).encode() + r.randbytes(5)
    return FlowHeader(kind, number, r.choice((0, 1, 300)), flags).encode()


def greedy(r: Random, version: Version) -> list[bytes]:
    """Return a subscription to everything, and something to read."""
    messages: list[Packet] = [Subscribe(1, (Subscription("fuzz/#", r.randrange(3)),))]
    for number in range(r.choice((1, 10, 60))):
        qos = r.randrange(3)
        messages.append(
            Publish("fuzz/a", r.randbytes(r.choice((10, 20_000))), qos, packet_id=number + 1 if qos else None)
        )
    return [encoded(packet, version) for packet in messages]


def client_plan(r: Random, transport: str, *, known: bool = False) -> Plan:
    """Return a session that a client might hold."""
    version: Version = r.choice((4, 5, 5))
    packets = [encoded(connect(r, version, known=known), version)]
    if r.random() < 0.3:
        packets += greedy(r, version)
    for _ in range(r.choice((0, 1, 3, 8))):
        packets += [encoded(packet, version) for packet in from_client(r, version)]
    if r.random() < 0.3:
        packets.append(encoded(Disconnect(), version))
    plan = Plan(version, [Lane(packets=packets)], answers=r.random() < 0.6, reads=r.random() < 0.9)
    plan.pieces = r.choice(("packets", "packets", "random", "all", "bytes"))
    plan.lanes[0].end = r.choice(("fin", "fin", "fin", "reset", "open")) if plan.reads else "open"
    if transport == "quic":
        flows = r.random() < 0.5
        if flows:
            plan.alpn = ("MQTT-next", "mqtt")
            if r.random() < 0.85:
                plan.lanes[0].header = FlowHeader.control().encode()
        for number in range(r.choice((0, 0, 1, 2, 6))):
            lane = Lane(r.choice(("bidi", "bidi", "uni", "datagram")), end=r.choice(("fin", "fin", "reset", "open")))
            if flows and lane.kind != "datagram":
                lane.header = flow_header(r, 2 + 2 * r.choice((number, 0)))
            for _ in range(r.choice((1, 3))):
                lane.packets += [encoded(packet, version) for packet in from_client(r, version)]
            plan.lanes.append(lane)
    return plan


def server_plan(r: Random, transport: str) -> Plan:
    """Return what a server might answer to a client."""
    version: Version = 5
    packets = [encoded(connack(r, version), version)]
    for _ in range(r.choice((0, 1, 3, 8))):
        packets += [encoded(packet, version) for packet in from_server(r, version)]
    plan = Plan(version, [Lane(packets=packets)], answers=r.random() < 0.7)
    plan.pieces = r.choice(("packets", "packets", "random", "all", "bytes"))
    plan.lanes[0].end = r.choice(("fin", "reset", "open", "open"))
    if transport == "quic":
        for number in range(r.choice((0, 0, 1, 3))):
            lane = Lane(r.choice(("bidi", "uni", "datagram")), end=r.choice(("fin", "reset", "open")))
            if r.random() < 0.7 and lane.kind != "datagram":
                lane.header = FlowHeader(
                    FlowType.SERVER_DATA,
                    2 * number + 1,
                    r.choice((0, 300)),
                    FlowFlags.from_byte(r.choice((0, 1, 0x11))),
                ).encode()
            for _ in range(r.choice((1, 3))):
                lane.packets += [encoded(packet, version) for packet in from_server(r, version)]
            plan.lanes.append(lane)
    return plan
