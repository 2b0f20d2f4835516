"""How the server pings, says goodbye and answers what is wrong (sections 2, 3.12, 3.14, 4.8 of 3.1.1, 4.13 of 5.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import (
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
    Subscribe,
    Subscription,
    Will,
)
from tests.conformance.octets import block, connect, packet, text

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.peer import Peer
    from tests.conformance.conftest import MakeServed, Served

VERSIONS = pytest.mark.parametrize("version", [4, 5])


async def ends(peer: Peer, version: Version, code: int) -> None:
    """Expect the end of the connection, and at 5.0 this reason in the last packet."""
    packets = await peer.closed()
    assert [each.reason_code for each in packets if isinstance(each, Disconnect)] == ([code] if version == 5 else [])
    if version == 5:
        assert isinstance(packets[-1], Disconnect)


# 2.1.3: reserved flags

FIXED = {
    "PUBACK": (0x40, b"\0\1"), "PUBREC": (0x50, b"\0\1"), "PUBREL": (0x62, b"\0\1"), "PUBCOMP": (0x70, b"\0\1"),
    "PINGREQ": (0xC0, b""), "DISCONNECT": (0xE0, b""),
}  # fmt: skip


@VERSIONS
@pytest.mark.parametrize("name", FIXED)
async def test_reserved_flags_must_be_as_the_table_says(served: Served, version: Version, name: str) -> None:
    first, body = FIXED[name]
    watcher = await served.join("w")
    await watcher.subscribe("will")
    for wrong in (0x1, 0x2, 0x4, 0x8, 0xF):
        peer = await served.join("x", version, will=Will("will", b"gone"))
        peer.send(packet(first ^ wrong, body))
        await ends(peer, version, 0x81)
        assert (await watcher.message()).payload == b"gone"  # a bad DISCONNECT is none


@VERSIONS
@pytest.mark.parametrize("flags", [1, 2, 8, 15])
async def test_reserved_flags_of_connect(served: Served, version: Version, flags: int) -> None:
    peer = await served.attach(version)
    data = connect(level=version)
    peer.send(bytes((data[0] | flags,)) + data[1:])
    assert await peer.closed() == []
    assert served.server.stats().sessions == 0


@pytest.mark.parametrize("flags", range(1, 16))
async def test_reserved_flags_of_auth(served: Served, flags: int) -> None:
    peer = await served.join("x")
    peer.send(packet(0xF0 | flags, b"\x19", block(b"\x15", text("m"))))
    await ends(peer, 5, 0x81)


# 3.12: PINGREQ


@VERSIONS
async def test_every_ping_is_answered(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    peer.send(PingReq().encode() * 5)
    for _ in range(5):
        assert (await peer.expect(PingResp)).raw == b"\xd0\x00"


# 3.14: DISCONNECT


@VERSIONS
async def test_disconnect_ends_the_connection_at_once(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("a")
    peer = await served.join("x", version)
    peer.send(Disconnect().encode(version) + Publish("a", b"after the end").encode(version) + PingReq().encode())
    assert await peer.closed() == []
    assert await watcher.sync() == []


@pytest.mark.parametrize("code", [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99])
async def test_disconnect_with_any_code_of_a_client(served: Served, code: int) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will")
    peer = await served.join("x", will=Will("will", b"gone"))
    peer.send(packet(0xE0, bytes((code,)), b"\0"))
    assert await peer.closed() == []
    await served.gone("x")
    assert len(await watcher.sync()) == (code != 0)


@pytest.mark.parametrize("code", [0x01, 0x18, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x9C, 0xA2, 0x92, 0xFF])
async def test_disconnect_with_a_code_that_no_client_sends(served: Served, code: int) -> None:
    peer = await served.join("x")
    peer.send(packet(0xE0, bytes((code,)), b"\0"))
    await ends(peer, 5, 0x82)


async def test_disconnect_may_not_give_a_session_that_connect_did_not_want(served: Served) -> None:
    peer = await served.join("x", session_expiry_interval=0)
    peer.send(Disconnect(0, {"session_expiry_interval": 10}))
    await ends(peer, 5, 0x82)
    assert served.server.stats().sessions == 0


async def test_what_the_server_says_in_disconnect(make_served: MakeServed) -> None:
    """No Session Expiry Interval, a code of DISCONNECT, nothing after it, and no larger than the client takes."""
    served = await make_served(topic_alias_maximum=1)
    provocations = {
        b"\x00\x00": 0x81,
        packet(0x30, text("a/#"), b"\0"): 0x90,
        packet(0x30, text("a"), block(b"\x23\x00\x02")): 0x94,
        packet(0x82, b"\0\1", b"\0", text("a#"), b"\0"): 0x8F,
        Connect("x", 4).encode(): 0x82,
        connect(level=3): 0x82,
    }
    words = set()
    for data, code in provocations.items():
        for limit in (40, 1000):
            peer = await served.join("x", maximum_packet_size=limit)
            peer.send(data + PingReq().encode())
            (last,) = await peer.closed()
            assert isinstance(last, Disconnect)
            assert last.reason_code == code
            assert len(last.raw) <= limit
            assert set(last.properties) <= {"reason_string"}
            words.add(bool(last.properties))
    assert words == {True, False}


async def test_before_connack_there_is_no_disconnect(make_served: MakeServed) -> None:
    served = await make_served(users={"ann": "secret"})
    for first in (b"\x00\x00", connect(flags=0x03), connect(level=9), PingReq().encode(), Connect("x").encode()):
        peer = await served.attach()
        peer.send(first)
        assert not [each for each in await peer.closed() if isinstance(each, Disconnect)]
    silent, half = await served.attach(), await served.attach()
    half.send(connect()[:-3])
    await served.server.wait_for(lambda: served.server.stats().connections == 2)
    for peer in (silent, half):
        peer.stream.write(b"")
    served.clock.advance(10)
    assert [await peer.closed() for peer in (silent, half)] == [[], []]


@VERSIONS
async def test_the_end_of_the_server(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await served.server.close()
    await ends(peer, version, 0x8B)


# 4.13 of 5.0, 4.8 of 3.1.1: whatever is wrong ends that connection, and only that

WRONG = {
    "type 0": (b"\x00\x00", 0x81),
    "five bytes of remaining length": (b"\x30\xff\xff\xff\xff\x01", 0x81),
    "remaining length of 2 in four bytes": (b"\xc0\x80\x80\x80\x00", 0x81),
    "CONNACK": (ConnAck().encode(), 0x82),
    "SUBACK": (b"\x90\x04\x00\x01\x00\x00", 0x82),
    "UNSUBACK": (b"\xb0\x04\x00\x01\x00\x00", 0x82),
    "PINGRESP": (b"\xd0\x00", 0x82),
    "a second CONNECT": (connect(), 0x82),
    "PINGREQ with a payload": (b"\xc0\x01\x00", 0x81),
    "PUBACK cut off": (b"\x40\x01\x00", 0x81),
    "PUBLISH cut off": (b"\x30\x02\x00\x09", 0x81),
    "SUBSCRIBE cut off": (b"\x82\x01\x00", 0x81),
    "PUBCOMP for a QoS 1 message": (PubComp(1).encode(), 0x82),
}


@VERSIONS
@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_ends_the_connection(served: Served, version: Version, case: str) -> None:
    data, code = WRONG[case]
    watcher = await served.join("w")
    await watcher.subscribe("will")
    peer = await served.join("x", version, will=Will("will", b"gone"))
    if case.startswith("PUBCOMP"):
        await peer.subscribe("a", qos=1)
        publisher = await served.join("p")
        await publisher.publish("a", b"", 1)
        assert (await peer.message(acknowledge=False)).packet_id == 1
    peer.send(data)
    await ends(peer, version, code)
    assert (await watcher.message()).payload == b"gone"
    assert await watcher.sync() == []


@pytest.mark.parametrize(
    "data",
    [
        packet(0xF0, b"\x18", block(b"\x15", text("m"))),
        packet(0xF0, b"\x19", block(b"\x15", text("m"))),
        packet(0xF0),
        Auth(0x00, {"authentication_method": "m"}).encode(),
    ],
    ids=["continue", "again", "bare", "success"],
)
async def test_auth_without_a_method_in_connect(served: Served, data: bytes) -> None:
    peer = await served.join("x")
    peer.send(data)
    await ends(peer, 5, 0x82)


async def test_auth_does_not_exist_in_311(served: Served) -> None:
    peer = await served.join("x", 4)
    peer.send(packet(0xF0, b"\x18", block(b"\x15", text("m"))))
    await ends(peer, 4, 0x81)


PROPERTY_ERRORS = {
    "unknown": (block(b"\x7f\x00"), 0x81),
    "of another packet": (block(b"\x11\0\0\0\1"), 0x81),
    "twice": (block(b"\x01\x00\x01\x00"), 0x82),
    "out of range": (block(b"\x01\x02"), 0x82),
    "cut off": (b"\x03\x02\x00\x00", 0x81),
    "length beyond the packet": (b"\x7f", 0x81),
    "length in too many bytes": (b"\x80\x80\x00", 0x81),
}


@pytest.mark.parametrize("case", PROPERTY_ERRORS)
async def test_properties_that_must_not_be(served: Served, case: str) -> None:
    properties, code = PROPERTY_ERRORS[case]
    peer = await served.join("x")
    peer.send(packet(0x30, text("a"), properties))
    await ends(peer, 5, code)


CONNECT_PROPERTIES = {
    "receive maximum 0": (block(b"\x21\0\0"), 0x82),
    "maximum packet size 0": (block(b"\x27\0\0\0\0"), 0x82),
    "request problem information 2": (block(b"\x17\x02"), 0x82),
    "request response information 2": (block(b"\x19\x02"), 0x82),
    "session expiry twice": (block(b"\x11\0\0\0\1\x11\0\0\0\1"), 0x82),
    "authentication data alone": (block(b"\x16\0\1x"), 0x82),
    "of PUBLISH": (block(b"\x01\x00"), 0x81),
    "unknown": (block(b"\x2b\x00"), 0x81),
}


@pytest.mark.parametrize("case", CONNECT_PROPERTIES)
async def test_properties_of_connect_that_must_not_be(served: Served, case: str) -> None:
    properties, code = CONNECT_PROPERTIES[case]
    peer = await served.attach()
    peer.send(connect(properties=properties) + PingReq().encode())
    (answer,) = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert (answer.reason_code, answer.session_present) == (code, False)


@VERSIONS
async def test_packets_may_come_in_any_pieces(served: Served, version: Version) -> None:
    peer = await served.attach(version)
    data = (
        Connect("x", version, keepalive=0).encode()
        + Subscribe(1, (Subscription("a", 1),)).encode(version)
        + Publish("a", b"x" * 200, 1, packet_id=2).encode(version)
        + PingReq().encode()
    )
    for at in range(len(data)):
        peer.send(data[at : at + 1])
        if at % 50 == 0:
            await served.server.wait_for(lambda at=at: served.server.stats().bytes_in > at)  # type: ignore[misc]
    kinds = [type(await peer.next()).__name__ for _ in range(5)]
    assert kinds[0] == "ConnAck"
    assert sorted(kinds[1:]) == ["PingResp", "PubAck", "Publish", "SubAck"]


@VERSIONS
async def test_acknowledgements_for_nothing_end_nothing(served: Served, version: Version) -> None:
    """Section 4.4: after a reconnect the two ends may disagree on what was finished."""
    peer = await served.join("x", version)
    peer.send(PubAck(9))
    peer.send(PubComp(9))
    assert await peer.sync() == []
    peer.send(PubRec(9))
    assert [type(each).__name__ for each in await peer.sync()] == ["PubRel"]


@VERSIONS
async def test_a_fault_of_the_server_ends_that_connection(
    served: Served, version: Version, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    peer, other = await served.join("x", version), await served.join("y", version)
    monkeypatch.setattr(served.server, "publish", fail)
    peer.send(Publish("a", b"", retain=True))
    await ends(peer, version, 0x83)
    assert "a bug of ours" in caplog.text
    assert await other.sync() == []
