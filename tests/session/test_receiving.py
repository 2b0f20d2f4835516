"""What arrives: messages, farewells, nonsense, and nothing at all."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import DisconnectedError, MalformedPacketError, OperationTimeoutError, ProtocolError
from mqttquic_lab.mqtt import (
    ConnAck,
    Disconnect,
    KeepAlive,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Version,
)
from mqttquic_lab.session import channel
from tests.session.scripted import hang, scripted, subscribed

if TYPE_CHECKING:
    from mqttquic_lab.records.message import Message

VERSIONS: list[Version] = [5, 4]


@pytest.mark.parametrize("version", VERSIONS)
async def test_at_least_once_is_acknowledged(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "a", 1)
        broker.send(Publish("a", b"1", 1, packet_id=10), Publish("a", b"2", 1, dup=True, packet_id=11))
        assert [(await broker.expect(PubAck)).packet_id for _ in range(2)] == [10, 11]
        assert feed.df["dup"].tolist() == [False, True]


@pytest.mark.parametrize("version", VERSIONS)
async def test_exactly_once(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "a", 2)
        for dup in (False, True, True):
            broker.send(Publish("a", b"1", 2, dup=dup, packet_id=10))
            assert (await broker.expect(PubRec)).packet_id == 10
        broker.send(PubRel(10))
        answer = await broker.expect(PubComp)
        assert (answer.packet_id, answer.reason_code) == (10, 0)
        assert feed.total == 1
        assert session.stats.duplicates == 2
        broker.send(Publish("a", b"2", 2, packet_id=10))
        await broker.expect(PubRec)
        assert feed.total == 2


async def test_a_pubrel_for_nothing() -> None:
    async with scripted() as (_, broker):
        broker.send(PubRel(99))
        assert (await broker.expect(PubComp)).reason_code == 0x92


async def test_the_columns_of_a_message() -> None:
    async with scripted(client_id="me") as (session, broker):
        feed = await subscribed(session, broker, "a/#", decode="json")
        broker.send(Publish("a/b", b'{"c":1}', 1, True, packet_id=9, properties={"content_type": "json"}))
        await hang(feed.wait(1))
        row = feed.df.iloc[0]
        assert (row["topic"], row["payload"], row["value"]) == ("a/b", b'{"c":1}', {"c": 1})
        assert (row["qos"], bool(row["retain"]), row["packet_id"], row["stream_id"]) == (1, True, 9, 0)
        assert row["session"] == "me"
        (message,) = [feed.log.message(0)]
        assert dict(message.properties) == {"content_type": "json"}


async def test_latency_comes_from_the_senders_clock() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        await session.publish("a", b"x", timestamp=True)
        packet = await broker.expect(Publish)
        broker.send(packet, Publish("a", b"y"))
        await hang(feed.wait(2))
        first, second = feed.df["latency"]
        assert 0 <= first < 5
        assert second != second  # NaN: unknown


async def test_messages_for_nobody_are_kept_for_a_look() -> None:
    async with scripted() as (session, broker):
        broker.send(Publish("x", b"1", 1, packet_id=1), Publish("y", b"2"))
        await broker.expect(PubAck)
        assert session.stats.unrouted == 2
        assert session.unrouted.frame()["topic"].tolist() == ["x", "y"]
        assert session.unrouted.max_messages == 1000


# Topic aliases


async def test_topic_aliases() -> None:
    async with scripted(topic_alias_maximum=2) as (session, broker):
        feed = await subscribed(session, broker, "#")
        broker.send(
            Publish("long/topic", b"1", properties={"topic_alias": 2}),
            Publish("", b"2", properties={"topic_alias": 2}),
            Publish("other", b"3", properties={"topic_alias": 2}),
            Publish("", b"4", properties={"topic_alias": 2}),
        )
        await hang(feed.wait(4))
        assert feed.df["topic"].tolist() == ["long/topic", "long/topic", "other", "other"]


@pytest.mark.parametrize(
    ("publish", "code"),
    [
        (Publish("a", b"", properties={"topic_alias": 3}), 0x94),
        (Publish("", b"", properties={"topic_alias": 1}), 0x82),
    ],
    ids=["beyond the maximum", "never set"],
)
async def test_bad_topic_aliases(publish: Publish, code: int) -> None:
    async with scripted(topic_alias_maximum=2) as (session, broker):
        broker.send(publish)
        reason = await hang(session.wait_closed())
        assert isinstance(reason, ProtocolError)
        (goodbye,) = await broker.closed()
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code == code


async def test_more_than_our_receive_maximum() -> None:
    async with scripted(receive_maximum=2) as (session, broker):
        broker.send(*(Publish("a", b"", 2, packet_id=n) for n in (1, 2, 3)))
        reason = await hang(session.wait_closed())
        assert isinstance(reason, ProtocolError)
        packets = await broker.closed()
        assert isinstance(packets[-1], Disconnect)
        assert packets[-1].reason_code == 0x93


# Nonsense


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_malformed_packet(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "a")
        waiting = [
            asyncio.create_task(session.publish("a", b"x", 1)),
            asyncio.create_task(session.subscribe("b")),
            asyncio.create_task(session.ping()),
            asyncio.create_task(feed.wait(5)),
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # A good message, and then PUBLISH with QoS 3 [MQTT-3.3.1-4].
        broker.send(Publish("a", b"good"), b"\x36\x05\0\1a\0\1")
        for outcome in await hang(asyncio.gather(*waiting, return_exceptions=True)):
            assert isinstance(outcome, DisconnectedError)
            assert isinstance(outcome.__cause__, MalformedPacketError)
            assert outcome.reason_code == 0x81
        assert feed.total == 1
        assert session.state == "closed"
        assert isinstance(session.close_reason, MalformedPacketError)
        (record,) = session.errors
        assert record.where == "decoder"
        assert "MQTT-3.3.1-4" in record.message
        assert record.message in str(session.handshake.error)
        packets = await broker.closed()
        farewells = [packet for packet in packets if isinstance(packet, Disconnect)]
        assert [farewell.reason_code for farewell in farewells] == ([0x81] if version == 5 else [])


async def test_a_packet_over_our_maximum() -> None:
    async with scripted(maximum_packet_size=100) as (session, broker):
        broker.send(Publish("a", b"x" * 200))
        reason = await hang(session.wait_closed())
        assert isinstance(reason, ProtocolError)
        (goodbye,) = await broker.closed()
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code == 0x95


@pytest.mark.parametrize(
    "junk", [b"\x00\x00", b"\xff" * 10, b"\x30\xff\xff\xff\xff", b"\x10\x00", b"\x20\x03\x02\x00\x00"]
)
async def test_junk(junk: bytes) -> None:
    async with scripted(chunk=1) as (session, broker):
        broker.send(junk)
        assert isinstance(await hang(session.wait_closed()), ProtocolError)


async def test_a_fault_of_ours_ends_the_session_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted() as (session, broker):
        publishing = asyncio.create_task(session.publish("a", b"x", 1))
        await broker.expect(Publish)

        def broken(*_: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(session._receiver, "publish", broken)
        broker.send(Publish("a", b"x"))
        with pytest.raises(DisconnectedError, match="RuntimeError: a bug"):
            await hang(publishing)
        assert session.errors[0].where == "session"


# Farewells


async def test_the_broker_disconnects() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        broker.send(
            Disconnect(0x9D, {"reason_string": "moved", "server_reference": "other.example"}), Publish("a", b"after")
        )
        reason = await hang(session.wait_closed())
        assert isinstance(reason, DisconnectedError)
        assert (reason.reason_code, reason.reason_string) == (0x9D, "moved")
        assert isinstance(reason.packet, Disconnect)
        assert "other.example" in str(reason)
        assert session.handshake.error == str(reason)
        assert session.errors[0].where == "broker"
        assert feed.total == 0
        assert await broker.closed() == []  # no DISCONNECT in answer


async def test_a_peers_words_do_not_reach_the_terminal_raw() -> None:
    async with scripted() as (session, broker):
        words = "\x1b[2J\u202etfel" + "x" * 1000
        broker.send(Disconnect(0x98, {"reason_string": words}))
        reason = await hang(session.wait_closed())
        assert isinstance(reason, DisconnectedError)
        assert reason.reason_string == words
        assert "\x1b" not in str(reason)
        assert "\u202e" not in str(reason)
        assert "\\x1b[2J" in str(reason)
        assert len(str(reason)) < 700


@pytest.mark.parametrize("how", ["end", "reset", "abort"])
async def test_the_connection_goes_without_a_word(how: str) -> None:
    async with scripted() as (session, broker):
        if how == "abort":
            broker.connection.abort("power cut")
        else:
            getattr(broker.connection.control, how)()
        assert isinstance(await hang(session.wait_closed()), DisconnectedError)
        assert session.state == "closed"
        assert session.errors[0].where == "transport"
        with pytest.raises(DisconnectedError):
            await session.publish("a")


# Keep-alive


async def test_a_dead_broker_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "KeepAlive", functools.partial(KeepAlive, response_timeout=0.05))
    async with scripted(ConnAck(properties={"server_keep_alive": 1})) as (session, broker):
        waiting = asyncio.create_task(session.publish("a", b"x", 1))
        await broker.expect(Publish)
        assert isinstance(await broker.next(), PingReq)
        with pytest.raises(DisconnectedError, match="counts as dead"):
            await hang(waiting)
        reason = await hang(session.wait_closed())
        assert isinstance(reason, DisconnectedError)
        assert reason.reason_code == 0x8D
        assert session.errors[0].where == "keep-alive"


async def test_a_quiet_broker_is_pinged_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "KeepAlive", functools.partial(KeepAlive, response_timeout=5))
    async with scripted() as (session, broker):
        session._channel.start_keepalive(0.02)
        for _ in range(3):
            assert isinstance(await broker.next(), PingReq)
            broker.send(PingResp())
        assert session.state == "connected"
        assert session.stats.pings >= 3


async def test_no_keepalive_no_ping() -> None:
    async with scripted(keepalive=0) as (session, _):
        assert session._channel._timer is None


async def test_ping() -> None:
    async with scripted() as (session, broker):
        pinging = asyncio.create_task(session.ping())
        await broker.expect(PingReq)
        broker.send(PingResp())
        assert await hang(pinging) > 0
        with pytest.raises(OperationTimeoutError, match=r"no PINGRESP within 0\.02 s"):
            await session.ping(timeout="20ms")
        broker.send(PingResp(), PingResp())  # late, and one too many
        await broker.expect(PingReq)
        await broker.sync(session)
        assert session.state == "connected"


# The callback


async def test_on_message_sees_everything() -> None:
    async with scripted() as (session, broker):
        seen: list[Message] = []
        session.on_message = seen.append
        await subscribed(session, broker, "a")
        broker.send(Publish("a", b"1", 1, packet_id=1), Publish("elsewhere", b"2"))
        await broker.expect(PubAck)
        assert [(m.topic, m.payload, m.qos) for m in seen] == [("a", b"1", 1), ("elsewhere", b"2", 0)]
        session.on_message = None
        broker.send(Publish("a", b"3"))
        await broker.sync(session)
        assert len(seen) == 2


async def test_a_callback_that_fails_is_recorded() -> None:
    async with scripted() as (session, broker):

        def fails(_: Message) -> None:
            raise ValueError("my bug")

        session.on_message = fails
        broker.send(Publish("a", b"1"))
        await broker.sync(session)
        assert session.state == "connected"
        assert session.errors[0].where == "on_message"
        assert session.errors[0].message == "ValueError: my bug"


async def test_errors_are_bounded_and_counted() -> None:
    async with scripted() as (session, _):
        for number in range(250):
            session.record_error("test", str(number))
        assert [record.message for record in session.errors] == [str(number) for number in range(150, 250)]
        assert session.stats.errors == 250


async def test_packets_are_traced_only_on_request() -> None:
    async with scripted() as (session, broker):
        await session.publish("a", b"secret")
        before = len(session.trace)
        session.trace.detail = True
        await broker.sync(session)
        events = [(event.name, event.data.get("type")) for event in list(session.trace)[before:]]
        assert ("packet_sent", "PINGREQ") in events
        assert ("packet_received", "PINGRESP") in events
