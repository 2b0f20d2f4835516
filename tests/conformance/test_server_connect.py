"""CONNECT and CONNACK as the server has to treat them (MQTT 5.0 sections 3.1 and 3.2, 3.1.1 likewise)."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    ReasonCode,
    SubAck,
    Subscribe,
    Subscription,
    Will,
)
from tests.conformance.octets import connect, packet, text

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.peer import Peer
    from tests.conformance.conftest import MakeServed, Served

VERSIONS = pytest.mark.parametrize("version", [4, 5])


def lasting(version: Version) -> dict[str, Any]:
    """Options of a client whose session outlives its connection."""
    return {"clean_start": False, **({"session_expiry_interval": 1000} if version == 5 else {})}


def messages(packets: list[Packet]) -> list[tuple[str, bytes]]:
    return [(each.topic, each.payload) for each in packets if isinstance(each, Publish)]


async def last_words(peer: Peer) -> list[int]:
    """Wait for the end; return the reason codes of the DISCONNECTs before it."""
    return [each.reason_code for each in await peer.closed() if isinstance(each, Disconnect)]


# 3.1 and 3.1.2: what a CONNECT has to look like


@VERSIONS
@pytest.mark.parametrize(
    "first",
    [PingReq(), Publish("a", b"x"), Subscribe(1, (Subscription("a"),)), Disconnect(), PubAck(1)],
    ids=lambda each: each.NAME,
)
async def test_the_first_packet_must_be_connect(served: Served, version: Version, first: Packet) -> None:
    peer = await served.attach(version)
    peer.send(first.encode(version) + Connect("x", version).encode())
    assert await peer.closed() == []
    assert served.server.stats().sessions == 0


@VERSIONS
async def test_a_second_connect_ends_the_connection(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will")
    peer = await served.join("x", version, will=Will("will", b"gone"))
    peer.send(Connect("x", version))
    assert await last_words(peer) == ([0x82] if version == 5 else [])
    assert (await watcher.message()).payload == b"gone"


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("MQTT", 0), ("MQTT", 3), ("MQTT", 6), ("MQTT", 255), ("MQTT", 0x83), ("MQTT", 0x84), ("MQTT", 0x85),
        ("MQIsdp", 3), ("MQIsdp", 0x83), ("mqtt", 5), ("MQTTX", 5), ("", 5),
    ],
)  # fmt: skip
async def test_another_protocol_or_version_is_refused(served: Served, name: str, level: int) -> None:
    # Answered in the form of the nearest version that we speak. (0x83 and 0x84 are 3 and 4, as bridges write them.)
    later = name == "MQTT" and level > 5 and level not in (0x83, 0x84)
    peer = await served.attach(5 if later else 4)
    peer.send(connect(name=name, level=level) + PingReq().encode())
    expected = b"\x20\x03\x00\x84\x00" if later else b"\x20\x02\x00\x01"
    assert [answer.raw for answer in await peer.closed()] == [expected]
    assert served.server.stats().sessions == 0


BAD_FLAGS = {
    "reserved bit": (0x03, b""),
    "will QoS without a will": (0x0A, b""),
    "will retain without a will": (0x22, b""),
    "will QoS 3": (0x1E, text("w") + text("payload")),
    "will flag, but no will topic": (0x06, b""),
    "will flag, but no will payload": (0x06, text("w")),
    "no will flag, but a will": (0x02, text("w") + text("payload")),
    "user name flag, but none": (0x82, b""),
    "no user name flag, but one": (0x02, text("ann")),
    "password flag, but none": (0xC2, text("ann")),
    "no password flag, but one": (0x82, text("ann") + text("secret")),
}


@VERSIONS
@pytest.mark.parametrize("case", BAD_FLAGS)
async def test_flags_and_payload_must_agree(served: Served, version: Version, case: str) -> None:
    flags, payload = BAD_FLAGS[case]
    if version == 5 and flags & 0x04:
        payload = b"\0" + payload
    peer = await served.attach(version)
    peer.send(connect(payload, level=version, flags=flags))
    answers = await peer.closed()
    if version == 4:
        assert answers == []
    else:
        (answer,) = answers
        assert isinstance(answer, ConnAck)
        assert answer.reason_code == 0x81
    assert served.server.stats().sessions == 0


async def test_a_password_without_a_user_name(served: Served) -> None:
    """3.1.1 forbids it, 5.0 allows it (section 3.1.2.9)."""
    older = await served.attach(4)
    older.send(connect(text("secret"), level=4, flags=0x42))
    assert await older.closed() == []
    newer = await served.attach()
    newer.send(connect(text("secret"), flags=0x42))
    assert (await newer.expect(ConnAck)).reason_code == 0


@VERSIONS
async def test_a_connect_without_a_client_identifier_is_malformed(served: Served, version: Version) -> None:
    peer = await served.attach(version)
    peer.send(packet(0x10, text("MQTT"), bytes((version, 2)), b"\0\0", b"\0" if version == 5 else b""))
    answers = await peer.closed()
    assert [type(answer) for answer in answers] == ([ConnAck] if version == 5 else [])
    assert served.server.stats().sessions == 0


@VERSIONS
async def test_every_field_of_connect_is_read_from_its_place(make_served: MakeServed, version: Version) -> None:
    asked: list[Any] = []

    def authenticate(*credentials: Any) -> bool:
        asked.append(credentials)
        return True

    served = await make_served(authenticate=authenticate)
    watcher = await served.join("w")
    await watcher.subscribe("the/will", qos=2)
    del asked[:]
    peer = await served.attach(version)
    will_properties = b"\0" if version == 5 else b""
    peer.send(
        connect(
            will_properties, text("the/will"), text("its payload"), text("the user"), text(b"\xff\0"),
            level=version, flags=0xD6, client_id="the client",
        )
    )  # fmt: skip
    assert (await peer.expect(ConnAck)).reason_code == 0
    assert asked == [("the client", "the user", b"\xff\0")]
    await peer.vanish()
    will = await watcher.message()
    assert (will.topic, will.payload, will.qos) == ("the/will", b"its payload", 2)


# 3.1.2.4: Clean Start, and what CONNACK says of it


@VERSIONS
async def test_clean_start_discards_what_was_there(served: Served, version: Version) -> None:
    peer = await served.join("x", version, **lasting(version))
    await peer.subscribe("a", qos=1)
    await served.lose(peer, "x")
    publisher = await served.join("p")
    await publisher.publish("a", b"missed", 1)
    back = await served.attach(version)
    answer = await back.connect("x", clean_start=True)
    assert answer.raw[2:4] == b"\x00\x00"
    await publisher.publish("a", b"later", 1)
    assert await back.sync() == []


@VERSIONS
async def test_without_clean_start_the_session_goes_on(served: Served, version: Version) -> None:
    first = await served.attach(version)
    assert (await first.connect("x", **lasting(version))).raw[2:4] == b"\x00\x00"
    await first.subscribe("a", qos=1)
    await served.lose(first, "x")
    publisher = await served.join("p")
    await publisher.publish("a", b"missed", 1)
    back = await served.attach(version)
    answer = await back.connect("x", clean_start=False)
    assert answer.raw[2:4] == b"\x01\x00"
    assert (await back.message()).payload == b"missed"
    await publisher.publish("a", b"later", 1)
    assert (await back.message()).payload == b"later"


@VERSIONS
async def test_without_a_session_one_is_made_that_lasts(served: Served, version: Version) -> None:
    first = await served.attach(version)
    assert not (await first.connect("x", **lasting(version))).session_present
    await served.lose(first, "x")
    again = await served.attach(version)
    assert (await again.connect("x", clean_start=False)).session_present


async def test_a_session_with_clean_session_1_leaves_nothing(served: Served) -> None:
    """3.1.1: it lasts as long as its connection."""
    peer = await served.join("x", 4, clean_start=True)
    await peer.subscribe("a", qos=1)
    await served.lose(peer, "x")
    back = await served.attach(4)
    assert not (await back.connect("x", clean_start=False)).session_present
    publisher = await served.join("p", 4)
    await publisher.publish("a", b"x", 1)
    assert await back.sync() == []


@VERSIONS
async def test_sessions_are_told_apart_by_client_identifier(served: Served, version: Version) -> None:
    for client_id in ("x", "X", "x "):
        peer = await served.join(client_id, version, **lasting(version))
        await peer.subscribe(f"for/{client_id}", qos=1)
        await served.lose(peer, client_id)
    publisher = await served.join("p")
    for client_id in ("x", "X", "x "):
        await publisher.publish(f"for/{client_id}", client_id.encode(), 1)
    for client_id in ("X", "x ", "x"):
        back = await served.attach(version)
        assert (await back.connect(client_id, clean_start=False)).session_present
        assert messages(await back.sync()) == [(f"for/{client_id}", client_id.encode())]


# 3.1.2.5 to 3.1.2.7: the will


@VERSIONS
async def test_a_will_is_published_once(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will", qos=1)
    peer = await served.join("x", version, will=Will("will", b"gone", 1), **lasting(version))
    await served.lose(peer, "x")
    assert messages(await watcher.sync()) == [("will", b"gone")]
    back = await served.join("x", version, **lasting(version))  # without a will
    await served.lose(back, "x")
    assert messages(await watcher.sync()) == []


@VERSIONS
async def test_no_will_no_message(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("#", qos=1)
    peer = await served.join("x", version)
    await served.lose(peer, "x")
    assert await watcher.sync() == []


@VERSIONS
@pytest.mark.parametrize("retain", [False, True])
async def test_will_retain(served: Served, version: Version, retain: bool) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will", retain_as_published=True)
    peer = await served.join("x", version, will=Will("will", b"gone", 0, retain))
    await peer.vanish()
    assert (await watcher.message()).retain == retain
    late = await served.join("late", version)
    await late.subscribe("will")
    assert [each.retain for each in await late.sync() if isinstance(each, Publish)] == [True] * retain


@VERSIONS
async def test_a_normal_end_removes_the_will(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will")
    peer = await served.join("x", version, will=Will("will", b"gone"), **lasting(version))
    await peer.leave()
    await served.gone("x")
    served.clock.advance(2000)  # the session ends as well
    assert await watcher.sync() == []


async def test_will_properties_travel_with_it(served: Served) -> None:
    pairs = (("b", "1"), ("a", "2"), ("b", "1"), ("", ""))
    told = {
        "payload_format_indicator": 1, "content_type": "text/plain", "response_topic": "r", "correlation_data": b"\0c",
        "user_property": pairs,
    }  # fmt: skip
    watcher = await served.join("w")
    await watcher.subscribe("will", qos=1)
    peer = await served.join("x", will=Will("will", b"gone", 1, properties={**told, "message_expiry_interval": 30}))
    await peer.vanish()
    will = await watcher.message()
    assert dict(will.properties) == {**told, "message_expiry_interval": 30}


async def test_a_will_waits_for_its_delay_but_not_for_a_client_that_came_back(served: Served) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will/+", qos=1)
    for client_id in ("late", "back", "short"):
        will = Will(f"will/{client_id}", b"gone", 1, properties={"will_delay_interval": 30})
        expiry = 10 if client_id == "short" else 1000
        peer = await served.join(client_id, clean_start=False, session_expiry_interval=expiry, will=will)
        await served.lose(peer, client_id)
    served.clock.advance(9.5)
    assert await watcher.sync() == []
    served.clock.advance(0.5)  # the session of one is over, and with it its delay
    assert messages(await watcher.sync()) == [("will/short", b"gone")]
    await served.join("back", clean_start=False, session_expiry_interval=1000)
    served.clock.advance(19.5)
    assert await watcher.sync() == []
    served.clock.advance(0.5)
    assert messages(await watcher.sync()) == [("will/late", b"gone")]
    served.clock.advance(5000)
    assert await watcher.sync() == []


# 3.1.2.10: keep-alive


@VERSIONS
async def test_silence_for_one_and_a_half_keep_alives_ends_the_connection(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("will")
    peer = await served.join("x", version, keepalive=20, will=Will("will", b"gone"))
    for _ in range(2):
        served.clock.advance(29)
        assert await peer.sync() == []
    served.clock.advance(29)
    assert await watcher.sync() == []
    served.clock.advance(1)
    assert await last_words(peer) == ([0x8D] if version == 5 else [])
    assert (await watcher.message()).payload == b"gone"


@VERSIONS
async def test_any_packet_counts_for_the_keep_alive(served: Served, version: Version) -> None:
    peer = await served.join("x", version, keepalive=20)
    for number in range(1, 4):
        served.clock.advance(29)
        await peer.publish("a", b"", 1, packet_id=number)
    served.clock.advance(29)
    await peer.subscribe("a")
    served.clock.advance(29)
    assert await peer.sync() == []


@VERSIONS
async def test_half_a_packet_does_not_count_for_the_keep_alive(served: Served, version: Version) -> None:
    peer = await served.join("x", version, keepalive=20)
    packet_id = b"\0\1"
    slowly = packet(0x32, text("a"), packet_id, b"\0" if version == 5 else b"", bytes(10))
    for at in range(3):
        seen = served.server.stats().bytes_in
        peer.send(slowly[at : at + 1])
        await served.server.wait_for(lambda seen=seen: served.server.stats().bytes_in > seen)  # type: ignore[misc]
        served.clock.advance(10)
    assert await last_words(peer) == ([0x8D] if version == 5 else [])


async def test_a_large_packet_may_take_longer_than_the_keep_alive(served: Served) -> None:
    peer = await served.join("x", keepalive=20)
    data = Publish("a", bytes(20_000), 1, packet_id=1).encode()
    for start in range(0, len(data), 4000):
        seen = served.server.stats().bytes_in
        peer.send(data[start : start + 4000])
        size = min(4000, len(data) - start)
        await served.server.wait_for(lambda total=seen + size: served.server.stats().bytes_in >= total)  # type: ignore[misc]
        served.clock.advance(25)
    assert (await peer.expect(PubAck)).packet_id == 1


async def test_the_clients_keep_alive_holds_unless_the_server_names_another(make_served: MakeServed) -> None:
    served = await make_served(max_keepalive=50)
    peer = await served.attach()
    answer = await peer.connect("x", keepalive=20)
    assert "server_keep_alive" not in answer.properties
    other = await served.attach()
    assert (await other.connect("y", keepalive=500)).properties["server_keep_alive"] == 50
    served.clock.advance(30)
    assert await last_words(peer) == [0x8D]
    assert await other.sync() == []
    served.clock.advance(75)
    assert await last_words(other) == [0x8D]


# 3.1.2.11: Maximum Packet Size


async def test_connack_is_no_larger_than_the_client_takes(served: Served) -> None:
    """A client that takes no whole CONNACK is refused: with words, without, or without an answer at all."""
    whole = len((await (await served.attach()).connect("first")).raw)
    codes: list[int] = []
    for limit in range(1, whole + 3):
        peer = await served.attach()
        peer.send(Connect("x", keepalive=0, properties={"maximum_packet_size": limit}))
        answers = await peer.closed() if limit < whole else [await peer.next()]
        assert all(len(answer.raw) <= limit for answer in answers)
        codes += [answer.reason_code for answer in answers if isinstance(answer, ConnAck)]
    assert codes == [0x95] * (whole - 5) + [0] * 3


async def test_the_reason_string_of_connack_is_left_out_where_it_does_not_fit(served: Served) -> None:
    reasons = []
    for limit in (1, 4, 5, 20, 40, 60, 80, 200):
        peer = await served.attach()
        peer.send(Connect("x", properties={"maximum_packet_size": limit, "authentication_method": "NOT-THERE"}))
        answers = await peer.closed()
        assert len(answers) == (limit >= 5)
        for answer in answers:
            assert isinstance(answer, ConnAck)
            assert (answer.reason_code, len(answer.raw) <= limit) == (0x8C, True)
            reasons.append("reason_string" in answer.properties)
    assert reasons[0] is False
    assert reasons[-1] is True


async def test_no_packet_is_larger_than_the_client_takes(served: Served) -> None:
    peer = await served.join("x", maximum_packet_size=60)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    for size in (10, 40, 50, 60, 200, 20_000):
        for qos in (0, 1, 2):
            await publisher.publish("a", bytes(size), qos)
            if size <= 50:
                message = await peer.message()
                assert len(message.payload) == size
                assert len(message.raw) <= 60
    assert await peer.sync() == []
    assert served.server.stats().dropped_size == 9


async def test_what_is_too_large_counts_as_sent(served: Served) -> None:
    """Messages that were left out neither hold up others nor come back with the session."""
    options: dict[str, Any] = {"clean_start": False, "session_expiry_interval": 100, "receive_maximum": 1}
    peer = await served.join("x", maximum_packet_size=60, **options)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    for qos in (1, 2):
        await publisher.publish("a", bytes(100), qos)
        await publisher.publish("a", b"small", qos)
        assert (await peer.message()).payload == b"small"
    await peer.sync()
    await served.lose(peer, "x")
    await publisher.publish("a", bytes(100), 1)
    await publisher.publish("a", b"small", 1)
    back = await served.join("x", maximum_packet_size=60, **options)
    assert (await back.message()).payload == b"small"
    assert await back.sync() == []


# 3.1.2.11.6 and 3.1.2.11.7: Response Information, Problem Information


@pytest.mark.parametrize("asked", [{}, {"request_response_information": 0}])
async def test_no_response_information_unless_asked(served: Served, asked: dict[str, Any]) -> None:
    peer = await served.attach()
    assert "response_information" not in (await peer.connect("x", **asked)).properties


async def test_no_words_for_a_client_that_wants_none(make_served: MakeServed) -> None:
    served = await make_served(max_subscriptions=1)
    peer = await served.join("x", request_problem_information=0)
    await peer.subscribe("a")
    peer.send(Subscribe(1, (Subscription("b"), Subscription("c"))))
    refused = await peer.expect(SubAck)
    assert (refused.reason_codes, dict(refused.properties)) == ((0x97, 0x97), {})
    peer.send(Publish("$SYS/x", b"", 1, packet_id=5))
    assert dict((await peer.expect(PubAck)).properties) == {}
    peer.send(Publish("nobody", b"", 1, packet_id=6))
    assert dict((await peer.expect(PubAck)).properties) == {}


# 3.1.3.1: client identifiers


@VERSIONS
async def test_plain_client_identifiers_of_1_to_23_bytes(served: Served, version: Version) -> None:
    alphabet = string.digits + string.ascii_lowercase + string.ascii_uppercase
    names = [alphabet[start : start + length] for start, length in ((0, 1), (0, 23), (23, 23), (46, 16), (61, 1))]
    for name in names:
        await served.join(name, version)
    assert [client.client_id for client in served.server.clients()] == names


@VERSIONS
async def test_a_client_without_a_name_gets_one_of_its_own(served: Served, version: Version) -> None:
    peers = [await served.attach(version) for _ in range(3)]
    answers = [await peer.connect("") for peer in peers]
    names = [client.client_id for client in served.server.clients()]
    assert len(set(names)) == 3
    if version == 5:
        assert [answer.properties["assigned_client_identifier"] for answer in answers] == names
    named = await served.attach()
    assert "assigned_client_identifier" not in (await named.connect("mine")).properties


async def test_an_assigned_name_can_be_used(served: Served) -> None:
    peer = await served.attach()
    answer = await peer.connect("", session_expiry_interval=100)
    name = answer.properties["assigned_client_identifier"]
    await served.lose(peer, name)
    back = await served.attach()
    assert (await back.connect(name, clean_start=False)).session_present


async def test_a_311_client_without_a_name_cannot_keep_a_session(served: Served) -> None:
    peer = await served.attach(4)
    peer.send(connect(level=4, flags=0x00, client_id=""))
    assert [answer.raw for answer in await peer.closed()] == [b"\x20\x02\x00\x02"]
    assert served.server.stats().sessions == 0


@VERSIONS
async def test_a_client_identifier_that_is_refused(make_served: MakeServed, version: Version) -> None:
    served = await make_served(authenticate=lambda *_: ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    peer = await served.attach(version)
    assert (await peer.connect("x")).raw == (b"\x20\x03\x00\x85\x00" if version == 5 else b"\x20\x02\x00\x02")
    assert await peer.closed() == []


# 3.1.4: what the server does with a CONNECT


@VERSIONS
async def test_the_same_client_again_ends_the_connection_before(served: Served, version: Version) -> None:
    first = await served.join("x", version, **lasting(version))
    second = await served.attach(version)
    assert (await second.connect("x", **lasting(version))).session_present
    assert await last_words(first) == ([0x8E] if version == 5 else [])
    assert len(served.server.clients()) == 1
    assert await second.sync() == []


@VERSIONS
async def test_nothing_after_a_connect_that_was_refused_is_looked_at(make_served: MakeServed, version: Version) -> None:
    served = await make_served(users={"ann": "secret"})
    credentials: dict[str, Any] = {"username": "ann", "password": b"secret"}
    peer = await served.attach(version)
    follows = [
        Publish("a", b"x", 1, True, packet_id=1),
        Subscribe(1, (Subscription("#"),)),
        Connect("x", version, **credentials),
        PingReq(),
    ]
    peer.send(Connect("x", version).encode() + b"".join(each.encode(version) for each in follows))
    (answer,) = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0x86
    stats = served.server.stats()
    assert (stats.sessions, stats.retained, stats.messages_in, stats.subscriptions) == (0, 0, 0, 0)


@VERSIONS
async def test_connack_is_the_first_answer(served: Served, version: Version) -> None:
    """Though messages wait for the session, and though the client did not wait for CONNACK."""
    peer = await served.join("x", version, **lasting(version))
    await peer.subscribe("a", qos=1)
    await served.lose(peer, "x")
    publisher = await served.join("p")
    await publisher.publish("a", b"missed", 1)
    back = await served.attach(version)
    hello = Connect("x", version, clean_start=False, keepalive=0).encode()
    back.send(hello + Subscribe(5, (Subscription("b"),)).encode(version) + PingReq().encode())
    kinds = [type(await back.next()) for _ in range(4)]
    assert kinds[0] is ConnAck
    assert set(kinds[1:]) == {Publish, SubAck, PingResp}


@VERSIONS
@pytest.mark.parametrize("known", [False, True], ids=["stranger", "has a session"])
async def test_a_refusal_has_no_session_and_ends_the_connection(
    make_served: MakeServed, version: Version, known: bool
) -> None:
    served = await make_served(users={"ann": "secret"})
    if known:
        peer = await served.join("x", version, username="ann", password=b"secret", **lasting(version))
        await served.lose(peer, "x")
    other = await served.attach(version)
    answer = await other.connect("x", username="ann", password=b"wrong", **lasting(version))
    assert answer.raw == (b"\x20\x03\x00\x86\x00" if version == 5 else b"\x20\x02\x00\x04")
    assert await other.closed() == []
    assert served.server.stats().sessions == known


@VERSIONS
@pytest.mark.parametrize("code", [0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x97, 0x9F, 0x18, 0x92, 0x04, 999])
async def test_a_refusal_has_a_code_of_connack(make_served: MakeServed, version: Version, code: int) -> None:
    """The decoder of the peer takes no other; whatever the broker's owner returned."""
    served = await make_served(authenticate=lambda *_: code)
    peer = await served.attach(version)
    answer = await peer.connect("x")
    assert answer.reason_code >= 0x80
    if version == 4:
        assert answer.raw[3] in (2, 3, 4, 5)
    assert await peer.closed() == []
