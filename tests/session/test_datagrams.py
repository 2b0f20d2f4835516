"""Messages in datagrams: when they may, what is said when they may not, and that a loss holds up nothing else."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import DisconnectedError, PublishError, UsageError
from mqttquic_lab.mqtt import ConnAck, Connect, PubAck, Publish, encode_publish
from mqttquic_lab.mqtt.datagram import READS_DATAGRAMS, read_datagram
from mqttquic_lab.session import AsyncSession
from mqttquic_lab.session.datagrams import MAX_RECORDED
from tests.helpers.lossy import Ills, LossyRelay
from tests.helpers.memory import memory_pair
from tests.helpers.quic import settle
from tests.session.scripted import ScriptedBroker, hang, subscribed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.session.conftest import Open

SIZE = 1170


@asynccontextmanager
async def scripted(
    connack: ConnAck | None = None, *, size: int | None = SIZE, **options: Any
) -> AsyncIterator[tuple[AsyncSession, ScriptedBroker, list[Publish]]]:
    """Yield a session over a connection with datagrams, its broker, and the messages that come in datagrams."""
    client, server = memory_pair(transport="quic")
    client.datagram_size = server.datagram_size = size
    messages: list[Publish] = []

    def take(data: bytes) -> None:
        publish = read_datagram(data, receiver="server").publish
        assert publish is not None
        messages.append(publish)

    server.on_datagram = take
    broker = ScriptedBroker(server)
    opening = asyncio.create_task(AsyncSession.over(client, **options))
    packet = await broker.expect(Connect)
    asks = READS_DATAGRAMS in packet.properties.get("user_property", ())
    assert asks == options.get("datagrams", False)
    broker.send(connack or ConnAck())
    session = await hang(opening)
    try:
        yield session, broker, messages
    finally:
        await hang(session.close())


# --- sending ----------------------------------------------------------------------------------------------------


async def test_one_message_in_a_datagram() -> None:
    async with scripted() as (session, broker, messages):
        result = await session.publish("t", "x", retain=True, properties={"user_property": [("a", "b")]}, datagram=True)
        assert result.datagram
        assert (result.reason_code, result.packet_id) == (0, None)
        assert not (await session.publish("t", "y")).datagram
        assert (await broker.expect(Publish)).payload == b"y"
        assert [(m.topic, m.payload, m.qos, m.retain) for m in messages] == [("t", b"x", 0, True)]
        assert messages[0].properties["user_property"] == (("a", "b"),)
        stats = session.stats
        assert (stats.datagrams_sent, stats.messages_sent, stats.datagrams_lost) == (1, 2, 0)


async def test_all_that_fit_go_in_datagrams() -> None:
    async with scripted(datagrams=True) as (session, broker, messages):
        await session.publish("t", b"fits")
        await session.publish("t", bytes(SIZE))
        publishing = asyncio.create_task(session.publish("t", b"acknowledged", 1))
        await session.publish("t", b"told otherwise", datagram=False)
        assert (await broker.expect(Publish)).payload == bytes(SIZE)
        acknowledged, other = await broker.expect(Publish), await broker.expect(Publish)
        if acknowledged.qos == 0:
            acknowledged, other = other, acknowledged
        assert (acknowledged.payload, other.payload) == (b"acknowledged", b"told otherwise")
        broker.send(PubAck(acknowledged.packet_id or 0))
        await hang(publishing)
        assert [m.payload for m in messages] == [b"fits"]
        assert session.errors == []


async def test_many_messages() -> None:
    async with scripted(datagrams=True) as (session, broker, messages):
        sent = [("t", b"%d" % number) for number in range(300)]
        summary = await session.publish_many([*sent, ("t", bytes(SIZE))], timestamp=True)
        assert (summary.count, summary.datagrams) == (301, 300)
        assert len((await broker.expect(Publish)).payload) == SIZE
        await settle(lambda: len(messages) == 300)
        assert [m.payload for m in messages] == [payload for _, payload in sent]
        assert messages[0].properties["user_property"][0][0] == "sent_ns"
        with pytest.raises(UsageError, match="1170 fit"):
            await session.publish_many([("t", b"1"), ("t", bytes(SIZE))], datagram=True)
        assert session.stats.datagrams_sent == 301


async def test_what_is_said_when_it_cannot_be() -> None:
    async with scripted() as (session, broker, messages):
        with pytest.raises(UsageError, match="QoS 0, not 1"):
            await session.publish("t", "x", 1, datagram=True)
        with pytest.raises(UsageError, match=r"takes \d+ bytes, and 1170 fit into a datagram"):
            await session.publish("t", bytes(SIZE), datagram=True)
        largest = bytes(SIZE - len(encode_publish("t", bytes(SIZE))) + SIZE)
        assert (await session.publish("t", largest, datagram=True)).datagram
        with pytest.raises(UsageError, match=r"datagram='yes'"):
            await session.publish("t", "x", datagram="yes")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="topic_alias"):
            await session.publish("t", "x", properties={"topic_alias": 1}, datagram=True)
        assert await broker.sync(session) == []
        assert len(messages) == 1
    with pytest.raises(DisconnectedError):
        await session.publish("t", "x", datagram=True)


async def test_the_brokers_limits_hold() -> None:
    async with scripted(ConnAck(properties={"maximum_packet_size": 50, "retain_available": 0})) as (session, _, _):
        with pytest.raises(PublishError, match="50"):
            await session.publish("t", bytes(60), datagram=True)
        with pytest.raises(PublishError, match="retain"):
            await session.publish("t", "x", retain=True, datagram=True)


async def test_a_peer_that_takes_none() -> None:
    async with scripted(size=None, datagrams=True) as (session, broker, _):
        with pytest.raises(UsageError, match="announced no max_datagram_frame_size"):
            await session.publish("t", "x", datagram=True)
        await session.publish("t", "y")
        assert (await broker.expect(Publish)).payload == b"y"
        assert [error.where for error in session.errors] == ["datagrams"]
        assert "so all messages go on streams" in session.errors[0].message


@pytest.mark.parametrize("profile", ["emqx", "rocketmq"])
async def test_a_broker_known_to_take_none(profile: str) -> None:
    async with scripted(profile=profile) as (session, _, _):
        with pytest.raises(UsageError, match="takes no DATAGRAM frames"):
            await session.publish("t", "x", datagram=True)


async def test_other_transports(connect: Open) -> None:
    for scheme in ("mqtt", "mqtts"):
        session = await connect(scheme)
        with pytest.raises(UsageError, match=r"datagrams are QUIC's .* over T"):
            await session.publish("t", "x", datagram=True)
        with pytest.raises(UsageError, match="datagrams is an option of QUIC"):
            await connect(scheme, datagrams=True)


async def test_datagrams_do_not_put_off_the_ping() -> None:
    async with scripted(keepalive=30) as (session, _, _):
        keepalive = session._channel.keepalive
        before = keepalive.last_sent
        await session.publish("t", "x", datagram=True)
        assert keepalive.last_sent == before


# --- receiving --------------------------------------------------------------------------------------------------


async def test_messages_in_datagrams_flow_into_feeds() -> None:
    async with scripted() as (session, broker, _):
        feed = await subscribed(session, broker, "plant/#")
        seen: list[Any] = []
        session.on_message = seen.append
        session.trace.detail = True
        broker.connection.send_datagram(encode_publish("plant/1", b"21.5"))
        broker.connection.send_datagram(encode_publish("elsewhere", b"?"))
        broker.send(Publish("plant/1", b"22"))
        await settle(lambda: feed.log.total == 2)
        frame = feed.log.frame()
        assert list(frame["value"]) == ["21.5", "22"]
        assert list(frame["stream_id"]) == [-1, 0]
        assert [message.stream_id for message in seen] == [None, None, 0]
        assert session.unrouted.total == 1
        stats = session.stats
        assert (stats.datagrams_received, stats.messages_received, stats.unrouted) == (2, 3, 1)
        traced = [event for event in session.trace if event.data.get("datagram")]
        assert [event.data["type"] for event in traced] == ["PUBLISH", "PUBLISH"]


async def test_somebody_who_waits_is_woken() -> None:
    async with scripted() as (session, broker, _):
        feed = await subscribed(session, broker, "t")
        asyncio.get_running_loop().call_later(0.02, broker.connection.send_datagram, encode_publish("t", b"now"))
        message = await hang(anext(aiter(feed)))
        assert (message.value, message.stream_id) == ("now", None)


async def test_what_cannot_be_read_harms_only_itself() -> None:
    async with scripted() as (session, broker, _):
        feed = await subscribed(session, broker, "t")
        for number in range(MAX_RECORDED + 5):
            broker.connection.send_datagram(b"\xff" * (number + 1))
        broker.connection.send_datagram(b"")
        broker.connection.send_datagram(b"\x00not mqtt")
        broker.connection.send_datagram(Publish("t", b"x", 1, packet_id=1).encode())
        broker.connection.send_datagram(encode_publish("t", b"fine"))
        await settle(lambda: feed.log.total == 1)
        assert await broker.sync(session) == []
        assert session.stats.datagrams_refused == MAX_RECORDED + 6
        assert [error.where for error in session.errors] == ["datagram"] * MAX_RECORDED


@settings(max_examples=150)
@given(data=st.binary(max_size=60))
async def test_whatever_comes_the_session_lives(data: bytes) -> None:
    async with scripted() as (session, broker, _):
        broker.connection.send_datagram(data)
        assert await broker.sync(session) == []
        assert session.state == "connected"


# --- over real QUIC ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def through_a_relay(
    *, datagram_deliveries: bool = False, **options: Any
) -> AsyncIterator[tuple[AsyncSession, AsyncSession, LossyRelay, BrokerServer]]:
    """Yield a session behind a relay, another one that is not, the relay and the broker."""
    config = BrokerConfig(quic_port=0, tls=False, tcp=False, datagram_deliveries=datagram_deliveries)
    async with BrokerServer(config) as broker:
        port = int(broker.urls["quic"].rpartition(":")[2])
        async with LossyRelay(("127.0.0.1", port), seed=3) as relay:
            url = f"quic://127.0.0.1:{relay.address[1]}"
            far = await hang(AsyncSession.open(url, ca_file=broker.ca_file, **options))
            near = await hang(AsyncSession.open(broker.urls["quic"], ca_file=broker.ca_file))
            try:
                yield far, near, relay, broker
            finally:
                relay.ills = Ills()
                await hang(far.close())
                await hang(near.close())


async def test_the_handshake_shows_who_takes_datagrams(connect: Open) -> None:
    session = await connect()
    assert session.handshake.remote_transport_parameters["max_datagram_frame_size"] == 65_535
    assert "max_datagram_frame_size" not in session.handshake.local_transport_parameters
    for options in ({"datagrams": True}, {"streams": "flows"}):
        session = await connect(**options)
        assert session.handshake.local_transport_parameters["max_datagram_frame_size"] == 65_535


@pytest.mark.parametrize(("profile", "size"), [("generic", 65_535), ("mqttv5", 65_535), ("emqx", None)])
async def test_profiles_of_the_broker_show_in_the_handshake(profile: Any, size: int | None) -> None:
    config = BrokerConfig(profile=profile, quic_port=0, tls=False, tcp=False)
    async with BrokerServer(config) as broker:
        session = await hang(AsyncSession.open(broker.url, ca_file=broker.ca_file))
        assert session.handshake.remote_transport_parameters.get("max_datagram_frame_size") == size
        if size is None:
            with pytest.raises(UsageError, match="announced no max_datagram_frame_size"):
                await session.publish("t", "x", datagram=True)
        await hang(session.close())


@pytest.mark.parametrize("options", [{}, {"streams": "flows"}], ids=["mqtt", "MQTT-next"])
async def test_both_ways_through_our_broker(options: dict[str, Any]) -> None:
    async with through_a_relay(datagram_deliveries=True, datagrams=True, **options) as (far, near, _, broker):
        feed = await far.subscribe("#")
        other = await near.subscribe("#")
        await far.publish_many([("t", b"%d" % number) for number in range(500)])
        await settle(lambda: feed.log.total == other.log.total == 500)
        assert set(feed.log.frame()["stream_id"]) == {-1}
        assert set(other.log.frame()["stream_id"]) == {0}
        stats = broker.stats()
        assert (stats.datagrams_in, stats.datagrams_out, stats.datagrams_refused) == (500, 500, 0)
        assert (far.stats.datagrams_sent, far.stats.datagrams_received) == (500, 500)


async def test_lost_datagrams_stay_lost_and_messages_on_streams_do_not() -> None:
    """A tenth of all packets gets lost in either direction."""
    async with through_a_relay() as (far, near, relay, broker):
        datagrams = await near.subscribe("datagram")
        streamed = await near.subscribe("stream")
        relay.ills = Ills(drop=0.1)
        for number in range(300):
            await far.publish("datagram", f"{number}:" + "x" * 800, datagram=True)
            await far.publish("stream", str(number))
            if number % 10 == 9:  # no faster than the path lets them through, so that the figure means something
                await far.ping()
        await settle(lambda: streamed.log.total == 300)
        assert [int(value) for value in streamed.log.frame()["value"]] == list(range(300))
        frames = far.connection.datagram_frames
        assert frames is not None
        await settle(lambda: frames.acknowledged + frames.lost == 300)
        await settle(lambda: datagrams.log.total == broker.stats().datagrams_in)
        arrived = [int(value.partition(":")[0]) for value in datagrams.log.frame()["value"]]
        assert len(set(arrived)) == len(arrived)
        lost = 300 - len(arrived)
        stats = far.stats
        print(
            f"{lost} of 300 datagrams did not arrive, {stats.datagrams_lost} count as lost; of the stream all arrived"
        )
        assert 10 <= lost <= 60
        assert stats.datagrams_lost >= lost
        assert (stats.datagrams_sent, broker.stats().datagrams_in) == (300, len(arrived))


async def test_no_head_of_line_blocking() -> None:
    """While the stream waits for what was lost, later datagrams arrive."""
    async with through_a_relay() as (far, near, relay, _):
        feed = await near.subscribe("#")
        await far.publish("warm", "up")
        await settle(lambda: feed.log.total == 1)
        relay.blackhole = True
        await far.publish("stream", "1")
        await settle(lambda: relay.dropped > 0)
        relay.blackhole = False
        await far.publish("stream", "2")
        await far.publish("datagram", "3", datagram=True)
        await settle(lambda: feed.log.total == 4)
        assert [str(value) for value in feed.log.frame()["value"]] == ["up", "3", "1", "2"]


async def test_counters_go_on_over_a_reconnect() -> None:
    async with through_a_relay(datagrams=True) as (far, _, relay, broker):
        relay.blackhole = True
        await far.publish("t", "lost")
        await settle(lambda: relay.dropped > 0)
        relay.blackhole = False
        await settle(lambda: far.stats.datagrams_lost == 1)
        await hang(far.reconnect())
        await far.publish("t", "arrives")
        await settle(lambda: broker.stats().datagrams_in == 1)
        assert (far.stats.datagrams_sent, far.stats.datagrams_lost) == (2, 1)


async def test_a_lost_connection_is_followed_by_one_with_datagrams() -> None:
    async with through_a_relay(datagrams=True) as (far, _, _, broker):
        far.connection.abort("the link is gone")
        await settle(lambda: far.stats.reconnects == 1)
        assert (await far.publish("t", "arrives", datagram=True)).datagram
        assert (await far.publish("t", "this, too")).datagram
        await settle(lambda: broker.stats().datagrams_in == 2)


async def test_fallback_to_tls_goes_on_without() -> None:
    async with BrokerServer(BrokerConfig(quic=False, tls_port=0, tcp=False)) as broker:
        session = await hang(
            AsyncSession.open(
                "quic://127.0.0.1:9", fallback=broker.urls["mqtts"], ca_file=broker.ca_file, datagrams=True
            )
        )
        assert not (await session.publish("t", "x")).datagram
        assert any("datagrams are QUIC's" in error.message for error in session.errors)
        await session.close()
