"""PUBLISH in datagrams at the broker: what it takes, what it refuses, and to whom it sends any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.datagrams import MAX_EARLY
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import (
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    PubRec,
    Subscribe,
    Subscription,
    encode_publish,
)
from mqttquic_lab.mqtt.datagram import READS_DATAGRAMS, read_datagram
from mqttquic_lab.mqtt.flow_codes import ConnectionCode
from mqttquic_lab.mqtt.flow_header import FlowHeader
from mqttquic_lab.mqtt.properties import EARLY_DATA
from tests.helpers.memory import MemoryConnection

if TYPE_CHECKING:
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer

SIZE = 1170


def ends(peer: Peer) -> tuple[MemoryConnection, MemoryConnection]:
    """Return the client's side of a connection, and the broker's."""
    mine = peer.connection
    assert isinstance(mine, MemoryConnection)
    return mine, mine.peer


def can_send(peer: Peer, size: int | None = SIZE) -> Peer:
    """Let both sides of a connection take datagrams; returns the peer."""
    mine, theirs = ends(peer)
    mine.datagram_size = theirs.datagram_size = size
    return peer


async def join(bench: Bench, client_id: str = "", **connect: Any) -> Peer:
    return can_send(await bench.join(client_id, transport="quic", **connect))


def send(peer: Peer, data: bytes) -> None:
    ends(peer)[0].send_datagram(data)


async def flowing(bench: Bench, client_id: str, **connect: Any) -> Peer:
    """Return a client that speaks MQTT-next, with the control header that the draft asks for."""
    control = can_send(bench.attach(transport="quic", alpn="MQTT-next"))
    control.send(FlowHeader.control().encode())
    assert (await control.connect(client_id, **connect)).reason_code == 0
    return control


def received(peer: Peer) -> list[Publish]:
    """Return the list into which datagrams that a client gets will go."""
    messages: list[Publish] = []

    def take(data: bytes) -> None:
        publish = read_datagram(data, receiver="client").publish
        assert publish is not None
        messages.append(publish)

    ends(peer)[0].on_datagram = take
    return messages


# --- taken ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
async def test_a_message_is_routed_as_any_other(bench: Bench, version: Any) -> None:
    reader = await bench.join("reader")
    await reader.subscribe("plant/#", qos=2, subscription_identifier=[7])
    writer = await join(bench, "writer", version=version)
    properties = {"message_expiry_interval": 60, "user_property": [("unit", "C")]} if version == 5 else None
    send(writer, encode_publish("plant/1", b"21.5", 0, False, False, None, properties, version))
    message = await reader.message()
    assert (message.topic, message.payload, message.qos) == ("plant/1", b"21.5", 0)
    assert message.properties["subscription_identifier"] == (7,)
    if version == 5:
        assert message.properties["message_expiry_interval"] == 60
        assert message.properties["user_property"] == (("unit", "C"),)
    stats = bench.server.stats()
    assert (stats.datagrams_in, stats.datagrams_refused, stats.datagrams_out, stats.messages_in) == (1, 0, 0, 1)
    info = next(info for info in bench.server.clients() if info.client_id == "writer")
    assert (info.datagrams_in, info.messages_in) == (1, 1)


async def test_retained_and_no_local(bench: Bench) -> None:
    writer = await join(bench, "writer")
    await writer.subscribe("t", no_local=True)
    send(writer, encode_publish("t", b"kept", 0, True))
    assert await writer.sync() == []
    reader = await bench.join("reader")
    await reader.subscribe("t")
    message = await reader.message()
    assert (message.payload, message.retain) == (b"kept", True)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00whatever this is"])
async def test_what_is_not_mqtt_is_ignored(bench: Bench, data: bytes) -> None:
    writer = await join(bench)
    send(writer, data)
    assert await writer.sync() == []
    stats = bench.server.stats()
    assert (stats.datagrams_in, stats.datagrams_refused, stats.messages_in) == (1, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        Publish("a", b"x", 1, packet_id=1).encode(),
        Publish("a", b"x", 2, packet_id=1).encode(),
        Publish("a", b"x", properties={"topic_alias": 1}).encode(),
        Publish("a", b"x").encode() * 2,
        Publish("a", b"x").encode() + b"\x00",
        Publish("a", b"xyz").encode()[:-1],
        Publish("a#", b"x").raw or b"\x30\x05\x00\x02a#\x00",
        Connect("again").encode(),
        Subscribe(1, (Subscription("a"),)).encode(),
        PubAck(1).encode(),
        PingReq().encode(),
        Disconnect(0).encode(),
        b"\xff" * 20,
        b"\x30\xff\xff\xff\xff\x01",
    ],
    ids=lambda data: data[:6].hex(),
)
async def test_what_is_refused_harms_only_itself(bench: Bench, data: bytes) -> None:
    """MQoQ 11, level 2: no answer, no end of anything."""
    writer = await join(bench, "writer")
    await writer.subscribe("a", qos=2)
    send(writer, data)
    assert await writer.sync() == []
    stats = bench.server.stats()
    assert (stats.datagrams_refused, stats.messages_in, stats.protocol_errors) == (1, 0, 0)
    send(writer, Publish("a", b"fine").encode())
    assert (await writer.message()).payload == b"fine"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=60), st.tuples(st.sampled_from(range(256)), st.binary(max_size=40)).map(
    lambda pair: bytes([pair[0], len(pair[1])]) + pair[1]
)))  # fmt: skip
@pytest.mark.parametrize("profile", ["generic", "mqttv5"])
async def test_whatever_comes_the_broker_lives(make_bench: MakeBench, caplog: Any, profile: str, data: bytes) -> None:
    caplog.clear()
    bench = await make_bench(profile=profile)
    witness = await bench.join("witness")
    writer = await join(bench, "writer")
    send(writer, data)
    if profile == "generic":
        assert all(isinstance(packet, Publish) for packet in await writer.sync())
    await witness.subscribe("w")
    await witness.publish("w", b"still here", 1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_before_connect_they_wait_within_bounds(bench: Bench) -> None:
    reader = await bench.join("reader")
    await reader.subscribe("t")
    peer = can_send(bench.attach(transport="quic"))
    for number in range(MAX_EARLY + 5):
        send(peer, encode_publish("t", b"%d" % number))
    assert await reader.sync() == []
    stats = bench.server.stats()
    assert (stats.datagrams_in, stats.datagrams_refused) == (MAX_EARLY + 5, 5)
    assert (await peer.connect("late")).reason_code == 0
    messages = [(await reader.message()).payload for _ in range(MAX_EARLY)]
    assert messages == [b"%d" % number for number in range(MAX_EARLY)]


async def test_before_a_connect_that_is_refused_they_are_dropped(make_bench: MakeBench) -> None:
    bench = await make_bench(users={"ann": "secret"})
    reader = await bench.join("reader", username="ann", password=b"secret")
    await reader.subscribe("t")
    peer = can_send(bench.attach(transport="quic"))
    send(peer, encode_publish("t", b"x"))
    assert (await peer.connect("nobody")).reason_code == 0x86
    send(peer, encode_publish("t", b"y"))
    assert await reader.sync() == []
    assert bench.server.stats().messages_in == 0


@pytest.mark.parametrize("before_connect", [False, True])
async def test_early_data_is_marked(bench: Bench, monkeypatch: pytest.MonkeyPatch, before_connect: bool) -> None:
    """What came in 0-RTT packets may be a replay, however it was carried (RFC 9221 section 5.2, RFC 8470)."""
    reader = await bench.join("reader")
    await reader.subscribe("t")
    peer = can_send(bench.attach(transport="quic"))
    if not before_connect:
        await peer.connect()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryConnection, "is_early", True)
        send(peer, encode_publish("t", b"early"))
        await bench.server.wait_for(lambda: bench.server.stats().datagrams_in == 1)
        if before_connect:
            assert await reader.sync() == []
    if before_connect:
        await peer.connect()
    assert (await reader.message()).properties["user_property"] == (EARLY_DATA,)
    assert bench.server.stats().early_messages == 1


async def test_rights_hold_for_datagrams(make_bench: MakeBench) -> None:
    bench = await make_bench(acl=[("*", "publish", "mine/#"), ("*", "subscribe", "#")])
    writer = await join(bench, "writer")
    await writer.subscribe("#")
    send(writer, encode_publish("theirs", b"x"))
    send(writer, encode_publish("mine/1", b"y"))
    assert (await writer.message()).topic == "mine/1"
    assert await writer.sync() == []


async def test_they_count_for_the_keep_alive(bench: Bench) -> None:
    peer = await join(bench, "x", keepalive=10)
    for _ in range(5):
        bench.clock.advance(12)
        send(peer, encode_publish("t", b"x"))
        await bench.server.wait_for(lambda: bench.server.stats().datagrams_in > 0)
        assert await peer.sync() == []
    assert bench.server.stats().keepalive_timeouts == 0


async def test_brokers_that_take_none(make_bench: MakeBench) -> None:
    for profile in ("emqx", "rocketmq"):
        with pytest.raises(UsageError, match="takes no DATAGRAM frames"):
            BrokerConfig(profile=profile, datagrams=True)
    with pytest.raises(UsageError, match="mqttv5 sends no DATAGRAM frames"):
        BrokerConfig(profile="mqttv5", datagram_deliveries=True)
    with pytest.raises(UsageError, match="with datagrams=False there are none"):
        BrokerConfig(datagrams=False, datagram_deliveries=True)
    with pytest.raises(UsageError, match="datagrams=5"):
        BrokerConfig(datagrams=5)  # type: ignore[arg-type]
    bench = await make_bench(profile="emqx")
    peer = await join(bench)
    send(peer, encode_publish("t", b"x"))
    assert await peer.sync() == []
    assert bench.server.stats().datagrams_in == 0


# --- profile mqttv5, as observed on mqttv5-cli 0.29.10 -----------------------------------------------------------


@pytest.fixture
async def mqttv5(make_bench: MakeBench) -> tuple[Bench, Peer, Peer]:
    """A broker, a reader and a writer on it."""
    bench = await make_bench(profile="mqttv5")
    reader = await bench.join("reader")
    await reader.subscribe("t", qos=2)
    return bench, reader, await join(bench, "writer")


async def test_mqttv5_takes_any_packet(mqttv5: tuple[Bench, Peer, Peer]) -> None:
    _, reader, writer = mqttv5
    send(writer, Publish("t", b"1", 1, packet_id=5).encode())
    assert (await writer.expect(PubAck)).packet_id == 5
    assert (await reader.message()).qos == 1
    send(writer, Publish("t", b"2", 2, packet_id=6).encode())
    assert (await writer.expect(PubRec)).packet_id == 6
    send(writer, PingReq().encode())
    await writer.expect(PingResp)
    for nothing in (b"", b"\x00abc"):
        send(writer, nothing)
    assert await writer.sync() == []


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (Publish("t", b"a").encode() + Publish("t", b"b").encode(), b"a" + Publish("t", b"b").encode()),
        (Publish("t", b"a").encode() + b"!", b"a!"),
        (Publish("t", b"abcdef").encode()[:-2], b"abcd"),
    ],
)
async def test_mqttv5_does_not_check_the_length(mqttv5: tuple[Bench, Peer, Peer], data: bytes, payload: bytes) -> None:
    _, reader, writer = mqttv5
    send(writer, data)
    assert (await reader.message()).payload == payload


async def test_mqttv5_obeys_disconnect_in_a_datagram(mqttv5: tuple[Bench, Peer, Peer]) -> None:
    bench, _, writer = mqttv5
    send(writer, Disconnect(0).encode())
    await writer.closed()
    assert ends(writer)[1].close_code == 0
    assert bench.server.stats().protocol_errors == 0


@pytest.mark.parametrize("data", [b"\xff" * 5, b"\x30\x80\x80\x80\x80\x80", b"\x30", b"garbage"])
async def test_mqttv5_closes_because_of_garbage(mqttv5: tuple[Bench, Peer, Peer], data: bytes) -> None:
    _, _, writer = mqttv5
    send(writer, data)
    await writer.closed()
    assert ends(writer)[1].close_code == ConnectionCode.PROTOCOL_L0


async def test_mqttv5_tells_who_sends_connect_in_a_datagram(mqttv5: tuple[Bench, Peer, Peer]) -> None:
    _, _, writer = mqttv5
    send(writer, Connect("again").encode())
    assert (await writer.expect(Disconnect)).reason_code == 0x82
    await writer.closed()
    assert ends(writer)[1].close_code == ConnectionCode.PROTOCOL_L0


# --- sent -------------------------------------------------------------------------------------------------------

ASKS: dict[str, Any] = {"user_property": [READS_DATAGRAMS]}


async def delivering(make_bench: MakeBench) -> Bench:
    bench = await make_bench()
    bench.server.config.datagram_deliveries = True  # the setting wants a QUIC listener, which this bench has not
    return bench


async def ask(bench: Bench, client_id: str = "asks", size: int | None = SIZE, **connect: Any) -> Peer:
    """Return a client that asks for datagrams over the ALPN mqtt."""
    peer = can_send(bench.attach(transport="quic"), size)
    assert (await peer.connect(client_id, **ASKS, **connect)).reason_code == 0
    return peer


async def test_who_reads_datagrams_gets_some(make_bench: MakeBench) -> None:
    bench = await delivering(make_bench)
    writer = await bench.join("writer")
    for peer in (await ask(bench), await flowing(bench, "next")):
        got = received(peer)
        await peer.subscribe("t", qos=1, subscription_identifier=[3])
        await writer.publish("t", b"zero", message_expiry_interval=60)
        await writer.publish("t", b"one", 1)
        assert (await peer.message()).payload == b"one"
        assert [m.payload for m in got] == [b"zero"]
        assert got[0].properties["subscription_identifier"] == (3,)
        assert got[0].properties["message_expiry_interval"] == 60
        info = next(i for i in bench.server.clients() if i.datagrams_out)
        assert (info.datagrams_out, info.messages_out) == (1, 2)
        peer.connection.abort()
    assert bench.server.stats().datagrams_out == 2


async def test_nobody_else_gets_any(make_bench: MakeBench) -> None:
    bench = await delivering(make_bench)
    writer = await bench.join("writer")
    # mqttv5's client announces datagrams, too: with mqtt, and with MQTT-next, where it sends no control header.
    silent = can_send(bench.attach(transport="quic"))
    headless = can_send(bench.attach(transport="quic", alpn="MQTT-next"))
    for peer in (silent, headless):
        await peer.connect()
    small = await ask(bench, "no transport parameter", size=None)
    for peer in (silent, small):
        got = received(peer)
        await peer.subscribe("t")
        await writer.publish("t", b"x")
        assert (await peer.message()).payload == b"x"
        assert got == []
    got = received(headless)
    await headless.subscribe("t")
    await writer.publish("t", b"x")
    assert got == []
    assert bench.server.stats().datagrams_out == 0


async def test_not_unless_the_broker_is_told_to(bench: Bench) -> None:
    peer = await ask(bench)
    got = received(peer)
    await peer.subscribe("t")
    writer = await bench.join("writer")
    await writer.publish("t", b"x")
    assert (await peer.message()).payload == b"x"
    assert got == []


async def test_what_does_not_fit_goes_on_the_stream(make_bench: MakeBench) -> None:
    bench = await delivering(make_bench)
    writer = await bench.join("writer")
    peer = await ask(bench, size=50)
    got = received(peer)
    await peer.subscribe("t")
    await writer.publish("t", b"x" * 60)
    assert (await peer.message()).payload == b"x" * 60
    await writer.publish("t", b"x" * 40)
    await bench.server.wait_for(lambda: bench.server.stats().datagrams_out == 1)
    assert await peer.sync() == []
    assert [len(m.payload) for m in got] == [40]


async def test_the_clients_maximum_packet_size_holds(make_bench: MakeBench) -> None:
    bench = await delivering(make_bench)
    writer = await bench.join("writer")
    peer = await ask(bench, maximum_packet_size=40)
    got = received(peer)
    await peer.subscribe("t")
    await writer.publish("t", b"x" * 60)
    await writer.publish("t", b"y" * 20)
    assert await peer.sync() == []
    assert [m.payload for m in got] == [b"y" * 20]
    assert bench.server.stats().dropped_size == 1


async def test_what_finds_the_queue_full_is_counted(make_bench: MakeBench) -> None:
    bench = await delivering(make_bench)
    writer = await bench.join("writer")
    peer = await ask(bench)
    await peer.subscribe("t")
    ends(peer)[1].datagram_queue_full = True
    await writer.publish("t", b"x")
    assert await peer.sync() == []
    stats = bench.server.stats()
    assert (stats.dropped_qos0, stats.datagrams_out) == (1, 0)
    info = next(info for info in bench.server.clients() if info.client_id == "asks")
    assert info.dropped == 1


async def test_losses_are_shown_and_kept(make_bench: MakeBench) -> None:
    bench = await delivering(make_bench)
    peer = await ask(bench)
    ends(peer)[1].datagram_counters.lost = 3
    assert bench.server.stats().datagrams_lost == 3
    peer.connection.abort()
    await bench.server.wait_for(lambda: not bench.server.clients())
    assert bench.server.stats().datagrams_lost == 3
