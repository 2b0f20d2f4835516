"""Our codec against three others: each must read what the other wrote, and differences in strictness are listed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mqttquic_lab.errors import MalformedPacketError
from mqttquic_lab.mqtt import Acknowledgement, Auth, Packet, PacketDecoder, Publish, Receiver, Version
from tests.wire.oracles import ORACLES, Oracle, RefusedError
from tests.wire.strategies import light, packets
from tests.wire.test_malformed import TABLE

RECEIVERS: tuple[Receiver, ...] = ("server", "client")
CASES: list[tuple[str, Version, Receiver]] = [
    (name, version, receiver) for name, cls in ORACLES.items() for version in cls.VERSIONS for receiver in RECEIVERS
]
cases = pytest.mark.parametrize(("name", "version", "receiver"), CASES)

_loaded: dict[str, Oracle] = {}


def oracle(name: str) -> Oracle:
    """Return an adapter, or skip the test where its library is missing."""
    if name not in _loaded:
        _loaded[name] = ORACLES[name]()
    return _loaded[name]


def cannot_say(name: str, packet: Packet) -> bool:
    """Whether a valid packet is one the oracle cannot read or write: the list of where the others fall short."""
    if isinstance(packet, Auth) and not packet.reason_code and not packet.properties:
        return name in {"mqtt5", "zmqtt"}  # know no AUTH of remaining length 0 (section 3.15.2.1)
    if isinstance(packet, Publish) and len(packet.properties.get("subscription_identifier", ())) > 1:
        return name == "zmqtt"  # keeps one of them
    return False


def writes_wrongly(name: str, packet: Packet) -> bool:
    """Whether an oracle writes a packet so that nobody can read it."""
    # ohmqtt leaves out a reason code of 0x00 even where properties follow (sections 3.4.2.1, 3.5.2.1, ...).
    return (
        name == "ohmqtt" and isinstance(packet, Acknowledgement) and not packet.reason_code and bool(packet.properties)
    )


@cases
@light(60)
@given(data=st.data())
def test_the_oracle_reads_what_we_write(name: str, version: Version, receiver: Receiver, data: st.DataObject) -> None:
    other = oracle(name)
    packet = data.draw(packets(version, receiver))
    assume(not cannot_say(name, packet))
    assert other.decode(packet.encode(version), version) == other.normal(packet)


@cases
@light(60)
@given(data=st.data())
def test_we_read_what_the_oracle_writes(name: str, version: Version, receiver: Receiver, data: st.DataObject) -> None:
    other = oracle(name)
    packet = data.draw(packets(version, receiver))
    assume(not cannot_say(name, packet))
    assume(not writes_wrongly(name, packet))
    (decoded,) = PacketDecoder(version, receiver=receiver).feed(other.encode(packet, version))
    assert other.normal(decoded) == other.normal(packet)


NO_ROLE = {
    "first packet is not CONNECT", "CONNACK at a server", "CONNECT at a client", "PINGREQ at a client",
    "subscription identifier from a client", "server's reason code from a client",
    "client's reason code from a server", "session expiry from a server", "re-authenticate from a server",
}  # fmt: skip
"""What can only be refused by a decoder that knows which end it is."""

PANICS = {"surrogate in a topic", "lone continuation byte", "over-long UTF-8"}
"""Ill-formed UTF-8 ends mqtt5 in a Rust panic, which is no Exception."""

LAX: dict[str, set[str]] = {
    "mqtt5": NO_ROLE | {
        # It checks no relation between fields, no topics, no packet identifiers of 0 and no empty lists.
        "U+0000 in a topic", "U+0000 in a user property", "reserved connect flag", "will QoS without will",
        "will retain without will", "will topic with a wildcard", "authentication data alone",
        "session present and refused", "maximum QoS 2", "DUP with QoS 0", "packet identifier 0", "+ in a topic",
        "payload format 2", "response topic with a wildcard", "empty response topic", "property cut off",
        "PUBACK identifier 0", "no subscription", "reserved option bits", "no local when shared", "empty filter",
        "# not last", "+ beside a name", "empty share name", "share name without filter", "SUBSCRIBE identifier 0",
        "empty SUBACK", "no filter to unsubscribe", "empty UNSUBACK", "AUTH without method",
    },
    "ohmqtt": NO_ROLE | {
        # It checks no topic filters and few of CONNECT's flags.
        "will QoS 3", "will QoS without will", "will retain without will", "will topic with a wildcard",
        "authentication data alone", "session present and refused", "empty topic, no alias", "topic alias 0",
        "empty response topic", "QoS 3 asked for", "retain handling 3", "no local when shared", "empty filter",
        "# not last", "+ beside a name", "empty share name", "share name without filter",
        "two subscription identifiers", "AUTH without method",
    },
}  # fmt: skip
"""Malformed packets that an oracle accepts. zmqtt is left out: it refuses little beyond what it cannot parse."""


@pytest.mark.parametrize("name", list(LAX))
def test_what_we_refuse_the_oracles_refuse_with_known_exceptions(name: str) -> None:
    other = oracle(name)
    accepted = set()
    for bad in TABLE:
        if bad.version != 4 and b"MQTT\4" not in bad.wire and bad.name not in PANICS:
            with contextlib.suppress(RefusedError):
                other.decode(bad.wire, 5)
                accepted.add(bad.name)
    assert accepted <= LAX[name]  # a later release may be stricter
    assert len(accepted) < len(TABLE) / 2


@pytest.mark.parametrize("receiver", ["server", "client"])
@light(400)
@given(data=st.data())
def test_mutated_packets_that_we_accept_the_oracles_accept(receiver: Receiver, data: st.DataObject) -> None:
    others = {name: oracle(name) for name in ("mqtt5", "ohmqtt")}
    wire = bytearray(data.draw(packets(5, receiver)).encode(5))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = PacketDecoder(5, receiver=receiver).feed(bytes(wire))
    except MalformedPacketError:
        return
    for packet in decoded:
        for name, other in others.items():
            if not cannot_say(name, packet):
                assert other.decode(packet.raw, 5) == other.normal(packet)
