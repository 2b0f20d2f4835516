"""Our client against a scripted server: CONNECT, what CONNACK tells it, keep-alive, and its end."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from mqttquic_lab.errors import ConnectError, ConnectRefusedError, DisconnectedError, ProtocolError, UsageError
from mqttquic_lab.mqtt import (
    ConnAck,
    Connect,
    Disconnect,
    KeepAlive,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    PubRec,
    SubAck,
    Subscribe,
    Version,
    Will,
)
from mqttquic_lab.mqtt.reason_codes import ALLOWED, SERVER_ONLY
from mqttquic_lab.session import AsyncSession, channel
from tests.conformance.octets import block, packet, text
from tests.helpers.memory import memory_pair
from tests.session.scripted import ScriptedBroker, hang, scripted

VERSIONS = pytest.mark.parametrize("version", [4, 5])


async def begin(version: Version = 5, **options: Any) -> tuple[asyncio.Task[AsyncSession], ScriptedBroker, Connect]:
    """Start connecting; returns CONNECT, which has arrived."""
    client, server = memory_pair(transport="tcp")
    broker = ScriptedBroker(server, version)
    opening = asyncio.create_task(AsyncSession.over(client, version="5.0" if version == 5 else "3.1.1", **options))
    return opening, broker, await broker.expect(Connect)


async def failure(opening: asyncio.Task[AsyncSession]) -> BaseException | None:
    with pytest.raises(ConnectError) as caught:
        await hang(opening)
    return caught.value.__cause__


# CONNECT


@VERSIONS
async def test_connect_is_the_first_packet_and_comes_once(version: Version) -> None:
    opening, broker, _ = await begin(version, client_id="x")
    assert not broker.inbox  # nothing goes out before the answer
    broker.send(ConnAck())
    session = await hang(opening)
    await session.publish("a", b"x")
    assert [type(each) for each in await broker.sync(session)] == [Publish]
    await hang(session.close())
    assert [type(each) for each in await broker.closed()] == [Disconnect]


@VERSIONS
async def test_every_field_of_connect_is_in_its_place(version: Version) -> None:
    will = Will("the/will", b"its payload", 2, True)
    opening, broker, asked = await begin(
        version, client_id="the client", username="the user", password=b"\xff\0", keepalive=20, will=will
    )
    properties = b"\0" if version == 5 else b""
    assert asked.raw == packet(
        0x10, text("MQTT"), bytes((version, 0xF6)), b"\0\x14", properties, text("the client"), properties,
        text("the/will"), text(b"its payload"), text("the user"), text(b"\xff\0"),
    )  # fmt: skip
    broker.send(ConnAck())
    await hang((await opening).close())


@VERSIONS
@pytest.mark.parametrize("options", [{}, {"username": "u"}, {"username": "u", "password": ""}], ids=str)
async def test_flags_tell_what_follows(version: Version, options: dict[str, Any]) -> None:
    opening, broker, asked = await begin(version, client_id="x", **options)
    flags = asked.raw[9]
    assert flags == 0x02 | 0x80 * ("username" in options) | 0x40 * ("password" in options)
    password = b"" if "password" in options else None
    assert (asked.username, asked.password, asked.will) == (options.get("username"), password, None)
    broker.send(ConnAck())
    await hang((await opening).close())


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
async def test_flags_of_a_will(version: Version, qos: int, retain: bool) -> None:
    opening, broker, asked = await begin(version, client_id="x", will=Will("w", b"", qos, retain))
    assert asked.raw[9] == 0x06 | qos << 3 | 0x20 * retain
    broker.send(ConnAck())
    await hang((await opening).close())


@pytest.mark.parametrize(
    "options",
    [
        {"client_id": "a\0b"}, {"client_id": "\ud800"}, {"username": "\0"}, {"username": "\udfff"},
        {"user_properties": [("a", "\0")]}, {"user_properties": [("\ud800", "b")]},
        {"will": Will("a\0")}, {"will": Will("a/#")}, {"will": Will("")}, {"will": Will("a", qos=3)},
        {"will": Will("a", properties={"content_type": "\0"})}, {"will": Will("a", properties={"response_topic": "#"})},
        {"client_id": "x" * 65_536}, {"will": Will("x" * 65_536)}, {"receive_maximum": 0}, {"maximum_packet_size": 0},
        {"version": "3.1.1", "client_id": "", "clean_start": False}, {"version": "3.1.1", "password": "p"},
    ],
    ids=lambda options: str(options)[:50],
)  # fmt: skip
async def test_what_connect_must_not_carry_is_refused_before_it_is_sent(options: dict[str, Any]) -> None:
    client, server = memory_pair(transport="tcp")
    broker = ScriptedBroker(server)
    with pytest.raises(UsageError):
        await AsyncSession.over(client, **options)
    assert not broker.inbox


@VERSIONS
async def test_without_a_name_the_client_asks_for_a_clean_start(version: Version) -> None:
    opening, broker, asked = await begin(version)
    assert (asked.client_id, asked.clean_start) == ("", True)
    broker.send(ConnAck(properties={"assigned_client_identifier": "given"} if version == 5 else {}))
    session = await hang(opening)
    assert session.client_id == ("given" if version == 5 else "")
    await hang(session.close())


# CONNACK


@VERSIONS
async def test_a_session_that_the_client_does_not_have(version: Version) -> None:
    """It asked for a clean start, and is told that a session goes on."""
    opening, broker, _ = await begin(version, client_id="x", clean_start=True)
    broker.send(ConnAck(session_present=True))
    cause = await failure(opening)
    assert isinstance(cause, ProtocolError)
    assert cause.rule == ("MQTT-3.2.2-4" if version == 5 else "MQTT-3.2.2-1")
    goodbyes = [each.reason_code for each in await broker.closed() if isinstance(each, Disconnect)]
    assert goodbyes == ([0x82] if version == 5 else [])


@VERSIONS
async def test_a_session_that_the_client_asked_for(version: Version) -> None:
    opening, broker, asked = await begin(version, client_id="x", clean_start=False)
    assert not asked.clean_start
    broker.send(ConnAck(session_present=True))
    session = await hang(opening)
    assert session.handshake.session_present
    await hang(session.close())


BAD_ANSWERS = {
    "reserved acknowledge flags": (b"\x20\x03\x02\x00\x00", b"\x20\x02\x02\x00", 0x81),
    "refused, but with a session": (b"\x20\x03\x01\x87\x00", b"\x20\x02\x01\x05", 0x82),
    "a code of another packet": (b"\x20\x03\x00\x10\x00", b"\x20\x02\x00\x06", 0x82),
    "reserved flags": (b"\x21\x03\x00\x00\x00", b"\x21\x02\x00\x00", 0x81),
    "cut off": (b"\x20\x01\x00", b"\x20\x01\x00", 0x81),
    "PUBLISH": (Publish("a", b"").encode(), Publish("a", b"").encode(4), 0x82),
    "PINGRESP": (PingResp().encode(), PingResp().encode(), 0x82),
    "SUBACK": (SubAck(1, [0]).encode(), SubAck(1, [0]).encode(4), 0x82),
}


@VERSIONS
@pytest.mark.parametrize("case", BAD_ANSWERS)
async def test_an_answer_that_must_not_be_ends_the_connection(version: Version, case: str) -> None:
    newer, older, code = BAD_ANSWERS[case]
    opening, broker, _ = await begin(version)
    broker.send(newer if version == 5 else older)
    assert isinstance(await failure(opening), ProtocolError)
    goodbyes = [each.reason_code for each in await broker.closed() if isinstance(each, Disconnect)]
    assert goodbyes == ([code] if version == 5 else [])


@pytest.mark.parametrize("code", sorted(ALLOWED["CONNACK"] - {0}))
async def test_after_a_refusal_nothing_follows(code: int) -> None:
    opening, broker, _ = await begin()
    broker.send(ConnAck(False, code))
    with pytest.raises(ConnectRefusedError) as caught:
        await hang(opening)
    assert caught.value.reason_code == code
    assert await broker.closed() == []


@pytest.mark.parametrize("code", range(1, 6))
async def test_after_a_refusal_of_311_nothing_follows(code: int) -> None:
    opening, broker, _ = await begin(4)
    broker.send(bytes((0x20, 2, 0, code)))
    with pytest.raises(ConnectRefusedError):
        await hang(opening)
    assert await broker.closed() == []


# Keep-alive


@pytest.mark.parametrize(("told", "used"), [({}, 60), ({"server_keep_alive": 7}, 7), ({"server_keep_alive": 0}, 0)])
async def test_the_servers_keep_alive_is_the_one_that_holds(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, int], used: int
) -> None:
    intervals = []

    def clockwork(interval: float, *arguments: Any) -> KeepAlive:
        intervals.append(interval)
        return KeepAlive(interval, *arguments)

    monkeypatch.setattr(channel, "KeepAlive", clockwork)
    async with scripted(ConnAck(properties=told), keepalive=60) as (session, _):
        assert intervals == [used]
        assert session.limits.keepalive == used


@VERSIONS
async def test_an_idle_client_pings_before_the_interval_is_over(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        session._channel.start_keepalive(0.05)
        for _ in range(3):
            assert isinstance(await broker.next(), PingReq)
            broker.send(PingResp())
        assert session.state == "connected"


async def test_a_server_that_does_not_answer_a_ping_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The goodbye has a code that clients may send: that of a keep-alive timeout is the server's."""
    monkeypatch.setattr(channel, "KeepAlive", functools.partial(KeepAlive, response_timeout=0.05))
    async with scripted() as (session, broker):
        session._channel.start_keepalive(0.05)
        reason = await hang(session.wait_closed())
        assert isinstance(reason, DisconnectedError)
        assert reason.reason_code == 0x8D
        packets = await broker.closed()
        assert isinstance(packets[0], PingReq)
        assert isinstance(packets[-1], Disconnect)
        assert packets[-1].reason_code == 0x80


# The end


@VERSIONS
async def test_after_disconnect_nothing_follows_and_the_connection_closes(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        publishing = asyncio.create_task(session.publish("a", b"x", 1))
        message = await broker.expect(Publish)
        ending = asyncio.create_task(session.disconnect())
        assert isinstance(await broker.next(), Disconnect)
        broker.send(
            PubAck(message.packet_id or 0), Publish("b", b"", 1, packet_id=7), Publish("b", b"", 2, packet_id=8)
        )
        await hang(ending)
        assert await broker.closed() == []
        with pytest.raises(DisconnectedError):
            await publishing


@pytest.mark.parametrize("code", [*sorted(SERVER_ONLY["DISCONNECT"]), 0x01, 0x18, 0x92, 999])
async def test_disconnect_with_a_code_that_is_not_the_clients(code: int) -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError, match="reason code"):
            await session.disconnect(code)
        assert await broker.sync(session) == []
        assert session.state == "connected"


@pytest.mark.parametrize("code", sorted(ALLOWED["DISCONNECT"] - SERVER_ONLY["DISCONNECT"]))
async def test_disconnect_with_a_code_of_the_clients(code: int) -> None:
    async with scripted() as (session, broker):
        await hang(session.disconnect(code))
        (goodbye,) = await broker.closed()
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code == code
        assert not goodbye.properties


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_disconnect_is_no_larger_than_the_server_takes(limit: int) -> None:
    for code in (0x00, 0x04):
        async with scripted(ConnAck(properties={"maximum_packet_size": limit}), keepalive=0) as (session, broker):
            await hang(session.disconnect(code))
            assert len(await broker.closed()) == (limit >= (3 if code else 2))
    async with scripted(ConnAck(properties={"maximum_packet_size": limit}), keepalive=0) as (session, broker):
        broker.send(b"\x00\x00")
        assert isinstance(await hang(session.wait_closed()), ProtocolError)
        assert len(await broker.closed()) == (limit >= 3)


@pytest.mark.parametrize("code", [0x00, 0x80, 0x8B, 0x8E, 0x9C])
async def test_after_a_disconnect_of_the_server_nothing_follows(code: int) -> None:
    async with scripted() as (session, broker):
        broker.send(Disconnect(code).encode() + Publish("a", b"", 1, packet_id=7).encode() + PingResp().encode())
        reason = await hang(session.wait_closed())
        assert isinstance(reason, DisconnectedError)
        assert reason.reason_code == code
        assert await broker.closed() == []


# What the server must not send

WRONG: dict[str, tuple[bytes, int]] = {
    "reserved flags of DISCONNECT": (b"\xe1\x00", 0x81),
    "reserved flags of AUTH": (packet(0xF3, b"\x18", block(b"\x15", text("m"))), 0x81),
    "AUTH though there was no method": (packet(0xF0, b"\x18", block(b"\x15", text("m"))), 0x82),
    "reserved flags of PUBREL": (b"\x60\x02\x00\x01", 0x81),
    "reserved flags of SUBACK": (b"\x91\x04\x00\x01\x00\x00", 0x81),
    "reserved flags of PINGRESP": (b"\xd8\x00", 0x81),
    "type 0": (b"\x00\x00", 0x81),
    "five bytes of length": (b"\x30\xff\xff\xff\xff\x01", 0x81),
    "length in too many bytes": (b"\xd0\x80\x00", 0x81),
    "property length in too many bytes": (packet(0x30, text("a"), b"\x80\x00"), 0x81),
    "CONNECT": (Connect("x").encode(), 0x82),
    "SUBSCRIBE": (packet(0x82, b"\0\1", b"\0", text("a"), b"\0"), 0x82),
    "PINGREQ": (PingReq().encode(), 0x82),
    "a second CONNACK": (ConnAck().encode(), 0x82),
    "QoS 3": (packet(0x36, text("a"), b"\0\1", b"\0"), 0x81),
    "DUP at QoS 0": (packet(0x38, text("a"), b"\0"), 0x81),
    "packet identifier 0": (packet(0x32, text("a"), b"\0\0", b"\0"), 0x82),
    "a wildcard in the topic": (packet(0x30, text("a/#"), b"\0"), 0x90),
    "no topic": (packet(0x30, text(""), b"\0"), 0x82),
    "a surrogate in the topic": (packet(0x30, text(b"\xed\xa0\x80"), b"\0"), 0x81),
    "U+0000 in the topic": (packet(0x30, text("\0"), b"\0"), 0x81),
    "U+0000 in the response topic": (packet(0x30, text("a"), block(b"\x08", text("\0"))), 0x81),
    "a wildcard in the response topic": (packet(0x30, text("a"), block(b"\x08", text("+"))), 0x82),
    "bad UTF-8 in the content type": (packet(0x30, text("a"), block(b"\x03", text(b"\xff"))), 0x81),
    "bad UTF-8 in a user property": (packet(0x30, text("a"), block(b"\x26", text("n"), text(b"\xc0\xaf"))), 0x81),
    "topic alias 0": (packet(0x30, text("a"), block(b"\x23\0\0")), 0x94),
    "a topic alias that was not allowed": (packet(0x30, text("a"), block(b"\x23\0\1")), 0x94),
    "session expiry in DISCONNECT": (packet(0xE0, b"\0", block(b"\x11\0\0\0\1")), 0x82),
    "a client's code in DISCONNECT": (b"\xe0\x01\x04", 0x82),
    "no code of PUBACK": (b"\x40\x03\x00\x01\x01", 0x82),
    "no code of PUBREC": (b"\x50\x03\x00\x01\x92", 0x82),
    "no code of PUBREL": (b"\x62\x03\x00\x01\x80", 0x82),
    "no code of PUBCOMP": (b"\x70\x03\x00\x01\x10", 0x82),
    "no code of SUBACK": (b"\x90\x04\x00\x01\x00\x03", 0x82),
    "no code of UNSUBACK": (b"\xb0\x04\x00\x01\x00\x02", 0x82),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_ends_the_connection_with_its_reason(case: str) -> None:
    data, code = WRONG[case]
    async with scripted() as (session, broker):
        broker.send(data + Publish("b", b"", 1, packet_id=7).encode())
        reason = await hang(session.wait_closed())
        assert isinstance(reason, ProtocolError)
        (goodbye,) = await broker.closed()
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code == code


WRONG_IN_311 = {
    "reserved flags of PUBREL": b"\x60\x02\x00\x01",
    "reserved flags of PUBACK": b"\x42\x02\x00\x01",
    "DISCONNECT": b"\xe0\x00",
    "AUTH": b"\xf0\x00",
    "QoS 3": packet(0x36, text("a"), b"\0\1"),
    "packet identifier 0": packet(0x32, text("a"), b"\0\0"),
    "a wildcard in the topic": packet(0x30, text("a/#")),
    "a surrogate in the topic": packet(0x30, text(b"\xed\xa0\x80")),
    "U+0000 in the topic": packet(0x30, text("\0")),
    "a second CONNACK": b"\x20\x02\x00\x00",
    "SUBSCRIBE": packet(0x82, b"\0\1", text("a"), b"\0"),
    "no code of SUBACK": b"\x90\x03\x00\x01\x03",
    "five bytes of length": b"\x30\xff\xff\xff\xff\x01",
}


@pytest.mark.parametrize("case", WRONG_IN_311)
async def test_what_is_wrong_in_311_ends_the_connection(case: str) -> None:
    async with scripted(version=4) as (session, broker):
        broker.send(WRONG_IN_311[case] + Publish("b", b"", 1, packet_id=7).encode(4))
        assert isinstance(await hang(session.wait_closed()), ProtocolError)
        assert await broker.closed() == []


async def test_packets_of_the_server_may_come_in_any_pieces() -> None:
    async with scripted(chunk=1) as (session, broker):
        asking = asyncio.create_task(session.subscribe("a", 1))
        asked = await broker.expect(Subscribe)
        broker.send(SubAck(asked.packet_id, [1]), Publish("a", b"x" * 300, 1, packet_id=9), PingResp())
        feed = await hang(asking)
        assert (await broker.expect(PubAck)).packet_id == 9
        assert feed.df["payload"].tolist() == [b"x" * 300]


async def test_a_refusing_pubrec_has_no_answer() -> None:
    async with scripted() as (session, broker):
        publishing = asyncio.create_task(session.publish("a", b"x", 2))
        message = await broker.expect(Publish)
        broker.send(PubRec(message.packet_id or 0, 0x87))
        assert await broker.sync(session) == []
        assert isinstance(await asyncio.gather(publishing, return_exceptions=True), list)
