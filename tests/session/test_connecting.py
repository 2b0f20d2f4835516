"""CONNECT and what may come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mqttquic_lab.errors import ConnectError, ConnectRefusedError, ConnectTimeoutError, DisconnectedError, ProtocolError
from mqttquic_lab.mqtt import Auth, ConnAck, Connect, Disconnect, Publish, Version
from mqttquic_lab.session import AsyncSession
from tests.helpers.memory import memory_pair
from tests.session.scripted import ScriptedBroker, hang, scripted


async def begin(version: Version = 5, **options: Any) -> tuple[asyncio.Task[AsyncSession], ScriptedBroker]:
    """Start connecting; CONNECT has arrived."""
    client, server = memory_pair(transport="quic")
    broker = ScriptedBroker(server, version)
    opening = asyncio.create_task(AsyncSession.over(client, version="5.0" if version == 5 else "3.1.1", **options))
    await broker.expect(Connect)
    return opening, broker


async def test_what_connack_tells() -> None:
    told = {
        "assigned_client_identifier": "auto-1",
        "receive_maximum": 7,
        "maximum_qos": 1,
        "retain_available": 0,
        "maximum_packet_size": 1000,
        "server_keep_alive": 30,
        "wildcard_subscription_available": 0,
        "subscription_identifier_available": 0,
        "shared_subscription_available": 0,
    }
    async with scripted(ConnAck(False, 0, told)) as (session, _):
        assert session.state == "connected"
        assert session.client_id == "auto-1"
        limits = session.limits
        assert (limits.receive_maximum, limits.maximum_qos, limits.retain_available) == (7, 1, False)
        assert (limits.maximum_packet_size, limits.keepalive) == (1000, 30)
        assert not limits.wildcards_available
        assert not limits.identifiers_available
        assert not limits.shared_available
        assert session.handshake.connack_properties == told


async def test_the_report_is_complete() -> None:
    async with scripted(ConnAck(True), username="me", password="hunter2", clean_start=False, client_id="c") as (
        session,
        _,
    ):
        report = session.handshake
        assert report.state == "connected"
        assert (report.mqtt_version, report.client_id) == ("5.0", "c")
        assert (report.session_present, report.reason_code) == (True, 0)
        assert 0 <= report.timings["connect_sent"] <= report.timings["connack"]
        assert [(flight.sender, flight.content) for flight in report.flights] == [
            ("client", ("CONNECT",)),
            ("server", ("CONNACK",)),
        ]
        assert report.round_trips == 1
        assert "hunter2" not in str(report.to_dict())
        fields = {name: (start, end, value) for name, start, end, value in report.connect_fields}
        assert fields["username"][2] == "me"
        assert fields["password"][1] - fields["password"][0] >= len("hunter2")
        assert [name for name, *_ in report.connack_fields][:2] == ["packet_type", "remaining_length"]
        assert "hunter2" not in repr([(event.name, event.data) for event in session.trace])


async def test_every_byte_of_connect_has_a_field() -> None:
    async with scripted() as (session, _):
        end = 0
        for _, start, stop, _ in session.handshake.connect_fields:
            assert start == end
            end = stop
        assert end == session.stats.bytes_sent


@pytest.mark.parametrize("version", [5, 4])
@pytest.mark.parametrize(
    ("code", "hint"),
    [(0x86, "username and password"), (0x85, "client_id"), (0x84, "version"), (0x88, "unavailable")],
)
async def test_refused(version: Version, code: int, hint: str) -> None:
    opening, broker = await begin(version)
    properties = {"reason_string": "not you"} if version == 5 else {}
    broker.send(ConnAck(False, code, properties))
    with pytest.raises(ConnectRefusedError, match=hint) as caught:
        await hang(opening)
    assert caught.value.reason_code == code
    assert isinstance(caught.value.packet, ConnAck)
    assert caught.value.reason_string == ("not you" if version == 5 else None)
    assert isinstance(caught.value, ConnectionError)
    await broker.closed()


async def test_another_server_is_named_not_followed() -> None:
    opening, broker = await begin()
    broker.send(ConnAck(False, 0x9D, {"server_reference": "other.example:14567"}))
    with pytest.raises(ConnectRefusedError, match=r"other\.example:14567.*does not follow"):
        await hang(opening)


async def test_an_answer_that_is_no_mqtt() -> None:
    opening, broker = await begin()
    broker.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ConnectError, match="did not accept the session") as caught:
        await hang(opening)
    assert isinstance(caught.value.__cause__, ProtocolError)


async def test_a_packet_before_connack() -> None:
    opening, broker = await begin()
    broker.send(Publish("a", b"x"))
    with pytest.raises(ConnectError, match=r"MQTT-3\.2\.0-1") as caught:
        await hang(opening)
    assert isinstance(caught.value.__cause__, ProtocolError)
    (goodbye,) = await broker.closed()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == 0x82


async def test_auth_is_refused_politely() -> None:
    opening, broker = await begin()
    broker.send(Auth(0x18, {"authentication_method": "SCRAM-SHA-1"}))
    with pytest.raises(ConnectError, match=r"AUTH from the server.*Authentication Method"):
        await hang(opening)
    (goodbye,) = await broker.closed()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == 0x82


async def test_two_connacks() -> None:
    async with scripted() as (session, broker):
        broker.send(ConnAck())
        reason = await hang(session.wait_closed())
        assert isinstance(reason, ProtocolError)
        assert reason.rule == "MQTT-3.2.0-2"


async def test_no_answer() -> None:
    client, _ = memory_pair(transport="tcp")
    with pytest.raises(ConnectTimeoutError, match="did not answer CONNECT"):
        await hang(AsyncSession.over(client, timeout=0.05))
    await hang(asyncio.wait([client.closed]))


async def test_closed_instead_of_answered() -> None:
    opening, broker = await begin()
    broker.connection.control.end()
    with pytest.raises(ConnectError, match="without DISCONNECT") as caught:
        await hang(opening)
    assert isinstance(caught.value.__cause__, DisconnectedError)


async def test_reset_instead_of_answered() -> None:
    opening, broker = await begin()
    broker.connection.control.reset(7)
    with pytest.raises(ConnectError, match="error code 7"):
        await hang(opening)


async def test_cancelling_leaves_nothing_open() -> None:
    opening, broker = await begin()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await broker.closed()


async def test_3_1_1() -> None:
    async with scripted(version=4, client_id="old") as (session, _):
        assert session.version == "3.1.1"
        assert session.handshake.mqtt_version == "3.1.1"
        assert session.limits.maximum_qos == 2


@pytest.mark.parametrize("version", [5, 4])
async def test_disconnect_says_goodbye(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        await hang(session.disconnect())
        (goodbye,) = await broker.closed()
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code == 0
        assert session.state == "closed"
        assert session.close_reason is None
        assert session.handshake.state == "closed"
        assert session.handshake.error is None
        assert session.errors == []
        await hang(session.disconnect())  # again is no error


async def test_disconnect_with_will() -> None:
    async with scripted() as (session, broker):
        await hang(session.disconnect(0x04))
        (goodbye,) = await broker.closed()
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code == 0x04


async def test_disconnect_with_will_of_3_1_1_says_nothing() -> None:
    async with scripted(version=4) as (session, broker):
        await hang(session.disconnect(0x04))
        assert await broker.closed() == []


async def test_a_broker_that_takes_nothing_does_not_delay_the_end() -> None:
    async with scripted() as (session, broker):
        broker.connection.control.pause_reading()
        await session.publish("a", b"x")
        await hang(session.disconnect(timeout=0.05))
        assert session.connection.is_closed


async def test_a_drain_that_the_end_interrupts() -> None:
    async with scripted() as (session, broker):
        broker.connection.control.pause_reading()
        many = asyncio.create_task(session.publish_many([("a", b"x" * 100_000)] * 100))
        for _ in range(20):
            await asyncio.sleep(0)
        broker.connection.abort("power cut")
        with pytest.raises(DisconnectedError, match="power cut"):
            await hang(many)


@pytest.mark.parametrize("verb", ["publish", "publish_many", "subscribe", "ping"])
async def test_verbs_of_a_closed_session(verb: str) -> None:
    async with scripted() as (session, _):
        await hang(session.close())
        arguments: dict[str, tuple[Any, ...]] = {
            "publish": ("a", b""),
            "publish_many": ([],),
            "subscribe": ("a",),
            "ping": (),
        }
        with pytest.raises(DisconnectedError, match="the session was closed"):
            await getattr(session, verb)(*arguments[verb])


async def test_a_stream_is_refused_from_brokers_that_open_none() -> None:
    async with scripted(profile="emqx") as (session, broker):
        stream = broker.connection.open_stream()
        reset = asyncio.get_running_loop().create_future()
        stream.on_reset = reset.set_result
        assert await hang(reset) == 0
        assert "stream 1" in session.errors[0].message
        assert session.state == "connected"
